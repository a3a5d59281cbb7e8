//! The registers behind the window (82093AA, section 3.2).

use serde::{Deserialize, Serialize};

use super::Message;
use crate::snapshot::at_most;

/// Most pins there can be, as on the real one.
pub const MAX_PINS: u8 = 24;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
/// Low half of pin 0's entry in the redirection table; its high half and the other pins' follow.
const TABLE: u8 = 0x10;

/// The 82093AA's; later ones have a register of their own for the end of interrupts.
const VERSION_NUMBER: u32 = 0x11;
const ID_BITS: u32 = 0x0f00_0000;

/// Of an entry: vector, delivery mode, destination mode, polarity, trigger mode, mask, destination. Delivery status and
/// Remote IRR are read-only and zero: no message is ever on its way, and no pin waits for the end of an interrupt.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const MASKED: u64 = 1 << 16;
const LOGICAL: u64 = 1 << 11;
/// Vector and delivery mode, which lie in a message as in an entry.
const DATA: u64 = 0x7ff;
const DESTINATION_SHIFT: u32 = 56;

/// Where messages to local APICs begin, and the bits of an address that say for whom they are.
const MESSAGES: u32 = 0xfee0_0000;
const MESSAGE_DESTINATION_SHIFT: u32 = 12;
const MESSAGE_LOGICAL: u32 = 1 << 2;

/// What the guest has set.
pub struct Registers {
    select: u8,
    id: u32,
    /// The redirection table.
    entries: Vec<u64>,
}

/// What a snapshot keeps.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    select: u8,
    id: u32,
    #[serde(deserialize_with = "at_most::<{ MAX_PINS as usize }, _, _>")]
    entries: Vec<u64>,
}

/// A snapshot of another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot's I/O APIC has {found} pins, the machine's has {expected}")]
pub struct WrongPins {
    /// In the state.
    pub found: usize,
    /// Of this one.
    pub expected: usize,
}

impl Registers {
    pub fn new(pins: u8) -> Self {
        Self { select: 0, id: 0, entries: vec![MASKED; usize::from(pins.clamp(1, MAX_PINS))] }
    }

    pub fn selected(&self) -> u32 {
        self.select.into()
    }

    pub fn select(&mut self, value: u32) {
        // The register has eight bits.
        let [number, ..] = value.to_le_bytes();
        self.select = number;
    }

    /// The entry that the selected register is half of, and how far that half is shifted.
    fn entry(&mut self) -> Option<(&mut u64, u32)> {
        let half = self.select.checked_sub(TABLE)?;
        let entry = self.entries.get_mut(usize::from(half / 2))?;
        Some((entry, 32 * u32::from(half % 2)))
    }

    /// What the window shows. Registers that are not there are zero.
    pub fn read(&mut self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => {
                let last = u32::try_from(self.entries.len().saturating_sub(1)).unwrap_or(0);
                (last << 16) | VERSION_NUMBER
            }
            _ => self.entry().map_or(0, |(entry, shift)| {
                let [a, b, c, d, ..] = (*entry >> shift).to_le_bytes();
                u32::from_le_bytes([a, b, c, d])
            }),
        }
    }

    /// Takes what is written to the window.
    pub fn write(&mut self, value: u32) {
        if self.select == ID {
            self.id = value & ID_BITS;
        } else if let Some((entry, shift)) = self.entry() {
            let half = u64::from(u32::MAX) << shift;
            *entry = ((*entry & !half) | (u64::from(value) << shift)) & WRITABLE;
        }
    }

    /// What an edge on a pin sends; nothing if it is masked or not there.
    pub fn message(&self, pin: u8) -> Option<Message> {
        let entry = *self.entries.get(usize::from(pin)).filter(|entry| **entry & MASKED == 0)?;
        let destination = u32::try_from(entry >> DESTINATION_SHIFT).ok()?;
        let logical = if entry & LOGICAL == 0 { 0 } else { MESSAGE_LOGICAL };
        let address = MESSAGES | (destination << MESSAGE_DESTINATION_SHIFT) | logical;
        Some(Message { address, data: u32::try_from(entry & DATA).ok()? })
    }

    pub fn save(&self) -> State {
        State { select: self.select, id: self.id, entries: self.entries.clone() }
    }

    pub fn restore(&mut self, state: &State) -> Result<(), WrongPins> {
        let (found, expected) = (state.entries.len(), self.entries.len());
        if found != expected {
            return Err(WrongPins { found, expected });
        }
        (self.select, self.id) = (state.select, state.id & ID_BITS);
        self.entries.iter_mut().zip(&state.entries).for_each(|(entry, saved)| *entry = saved & WRITABLE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a guest writes: what it reads back are its own bits, other pins stay, and a state goes both ways.
        #[test]
        fn a_write_changes_its_register_alone(pins in 1u8..=MAX_PINS, writes in prop::collection::vec((any::<u8>(), any::<u32>()), 0..40)) {
            let mut registers = Registers::new(pins);
            for (register, value) in writes {
                let before = registers.entries.clone();
                registers.select(register.into());
                registers.write(value);
                let pin = usize::from(register.wrapping_sub(TABLE) / 2);
                for (number, (old, new)) in before.iter().zip(&registers.entries).enumerate() {
                    prop_assert!(register >= TABLE && number == pin || old == new);
                }
                if register >= TABLE && pin < registers.entries.len() {
                    let writable = if register % 2 == 0 { 0x0001_afff } else { 0xff00_0000 };
                    prop_assert_eq!(registers.read(), value & writable);
                }
            }
            let mut other = Registers::new(pins);
            prop_assert_eq!(other.restore(&registers.save()), Ok(()));
            prop_assert_eq!(other.save(), registers.save());
        }
    }

    #[test]
    fn it_says_how_many_pins_it_has() {
        for (pins, said) in [(1, 0x0000_0011), (5, 0x0004_0011), (MAX_PINS, 0x0017_0011), (0, 0x0000_0011)] {
            let mut registers = Registers::new(pins);
            registers.select(VERSION.into());
            assert_eq!(registers.read(), said);
            registers.write(u32::MAX);
            assert_eq!(registers.read(), said, "it is read-only");
        }
    }

    #[test]
    fn the_id_has_four_bits() {
        let mut registers = Registers::new(1);
        registers.write(u32::MAX);
        assert_eq!(registers.read(), ID_BITS);
        registers.select(ARBITRATION.into());
        assert_eq!(registers.read(), ID_BITS);
        registers.write(0);
        assert_eq!(registers.read(), ID_BITS);
    }

    #[test]
    fn a_state_has_no_bits_that_a_guest_cannot_set() {
        let mut registers = Registers::new(1);
        let state = State { select: 0x11, id: u32::MAX, entries: vec![u64::MAX] };
        registers.restore(&state).unwrap();
        assert_eq!(registers.save(), State { select: 0x11, id: ID_BITS, entries: vec![WRITABLE] });
        assert_eq!(registers.message(0), None);
    }
}
