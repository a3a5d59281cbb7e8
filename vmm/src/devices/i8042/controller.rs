//! The registers of the controller and of the keyboard behind it, as far as drivers of PC operating systems ask.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes for the guest that wait, at most. The chord has eleven.
const OUTPUT: usize = 32;

// The command byte.
const INTERRUPT: u8 = 1;
const SELF_TEST_DONE: u8 = 4;
const KEYBOARD_OFF: u8 = 0x10;
const MOUSE_OFF: u8 = 0x20;
const TRANSLATE: u8 = 0x40;

// Status.
const HAS_OUTPUT: u8 = 1;
const SELF_TESTED: u8 = 4;
const COMMAND_LAST: u8 = 8;
const UNLOCKED: u8 = 0x10;

/// The output port: bit 0 is the reset line, active low, bit 1 the gate of address line 20.
const OUTPUT_PORT: u8 = 3;
const ACK: u8 = 0xfa;

/// Where the next byte at the data port goes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expects {
    /// To the keyboard, as a command.
    #[default]
    KeyboardCommand,
    /// To the keyboard, as what belongs to the command before.
    KeyboardParameter,
    CommandByte,
    OutputPort,
    /// To a mouse, which is not there.
    Nobody,
}

/// What an access asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) interrupt: bool,
    pub(super) reset: bool,
}

/// The registers; also what a snapshot keeps of them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    command_byte: u8,
    command_last: bool,
    expects: Expects,
    output: VecDeque<u8>,
}

impl Default for Controller {
    /// As firmware leaves it: tested, the keyboard on, scan codes not translated.
    fn default() -> Self {
        Self {
            command_byte: INTERRUPT | SELF_TEST_DONE | MOUSE_OFF,
            command_last: false,
            expects: Expects::default(),
            output: VecDeque::new(),
        }
    }
}

impl Controller {
    /// A state from outside, within the bounds of one of ours.
    pub(super) fn bounded(mut self) -> Self {
        self.output.truncate(OUTPUT);
        self
    }

    pub(super) fn status(&self) -> u8 {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        SELF_TESTED | UNLOCKED | bit(!self.output.is_empty(), HAS_OUTPUT) | bit(self.command_last, COMMAND_LAST)
    }

    /// The oldest byte, and whether the guest is to be called about another one.
    pub(super) fn read_data(&mut self) -> (u8, bool) {
        let value = self.output.pop_front().unwrap_or(0);
        (value, !self.output.is_empty() && self.command_byte & INTERRUPT != 0)
    }

    /// Queues bytes; those that do not fit are lost, as on a keyboard that nobody reads.
    fn put(&mut self, bytes: &[u8]) {
        let room = OUTPUT - self.output.len().min(OUTPUT);
        self.output.extend(bytes.iter().take(room));
    }

    pub(super) fn write_command(&mut self, command: u8) -> Effect {
        self.command_last = true;
        self.expects = Expects::default();
        match command {
            0x20 => self.put(&[self.command_byte]),
            0x60 => self.expects = Expects::CommandByte,
            0xa7 => self.command_byte |= MOUSE_OFF,
            0xa8 => self.command_byte &= !MOUSE_OFF,
            // A mouse's line that does not answer.
            0xa9 => self.put(&[1]),
            0xaa => {
                self.output.clear();
                self.put(&[0x55]);
            }
            0xab => self.put(&[0]),
            0xad => self.command_byte |= KEYBOARD_OFF,
            0xae => self.command_byte &= !KEYBOARD_OFF,
            0xd0 => self.put(&[OUTPUT_PORT]),
            0xd1 => self.expects = Expects::OutputPort,
            0xd3 | 0xd4 => self.expects = Expects::Nobody,
            super::RESET_COMMAND => return Effect { reset: true, ..Effect::default() },
            _ => {}
        }
        Effect::default()
    }

    pub(super) fn write_data(&mut self, value: u8) -> Effect {
        self.command_last = false;
        let mut effect = Effect::default();
        match std::mem::take(&mut self.expects) {
            Expects::CommandByte => self.command_byte = value,
            Expects::OutputPort => effect.reset = value & 1 == 0,
            Expects::Nobody => {}
            Expects::KeyboardCommand | Expects::KeyboardParameter if self.command_byte & KEYBOARD_OFF != 0 => {}
            Expects::KeyboardParameter => {
                self.put(&[ACK]);
                effect.interrupt = self.command_byte & INTERRUPT != 0;
            }
            Expects::KeyboardCommand => {
                self.keyboard(value);
                effect.interrupt = self.command_byte & INTERRUPT != 0;
            }
        }
        effect
    }

    /// A command for the keyboard.
    fn keyboard(&mut self, command: u8) {
        match command {
            // Reset: acknowledged, and the self test passed.
            0xff => self.put(&[ACK, 0xaa]),
            // Who are you: an AT keyboard.
            0xf2 => self.put(&[ACK, 0xab, 0x83]),
            0xee => self.put(&[0xee]),
            // Lights, scan codes, rate: a parameter follows.
            0xed | 0xf0 | 0xf3 => {
                self.put(&[ACK]);
                self.expects = Expects::KeyboardParameter;
            }
            _ => self.put(&[ACK]),
        }
    }

    /// Queues the chord, if the guest listens.
    pub(super) fn press_ctrl_alt_del(&mut self) -> bool {
        if self.command_byte & (INTERRUPT | KEYBOARD_OFF) != INTERRUPT {
            return false;
        }
        if self.command_byte & TRANSLATE != 0 {
            self.put(&[0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
        } else {
            self.put(&[0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14]);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(controller: &mut Controller, command: u8) -> u8 {
        controller.write_command(command);
        controller.read_data().0
    }

    #[test]
    fn a_driver_finds_a_controller_that_passes_its_tests() {
        let mut controller = Controller::default();
        assert_eq!((answer(&mut controller, 0xaa), answer(&mut controller, 0xab)), (0x55, 0));
        controller.write_command(0x60);
        controller.write_data(0x47);
        assert_eq!(answer(&mut controller, 0x20), 0x47);
        assert!(controller.write_data(0xf2).interrupt);
        let id: Vec<u8> = (0..3).map(|_| controller.read_data().0).collect();
        assert_eq!(id, [ACK, 0xab, 0x83]);
        // With a parameter, which is no command.
        for byte in [0xed, 0xff] {
            controller.write_data(byte);
            assert_eq!(controller.read_data(), (ACK, false));
        }
    }

    #[test]
    fn translation_changes_the_scan_codes() {
        let mut controller = Controller { command_byte: INTERRUPT | TRANSLATE, ..Controller::default() };
        assert!(controller.press_ctrl_alt_del());
        assert_eq!(controller.output.iter().take(4).copied().collect::<Vec<_>>(), [0x1d, 0x38, 0xe0, 0x53]);
    }

    proptest! {
        #[test]
        fn whatever_is_written_nothing_grows(writes in proptest::collection::vec((any::<bool>(), any::<u8>()), 0..500)) {
            let mut controller = Controller::default();
            for (command, value) in writes {
                if command {
                    controller.write_command(value);
                } else {
                    controller.write_data(value);
                }
                controller.press_ctrl_alt_del();
                prop_assert!(controller.output.len() <= OUTPUT);
            }
        }
    }
}
