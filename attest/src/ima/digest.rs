//! Digests on the stack: a list of a million entries is replayed without a million allocations.

use aws_lc_rs::digest;
use sm3::Digest as _;

use crate::key::Bank;

/// Longest digest of any bank, in bytes.
const MAX: usize = 64;

/// A digest, or a PCR's value.
#[derive(Clone, Copy)]
pub(crate) struct Value {
    bytes: [u8; MAX],
    size: usize,
}

impl Value {
    /// As many bytes of one value as the bank's digests have.
    pub const fn filled(bank: Bank, byte: u8) -> Self {
        Self { bytes: [byte; MAX], size: bank.digest_size() }
    }

    /// `None` if it is not as long as the bank's digests.
    pub fn new(bank: Bank, value: &[u8]) -> Option<Self> {
        let mut all = Self::filled(bank, 0);
        (value.len() == all.size).then(|| {
            all.set(value);
            all
        })
    }

    /// The digest of `data`.
    pub fn hash(bank: Bank, data: &[u8]) -> Self {
        let mut value = Self::filled(bank, 0);
        match bank.aws_lc() {
            Some(algorithm) => value.set(digest::digest(algorithm, data).as_ref()),
            None => value.set(&sm3::Sm3::digest(data)),
        }
        value
    }

    /// Its beginning, filled with zeros to the length of another bank's digests.
    pub fn padded(&self, bank: Bank) -> Self {
        let mut value = Self::filled(bank, 0);
        value.set(self.as_slice());
        value
    }

    /// A PCR's next value.
    pub fn extend(&self, bank: Bank, event: &Self) -> Self {
        let mut both = [0; 2 * MAX];
        let (size, whole) = (self.size, self.size.saturating_add(event.size));
        if let Some(first) = both.get_mut(..size) {
            first.copy_from_slice(self.as_slice());
        }
        if let Some(second) = both.get_mut(size..whole) {
            second.copy_from_slice(event.as_slice());
        }
        Self::hash(bank, both.get(..whole).unwrap_or_default())
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }

    fn set(&mut self, value: &[u8]) {
        let size = value.len().min(self.size);
        if let (Some(to), Some(from)) = (self.bytes.get_mut(..size), value.get(..size)) {
            to.copy_from_slice(from);
        }
    }
}
