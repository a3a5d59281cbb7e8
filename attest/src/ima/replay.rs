//! Computes the PCR 10 to which a list leads, and finds how far a quoted PCR 10 covers it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_with::{MapPreventDuplicates, hex::Hex, serde_as};

use super::{BOOT_AGGREGATE, Entry, ImaList};
use crate::key::Bank;

/// With what the kernel extended a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtendRule {
    /// The bank's own hash of the template data.
    Digest,
    /// The SHA-1 hash of the template data, padded with zeros.
    PaddedSha1,
}

/// How far a list was judged: from here a later list of the same boot goes on, so that a check costs only what is new.
///
/// Made by an [`Appraisal`](crate::appraise::Appraisal) alone, so all entries up to here were judged, the first of them
/// as the one that ties the list to the boot.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ImaState {
    /// The number of entries.
    pub entries: u64,
    /// PCR 10 after them, in every bank of which it was quoted.
    #[serde_as(as = "MapPreventDuplicates<_, Hex>")]
    pub pcrs: BTreeMap<Bank, Vec<u8>>,
    /// By what they were judged: digest of the policy and of the reference values that the boot matched. Entries that
    /// were judged by other rules are judged again.
    #[serde_as(as = "Hex")]
    pub rules: [u8; 32],
}

/// How far the quoted PCR covers a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Entries of this list that the TPM vouches for. What follows is not believed.
    pub entries: usize,
    /// Whether an earlier judgement lies on the way: the list begins with what was judged then.
    pub continues: bool,
}

/// Where a list begins: PCR 10 before its first entry, and how many entries came before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    pub entries: u64,
    pub pcr: &'a [u8],
}

impl ImaList<'_> {
    /// PCR 10 after all entries.
    pub fn replay(&self, bank: Bank, rule: ExtendRule) -> Vec<u8> {
        self.entries.iter().fold(vec![0; bank.digest_size()], |pcr, entry| entry.extend(bank, rule, &pcr))
    }

    /// The number of entries after which PCR 10 has the value; `None` if it never has it.
    pub fn position_of(&self, bank: Bank, rule: ExtendRule, quoted: &[u8]) -> Option<usize> {
        self.reach(bank, rule, None, quoted, None).map(|reached| reached.entries)
    }

    /// Replays until PCR 10 has the quoted value. Stops there: the rest of the list is only what the host says.
    ///
    /// Without a start it begins where the kernel did. An earlier judgement (number of entries, PCR 10 after them) must
    /// lie on the way.
    pub(crate) fn reach(
        &self,
        bank: Bank,
        rule: ExtendRule,
        start: Option<Start<'_>>,
        quoted: &[u8],
        judged: Option<(u64, &[u8])>,
    ) -> Option<Reached> {
        let mut pcr = start.map_or_else(|| vec![0; bank.digest_size()], |start| start.pcr.to_vec());
        let mut number = start.map_or(0, |start| start.entries);
        let mut continues = judged.is_none();
        let mut entries = self.entries.iter();
        let mut count = 0;
        loop {
            continues |= judged.is_some_and(|(entries, judged)| entries == number && judged == pcr);
            if pcr == quoted {
                return Some(Reached { entries: count, continues });
            }
            pcr = entries.next()?.extend(bank, rule, &pcr);
            count = count.saturating_add(1);
            number = number.saturating_add(1);
        }
    }
}

impl Entry<'_> {
    /// PCR 10 after this entry.
    fn extend(&self, bank: Bank, rule: ExtendRule, pcr: &[u8]) -> Vec<u8> {
        if self.is_violation() {
            // The kernel lists zeros and extends ones, so that the PCR cannot be what it would be without the violation.
            return bank.extend(pcr, &vec![0xff; bank.digest_size()]);
        }
        match rule {
            ExtendRule::Digest => bank.extend(pcr, &bank.hash(&self.data)),
            ExtendRule::PaddedSha1 => {
                let mut digest = Bank::Sha1.hash(&self.data);
                digest.resize(bank.digest_size(), 0);
                bank.extend(pcr, &digest)
            }
        }
    }

    /// Whether the template digest is that of the template data, or the entry is a violation, which has none.
    pub fn template_digest_holds(&self) -> bool {
        self.is_violation() || Bank::Sha1.hash(&self.data) == self.template_digest
    }

    /// Whether this is the entry that ties the list to the boot.
    pub fn is_boot_aggregate(&self) -> bool {
        self.name() == BOOT_AGGREGATE
    }
}
