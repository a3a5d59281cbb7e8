//! Computes the PCR 10 to which a list leads, and finds how far a quoted PCR 10 covers it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_with::{MapPreventDuplicates, hex::Hex, serde_as};

use super::template::OLD_NAME_SIZE;
use super::{BOOT_AGGREGATE, Entry, ImaList};
use crate::key::{Bank, Digest};

/// With what the kernel extended a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExtendRule {
    /// The bank's own hash of the template data.
    Digest,
    /// The SHA-1 hash of the template data, padded with zeros; for a violation ones over the whole of the bank's digest. So
    /// Linux extends a bank whose hash it had not at hand, since 5.8.
    PaddedSha1,
    /// The same, but for a violation the twenty ones of SHA-1, padded with zeros, too. So Linux extended every bank but SHA-1
    /// before 5.8. Without violations there is no difference.
    PaddedThroughout,
}

impl ExtendRule {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::PaddedSha1 => "padded-sha1",
            Self::PaddedThroughout => "padded-throughout",
        }
    }
}

/// The template digests that a list shows: those with which the kernel extended a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TemplateHash {
    /// The bank. SHA-1, but for the lists that newer kernels show for each bank. Padded SHA-1 of 32 bytes may be SM3's
    /// as well as SHA-256's; it is called the latter's.
    pub bank: Bank,
    /// By which rule: a list of a larger bank shows it, one of SHA-1 digests cannot.
    pub rule: ExtendRule,
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
    /// Those of these banks that hold SHA-1 digests padded with zeros: they prove nothing, and go on as they began.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub padded: BTreeSet<Bank>,
    /// By what they were judged: digest of the policy and of the reference values that the boot matched. Entries that
    /// were judged by other rules are judged again.
    #[serde_as(as = "Hex")]
    pub rules: [u8; 32],
    /// How many entries a rule of the policy accepted that no reference values list, by the rule's reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde_as(as = "MapPreventDuplicates<_, _>")]
    pub by_rule: BTreeMap<String, u64>,
}

/// One bank of a walk over a list: how far its quoted PCR 10 covers the list.
pub(crate) struct Lane<'q> {
    pub bank: Bank,
    pub rule: ExtendRule,
    value: Digest,
    quoted: &'q [u8],
    judged: Option<(u64, &'q [u8])>,
    /// Whether the walk ends where this lane has its quoted value.
    pub decides: bool,
    /// Whether the value where the walk ended is the quoted one.
    pub here: bool,
    /// Whether the quoted value was passed, wherever that was.
    pub reached: bool,
    /// Whether what was judged before lies on the way that the list goes.
    pub continues: bool,
}

impl<'q> Lane<'q> {
    /// From the beginning of a list, where PCR 10 holds zeros.
    pub fn new(bank: Bank, rule: ExtendRule, quoted: &'q [u8]) -> Self {
        let value = Digest::filled(bank, 0);
        Self { bank, rule, value, quoted, judged: None, decides: true, here: false, reached: false, continues: true }
    }

    /// Whether PCR 10 was quoted with the value from which it starts.
    pub fn is_initial(&self) -> bool {
        self.quoted.iter().all(|byte| *byte == 0)
    }

    /// From where an earlier judgement ended; `None` if that is no value of the bank.
    pub fn from(mut self, pcr: &[u8]) -> Option<Self> {
        self.value = Digest::new(self.bank, pcr)?;
        Some(self)
    }

    /// The list must pass through what an earlier judgement left: PCR 10 after so many entries.
    #[must_use]
    pub fn through(mut self, judged: Option<(u64, &'q [u8])>) -> Self {
        (self.judged, self.continues) = (judged, judged.is_none());
        self
    }

    /// Looks at the value after so many entries; whether the walk ends here.
    fn look(&mut self, entries: u64) -> bool {
        self.continues |= self.judged == Some((entries, self.value.as_slice()));
        self.here = self.value.is(self.quoted);
        self.reached |= self.here;
        self.here && self.decides
    }
}

impl ImaList<'_> {
    /// PCR 10 after all entries.
    pub fn replay(&self, bank: Bank, rule: ExtendRule) -> Vec<u8> {
        let zero = Digest::filled(bank, 0);
        let value = self.entries().fold(zero, |pcr, entry| pcr.extend(bank, &Hashed::new(&entry).event(bank, rule)));
        value.as_slice().to_vec()
    }

