//! What stands where the firmware of a PC begins: a reset.
//!
//! Linux that finds ACPI of reduced hardware takes it for a machine with UEFI, whose services it means to reset it with
//! (`efi_reboot_required`). There are none here. Unless it is told `reboot=k` it then does not ask ACPI for its reset
//! register, but goes to the firmware's first instruction in real mode.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::devices::i8042;
use crate::memory::{GuestRam, layout};

/// `mov al, RESET_COMMAND; out COMMAND_PORT, al; 1: hlt; jmp 1b`: the same in all modes of the processor.
const CODE: [u8; 7] = [0xb0, i8042::RESET_COMMAND, 0xe6, i8042::COMMAND_PORT.to_le_bytes()[0], 0xf4, 0xeb, 0xfd];

/// Writes it to [`layout::RESET_VECTOR`].
pub(super) fn write(ram: &GuestRam) -> Result<(), BootError> {
    ram.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR)).map_err(|_| BootError::Write("reset vector"))
}
