//! Digests on the stack: logs of a million entries are replayed without a million allocations.

use std::fmt;

use aws_lc_rs::digest;
use sm3::Digest as _;

use super::Bank;
use crate::work;

/// Longest digest of any bank, in bytes.
pub(crate) const MAX_DIGEST: usize = 64;

/// A digest, or a PCR's value.
#[derive(Clone, Copy)]
pub(crate) struct Digest {
    bytes: [u8; MAX_DIGEST],
    size: usize,
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_slice()))
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.is(other.as_slice())
    }
}

impl Eq for Digest {}

impl Digest {
    /// As many bytes of one value as the bank's digests have.
    pub const fn filled(bank: Bank, byte: u8) -> Self {
        Self { bytes: [byte; MAX_DIGEST], size: bank.digest_size() }
    }

    /// The same with another last byte.
    #[must_use]
    pub fn ending_with(mut self, byte: u8) -> Self {
        if let Some(last) = self.size.checked_sub(1).and_then(|last| self.bytes.get_mut(last)) {
            *last = byte;
        }
        self
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
        let mut digest = Self::filled(bank, 0);
        digest.set_hash(bank, data);
        digest
    }

    fn set_hash(&mut self, bank: Bank, data: &[u8]) {
        work::hashed(data.len());
        match bank.aws_lc() {
            // In one call: a context costs as much as hashing a hundred bytes.
            Some(algorithm) => self.set(digest::digest(algorithm, data).as_ref()),
            None => self.set(&sm3::Sm3::digest(data)),
        }
    }

    /// Its beginning, filled with zeros to the length of another bank's digests.
    pub fn padded(&self, bank: Bank) -> Self {
        let mut digest = Self::filled(bank, 0);
        digest.set(self.as_slice());
        digest
    }

    /// A PCR's next value: the digest of its value and then the event's digest.
    #[must_use]
    pub fn extend(&self, bank: Bank, event: &Self) -> Self {
        let mut next = *self;
        next.extend_by(bank, event.as_slice());
        next
    }

    /// Becomes a PCR's next value. In place, for copies of digests are what a replay does beside hashing.
    pub fn extend_by(&mut self, bank: Bank, event: &[u8]) {
        let mut both = [0; 2 * MAX_DIGEST];
        // A whole array is copied faster than so many bytes of it; what is too much the event's digest covers.
        if let Some(place) = both.first_chunk_mut() {
            *place = self.bytes;
        }
        let end = self.size.saturating_add(event.len());
        if let Some(place) = both.get_mut(self.size..end) {
            place.copy_from_slice(event);
        }
        self.set_hash(bank, both.get(..end).unwrap_or_default());
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.size).unwrap_or_default()
    }

    /// Whether it is this one. Nothing about it is secret, and most others differ in their first byte.
    pub fn is(&self, other: &[u8]) -> bool {
        self.bytes.first() == other.first() && self.as_slice() == other
    }

    fn set(&mut self, value: &[u8]) {
        // Nearly all digests have this size; a copy of a known one is a few instructions, of any other a call.
        const USUAL: usize = 32;
        if let (USUAL, Ok(value)) = (self.size, <&[u8; USUAL]>::try_from(value))
            && let Some(place) = self.bytes.first_chunk_mut()
        {
            *place = *value;
            return;
        }
        let size = value.len().min(self.size);
        if let (Some(to), Some(from)) = (self.bytes.get_mut(..size), value.get(..size)) {
            to.copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_that_the_bank_computes() {
        for bank in Bank::ALL {
            let (pcr, event) = (Digest::hash(bank, b"pcr"), Digest::hash(bank, b"event"));
            assert_eq!(pcr.as_slice(), bank.hash(b"pcr"), "{bank}");
            let next = pcr.extend(bank, &event);
            assert_eq!(next.as_slice(), bank.extend(&bank.hash(b"pcr"), &bank.hash(b"event")), "{bank}");
            assert!(next.is(next.as_slice()) && !next.is(pcr.as_slice()) && !next.is(&[]), "{bank}");
            let mut last_differs = next.as_slice().to_vec();
            *last_differs.last_mut().unwrap() ^= 1;
            assert!(!next.is(&last_differs), "{bank}");
            assert!(Digest::new(bank, next.as_slice()).is_some_and(|same| same.is(next.as_slice())));
            assert!(Digest::new(bank, &[0; MAX_DIGEST + 1]).is_none() && Digest::new(bank, &[0; 19]).is_none());
        }
        let sha1 = Digest::hash(Bank::Sha1, b"abc");
        assert_eq!(sha1.padded(Bank::Sha256).as_slice(), [sha1.as_slice(), &[0; 12]].concat());
    }
}
