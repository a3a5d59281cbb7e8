//! Which signatures of files were found good: to check one costs a hundred times what hashing its entry does.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::keyring::Key;
use super::signature::SignatureProblem;
use crate::key::{Bank, Digest};

/// Most signatures that do not hold and are checked all the same, in one judgement. On an honest host there are none.
const MAX_BAD: usize = 128;

/// Most signatures that are checked in one judgement; those that were found good before do not count. A server that
/// measures all that root reads has some thousands.
const MAX_CHECKED: usize = 16_384;

/// How many good signatures are kept at most, those of some servers at once. When there are more, the half is forgotten
/// that was not asked for as lately as the other.
const MAX_KEPT: usize = 1 << 18;

/// SHA-256 of key, digest and signature.
type Identity = [u8; 32];

/// Signatures that were found good, by all judgements of a process.
#[derive(Debug, Default)]
pub(crate) struct GoodSignatures(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    new: HashSet<Identity>,
    old: HashSet<Identity>,
}

impl GoodSignatures {
    fn knows(&self, identity: &Identity) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = kept.old.contains(identity);
        if is_old {
            kept.keep(*identity);
        }
        is_old || kept.new.contains(identity)
    }

    fn keep(&self, identity: Identity) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(identity);
    }
}

impl Kept {
    fn keep(&mut self, identity: Identity) {
        if self.new.len() >= MAX_KEPT / 2 {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(identity);
    }
}

/// The signature checks of one judgement: each is made once, and only so many.
#[derive(Debug, Default)]
pub(crate) struct Checks<'g> {
    good: Option<&'g GoodSignatures>,
    made: HashMap<Identity, bool>,
    bad: usize,
}

impl<'g> Checks<'g> {
    /// What holds is told to `good`, and not checked again if that knows it.
    pub fn new(good: &'g GoodSignatures) -> Self {
        Self { good: Some(good), ..Self::default() }
    }

    /// Whether a key signed this digest.
    ///
    /// # Errors
    /// If no more is checked in this judgement.
    pub(super) fn verify(
        &mut self,
        key: &Key,
        bank: Bank,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<bool, SignatureProblem> {
        let identity = identity(key, bank, digest, signature);
        if let Some(holds) = self.made.get(&identity) {
            return Ok(*holds);
        }
        if self.good.is_some_and(|good| good.knows(&identity)) {
            return Ok(true);
        }
        if self.bad >= MAX_BAD || self.made.len() >= MAX_CHECKED {
            return Err(SignatureProblem::TooMany);
        }
        let holds = key.verifies(bank, digest, signature);
        self.made.insert(identity, holds);
        if !holds {
            self.bad = self.bad.saturating_add(1);
        } else if let Some(good) = self.good {
            good.keep(identity);
        }
        Ok(holds)
    }
}

/// Fingerprints have one length, digests that of their bank: no two of these read alike.
fn identity(key: &Key, bank: Bank, digest: &[u8], signature: &[u8]) -> Identity {
    let all = [key.fingerprint(), &bank.tpm_alg_id().to_be_bytes(), digest, signature].concat();
    Digest::hash(Bank::Sha256, &all).as_slice().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_good_signatures_is_kept_and_the_older_go_first() {
        let good = GoodSignatures::default();
        let identity = |number: usize| {
            let mut identity = [0; 32];
            identity[..8].copy_from_slice(&number.to_le_bytes());
            identity
        };
        for number in 0..2 * MAX_KEPT {
            good.keep(identity(number));
            let kept = good.0.lock().unwrap();
            assert!(kept.new.len() + kept.old.len() <= MAX_KEPT);
        }
        assert!(good.knows(&identity(2 * MAX_KEPT - 1)) && good.knows(&identity(2 * MAX_KEPT - MAX_KEPT / 2)));
        assert!(!good.knows(&identity(0)));
    }
}
