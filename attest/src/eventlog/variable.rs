//! UEFI variables as events carry them (`UEFI_VARIABLE_DATA`).

use core::fmt;

use thiserror::Error;

use super::{Cursor, Short};

/// Longest name of a variable, in UTF-16 units. The firmware's own names have some tens.
const MAX_NAME_UNITS: u64 = 1024;

/// A GUID in the order in which firmware stores it: the first three fields are little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// `EFI_GLOBAL_VARIABLE`, 8be4df61-93ca-11d2-aa0d-00e098032b8c: SecureBoot, PK, KEK, BootOrder, Boot####.
    pub const GLOBAL: Self =
        Self([0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);
    /// `EFI_IMAGE_SECURITY_DATABASE_GUID`, d719b2cb-3d3a-4596-a3bc-dad00e67656f: db, dbx, dbt, dbr.
    pub const IMAGE_SECURITY: Self =
        Self([0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f]);
    /// `EFI_DEVICE_SIGNATURE_DATABASE_GUID`, b9c2b4f4-bf5f-462d-8adf-c5c70ac35dad: devdb.
    pub const DEVICE_SIGNATURE: Self =
        Self([0xf4, 0xb4, 0xc2, 0xb9, 0x5f, 0xbf, 0x2d, 0x46, 0x8a, 0xdf, 0xc5, 0xc7, 0x0a, 0xc3, 0x5d, 0xad]);
    /// Shim's variables, 605dab50-e046-4300-abb6-3dd810dd8b23: MokList, SbatLevel.
    pub const SHIM_LOCK: Self =
        Self([0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23]);
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STORED_ORDER: [(usize, &str); 16] = [
            (3, ""),
            (2, ""),
            (1, ""),
            (0, ""),
            (5, "-"),
            (4, ""),
            (7, "-"),
            (6, ""),
            (8, "-"),
            (9, ""),
            (10, "-"),
            (11, ""),
            (12, ""),
            (13, ""),
            (14, ""),
            (15, ""),
        ];
        for (index, before) in STORED_ORDER {
            write!(f, "{before}{:02x}", self.0.get(index).copied().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A variable that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Whose variable it is.
    pub guid: Guid,
    /// Little-endian UTF-16 without NUL.
    name: &'a [u8],
    /// Its content; empty for a variable that is not there.
    pub data: &'a [u8],
}

/// Why an event's data is no variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VariableError {
    /// The data ends before the variable does.
    #[error("the variable needs {needed} bytes, {left} are left")]
    Truncated {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// The name is longer than any real one.
    #[error("the variable's name has {0} characters, {MAX_NAME_UNITS} are the most that is read")]
    NameTooLong(u64),
    /// The name is not UTF-16, or has a NUL in it.
    #[error("the variable's name is not text")]
    Name,
    /// The data goes on after the variable.
    #[error("{0} bytes follow the variable")]
    Trailing(usize),
}

impl From<Short> for VariableError {
    fn from(short: Short) -> Self {
        Self::Truncated { needed: short.needed, left: short.left }
    }
}

impl<'a> Variable<'a> {
    /// Reads the variable that is all of an event's data.
    ///
    /// # Errors
    /// If the data is not exactly one variable.
    pub fn parse(data: &'a [u8]) -> Result<Self, VariableError> {
        let (variable, rest) = Self::parse_prefix(data)?;
        if rest.is_empty() { Ok(variable) } else { Err(VariableError::Trailing(rest.len())) }
    }

    /// Reads the variable at the beginning of an event's data: old versions of shim log some bytes more.
    pub(crate) fn parse_prefix(data: &'a [u8]) -> Result<(Self, &'a [u8]), VariableError> {
        let mut cursor = Cursor::new(data);
        let guid = Guid(cursor.array()?);
        let name_units = cursor.u64()?;
        let data_size = cursor.u64()?;
        if name_units > MAX_NAME_UNITS {
            return Err(VariableError::NameTooLong(name_units));
        }
        let name = cursor.take(name_units.saturating_mul(2))?;
        if !units(name).all(|unit| unit != 0) || char::decode_utf16(units(name)).any(|char| char.is_err()) {
            return Err(VariableError::Name);
        }
        let data = cursor.take(data_size)?;
        Ok((Self { guid, name, data }, cursor.rest()))
    }

    /// Whether this is the variable of that owner and name. Names are compared exactly: firmware does too.
    pub fn is(&self, guid: Guid, name: &str) -> bool {
        self.guid == guid && units(self.name).eq(name.encode_utf16())
    }

    /// Its name.
    pub fn name(&self) -> String {
        // That it is text was found when it was read.
        utf16(self.name).unwrap_or_default()
    }
}

/// The units of little-endian UTF-16.
fn units(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks::<2>().0.iter().copied().map(u16::from_le_bytes)
}

/// Little-endian UTF-16; `None` if it is none.
pub(super) fn utf16(bytes: &[u8]) -> Option<String> {
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    let mut text = String::with_capacity(bytes.len() / 2);
    for char in char::decode_utf16(units(bytes)) {
        text.push(char.ok()?);
    }
    Some(text)
}
