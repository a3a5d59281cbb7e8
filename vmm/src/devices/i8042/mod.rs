//! The i8042 keyboard controller, as far as it resets the machine.

use super::{Action, Device};

/// Data port; the controller owns five ports from here.
pub const PORT: u16 = 0x60;
/// Number of ports from [`PORT`] on.
pub const PORTS: u64 = 5;
/// Command and status port.
pub const COMMAND_PORT: u16 = 0x64;
/// Command that pulses the processor's reset line.
pub const RESET_COMMAND: u8 = 0xfe;

const COMMAND_OFFSET: u64 = (COMMAND_PORT - PORT) as u64;

/// A controller without keyboard: idle for ever, and it knows one command.
#[derive(Debug, Default)]
pub struct I8042;

impl Device for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status 0: no data for the guest, ready for a command. Guests wait for that before they reset.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        (offset == COMMAND_OFFSET && data.first() == Some(&RESET_COMMAND)).then_some(Action::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        for byte in 0..=255 {
            assert_eq!(I8042.write(COMMAND_OFFSET, &[byte]).is_some(), byte == RESET_COMMAND);
            assert_eq!(I8042.write(0, &[byte]), None);
        }
        assert_eq!(I8042.write(COMMAND_OFFSET, &[]), None);
    }

    #[test]
    fn it_is_always_ready() {
        let mut status = [0xff];
        I8042.read(COMMAND_OFFSET, &mut status);
        assert_eq!(status, [0]);
    }
}
