//! The firmware's variable store: enough of it to take the platform key away, which turns Secure Boot off.
//!
//! EDK2, `VariableFormat.h`: a store header, then authenticated variables one after the other, aligned to 4 bytes. A
//! variable is deleted by clearing a bit of its state.

/// EFI_AUTHENTICATED_VARIABLE_GUID as it stands at the start of the store.
const STORE: [u8; 16] =
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92];
/// Guid, size, format, state and reserved bytes.
const STORE_HEADER: usize = 28;
/// AUTHENTICATED_VARIABLE_HEADER, without alignment.
const HEADER: usize = 60;
/// A variable that is complete and not deleted.
const ADDED: u8 = 0x3f;
/// The same, deleted.
const DELETED: u8 = 0x3d;

/// Gives back `store` without the platform key (variable `PK`), so that the firmware starts in setup mode; nothing when
/// this is no variable store or has no platform key.
pub fn without_platform_key(store: &[u8]) -> Option<Vec<u8>> {
    let start = store.windows(STORE.len()).position(|window| window == STORE)?;
    let mut at = start + STORE_HEADER;
    let mut changed = store.to_vec();
    let mut found = false;
    while number(store, at, 2) == Some(0x55aa) {
        let name_size = number(store, at + 36, 4)?;
        let data_size = number(store, at + 40, 4)?;
        let name = store.get(at + HEADER..(at + HEADER).checked_add(name_size)?)?;
        if name == b"P\0K\0\0\0" && store.get(at + 2) == Some(&ADDED) {
            *changed.get_mut(at + 2)? = DELETED;
            found = true;
        }
        at = (at + HEADER + name_size).checked_add(data_size)?.next_multiple_of(4);
    }
    found.then_some(changed)
}

/// A little-endian number of up to 4 bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::machine::Firmware;

    #[test]
    fn one_byte_turns_secure_boot_off() {
        let store = std::fs::read(Firmware::SecureBoot.variables().unwrap()).unwrap();
        let changed = without_platform_key(&store).unwrap();
        assert_eq!(store.iter().zip(&changed).filter(|(before, after)| before != after).count(), 1);
        assert_eq!(without_platform_key(&changed), None);
        assert_eq!(without_platform_key(&[]), None);
    }
}
