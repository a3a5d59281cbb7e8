//! Reads and writes TPM structures: big-endian integers and buffers with a 16-bit length (TPM 2.0 Library, Part 2).
//!
//! The reader never goes past its input, never allocates, and can say that nothing is left over: trailing bytes are
//! where forged structures hide what the signature does not need.

use thiserror::Error;

/// Why bytes are not the TPM structure that they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// The structure says it is longer than the bytes that are there.
    #[error("{what} needs {needed} bytes at offset {offset}, {left} are left")]
    Truncated {
        /// The field.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// The structure ended before the bytes did.
    #[error("{0} bytes follow the end of the structure")]
    Trailing(usize),
}

/// A position in bytes that somebody else wrote.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(taken) = rest.get(..count) else {
            return Err(WireError::Truncated { what, offset: self.offset, needed: count, left: rest.len() });
        };
        // Cannot overflow: `rest` holds at least `count` bytes after `offset`.
        self.offset = self.offset.saturating_add(count);
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array(what).map(u8::from_be_bytes)
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A TPM2B: a 16-bit length and that many bytes.
    pub fn sized(&mut self, what: &'static str) -> Result<&'a [u8], WireError> {
        let size = self.u16(what)?;
        self.take(usize::from(size), what)
    }

    /// Refuses bytes after the structure.
    pub fn finish(self) -> Result<(), WireError> {
        match self.bytes.len().saturating_sub(self.offset) {
            0 => Ok(()),
            left => Err(WireError::Trailing(left)),
        }
    }
}

/// `content` as a TPM2B; `None` if it is longer than a TPM2B can say.
pub(crate) fn sized(content: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(content.len()).ok()?;
    let mut out = Vec::with_capacity(content.len().saturating_add(2));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(content);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote_and_nothing_more() {
        let bytes = sized(b"abc").unwrap();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.sized("buffer").unwrap(), b"abc");
        assert_eq!(reader.finish(), Ok(()));

        let mut reader = Reader::new(&[0, 3, b'a']);
        assert_eq!(reader.sized("buffer"), Err(WireError::Truncated { what: "buffer", offset: 2, needed: 3, left: 1 }));
        assert_eq!(Reader::new(&[1, 2]).finish(), Err(WireError::Trailing(2)));
        assert!(sized(&vec![0; 65_536]).is_none());
    }
}
