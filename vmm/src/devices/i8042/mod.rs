//! The i8042 keyboard controller: it resets the machine, and its keyboard knows one chord, Ctrl-Alt-Del.

mod controller;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::{Action, Device, Line};
use crate::metrics::Counter;
pub use controller::Controller;

/// Data port; the controller owns five ports from here.
pub const PORT: u16 = 0x60;
/// Number of ports from [`PORT`] on.
pub const PORTS: u64 = 5;
/// Command and status port.
pub const COMMAND_PORT: u16 = 0x64;
/// Command that pulses the processor's reset line.
pub const RESET_COMMAND: u8 = 0xfe;
/// The keyboard's interrupt.
pub const IRQ: u8 = 1;

const COMMAND_OFFSET: u64 = (COMMAND_PORT - PORT) as u64;

/// The controller, its keyboard, and their interrupt.
pub struct I8042 {
    controller: Mutex<Controller>,
    interrupt: Box<dyn Line>,
    metrics: Metrics,
}

/// What is counted, by Firecracker's names.
#[derive(Debug, Default, Serialize)]
#[allow(clippy::struct_field_names)] // Firecracker's names
pub struct Metrics {
    /// Reads by the guest.
    read_count: Counter,
    /// Writes by the guest.
    write_count: Counter,
    /// Resets by the guest.
    reset_count: Counter,
}

/// The guest does not listen to its keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has switched its keyboard off, or not on yet")]
pub struct KeyboardOff;

impl I8042 {
    /// After power-on; `interrupt` is [`IRQ`].
    pub fn new(interrupt: impl Line + 'static) -> Self {
        Self {
            controller: Mutex::new(Controller::default()),
            interrupt: Box::new(interrupt),
            metrics: Metrics::default(),
        }
    }

    fn controller(&self) -> MutexGuard<'_, Controller> {
        // A panic has aborted the process: the lock is never poisoned.
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses and releases Ctrl, Alt and Delete.
    pub fn press_ctrl_alt_del(&self) -> Result<(), KeyboardOff> {
        if !self.controller().press_ctrl_alt_del() {
            return Err(KeyboardOff);
        }
        self.interrupt.pulse();
        Ok(())
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> Controller {
        self.controller().clone()
    }

    /// Puts back what [`I8042::save`] gave.
    pub fn restore(&self, state: Controller) {
        *self.controller() = state.bounded();
    }
}

impl Device for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.metrics.read_count.inc();
        let mut more = false;
        {
            let mut controller = self.controller();
            for byte in data.iter_mut() {
                *byte = match offset {
                    0 => {
                        let (value, left) = controller.read_data();
                        more = left;
                        value
                    }
                    COMMAND_OFFSET => controller.status(),
                    _ => 0,
                };
            }
        }
        if more {
            self.interrupt.pulse();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.metrics.write_count.inc();
        let value = *data.first()?;
        let effect = match offset {
            0 => self.controller().write_data(value),
            COMMAND_OFFSET => self.controller().write_command(value),
            _ => return None,
        };
        if effect.interrupt {
            self.interrupt.pulse();
        }
        if effect.reset {
            self.metrics.reset_count.inc();
        }
        effect.reset.then_some(Action::Reset)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    fn device() -> I8042 {
        I8042::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    fn read(device: &I8042, offset: u64) -> u8 {
        let mut data = [0xff];
        device.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn only_the_reset_commands_reset() {
        for byte in 0..=255 {
            assert_eq!(device().write(COMMAND_OFFSET, &[byte]).is_some(), byte == RESET_COMMAND);
            assert_eq!(device().write(0, &[byte]), None);
        }
        assert_eq!(device().write(COMMAND_OFFSET, &[]), None);
        // The output port's lowest bit is the processor's reset line, active low.
        for (value, reset) in [(0xdf, false), (0xde, true)] {
            let device = device();
            device.write(COMMAND_OFFSET, &[0xd1]);
            assert_eq!(device.write(0, &[value]).is_some(), reset);
        }
    }

    #[test]
    fn it_is_always_ready_for_a_command() {
        let device = device();
        for byte in 0..=255u8 {
            device.write(0, &[byte]);
            assert_eq!(read(&device, COMMAND_OFFSET) & 2, 0);
        }
    }

    #[test]
    fn the_chord_comes_byte_by_byte_with_an_interrupt_each() {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let device = I8042::new(line.try_clone().unwrap());
        device.press_ctrl_alt_del().unwrap();
        let mut codes = Vec::new();
        while read(&device, COMMAND_OFFSET) & 1 != 0 {
            assert_eq!(line.read().unwrap(), 1);
            codes.push(read(&device, 0));
        }
        assert_eq!(codes, [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14]);
        assert!(line.read().is_err(), "an interrupt too many");
    }

    #[test]
    fn a_keyboard_that_is_off_says_so() {
        let device = device();
        device.write(COMMAND_OFFSET, &[0x60]);
        device.write(0, &[0x04]);
        assert_eq!(device.press_ctrl_alt_del(), Err(KeyboardOff));
        assert_eq!(read(&device, COMMAND_OFFSET) & 1, 0);
    }
}
