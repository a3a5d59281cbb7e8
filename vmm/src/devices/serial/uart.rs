//! The registers of a 16550A (National Semiconductor PC16550D data sheet).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Counters;

/// Bytes of output that wait for the host, at most.
const OUTPUT: usize = 64 * 1024;
/// Bytes of input that wait for the guest, at most.
const INPUT: usize = 64;
/// The transmitter counts as ready only while a whole FIFO of a 16550A fits, and some more.
const READY_ROOM: usize = 64;
/// After the transmitter was full it interrupts only when this much is free, not for every byte.
const RESUME_ROOM: usize = OUTPUT / 4;

// Registers, by offset.
const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

const ENABLE_RECEIVED: u8 = 1;
const ENABLE_TRANSMITTER: u8 = 2;
const ENABLE_BITS: u8 = 0x0f;
const ID_NONE: u8 = 1;
const ID_TRANSMITTER: u8 = 2;
const ID_RECEIVED: u8 = 4;
const ID_FIFO: u8 = 0xc0;
const FIFO_ENABLE: u8 = 1;
const FIFO_CLEAR_INPUT: u8 = 2;
const DIVISOR_LATCH: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
const STATUS_DATA: u8 = 1;
const STATUS_TRANSMITTER: u8 = 0x60;
/// Carrier, data set ready, clear to send.
const MODEM_READY: u8 = 0xb0;

/// What has to be told to others after an access.
#[derive(Clone, Copy, Default)]
pub(super) struct Signals {
    /// Raise the guest's interrupt.
    pub(super) interrupt: bool,
    /// Wake the main thread.
    pub(super) wake: bool,
}

/// Registers and queues.
#[derive(Default)]
pub(super) struct Uart {
    enable: u8,
    fifo: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    /// The transmitter has become ready, and the guest has not seen it in the interrupt ID yet.
    transmitter_event: bool,
    /// The guest found the transmitter full; an event is due when there is room again.
    stalled: bool,
    /// The host has input that did not fit.
    input_wanted: bool,
    counters: Counters,
    signals: Signals,
}

/// What a snapshot keeps of the registers. What the guest has written before belongs to the VM that it was written in.
#[derive(Serialize, Deserialize, Default, Clone, Debug, PartialEq, Eq)]
pub struct State {
    enable: u8,
    fifo: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    input: Vec<u8>,
    transmitter_event: bool,
}

impl Uart {
    /// What a snapshot keeps.
    pub(super) fn save(&self) -> State {
        State {
            enable: self.enable,
            fifo: self.fifo,
            line_control: self.line_control,
            modem_control: self.modem_control,
            scratch: self.scratch,
            divisor: self.divisor,
            input: self.input.iter().copied().collect(),
            transmitter_event: self.transmitter_event,
        }
    }

    /// Puts back what [`Uart::save`] gave. The line is empty now, which a guest that waits for it is told.
    pub(super) fn restore(&mut self, state: State) {
        *self = Self {
            enable: state.enable & ENABLE_BITS,
            fifo: state.fifo,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
            divisor: state.divisor,
            input: state.input.into_iter().take(INPUT).collect(),
            transmitter_event: state.transmitter_event,
            ..Self::default()
        };
        self.transmitter_became_ready();
        self.signals.interrupt |= !self.input.is_empty() && self.enable & ENABLE_RECEIVED != 0;
    }

