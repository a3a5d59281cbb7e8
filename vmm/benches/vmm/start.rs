//! From the start of the program to the guest's first sign of life, and to the program's end.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::programs::{Program, Programs, short_lived};
use crate::report::{Report, Row};
use crate::rounds::{Contender, run as run_rounds};

/// The guest's first sign of life.
const SIGN: u8 = b'!';

/// What the kernel gets to take the last VM apart: it is not this one's.
const SETTLE: Duration = Duration::from_millis(5);

/// One life of a VM: until its first sign, and until its end.
fn life(program: &Program, at: &Path) -> (Duration, Duration) {
    std::thread::sleep(SETTLE);
    let start = Instant::now();
    let mut child = program.command(at).spawn().expect("a program that was found");
    let mut output = child.stdout.take().expect("standard output is a pipe");
    let mut byte = [0];
    // Some print of themselves before the guest does.
    while byte != [SIGN] {
        assert!(output.read(&mut byte).is_ok_and(|count| count == 1), "{}: no sign of the guest", program.name);
    }
    let sign = start.elapsed();
    child.wait().expect("a child");
    (sign, start.elapsed())
}

/// Measures every VMM that runs the guest.
pub fn run(report: &mut Report, rounds: usize, programs: &Programs) {
    let at = programs.guest("start", &short_lived());
    for (title, which) in [
        ("From the program's start to the guest's first byte on the serial line", 0),
        ("From the program's start to its end, the guest resets at once", 1),
    ] {
        report.section(title);
        let mut contenders: Vec<Contender<'_>> = programs
            .all
            .iter()
            .map(|program| {
                let at = at.clone();
                Contender::told(program.name, move || {
                    let (sign, end) = life(program, &at);
                    if which == 0 { sign } else { end }
                })
            })
            .collect();
        run_rounds(&mut contenders, rounds);
        let floor = contenders.get(1).expect("the floor");
        for contender in &contenders {
            report.row(Row::of("tiny guest, 1 vCPU, 128 MiB", contender).against(contender, floor));
        }
    }
    for name in &programs.missing {
        report.attention(&format!("{name} is not installed: it is not compared"));
    }
}
