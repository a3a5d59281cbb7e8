//! Walks over little-endian bytes that somebody else wrote: the order of the firmware's and the kernel's logs.
//!
//! Never goes past its input and never allocates; TPM structures, which are big-endian, have their own reader.

/// A position in borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

/// The bytes ended before the field did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    /// Bytes that the field needs.
    pub needed: u64,
    /// Bytes that are left.
    pub left: usize,
}

impl<'a> Cursor<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub const fn offset(&self) -> usize {
        self.offset
    }

    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.offset >= self.bytes.len()
    }

    /// The next `count` bytes. The count is as wide as a log can write it, so that no caller has to narrow it.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], Short> {
        let rest = self.rest();
        let short = Short { needed: count, left: rest.len() };
        let count = usize::try_from(count).map_err(|_| short)?;
        let taken = rest.get(..count).ok_or(short)?;
        self.offset = self.offset.saturating_add(count);
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }
}
