//! How fast and how small the VMM is: `scripts/bench vmm`.
//!
//! Times are on the clock, from the call that starts the program; ratios are of turns in the same round. In the [`lab`]
//! the clock counts instructions. See SPECIFICATION.md.

mod busy;
#[path = "../../tests/vm/guest.rs"]
#[allow(dead_code)]
mod guest;
mod lab;
mod memory;
mod programs;
#[path = "../../../attest/benches/attest/report.rs"]
mod report;
#[path = "../../../attest/benches/attest/rounds.rs"]
#[allow(dead_code)]
mod rounds;
mod start;
#[path = "../../tests/vm/virtio.rs"]
#[allow(dead_code)]
mod virtio;

use std::cell::LazyCell;
use std::path::PathBuf;

use report::Report;

/// What is measured when nobody says what.
const PARTS: [&str; 2] = ["start", "memory"];

fn main() {
    let (mut json, mut rounds, mut vmm, mut before, mut parts) = (None, 101, None, None, Vec::new());
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == lab::inside::WORD).is_some() {
        return lab::inside::main(&arguments.collect::<Vec<_>>());
    }
    if arguments.next_if(|first| first == lab::load::WORD).is_some() {
        return lab::load::main(&arguments.next().expect("a kind of load"));
    }
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
        match argument.as_str() {
            "--json" => json = Some(PathBuf::from(value())),
            "--vmm" => vmm = Some(PathBuf::from(value())),
            "--before" => before = Some(PathBuf::from(value())),
            "--rounds" => rounds = value().parse().expect("--rounds takes a number"),
            // Cargo says so to every benchmark.
            "--bench" => {}
            _ => parts.push(argument),
        }
    }
    if parts.is_empty() {
        parts = PARTS.map(str::to_owned).to_vec();
    }
    let mut report = Report::default();
    let vmm = vmm.expect("--vmm says where portcullis-vmm is");
    let programs = LazyCell::new(|| programs::Programs::find(vmm.clone(), before.clone()));
    for part in parts {
        match part.as_str() {
            "start" => start::run(&mut report, rounds, &programs),
            "memory" => memory::run(&mut report, &programs),
            "busy" => busy::run(&mut report, &programs),
            "boot" => lab::boot::run(&mut report, &vmm),
            "io" => lab::io::run(&mut report, &vmm),
            _ => panic!("no part is called {part}"),
        }
    }
    if let Some(file) = json {
        report.write(&file).expect("the file for the figures cannot be written");
    }
}
