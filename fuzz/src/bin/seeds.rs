//! Writes each target's seeds into a folder of its name, and prints its name and its longest input, a line for each.
//!
//!   seeds FOLDER [RECORDINGS]
//!
//! It is built with the flags of the fuzzers, and so needs their library: it does its work before that begins.
#![no_main]

use std::path::Path;
use std::process::exit;
use std::{env, fs, io};

use portcullis_fuzz::recordings::Recordings;
use portcullis_fuzz::{attest, vmm};

libfuzzer_sys::fuzz_target!(init: write_and_exit(), |_bytes: &[u8]| {});

fn write_and_exit() {
    let result = write();
    if let Err(error) = &result {
        eprintln!("seeds: {error}");
    }
    exit(if result.is_ok() { 0 } else { 2 });
}

fn write() -> io::Result<()> {
    let mut arguments = env::args_os().skip(1);
    let folder = arguments.next().ok_or_else(|| io::Error::other("usage: seeds FOLDER [RECORDINGS]"))?;
    let mut recordings = Recordings::of_the_lab();
    if let Some(more) = arguments.next() {
        recordings.add_folder(Path::new(&more))?;
    }
    for target in attest::TARGETS.iter().chain(vmm::TARGETS) {
        let folder = Path::new(&folder).join(target.name);
        fs::create_dir_all(&folder)?;
        for (seed, number) in target.short_seeds(&recordings).into_iter().zip(1_usize..) {
            fs::write(folder.join(format!("seed-{number:05}")), seed)?;
        }
        println!("{} {}", target.name, target.max_len);
    }
    Ok(())
}
