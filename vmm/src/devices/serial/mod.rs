//! The serial line: a 16550A at COM1.
//!
//! vCPUs see [`Device`]; the main thread, which owns the host's side of the line, takes output with
//! [`Serial::take_output`] and gives input with [`Serial::give_input`]. Between them lie two bounded queues. A guest
//! that writes faster than the host takes sees a transmitter that is not ready, as on a real line; a guest that does
//! not care loses what it writes.

mod uart;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use super::{Action, Device, Line};
use crate::metrics::Counter;
pub use uart::State;
use uart::Uart;

/// First of COM1's ports.
pub const PORT: u16 = 0x3f8;
/// Number of ports.
pub const PORTS: u8 = 8;
/// COM1's interrupt.
pub const IRQ: u8 = 4;

/// The serial line of a VM.
pub struct Serial {
    uart: Mutex<Uart>,
    interrupt: Box<dyn Line>,
    wake: Arc<EventFd>,
    metrics: Metrics,
}

/// What is counted, by Firecracker's names.
#[derive(Debug, Default, Serialize)]
#[allow(clippy::struct_field_names)] // Firecracker's names
pub struct Metrics {
    /// Reads of registers by the guest.
    read_count: Counter,
    /// Writes of registers by the guest.
    write_count: Counter,
    /// Bytes that the guest wrote and that reached the host.
    flush_count: Counter,
    /// Bytes that the guest wrote and that were lost.
    missed_write_count: Counter,
}

/// How much went through the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the guest wrote and that were taken.
    pub passed: u64,
    /// Bytes that the guest wrote while the line was full.
    pub lost: u64,
}

impl Serial {
    /// A line whose interrupt is `interrupt`; `wake` is written when the main thread has something to do.
    pub fn new(interrupt: impl Line + 'static, wake: Arc<EventFd>) -> Self {
        let interrupt = Box::new(interrupt);
        Self { uart: Mutex::new(Uart::default()), interrupt, wake, metrics: Metrics::default() }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        // Panics abort the process, so a poisoned lock cannot be met; taking it anyway keeps this free of panics.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` on the registers, then passes on what it asks for. A full event counter means that the main thread
    /// has not looked yet and will find this too, so the error of the write says nothing.
    fn with<T>(&self, work: impl FnOnce(&mut Uart) -> T) -> T {
        let (result, signals) = {
            let mut uart = self.uart();
            let result = work(&mut uart);
            (result, uart.take_signals())
        };
        if signals.interrupt {
            self.interrupt.pulse();
        }
        if signals.wake {
            let _ = self.wake.write(1);
        }
        result
    }

    /// Whether the guest wrote something that was not taken yet.
    pub fn has_output(&self) -> bool {
        self.uart().has_output()
    }

    /// Copies the oldest output to `buffer` and says how much; it stays queued until [`Serial::output_done`].
    pub fn take_output(&self, buffer: &mut [u8]) -> usize {
        self.uart().peek_output(buffer)
    }

    /// Drops the `count` oldest bytes of output; `passed` says whether they reached the host.
    pub fn output_done(&self, count: usize, passed: bool) {
        self.with(|uart| uart.drop_output(count, passed));
    }

    /// How many bytes of input fit. At zero, `wake` is written when there is room again.
    pub fn input_room(&self) -> usize {
        self.uart().input_room()
    }

    /// Queues input for the guest; gives how many bytes fitted.
    pub fn give_input(&self, bytes: &[u8]) -> usize {
        self.with(|uart| uart.give_input(bytes))
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> State {
        self.uart().save()
    }

    /// Puts back what [`Serial::save`] gave.
    pub fn restore(&self, state: State) {
        self.with(|uart| uart.restore(state));
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        let Counters { passed, lost } = self.counters();
        self.metrics.flush_count.raise_to(passed);
        self.metrics.missed_write_count.raise_to(lost);
        &self.metrics
    }

    /// How much went through so far.
    pub fn counters(&self) -> Counters {
        self.uart().counters()
    }
}

impl Device for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.metrics.read_count.inc();
        // A wider access or a string instruction is one access of the same register after another.
        self.with(|uart| data.iter_mut().for_each(|byte| *byte = uart.read(offset)));
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.metrics.write_count.inc();
        self.with(|uart| data.iter().for_each(|byte| uart.write(offset, *byte)));
        None
    }
}
