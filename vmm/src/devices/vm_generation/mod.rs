//! The VM generation ID: 16 random bytes in guest memory that change when the VM is restored from a snapshot.
//!
//! Two VMs from one snapshot would draw the same "random" numbers. A guest that knows this device stirs the bytes into
//! its pool of entropy when it is told that they are new ("Virtual Machine Generation ID", Microsoft 2012; Linux'
//! driver `vmgenid`). The telling is an interrupt of ACPI's generic event device, on line [`GSI`].

use std::io;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::{GuestRam, layout};

/// The interrupt: the second serial line's, which this machine does not have.
pub const GSI: u8 = 3;
/// Bytes of the ID.
pub const LEN: usize = 16;

/// Writes a new ID to [`layout::VM_GENERATION`].
pub fn renew(ram: &GuestRam) -> io::Result<()> {
    let mut id = [0u8; LEN];
    // SAFETY: the kernel writes at most `LEN` bytes.
    let got = unsafe { libc::getrandom(id.as_mut_ptr().cast(), LEN, 0) };
    if usize::try_from(got) != Ok(LEN) {
        return Err(io::Error::last_os_error());
    }
    ram.write_slice(&id, GuestAddress(layout::VM_GENERATION)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::reserve;

    #[test]
    fn every_id_is_another() {
        let ram = reserve(2).unwrap();
        let ids: std::collections::BTreeSet<[u8; LEN]> = (0..4)
            .map(|_| {
                renew(&ram).unwrap();
                ram.read_obj(GuestAddress(layout::VM_GENERATION)).unwrap()
            })
            .collect();
        assert_eq!(ids.len(), 4);
    }
}
