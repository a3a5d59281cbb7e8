//! The fuzzer's bytes as numbers, in order. Behind their end everything is zero.

use std::ops::Range;

use super::memory;

/// What is left of the bytes.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A number, little endian like all of them.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// A number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number in a range.
    pub fn below(&mut self, range: Range<usize>) -> usize {
        range.start + usize::from(self.u8()) % range.len()
    }

    /// A guest address: mostly in two bytes one that is memory, else any.
    pub fn address(&mut self) -> u64 {
        match self.u16() {
            u16::MAX => self.u64(),
            0xfffe => memory::HIGH + u64::from(self.u16()),
            low => u64::from(low),
        }
    }

    /// A length: mostly in one byte a small one, else any.
    pub fn len(&mut self) -> u32 {
        match self.u8() {
            255 => self.u32(),
            254 => u32::from(self.u16()),
            short => u32::from(short),
        }
    }
}
