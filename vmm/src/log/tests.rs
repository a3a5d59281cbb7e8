use std::io::Write;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn written(event: &Event) -> String {
    let sink = Sink::default();
    let out = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_writer(move || out.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || event.emit());
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn every_event_is_read_back_as_it_was_written() {
    let mark = Mark { source: MarkSource::Port80, value: 123, boot_us: 1_234_567, cpu_us: 89 };
    let end = |reason, error: Option<&str>| Event::End {
        reason,
        error: error.map(str::to_owned),
        text: error.map(|e| format!("words of {e} with \"quotes\" and \n a newline")),
        run_us: 5,
        serial_out: 6,
        serial_lost: 7,
    };
    for event in [
        Event::Start { id: "web-1".into(), version: "0.1.0".into(), pid: 7, vcpus: 2, mem_mib: 128 },
        Event::Confined {
            seccomp: true,
            landlock: "partial".into(),
            no_new_privs: true,
            capabilities: true,
            user: "own".into(),
        },
        Event::Running { setup_us: 900 },
        Event::GuestBoot(mark),
        Event::GuestMark(Mark { source: MarkSource::Mmio, ..mark }),
        Event::Registers(Box::new(Registers { vcpu: 3, rip: u64::MAX, cr0: 0x8000_0011, ..Registers::default() })),
        end(EndReason::Reset, None),
        end(EndReason::PowerOff, None),
        end(EndReason::Killed, None),
        end(EndReason::Error, Some("triple-fault")),
    ] {
        let text = written(&event);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line = LogLine::parse(text.trim_end()).unwrap_or_else(|| panic!("not read back: {text}"));
        assert_eq!(line.event, event, "{text}");
    }
}

#[test]
fn later_versions_and_other_output_are_told_apart() {
    let later = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","event":"paused","by":"api"}"#;
    assert_eq!(LogLine::parse(later).unwrap().event, Event::Other);
    for other in ["", "Linux version 6.1", "{}", r#"{"event":"end"}"#, "[1]", &"x".repeat(MAX_LINE + 1)] {
        assert_eq!(LogLine::parse(other), None);
    }
}

#[test]
fn levels_have_firecrackers_names() {
    assert_eq!("Warning".parse::<LogLevel>(), "warn".parse());
    assert_eq!("Info".parse(), Ok(LogLevel::default()));
    assert!("loud".parse::<LogLevel>().is_err());
}
