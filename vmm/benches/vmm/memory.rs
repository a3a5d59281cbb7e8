//! What the process keeps in memory beside its guest's.

use std::io::Read;
use std::process::Child;

use crate::guest::Guest;
use crate::programs::{MEM_MIB, Program, Programs};
use crate::report::{Report, Row};
use crate::rounds::Summary;

/// Times that each is measured.
const TIMES: usize = 5;

/// Resident memory outside mappings that are as big as the guest's memory, in KiB.
fn beside_the_guest(child: &Child) -> f64 {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id())).expect("only root sees this file");
    let (mut total, mut size) = (0, 0);
    for line in maps.lines() {
        let number = || line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        if line.starts_with("Size:") {
            size = number();
        } else if line.starts_with("Rss:") && size < MEM_MIB * 1024 {
            total += number();
        }
    }
    f64::from(u32::try_from(total).expect("less than a terabyte"))
}

fn measure(program: &Program, at: &std::path::Path) -> f64 {
    let mut child = program.command(at).spawn().expect("a program that was found");
    let mut output = child.stdout.take().expect("standard output is a pipe");
    let mut byte = [0];
    while byte != *b"!" {
        assert!(output.read(&mut byte).is_ok_and(|count| count == 1), "{}: no sign of the guest", program.name);
    }
    let size = beside_the_guest(&child);
    child.kill().expect("a child");
    child.wait().expect("a child");
    size
}

/// Measures every VMM while its guest runs.
pub fn run(report: &mut Report, programs: &Programs) {
    report.section("Resident memory of the process without the guest's, while the guest runs");
    let at = programs.guest("memory", &Guest::new().print("!").hang());
    for program in &programs.all {
        let figures = (0..TIMES).map(|_| measure(program, &at)).collect();
        report.row(Row::figure("tiny guest, 1 vCPU, 128 MiB", program.name, Summary::of(figures), "KiB"));
    }
}
