//! Hash algorithms as TPMs name them; a PCR bank is named by its hash.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde_with::{DeserializeFromStr, SerializeDisplay};
use sm3::Digest as _;
use thiserror::Error;

use super::digest::Digest;
use crate::work;

/// A TPM's hash algorithm, and so the name of a PCR bank. Ordered by its algorithm id in the TCG registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, SerializeDisplay, DeserializeFromStr)]
#[non_exhaustive]
pub enum Bank {
    /// SHA-1, TPM_ALG_SHA1 (0x0004). Collisions are practical: good for telling banks apart, proves nothing.
    Sha1,
    /// SHA-256, TPM_ALG_SHA256 (0x000B).
    Sha256,
    /// SHA-384, TPM_ALG_SHA384 (0x000C).
    Sha384,
    /// SHA-512, TPM_ALG_SHA512 (0x000D).
    Sha512,
    /// SM3, TPM_ALG_SM3_256 (0x0012).
    Sm3_256,
}

/// A name that is no bank's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown PCR bank {0:?}: use sha1, sha256, sha384, sha512 or sm3_256")]
pub struct UnknownBank(pub String);

impl Bank {
    /// Every bank, by algorithm id.
    pub const ALL: [Self; 5] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512, Self::Sm3_256];

    /// The algorithm's id in the TCG Algorithm Registry.
    #[must_use]
    pub const fn tpm_alg_id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000B,
            Self::Sha384 => 0x000C,
            Self::Sha512 => 0x000D,
            Self::Sm3_256 => 0x0012,
        }
    }

    /// The bank with this algorithm id; `None` for TPM_ALG_NULL and whatever else is no hash known here.
    #[must_use]
    pub const fn from_tpm_alg_id(id: u16) -> Option<Self> {
        // Asked for every digest of every event, so not searched for in `ALL`.
        Some(match id {
            0x0004 => Self::Sha1,
            0x000B => Self::Sha256,
            0x000C => Self::Sha384,
            0x000D => Self::Sha512,
            0x0012 => Self::Sm3_256,
            _ => return None,
        })
    }

    /// Length of the bank's digests in bytes.
    #[must_use]
    pub const fn digest_size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sm3_256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The name that tpm2-tools and Linux use, such as `sha256`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Sm3_256 => "sm3_256",
        }
    }

    /// The digest of `data`.
    #[must_use]
    pub fn hash(self, data: &[u8]) -> Vec<u8> {
        Digest::hash(self, data).as_slice().to_vec()
    }

    /// The digest of the parts one after the other, without joining them in memory.
    #[must_use]
    pub fn hash_parts(self, parts: &[&[u8]]) -> Vec<u8> {
        work::hashed(parts.iter().map(|part| part.len()).sum());
        let Some(algorithm) = self.aws_lc() else {
            let mut context = sm3::Sm3::new();
            for part in parts {
                context.update(part);
            }
            return context.finalize().to_vec();
        };
        let mut context = digest::Context::new(algorithm);
        for part in parts {
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    }

    /// Whether `digest` is that of `data`.
    #[must_use]
    pub fn is_digest_of(self, data: &[u8], digest: &[u8]) -> bool {
        work::hashed(data.len());
        match self.aws_lc() {
            Some(algorithm) => digest::digest(algorithm, data).as_ref() == digest,
            None => self.hash(data) == digest,
        }
    }

    /// The place of the first of `tails` that is such that `digest` is that of `front` and then the tail. A long front is
    /// hashed once for all of them.
    pub(crate) fn tail_of(self, front: &[u8], tails: &[&[u8]], digest: &[u8]) -> Option<usize> {
        /// From here on setting up a context costs less than hashing once more.
        const LONG: usize = 1024;
        let algorithm = self.aws_lc().filter(|_| front.len() >= LONG);
        let Some(algorithm) = algorithm else {
            return tails.iter().position(|tail| match tail {
                [] => self.is_digest_of(front, digest),
                tail => self.hash_parts(&[front, tail]) == digest,
            });
        };
        work::hashed(front.len());
        let mut context = digest::Context::new(algorithm);
        context.update(front);
        tails.iter().position(|tail| {
            work::hashed(tail.len());
            let mut context = context.clone();
            context.update(tail);
            context.finish().as_ref() == digest
        })
    }

    /// A PCR's next value: the digest of its value and then the event's digest.
    #[must_use]
    pub fn extend(self, pcr: &[u8], event_digest: &[u8]) -> Vec<u8> {
        self.hash_parts(&[pcr, event_digest])
    }

    /// The hash as AWS-LC knows it; it has no SM3.
    pub(crate) fn aws_lc(self) -> Option<&'static digest::Algorithm> {
        match self {
            Self::Sha1 => Some(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            Self::Sha256 => Some(&digest::SHA256),
            Self::Sha384 => Some(&digest::SHA384),
            Self::Sha512 => Some(&digest::SHA512),
            Self::Sm3_256 => None,
        }
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Bank {
    type Err = UnknownBank;

    fn from_str(name: &str) -> Result<Self, UnknownBank> {
        // Linux says sm3, TPM tools say sm3_256.
        let known = |bank: &Self| bank.name() == name || (*bank == Self::Sm3_256 && name == "sm3");
        Self::ALL.into_iter().find(known).ok_or_else(|| {
            // A name from outside is repeated only as far as a reader needs it.
            UnknownBank(name.chars().take(32).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards() {
        // FIPS 180-2 appendices and GB/T 32905-2016 A.1, all of "abc".
        let expected = [
            (Bank::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Bank::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Bank::Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            ),
            (Bank::Sm3_256, "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
        ];
        for (bank, digest) in expected {
            assert_eq!(hex::encode(bank.hash(b"abc")), digest, "{bank}");
            assert_eq!(hex::encode(bank.hash_parts(&[b"a", b"", b"bc"])), digest, "{bank}");
        }
        for bank in Bank::ALL {
            assert_eq!(bank.hash(b"").len(), bank.digest_size());
            assert!(bank.is_digest_of(b"abc", &bank.hash(b"abc")) && !bank.is_digest_of(b"abd", &bank.hash(b"abc")));
            assert_eq!(bank.extend(b"pcr", b"event"), bank.hash(b"pcrevent"), "{bank}");
            assert_eq!(bank.name().parse(), Ok(bank));
            assert_eq!(Bank::from_tpm_alg_id(bank.tpm_alg_id()), Some(bank));
        }
        assert_eq!(Bank::from_tpm_alg_id(0x0010), None, "TPM_ALG_NULL is no hash");
    }
}
