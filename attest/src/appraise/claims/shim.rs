//! Shim's own lists of keys, and the generation of boot loaders below which it starts none.

use super::covered::Covered;
use super::{Claim, Claims};
use crate::eventlog::{EventType, Guid};

/// The PCR of shim's lists.
const PCR: u32 = 14;

/// The PCR of Secure Boot, into which shim measures what it verifies by.
const SECURE_BOOT: u32 = 7;

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
        let (_, generation_and_date) = self.text.lines().find_map(|line| line.trim_end().split_once("sbat,"))?;
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

impl<'a> Claims<'a> {
    /// Shim's own lists of keys (MOK), in the order in which it measured them.
    pub fn shim_lists(&self) -> Vec<Claim<'a, ShimList>> {
        let lists = self.log().of_pcr(PCR).filter(|covered| covered.is(EventType::IPL));
        lists.map(|covered| covered.claim(ShimList { label: covered.event.label().unwrap_or_default() })).collect()
    }

    /// What shim says of SBAT.
    pub fn sbat_level(&self) -> Option<Claim<'a, SbatLevel<'a>>> {
        let (covered, content) = self.shim_variable("SbatLevel")?;
        let text = core::str::from_utf8(content).ok()?.trim_end_matches('\0');
        Some(covered.claim(SbatLevel { text }))
    }

    /// Whether the kernel is asked to trust the keys in shim's lists.
    pub fn mok_list_trusted(&self) -> Option<Claim<'a, bool>> {
        let (covered, content) = self.shim_variable("MokListTrusted")?;
        Some(covered.claim(content == [1]))
    }

    /// A variable that shim measured with its content.
    fn shim_variable(&self, name: &str) -> Option<(Covered<'_, 'a>, &'a [u8])> {
        self.log().of_pcr(SECURE_BOOT).filter(|covered| covered.is(EventType::EFI_VARIABLE_AUTHORITY)).find_map(
            |covered| {
                let variable = covered.variable()?;
                variable.is(Guid::SHIM_LOCK, name).then_some((covered, variable.data))
            },
        )
    }
}
