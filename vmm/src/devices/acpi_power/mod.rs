//! ACPI's PM1a block (ACPI 6.4, section 4.8.3): the fixed hardware that powers the machine off.

use std::sync::atomic::{AtomicU16, Ordering};

use serde::{Deserialize, Serialize};

use super::{Action, Device};

/// PM1a event block: status and enable, 16 bits each.
pub const EVENT_PORT: u16 = 0x600;
/// Bytes of the event block.
pub const EVENT_LEN: u8 = 4;
/// PM1a control register.
pub const CONTROL_PORT: u16 = 0x604;
/// Bytes of the control register.
pub const CONTROL_LEN: u8 = 2;
/// The whole block.
pub const PORTS: u64 = 6;
/// System control interrupt (never raised so far).
pub const SCI: u8 = 9;
/// SLP_TYP that means S5, announced in the DSDT's `\_S5`.
pub const S5_SLEEP_TYPE: u8 = 5;

const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_TYP_MASK: u16 = 7;
const SLP_EN: u16 = 1 << 13;

/// Power management registers of a machine that is always in ACPI mode and has no events.
#[derive(Debug, Default)]
pub struct AcpiPower {
    /// Which events the guest wants; kept because it reads them back.
    enabled: AtomicU16,
    /// Sleep type last written, kept for the same reason.
    control: AtomicU16,
}

/// What a snapshot keeps.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    enabled: u16,
    control: u16,
}

impl AcpiPower {
    /// What a snapshot keeps.
    pub fn save(&self) -> State {
        let [enabled, control] = [&self.enabled, &self.control].map(|register| register.load(Ordering::Relaxed));
        State { enabled, control }
    }

    /// Puts back what [`AcpiPower::save`] gave.
    pub fn restore(&self, state: State) {
        self.enabled.store(state.enabled, Ordering::Relaxed);
        self.control.store(state.control & !SLP_EN, Ordering::Relaxed);
    }

    /// The 16-bit register at an even offset: status (0), enable (2), control (4).
    fn register(&self, offset: u64) -> u16 {
        match offset {
            2 => self.enabled.load(Ordering::Relaxed),
            4 => self.control.load(Ordering::Relaxed) | SCI_EN,
            _ => 0,
        }
    }
}

impl Device for AcpiPower {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            let [low, high] = self.register(at & !1).to_le_bytes();
            *byte = if at & 1 == 0 { low } else { high };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        // Guests write whole registers, as the FADT's access size says; other widths are lost.
        let value = u16::from_le_bytes(data.get(..2)?.try_into().ok()?);
        match offset {
            2 => self.enabled.store(value, Ordering::Relaxed),
            4 => {
                // SLP_EN is write-only.
                self.control.store(value & !SLP_EN, Ordering::Relaxed);
                let sleep_type = (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
                if value & SLP_EN != 0 && sleep_type == u16::from(S5_SLEEP_TYPE) {
                    return Some(Action::PowerOff);
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: u64 = (CONTROL_PORT - EVENT_PORT) as u64;

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        let device = AcpiPower::default();
        for value in 0..=u16::MAX {
            let off = value & SLP_EN != 0 && (value >> 10) & 7 == 5;
            assert_eq!(device.write(CONTROL, &value.to_le_bytes()), off.then_some(Action::PowerOff), "{value:#x}");
        }
        assert_eq!(device.write(CONTROL, &[0xff]), None);
    }

    #[test]
    fn the_guest_sees_acpi_mode_and_its_own_settings() {
        let device = AcpiPower::default();
        device.write(2, &0x0120u16.to_le_bytes());
        device.write(CONTROL, &0x3c02u16.to_le_bytes());
        let mut block = [0xff; 6];
        device.read(0, &mut block);
        assert_eq!(block, [0, 0, 0x20, 0x01, 0x03, 0x1c]);
    }
}
