//! Shim's own lists of keys, and the generation of boot loaders below which it starts none.

use super::{Claim, Claims};
use crate::eventlog::{Coverage, EventType, Guid, Variable};

/// The PCR of shim's lists.
const PCR: u32 = 14;

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
        self.log().of_pcr(7).find_map(|covered| {
            let variable = shim_variable(&covered.event.data, covered.coverage)?;
            let text = variable.is(Guid::SHIM_LOCK, "SbatLevel").then_some(variable.data)?;
            let text = core::str::from_utf8(text).ok()?.trim_end_matches('\0');
            covered.is(EventType::EFI_VARIABLE_AUTHORITY).then(|| covered.claim(SbatLevel { text }))
        })
    }

    /// Whether the kernel is asked to trust the keys in shim's lists.
    pub fn mok_list_trusted(&self) -> Option<Claim<'a, bool>> {
        self.log().of_pcr(7).find_map(|covered| {
            let variable = shim_variable(&covered.event.data, covered.coverage)?;
            let trusted = variable.is(Guid::SHIM_LOCK, "MokListTrusted") && covered.is(EventType::EFI_VARIABLE_AUTHORITY);
            trusted.then(|| covered.claim(variable.data == [1]))
        })
    }
}

fn shim_variable<'a>(data: &&'a [u8], coverage: Coverage) -> Option<Variable<'a>> {
    (coverage == Coverage::Data).then(|| Variable::parse(data).ok())?
}
