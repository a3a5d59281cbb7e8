//! What the process keeps in memory beside its guest's.

use std::io::Read;
use std::process::Child;

use crate::guest::Guest;
use crate::programs::{MEM_MIB, Program, Programs};
use crate::report::{Report, Row};
use crate::rounds::Summary;
use crate::virtio::{BUFFERS, FIRST, Queue, WRITE};

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
    // With both disks' drivers ready, and a request to each.
    let disks = [FIRST, FIRST + 0x1000].map(|device| Queue::at(device, 0, 256));
    let guest = disks.iter().fold(Guest::new(), |guest, queue| {
        let (header, status, data) = (BUFFERS, BUFFERS + 0x100, BUFFERS + 0x1000);
        let guest = guest.virtio_start(queue.device, 0, &[*queue]).store64(header, 0).store64(header + 8, 0);
        let parts = [(header, 16, 0), (data, 4096, WRITE), (status, 1, WRITE)];
        guest.request(*queue, 1, 0, &parts.map(|(address, len, flags)| (u64::from(address), len, flags)))
    });
    let at = programs.guest_with_disks("disks", &guest.print("!").hang(), disks.len());
    for program in programs.all.iter().filter(|program| program.is_ours) {
        let figures = (0..TIMES).map(|_| measure(program, &at)).collect();
        report.row(Row::figure("the same with two disks", program.name, Summary::of(figures), "KiB"));
    }
}
