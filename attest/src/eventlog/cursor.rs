//! Walks over little-endian bytes that somebody else wrote: the order of the firmware's and the kernel's logs.
//!
//! Never goes past its input and never allocates; TPM structures, which are big-endian, have their own reader.

/// A position in borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
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
        Self { rest: bytes, offset: 0 }
    }

    pub const fn offset(&self) -> usize {
        self.offset
    }

    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` bytes. The count is as wide as a log can write it, so that no caller has to narrow it.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8], Short> {
        let taken = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = taken.ok_or(Short { needed: count, left: self.rest.len() })?;
        self.go_on(taken.len(), rest);
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let short = Short { needed: N as u64, left: self.rest.len() };
        let (taken, rest) = self.rest.split_first_chunk().ok_or(short)?;
        self.go_on(N, rest);
        Ok(*taken)
    }

    /// The bytes between an earlier state of this cursor and where it is now.
    pub fn since(&self, earlier: &Self) -> &'a [u8] {
        earlier.rest.get(..self.offset.saturating_sub(earlier.offset)).unwrap_or_default()
    }

    const fn go_on(&mut self, by: usize, rest: &'a [u8]) {
        self.offset = self.offset.saturating_add(by);
        self.rest = rest;
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
