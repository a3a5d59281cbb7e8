//! Shim: its lists of keys, its settings, and the generation of boot loaders below which it starts none.
//!
//! What shim measures (`mok.c`, since version 13 as a table): `MokList` and `MokListX` into PCR 14 under `EV_IPL`, always
//! and in this order, with the distribution's own keys in them; `MokSBState` into PCR 14 and, as a whole variable under
//! `EV_EFI_VARIABLE_AUTHORITY`, into PCR 7, where it is set; `SbatLevel` into PCR 7, since version 15.3; `MokListTrusted` into
//! PCR 14, versions 15.5 and 15.6 into PCR 7 too. It does all that before it verifies the second stage. Versions 0.9 to 12
//! measured `MokSBState` into PCR 14 alone.
//!
//! What can be believed of this: a variable in PCR 7 whose digest covers it, behind the separator, for shim is started
//! there. An operating system can extend PCR 7 later, so the first of each name counts, another one with other content is
//! a denial, and so is a first one behind an authority of shim's own lists, which shim measures last. **What is left:** if
//! shim verified nothing by its own lists and did not measure a variable at all, nothing but the reference values of PCR 7
//! says that the variable was not added after boot.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::boot_loader::is_of_windows;
use super::covered::{Covered, CoveredLog};
use super::placement::is_printable;
use super::{Claim, Claims};
use crate::appraise::separators::{self, Separators};
use crate::eventlog::{Coverage, Guid, Variable};
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode};

/// The PCR of shim's lists.
const PCR: u32 = 14;

/// The PCR of Secure Boot, into which shim measures what it verifies by.
const SECURE_BOOT: u32 = 7;

/// Variables that shim measures as authorities though nothing is verified by them, by their place in [`Setting`].
const SETTINGS: [&str; 3] = ["SbatLevel", "MokListTrusted", "MokSBState"];

#[derive(Clone, Copy, Debug)]
enum Setting {
    SbatLevel,
    MokListTrusted,
    MokSbState,
}

/// One of shim's lists, of which the log has only the digest: [`Ground::digest`](super::Ground::digest) is that of its
/// content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimList {
    /// `MokList`, `MokListX` or `MokListTrusted`. A label: no digest covers it.
    pub label: String,
}

/// The generations of boot loader components below which shim starts none (SBAT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SbatLevel<'a> {
    /// All of it, as a table of comma-separated values: one component a line.
    pub text: &'a str,
}

impl SbatLevel<'_> {
    /// The date of the list, as shim writes it: 2025021800.
    pub fn date(&self) -> Option<u64> {
        let generation_and_date = self.text.lines().find_map(|line| line.trim_end().strip_prefix("sbat,"))?;
        generation_and_date.split(',').nth(1)?.parse().ok()
    }

    /// The lowest generation of a component that is started; `None` if the list does not name it.
    pub fn generation(&self, component: &str) -> Option<u32> {
        self.text.lines().find_map(|line| {
            let mut fields = line.trim_end().split(',');
            (fields.next()? == component).then(|| fields.next()?.parse().ok())?
        })
    }
}

/// What shim measured of its settings into PCR 7: each with its content, by its place in [`SETTINGS`].
#[derive(Clone, Debug, Default)]
pub(super) struct Settings<'a>([Option<Claim<'a, &'a [u8]>>; SETTINGS.len()]);

impl<'a> Settings<'a> {
    /// Settings that were measured twice with different content, or when shim had verified something already, are reasons.
    pub fn read(log: CoveredLog<'_, 'a>, separators: &Separators, reasons: &mut Vec<Reason>) -> Self {
        let mut found = Self::default();
        let mut verified = false;
        for covered in log.of_pcr(SECURE_BOOT).filter(|covered| separators.is_behind(covered.event)) {
            let Some(variable) = covered.variable().filter(|variable| variable.guid == Guid::SHIM_LOCK) else {
                continue;
            };
            let place = SETTINGS.iter().position(|name| variable.is(Guid::SHIM_LOCK, name));
            let Some(first) = place.and_then(|place| found.0.get_mut(place)) else {
                verified = true;
                continue;
            };
            if first.as_ref().map_or(verified, |first| first.value != variable.data) {
                let name = place.and_then(|place| SETTINGS.get(place)).copied().unwrap_or_default();
                let number = format!("event {}", covered.event.number);
                reasons.push(Reason::new(ReasonCode::ShimAmbiguous).pcr(SECURE_BOOT).event(name).found(number));
            } else if first.is_none() {
                *first = Some(covered.claim(variable.data));
            }
        }
        found
    }

    fn get(&self, setting: Setting) -> Option<&Claim<'a, &'a [u8]>> {
        self.0.get(setting as usize)?.as_ref()
    }
}

