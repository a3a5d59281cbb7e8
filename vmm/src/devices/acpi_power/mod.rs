//! ACPI's sleep registers (ACPI 6.4, section 4.8.3.7): what a machine of reduced hardware is powered off with.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use super::{Action, Device};

/// Sleep control register, 8 bits.
pub const CONTROL_PORT: u16 = 0x600;
/// Sleep status register, 8 bits.
pub const STATUS_PORT: u16 = 0x601;
/// Both registers.
pub const PORTS: u64 = 2;
/// SLP_TYP that means S5, announced in the DSDT's `\_S5`.
pub const S5_SLEEP_TYPE: u8 = 5;

const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 7;
const SLP_EN: u8 = 1 << 5;

/// The sleep registers of a machine that never wakes: its status is always zero.
#[derive(Debug, Default)]
pub struct AcpiPower {
    /// What was last written, kept because the guest reads it back.
    control: AtomicU8,
}

/// What a snapshot keeps.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    control: u8,
}

impl AcpiPower {
    /// What a snapshot keeps.
    pub fn save(&self) -> State {
        State { control: self.control.load(Ordering::Relaxed) }
    }

    /// Puts back what [`AcpiPower::save`] gave.
    pub fn restore(&self, state: State) {
        self.control.store(state.control & !SLP_EN, Ordering::Relaxed);
    }
}

impl Device for AcpiPower {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(control)) = (offset, data.first_mut()) {
            *control = self.control.load(Ordering::Relaxed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        // The status register takes ones that clear bits which are never set.
        let (0, Some(value)) = (offset, data.first()) else { return None };
        // SLP_EN is write-only.
        self.control.store(value & !SLP_EN, Ordering::Relaxed);
        let sleep_type = (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
        (value & SLP_EN != 0 && sleep_type == S5_SLEEP_TYPE).then_some(Action::PowerOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: u64 = (STATUS_PORT - CONTROL_PORT) as u64;

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        let device = AcpiPower::default();
        for value in 0..=u8::MAX {
            let off = value & SLP_EN != 0 && (value >> 2) & 7 == 5;
            assert_eq!(device.write(0, &[value]), off.then_some(Action::PowerOff), "{value:#x}");
            assert_eq!(device.write(STATUS, &[value]), None);
        }
        assert_eq!(device.write(0, &[]), None);
    }

    #[test]
    fn the_guest_reads_its_own_settings_and_no_wake() {
        let device = AcpiPower::default();
        device.write(0, &[0x3c]);
        device.write(STATUS, &[0x80]);
        let mut registers = [0xff; 2];
        device.read(0, &mut registers);
        assert_eq!(registers, [0x1c, 0]);
        let mut status = [0xff; 1];
        device.read(STATUS, &mut status);
        assert_eq!(status, [0]);
        let restored = AcpiPower::default();
        restored.restore(device.save());
        restored.read(0, &mut registers);
        assert_eq!(registers, [0x1c, 0]);
    }
}
