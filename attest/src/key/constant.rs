//! What firmware measures in the same bytes on every machine.

use std::sync::OnceLock;

use super::{Bank, Digest};

/// Bytes that never change, with their digests: each is computed once in a process.
pub(crate) struct Constant {
    bytes: &'static [u8],
    digests: [OnceLock<Digest>; Bank::ALL.len()],
}

impl Constant {
    pub const fn new(bytes: &'static [u8]) -> Self {
        Self { bytes, digests: [const { OnceLock::new() }; Bank::ALL.len()] }
    }

    /// Whether this is the digest of them.
    pub fn has_digest(&self, bank: Bank, digest: &[u8]) -> bool {
        let known = self.digests.get(bank as usize);
        known.is_some_and(|known| known.get_or_init(|| Digest::hash(bank, self.bytes)).is(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_own_digest_in_each_bank_and_no_other() {
        static TEXT: Constant = Constant::new(b"text");
        for _ in 0..2 {
            for bank in Bank::ALL {
                assert!(TEXT.has_digest(bank, &bank.hash(b"text")), "{bank}");
                assert!(!TEXT.has_digest(bank, &bank.hash(b"other")), "{bank}");
            }
            assert!(!TEXT.has_digest(Bank::Sm3_256, &Bank::Sha256.hash(b"text")));
        }
    }
}