/// Whether a variable is one of shim's settings, by which nothing is verified.
pub(super) fn is_setting(variable: &Variable<'_>) -> bool {
    SETTINGS.iter().any(|name| variable.is(Guid::SHIM_LOCK, name))
}

impl<'a> Claims<'a> {
    /// Shim's own lists of keys (MOK), in the order in which it measured them.
    pub fn shim_lists(&self) -> Vec<Claim<'a, ShimList>> {
        let lists = self.shim_events();
        lists.map(|covered| covered.claim(ShimList { label: covered.event.label().unwrap_or_default() })).collect()
    }

    /// What extended PCR 14 and is not of Windows' boot log, whose digests cover their data. By no label.
    fn shim_events(&self) -> impl Iterator<Item = Covered<'_, 'a>> {
        let bank = self.bank();
        self.log()
            .of_pcr(PCR)
            .filter(move |covered| !is_of_windows(covered) && separators::state(covered.event, bank).is_none())
    }

    /// What shim says of SBAT.
    pub fn sbat_level(&self) -> Option<Claim<'a, SbatLevel<'a>>> {
        let level = self.shim.get(Setting::SbatLevel)?;
        let text = core::str::from_utf8(level.value).ok()?.trim_end_matches('\0');
        Some(Claim { value: SbatLevel { text }, ground: level.ground })
    }

    /// Whether the kernel is asked to trust the keys in shim's lists.
    pub fn mok_list_trusted(&self) -> Option<Claim<'a, bool>> {
        let trusted = self.shim.get(Setting::MokListTrusted)?;
        Some(Claim { value: trusted.value == [1], ground: trusted.ground })
    }

    /// Whether shim verifies what it starts: `false` if somebody disabled that (`MokSBState`), for then it starts anything
    /// though Secure Boot is on. `None` if no shim measured anything.
    ///
    /// Rests on the setting where shim measured it, else on the first event of shim's, for it measures the setting only
    /// where it is set.
    pub fn shim_validation(&self) -> Option<Claim<'a, bool>> {
        if let Some(state) = self.shim.get(Setting::MokSbState) {
            return Some(Claim { value: state.value == [0], ground: state.ground });
        }
        let sbat = self.sbat_level();
        let disabled = |covered: &Covered<'_, '_>| {
            let label = covered.event.label();
            // Every shim that measures its generation measures the setting into PCR 7 as well. An older one measures no
            // other setting of one byte, whatever the label says.
            label.as_deref() == Some("MokSBState") && !self.bank().is_digest_of(&[0], covered.digest)
                || sbat.is_none() && is_set_byte(self.bank(), covered.digest)
        };
        if let Some(covered) = self.shim_events().find(disabled) {
            return Some(covered.claim(false));
        }
        self.shim().map(|covered| covered.claim(true))
    }

    /// The first event that shows that shim ran.
    fn shim(&self) -> Option<Covered<'_, 'a>> {
        let of_shim =
            |covered: &Covered<'_, 'a>| covered.variable().is_some_and(|variable| variable.guid == Guid::SHIM_LOCK);
        let in_secure_boot = || self.log().of_pcr(SECURE_BOOT).filter(|c| self.is_behind_separator(c)).find(of_shim);
        self.shim_events().next().or_else(in_secure_boot)
    }

    /// Events of PCR 7 behind the separator that could be anything, such as a setting of shim's: no digest covers them.
    pub(crate) fn uncovered_settings(&self) -> impl Iterator<Item = usize> {
        self.log()
            .of_pcr(SECURE_BOOT)
            .filter(|covered| self.is_behind_separator(covered) && !covers_data(covered.coverage))
            .map(|covered| covered.event.number)
    }

    /// Whether an event of PCR 7 is nothing by which anything could have been verified: a setting of shim's, or a text such
    /// as the firmware's actions. Only where a digest covers that.
    pub(super) fn verifies_nothing(&self, covered: &Covered<'_, 'a>) -> bool {
        let is_text = covered.coverage == Coverage::Data && is_printable(covered.event.data);
        let is_separator = || separators::state(covered.event, self.bank()).is_some();
        is_text || is_separator() || covered.variable().is_some_and(|variable| is_setting(&variable))
    }
}

/// Whether a digest covers all of an event's data, or all but what an old shim logged behind it.
const fn covers_data(coverage: Coverage) -> bool {
    matches!(coverage, Coverage::Data | Coverage::Beginning(_))
}

/// Whether a digest is that of a setting of one byte that is set. The digests are computed once in a process.
fn is_set_byte(bank: Bank, digest: &[u8]) -> bool {
    static OF_BANK: [OnceLock<BTreeSet<Vec<u8>>>; Bank::ALL.len()] = [const { OnceLock::new() }; Bank::ALL.len()];
    let all = || (1..=u8::MAX).map(|byte| bank.hash(&[byte])).collect();
    OF_BANK.get(bank as usize).is_some_and(|known| known.get_or_init(all).contains(digest))
}
