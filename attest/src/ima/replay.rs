//! Computes the PCR 10 to which a list leads, and finds how far a quoted PCR 10 covers it.

use serde::{Deserialize, Serialize};
use serde_with::{hex::Hex, serde_as};

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

/// How far a list was judged: what a later list of the same boot must begin with.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct JudgedIma {
    /// The bank in which it was judged.
    pub bank: Bank,
    /// The number of entries.
    pub entries: u64,
    /// PCR 10 after them.
    #[serde_as(as = "Hex")]
    pub pcr: Vec<u8>,
}

/// How far the quoted PCR covers a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Entries that the TPM vouches for. What follows is not believed.
    pub entries: usize,
    /// With what the bank was extended.
    pub rule: ExtendRule,
    /// Whether an earlier judgement lies on the way: the list begins with what was judged then.
    pub continues: bool,
}

impl ImaList<'_> {
    /// PCR 10 after all entries.
    pub fn replay(&self, bank: Bank, rule: ExtendRule) -> Vec<u8> {
        self.entries.iter().fold(vec![0; bank.digest_size()], |pcr, entry| entry.extend(bank, rule, &pcr))
    }

    /// The number of entries after which PCR 10 has the value; `None` if it never has it.
    pub fn position_of(&self, bank: Bank, rule: ExtendRule, quoted: &[u8]) -> Option<usize> {
        self.reach(bank, rule, quoted, None).map(|reached| reached.entries)
    }

    /// Replays until PCR 10 has the quoted value. Stops there: the rest of the list is only what the host says.
    pub(crate) fn reach(
        &self,
        bank: Bank,
        rule: ExtendRule,
        quoted: &[u8],
        previous: Option<&JudgedIma>,
    ) -> Option<Reached> {
        let mut pcr = vec![0; bank.digest_size()];
        let mut continues = previous.is_none();
        let mut entries = self.entries.iter();
        let mut count = 0;
        loop {
            if let Some(judged) = previous {
                continues |= judged.bank == bank && u64::try_from(count) == Ok(judged.entries) && judged.pcr == pcr;
            }
            if pcr == quoted {
                return Some(Reached { entries: count, rule, continues });
            }
            pcr = entries.next()?.extend(bank, rule, &pcr);
            count = count.saturating_add(1);
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