    fn latch(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn ready(&self) -> bool {
        self.output.len() + READY_ROOM <= OUTPUT
    }

    /// A guest's read of one register.
    pub(super) fn read(&mut self, offset: u64) -> u8 {
        let [low, high] = self.divisor;
        match offset {
            DATA if self.latch() => low,
            DATA => self.read_data(),
            INTERRUPT_ENABLE if self.latch() => high,
            INTERRUPT_ENABLE => self.enable,
            INTERRUPT_ID => self.read_interrupt_id(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => self.line_status(),
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// A guest's write of one register.
    pub(super) fn write(&mut self, offset: u64, value: u8) {
        let [low, high] = &mut self.divisor;
        match offset {
            DATA if self.line_control & DIVISOR_LATCH != 0 => *low = value,
            DATA => self.write_data(value),
            INTERRUPT_ENABLE if self.line_control & DIVISOR_LATCH != 0 => *high = value,
            INTERRUPT_ENABLE => self.write_enable(value & ENABLE_BITS),
            INTERRUPT_ID => self.write_fifo_control(value),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.input.pop_front().unwrap_or(0);
        if self.input_wanted {
            self.input_wanted = false;
            self.signals.wake = true;
        }
        byte
    }

    fn read_interrupt_id(&mut self) -> u8 {
        let fifo = if self.fifo { ID_FIFO } else { 0 };
        let id = if self.enable & ENABLE_RECEIVED != 0 && !self.input.is_empty() {
            ID_RECEIVED
        } else if self.enable & ENABLE_TRANSMITTER != 0 && self.transmitter_event {
            // Reading it is what acknowledges this one.
            self.transmitter_event = false;
            ID_TRANSMITTER
        } else {
            ID_NONE
        };
        id | fifo
    }

    fn line_status(&mut self) -> u8 {
        let data = if self.input.is_empty() { 0 } else { STATUS_DATA };
        if self.ready() {
            data | STATUS_TRANSMITTER
        } else {
            self.stalled = true;
            data
        }
    }

    fn modem_status(&self) -> u8 {
        if self.modem_control & LOOPBACK == 0 {
            return MODEM_READY;
        }
        // Looped back: DTR to DSR, RTS to CTS, the two auxiliary outputs to RI and DCD.
        let control = self.modem_control;
        ((control & 1) << 5) | ((control & 2) << 3) | ((control & 4) << 4) | ((control & 8) << 4)
    }

    fn write_data(&mut self, value: u8) {
        if self.modem_control & LOOPBACK != 0 {
            self.give_input(&[value]);
        } else if self.output.len() < OUTPUT {
            self.signals.wake |= self.output.is_empty();
            self.output.push_back(value);
        } else {
            self.counters.lost = self.counters.lost.saturating_add(1);
        }
        if self.ready() {
            self.transmitter_became_ready();
        } else {
            self.stalled = true;
        }
    }

    fn write_enable(&mut self, value: u8) {
        let newly = value & !self.enable;
        self.enable = value;
        if newly & ENABLE_TRANSMITTER != 0 && self.ready() {
            self.transmitter_became_ready();
        }
        if newly & ENABLE_RECEIVED != 0 && !self.input.is_empty() {
            self.signals.interrupt = true;
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        self.fifo = value & FIFO_ENABLE != 0;
        if value & FIFO_CLEAR_INPUT != 0 {
            self.input.clear();
            self.signals.wake |= std::mem::take(&mut self.input_wanted);
        }
        // Clearing the transmitter's FIFO finds it empty: output leaves it at once.
    }

    fn transmitter_became_ready(&mut self) {
        self.transmitter_event = true;
        self.signals.interrupt |= self.enable & ENABLE_TRANSMITTER != 0;
    }

    /// Whether output waits for the host.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Copies the oldest output.
    pub(super) fn peek_output(&self, buffer: &mut [u8]) -> usize {
        buffer.iter_mut().zip(&self.output).map(|(to, from)| *to = *from).count()
    }

    /// Forgets the oldest output.
    pub(super) fn drop_output(&mut self, count: usize, passed: bool) {
        let count = count.min(self.output.len());
        self.output.drain(..count);
        let counter = if passed { &mut self.counters.passed } else { &mut self.counters.lost };
        *counter = counter.saturating_add(count as u64);
        if self.stalled && OUTPUT - self.output.len() >= RESUME_ROOM {
            self.stalled = false;
            self.transmitter_became_ready();
        }
    }

    /// How much input fits; when none does, the host is woken once there is room.
    pub(super) fn input_room(&mut self) -> usize {
        let room = INPUT - self.input.len();
        self.input_wanted = room == 0;
        room
    }

    /// Queues input.
    pub(super) fn give_input(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(INPUT - self.input.len());
        self.input.extend(bytes.iter().take(count));
        self.signals.interrupt |= count > 0 && self.enable & ENABLE_RECEIVED != 0;
        count
    }

    /// How much went through.
    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// What is to be told to others since the last call.
    pub(super) fn take_signals(&mut self) -> Signals {
        std::mem::take(&mut self.signals)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_restored_line_has_its_registers_and_input_and_tells_who_waits_for_it() {
        let mut uart = Uart::default();
        uart.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER | ENABLE_RECEIVED);
        uart.write(SCRATCH, 0x5a);
        uart.give_input(b"in");
        (0..=OUTPUT).for_each(|_| uart.write(DATA, b'x'));
        let state = uart.save();
        let mut restored = Uart::default();
        restored.restore(state.clone());
        assert!(restored.take_signals().interrupt && !restored.has_output());
        assert_eq!((restored.read(SCRATCH), restored.read(DATA), restored.read(DATA)), (0x5a, b'i', b'n'));
        assert_eq!(restored.read(LINE_STATUS), STATUS_TRANSMITTER);
        restored.restore(State { input: vec![1; 1000], ..state });
        assert_eq!(restored.input.len(), INPUT);
    }

    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::default();
        uart.write(MODEM_CONTROL, LOOPBACK | 0x0a);
        assert_eq!(uart.read(MODEM_STATUS) & 0xf0, 0x90);
        uart.write(MODEM_CONTROL, 0);
        uart.write(INTERRUPT_ID, FIFO_ENABLE);
        assert_eq!(uart.read(INTERRUPT_ID) & ID_FIFO, ID_FIFO);
        uart.write(SCRATCH, 0x5a);
        assert_eq!(uart.read(SCRATCH), 0x5a);
        // Linux looks whether enabling the transmitter's interrupt raises it every time.
        for _ in 0..2 {
            uart.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
            assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_TRANSMITTER);
            uart.write(INTERRUPT_ENABLE, 0);
        }
    }

    #[test]
    fn the_divisor_hides_data_and_enable() {
        let mut uart = Uart::default();
        uart.write(LINE_CONTROL, DIVISOR_LATCH);
        uart.write(DATA, 1);
        uart.write(INTERRUPT_ENABLE, 2);
        assert_eq!((uart.read(DATA), uart.read(INTERRUPT_ENABLE)), (1, 2));
        assert!(!uart.has_output());
        uart.write(LINE_CONTROL, 3);
        assert_eq!(uart.read(INTERRUPT_ENABLE), 0);
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let mut uart = Uart::default();
        uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        uart.take_signals();
        assert_eq!(uart.give_input(b"hello"), 5);
        assert!(uart.take_signals().interrupt);
        assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_RECEIVED);
        let got: Vec<u8> = std::iter::from_fn(|| (uart.read(LINE_STATUS) & 1 == 1).then(|| uart.read(DATA))).collect();
        assert_eq!(got, b"hello");
        assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_NONE);
    }

    #[test]
    fn the_host_is_woken_when_input_fits_again() {
        let mut uart = Uart::default();
        assert_eq!(uart.give_input(&[7; 2 * INPUT]), INPUT);
        assert_eq!(uart.input_room(), 0);
        uart.take_signals();
        uart.read(DATA);
        assert!(uart.take_signals().wake);
        assert_eq!(uart.input_room(), 1);
    }

    #[test]
    fn a_full_line_shows_it_then_loses_and_resumes_with_an_interrupt() {
        let mut uart = Uart::default();
        uart.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER);
        let mut sent = 0;
        while uart.read(LINE_STATUS) & STATUS_TRANSMITTER != 0 {
            uart.write(DATA, b'x');
            sent += 1;
        }
        assert!(sent <= OUTPUT);
        for _ in 0..2 * READY_ROOM {
            uart.write(DATA, b'y');
        }
        assert_eq!(uart.counters().lost, (sent + 2 * READY_ROOM - OUTPUT) as u64);
        uart.read(INTERRUPT_ID);
        uart.take_signals();
        uart.drop_output(1, true);
        assert!(!uart.take_signals().interrupt);
        uart.drop_output(RESUME_ROOM, true);
        assert!(uart.take_signals().interrupt);
        assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_TRANSMITTER);
        assert_eq!(uart.counters().passed, RESUME_ROOM as u64 + 1);
    }

    #[test]
    fn output_wakes_the_host_once_until_it_is_taken() {
        let mut uart = Uart::default();
        uart.write(DATA, b'a');
        assert!(uart.take_signals().wake);
        uart.write(DATA, b'b');
        assert!(!uart.take_signals().wake);
        let mut buffer = [0; 8];
        assert_eq!(uart.peek_output(&mut buffer), 2);
        uart.drop_output(2, true);
        uart.write(DATA, b'c');
        assert!(uart.take_signals().wake);
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_outgrows_the_queues(accesses in proptest::collection::vec((0u64..10, any::<Option<u8>>()), 0..2000)) {
            let mut uart = Uart::default();
            for (offset, value) in accesses {
                match value {
                    Some(value) => uart.write(offset, value),
                    None => drop(uart.read(offset)),
                }
                prop_assert!(uart.input.len() <= INPUT && uart.output.len() <= OUTPUT);
            }
        }
    }
}
