//! The I/O APIC (Intel 82093AA): it turns edges on its pins into messages to the local APICs, which KVM emulates.
//!
//! KVM could emulate this one too, and two 8259s with it. Here it has as many pins as the machine has devices, so that a
//! guest which asks for every pin, as Linux does when it boots and when it resets the machine, is soon done; an interrupt
//! is one system call; and the host's kernel has less to do with what a guest writes.
//!
//! Devices give edges, whatever trigger mode the guest sets: a pin never waits for the end of an interrupt. So there is
//! no Remote IRR, as on a pin that is triggered by edges.

mod registers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

use super::{Action, Device, Line};
use registers::Registers;
pub use registers::{MAX_PINS, State, WrongPins};

/// Bytes of its registers.
pub const LEN: u64 = 0x100;

/// Selects the register behind the window.
const SELECT: u64 = 0x00;
/// The register that is selected.
const WINDOW: u64 = 0x10;

/// Where messages to the local APICs go (Intel SDM volume 3, section 11.11, "Message Signalled Interrupts").
pub trait Messages: Send + Sync {
    /// Sends one.
    fn send(&self, message: Message);
}

/// A write on the bus that is an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for, above 0xfee0_0000.
    pub address: u32,
    /// Vector and delivery mode.
    pub data: u32,
}

impl Messages for VmFd {
    fn send(&self, Message { address, data }: Message) {
        // KVM refuses only vectors that are not there, and those are nobody's: the message is lost, as on a real bus.
        let _ = self.signal_msi(kvm_msi { address_lo: address, data, ..kvm_msi::default() });
    }
}

/// The I/O APIC of a VM.
pub struct Ioapic {
    registers: Mutex<Registers>,
    messages: Arc<dyn Messages>,
}

impl Ioapic {
    /// After power-on, with `pins` pins from 0 on, at least one and at most [`MAX_PINS`], all masked.
    pub fn new(pins: u8, messages: Arc<dyn Messages>) -> Self {
        Self { registers: Mutex::new(Registers::new(pins)), messages }
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        // A panic has aborted the process: the lock is never poisoned.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> State {
        self.registers().save()
    }

    /// Puts back what [`Ioapic::save`] gave, if it is of as many pins.
    pub fn restore(&self, state: &State) -> Result<(), WrongPins> {
        self.registers().restore(state)
    }
}

impl Device for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            SELECT => self.registers().selected(),
            WINDOW => self.registers().read(),
            _ => 0,
        };
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(value);
        match offset {
            SELECT => self.registers().select(value),
            WINDOW => self.registers().write(value),
            _ => {}
        }
        None
    }
}

/// One pin, as the device has it that is connected to it.
pub struct Pin {
    ioapic: Arc<Ioapic>,
    number: u8,
}

impl Pin {
    /// The pin `number`. Edges on one that is not there are lost.
    pub fn new(ioapic: Arc<Ioapic>, number: u8) -> Self {
        Self { ioapic, number }
    }
}

impl Line for Pin {
    fn pulse(&self) {
        let message = self.ioapic.registers().message(self.number);
        // An edge on a masked pin is lost (82093AA, 3.2.4).
        if let Some(message) = message {
            self.ioapic.messages.send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Message>>);

    impl Messages for Recorder {
        fn send(&self, message: Message) {
            self.0.lock().unwrap().push(message);
        }
    }

    impl Recorder {
        fn take(&self) -> Vec<Message> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    fn ioapic(pins: u8) -> (Arc<Ioapic>, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Arc::new(Ioapic::new(pins, Arc::clone(&recorder) as _)), recorder)
    }

    fn set(ioapic: &Ioapic, register: u8, value: u32) {
        ioapic.write(SELECT, &[register, 0, 0, 0]);
        ioapic.write(WINDOW, &value.to_le_bytes());
    }

    fn get(ioapic: &Ioapic, register: u8) -> u32 {
        ioapic.write(SELECT, &[register, 0, 0, 0]);
        let mut value = [0xff; 4];
        ioapic.read(WINDOW, &mut value);
        u32::from_le_bytes(value)
    }

    #[test]
    fn an_edge_is_the_message_that_the_guest_has_set() {
        let (ioapic, messages) = ioapic(6);
        let pin = Pin::new(Arc::clone(&ioapic), 5);
        pin.pulse();
        assert_eq!(messages.take(), [], "pins are masked after power-on");
        // To the logical destination 3, lowest priority, vector 0x41.
        set(&ioapic, 0x11 + 2 * 5, 0x0300_0000);
        set(&ioapic, 0x10 + 2 * 5, 0x0000_0941);
        pin.pulse();
        pin.pulse();
        let message = Message { address: 0xfee0_3004, data: 0x0141 };
        assert_eq!(messages.take(), [message, message]);
        // Triggered by level: an edge is an interrupt still, and the next does not wait for the end of this one.
        set(&ioapic, 0x10 + 2 * 5, 0x0000_8042);
        pin.pulse();
        pin.pulse();
        let message = Message { address: 0xfee0_3000, data: 0x42 };
        assert_eq!(messages.take(), [message, message]);
        set(&ioapic, 0x10 + 2 * 5, 0x0001_0042);
        pin.pulse();
        set(&ioapic, 0x10 + 2 * 5, 0x0000_0042);
        assert_eq!(messages.take(), [], "an edge on a masked pin is lost");
        // Another pin, and one that is not there.
        Pin::new(Arc::clone(&ioapic), 4).pulse();
        Pin::new(ioapic, 6).pulse();
        assert_eq!(messages.take(), []);
    }

    #[test]
    fn accesses_of_other_sizes_and_places_do_no_harm() {
        let (ioapic, _) = ioapic(3);
        ioapic.write(SELECT, &[]);
        ioapic.write(SELECT, &[1]);
        let mut wide = [0xff; 8];
        ioapic.read(WINDOW, &mut wide);
        assert_eq!(u64::from_le_bytes(wide), 0x0002_0011);
        ioapic.read(SELECT, &mut wide);
        assert_eq!(u64::from_le_bytes(wide), 1);
        for offset in [1, 4, 0x0f, 0x11, 0x40, LEN - 1] {
            ioapic.write(offset, &[0xff; 8]);
            ioapic.read(offset, &mut wide);
            assert_eq!(u64::from_le_bytes(wide), 0, "{offset:#x}");
        }
        ioapic.read(WINDOW, &mut []);
        assert_eq!(get(&ioapic, 1), 0x0002_0011);
    }

    #[test]
    fn a_saved_one_goes_on_in_another() {
        let (ioapic, _) = ioapic(2);
        set(&ioapic, 0x12, 0x0000_0033);
        let (other, messages) = self::ioapic(2);
        other.restore(&ioapic.save()).unwrap();
        assert_eq!(get(&other, 0x12), 0x33);
        Pin::new(Arc::clone(&other), 1).pulse();
        assert_eq!(messages.take(), [Message { address: 0xfee0_0000, data: 0x33 }]);
        let (third, _) = self::ioapic(3);
        assert_eq!(third.restore(&ioapic.save()), Err(WrongPins { found: 2, expected: 3 }));
    }
}