    /// The number of entries after which PCR 10 has the value; `None` if it never has it.
    pub fn position_of(&self, bank: Bank, rule: ExtendRule, quoted: &[u8]) -> Option<usize> {
        self.walk(&mut [Lane::new(bank, rule, quoted)], |_, _| true)
    }

    /// Replays all lanes until one that decides has its quoted value, and gives after how many entries that was. Stops
    /// there: the rest of the list is only what the host says. Until then it shows each entry, and whether its template
    /// digest is what it should be; and goes on if `visit` says so.
    pub(crate) fn walk(
        &self,
        lanes: &mut [Lane<'_>],
        mut visit: impl FnMut(&Entry<'_>, bool) -> bool,
    ) -> Option<usize> {
        let mut entries = self.entries();
        let mut count = 0_usize;
        loop {
            if look(lanes, count) {
                return Some(count);
            }
            let entry = entries.next()?;
            let hashed = Hashed::new(&entry);
            if !visit(&entry, hashed.template_digest_holds()) {
                return None;
            }
            extend(lanes, &hashed);
            count = count.saturating_add(1);
        }
    }

    /// Replays all lanes over exactly so many entries, or all if there are fewer.
    pub(crate) fn walk_first(&self, count: usize, lanes: &mut [Lane<'_>]) {
        look(lanes, 0);
        for (index, entry) in self.first_entries(count, 0).enumerate() {
            extend(lanes, &Hashed::new(&entry));
            look(lanes, index.saturating_add(1));
        }
    }
}

/// Looks at all lanes after so many entries; whether the walk ends here.
fn look(lanes: &mut [Lane<'_>], entries: usize) -> bool {
    let entries = u64::try_from(entries).unwrap_or(u64::MAX);
    let mut ends = false;
    for lane in lanes {
        ends |= lane.look(entries);
    }
    ends
}

fn extend(lanes: &mut [Lane<'_>], entry: &Hashed<'_>) {
    for lane in lanes {
        lane.value = lane.value.extend(lane.bank, &entry.event(lane.bank, lane.rule));
    }
}

/// An entry with its SHA-1, which may be asked for more than once.
struct Hashed<'e> {
    entry: &'e Entry<'e>,
    sha1: OnceCell<Digest>,
}

impl<'e> Hashed<'e> {
    const fn new(entry: &'e Entry<'e>) -> Self {
        Self { entry, sha1: OnceCell::new() }
    }

    /// With what a bank is extended.
    fn event(&self, bank: Bank, rule: ExtendRule) -> Digest {
        if self.entry.is_violation() {
            // The kernel lists zeros and extends ones, so that the PCR cannot be what it would be without the violation.
            return match rule {
                ExtendRule::PaddedThroughout => Digest::filled(Bank::Sha1, 0xff).padded(bank),
                ExtendRule::Digest | ExtendRule::PaddedSha1 => Digest::filled(bank, 0xff),
            };
        }
        self.hash(TemplateHash { bank, rule })
    }

    /// The hash of the template data.
    fn hash(&self, TemplateHash { bank, rule }: TemplateHash) -> Digest {
        match (rule, bank) {
            (ExtendRule::PaddedSha1 | ExtendRule::PaddedThroughout, _) | (_, Bank::Sha1) => {
                self.sha1.get_or_init(|| self.entry.hash_data(Bank::Sha1)).padded(bank)
            }
            (ExtendRule::Digest, _) => self.entry.hash_data(bank),
        }
    }

    fn template_digest_holds(&self) -> bool {
        self.entry.is_violation() || self.hash(self.entry.hash).as_slice() == self.entry.template_digest
    }
}

impl Entry<'_> {
    fn hash_data(&self, bank: Bank) -> Digest {
        let mut padded = [0; OLD_NAME_SIZE + 20];
        match self.padded(&mut padded) {
            Some(()) => Digest::hash(bank, &padded),
            None => Digest::hash(bank, self.data),
        }
    }

    /// Whether the template digest is that of the template data, or the entry is a violation, which has none.
    pub fn template_digest_holds(&self) -> bool {
        Hashed::new(self).template_digest_holds()
    }

    /// Whether this is the entry that ties the list to the boot.
    pub fn is_boot_aggregate(&self) -> bool {
        self.name() == BOOT_AGGREGATE
    }
}
