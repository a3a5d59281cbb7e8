//! The boot timer: the guest marks how far it has come, the VMM logs when.
//!
//! Two places, so that the same guests measure this VMM and its peers: Cloud Hypervisor's debug port [`PORT`], and
//! Firecracker's register at [`MMIO`] (older versions of it: [`OLD_MMIO`]).
//!
//! A guest has *booted* when it writes [`BOOTED`] to the register, or a byte of Cloud Hypervisor's user-space range
//! (0x60 to 0x7f, which holds 123 too) to the port; that is logged once, as `guest-boot`. Other bytes at the port are
//! logged as `guest-mark`, each value once: a guest cannot flood the log.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Action, Device};
use crate::log::MarkSource;

/// Cloud Hypervisor's debug port.
pub const PORT: u16 = 0x80;
/// Firecracker's boot timer.
pub const MMIO: u64 = 0xc000_0000;
/// Firecracker's boot timer before it moved its devices.
pub const OLD_MMIO: u64 = 0xd000_0000;
/// Bytes of the memory-mapped register's page.
pub const MMIO_LEN: u64 = 0x1000;
/// Firecracker's value for "the guest has booted".
pub const BOOTED: u8 = 123;

/// Whether a mark says that the guest has booted.
pub fn is_boot(source: MarkSource, value: u8) -> bool {
    match source {
        MarkSource::Mmio => value == BOOTED,
        MarkSource::Port80 => (0x60..=0x7f).contains(&value),
    }
}

/// The debug port.
pub struct Port {
    seen: Mutex<[bool; 256]>,
}

impl Default for Port {
    fn default() -> Self {
        Self { seen: Mutex::new([false; 256]) }
    }
}

impl Device for Port {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) -> Option<Action> {
        let value = *data.first()?;
        let mut seen = self.seen.lock().ok()?;
        // All boot values count as one.
        let index = if is_boot(MarkSource::Port80, value) { BOOTED } else { value };
        let seen = seen.get_mut(usize::from(index))?;
        (!std::mem::replace(seen, true)).then_some(Action::Mark(MarkSource::Port80, value))
    }
}

/// The memory-mapped register.
#[derive(Default)]
pub struct Register {
    seen: AtomicBool,
}

impl Device for Register {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let booted = offset == 0 && data == [BOOTED] && !self.seen.swap(true, Ordering::Relaxed);
        booted.then_some(Action::Mark(MarkSource::Mmio, BOOTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_counts_once_and_booting_is_one_value() {
        let port = Port::default();
        let marks: Vec<u8> = (0..3)
            .flat_map(|_| 0..=255)
            .filter_map(|value| port.write(0, &[value]))
            .map(|action| match action {
                Action::Mark(MarkSource::Port80, value) => value,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(marks.len(), 256 - 0x20 + 1);
        assert_eq!(marks.iter().filter(|value| is_boot(MarkSource::Port80, **value)).count(), 1);
    }

    #[test]
    fn the_register_takes_firecrackers_value_once() {
        let register = Register::default();
        assert_eq!(register.write(0, &[122]), None);
        assert_eq!(register.write(1, &[BOOTED]), None);
        assert_eq!(register.write(0, &[BOOTED, 0]), None);
        assert_eq!(register.write(0, &[BOOTED]), Some(Action::Mark(MarkSource::Mmio, BOOTED)));
        assert_eq!(register.write(0, &[BOOTED]), None);
    }
}
