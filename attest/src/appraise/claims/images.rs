//! What the firmware and the boot loaders started, and by what that was verified.

use std::collections::HashMap;
use std::sync::Arc;

use super::covered::Covered;
use super::{Claim, Claims, placement, secure_boot, shim};
use crate::appraise::separators;
use crate::eventlog::{EventType, Form, Guid, SignatureDatabase, Variable};
use crate::work;

/// The PCR of drivers that are not the platform's own.
const OPTION_ROMS: u32 = 2;

/// The PCR of boot loaders and other applications.
const APPLICATIONS: u32 = 4;

/// The PCR of Secure Boot.
const SECURE_BOOT: u32 = 7;

/// An image that was loaded. What was measured is its Authenticode digest: [`Ground::digest`](super::Ground::digest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As what it was loaded.
    pub kind: ImageKind,
    /// The file that its device path names. A label: no digest covers it.
    pub label: Option<String>,
}

/// As what an image was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageKind {
    /// A boot loader, a kernel, or another application.
    Application,
    /// A driver that is gone when the operating system runs.
    BootServicesDriver,
    /// A driver that stays.
    RuntimeServicesDriver,
    /// The log calls it something else than an image, and no digest shows that it is none.
    Unlabelled,
}

/// By what an image was verified: an entry of the firmware's db or of shim's lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The variable of which it is an entry: `db`, or shim's `Shim`, `MokListRT`, `vendor_db`.
    pub variable: Variable<'a>,
    /// Whether the firmware's db vouches, and not a list of shim's own.
    pub is_db: bool,
    /// The entry: one certificate, or one digest of an image.
    pub entry: Arc<SignatureDatabase>,
}

/// What digests let one say of who verified an image.
///
/// Each authority is measured once, before the first image that it verified; the order in which PCR 4 and PCR 7 were
/// extended is covered by nothing. So an image that is not itself listed was verified by one of the authorities, and if
/// there is only one, by that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedBy<'a> {
    /// The image.
    pub image: Claim<'a, Image>,
    /// One of these verified it. Empty if nothing verified anything, as without Secure Boot. Images share them: there may
    /// be many of both.
    pub authorities: Arc<[Claim<'a, Authority<'a>>]>,
}

impl<'a> Claims<'a> {
    /// Boot loaders, kernels and other applications, in the order in which they were loaded. A boot loader that has shim
    /// verify what it loads may show the same image twice. Everything in PCR 4 counts of which no digest shows that it is
    /// something else, whatever its type.
    pub fn images(&self) -> Vec<Claim<'a, Image>> {
        self.images_of(APPLICATIONS)
    }

    /// Drivers that are not the platform's own, such as those of network cards. Everything in PCR 2 counts of which no digest
    /// shows that it is something else, whatever its type.
    pub fn option_roms(&self) -> Vec<Claim<'a, Image>> {
        self.images_of(OPTION_ROMS)
    }

    fn images_of(&self, pcr: u32) -> Vec<Claim<'a, Image>> {
        let is_separator = |covered: &Covered<'_, '_>| separators::state(covered.event, self.bank()).is_some();
        let image = |covered: Covered<'_, 'a>| {
            let kind = match covered.event.event_type {
                EventType::EFI_BOOT_SERVICES_APPLICATION => ImageKind::Application,
                EventType::EFI_BOOT_SERVICES_DRIVER => ImageKind::BootServicesDriver,
                EventType::EFI_RUNTIME_SERVICES_DRIVER => ImageKind::RuntimeServicesDriver,
                _ if is_separator(&covered)
                    || !(placement::is_image(&covered) || covered.event.is_bios_option_rom()) =>
                {
                    return None;
                }
                _ => ImageKind::Unlabelled,
            };
            Some(covered.claim(Image { kind, label: covered.event.image_path() }))
        };
        self.log().of_pcr(pcr).filter_map(image).collect()
    }

    /// What verified images, in the order in which it did so first.
    pub fn authorities(&self) -> Vec<Claim<'a, Authority<'a>>> {
        self.authorities_and_unread().0
    }

    /// The authorities, and the numbers that [`Claims::unread_authorities`] gives: each event is read once.
    pub(in crate::appraise) fn authorities_and_unread(&self) -> (Vec<Claim<'a, Authority<'a>>>, Vec<usize>) {
        let (mut authorities, mut unread) = (Vec::new(), Vec::new());
        for covered in self.of_authorities() {
            match self.authority(&covered) {
                Some(authority) => authorities.push(authority),
                None if self.verifies_nothing(&covered) => {}
                None => unread.push(covered.event.number),
            }
        }
        (authorities, unread)
    }

    /// Numbers of the events of PCR 7 by which something may have been verified that cannot be told: no digest covers what
    /// they say, or they are neither a certificate nor the digest of an image. A variable that the profile does not name is
    /// one of them.
    pub fn unread_authorities(&self) -> Vec<usize> {
        self.authorities_and_unread().1
    }

    /// Everything in PCR 7 but the variables of Secure Boot's configuration. Drivers are verified before the separator, so
    /// the place does not tell, and no digest covers the type.
    fn of_authorities(&self) -> impl Iterator<Item = Covered<'_, 'a>> {
        let is_configuration =
            |covered: &Covered<'_, '_>| !self.is_behind_separator(covered) && secure_boot::is_configuration(covered);
        self.log().of_pcr(SECURE_BOOT).filter(move |covered| !is_configuration(covered))
    }

    fn authority(&self, covered: &Covered<'_, 'a>) -> Option<Claim<'a, Authority<'a>>> {
        let variable = covered.variable().filter(|variable| !shim::is_setting(variable))?;
        let entry = self.certificates.database(Form::Entry, self.bank(), covered.digest, variable.data).ok()?;
        let is_authority = entry.others() == 0 && !entry.is_empty();
        let is_db = variable.is(Guid::IMAGE_SECURITY, "db");
        is_authority.then(|| covered.claim(Authority { variable, is_db, entry }))
    }

    /// For each image, drivers first, by what it may have been verified.
    pub fn verified_by(&self) -> Vec<VerifiedBy<'a>> {
        let authorities = self.authorities();
        let by_certificate = |claim: &&Claim<'a, Authority<'a>>| !claim.value.entry.certificates().is_empty();
        let all: Arc<[_]> = authorities.iter().filter(by_certificate).cloned().collect();
        let of_db: Arc<[_]> = all.iter().filter(|claim| claim.value.is_db).cloned().collect();
        let mut by_digest: HashMap<&[u8], Vec<_>> = HashMap::new();
        for claim in &authorities {
            work::steps(1);
            for digest in claim.value.entry.sha256() {
                by_digest.entry(digest).or_default().push(claim.clone());
            }
        }
        let by_digest: HashMap<&[u8], Arc<[_]>> =
            by_digest.into_iter().map(|(digest, claims)| (digest, claims.into())).collect();
        let mut first_application = true;
        let verified = |image: Claim<'a, Image>| {
            work::steps(1);
            let is_application = image.ground.pcr == APPLICATIONS;
            // Drivers and the first boot loader are loaded by the firmware, which knows only db. By the PCR, for the type
            // is a label.
            let only_db = !is_application || std::mem::take(&mut first_application);
            let by_certificate = if only_db { &of_db } else { &all };
            let authorities = Arc::clone(by_digest.get(image.ground.digest).unwrap_or(by_certificate));
            VerifiedBy { image, authorities }
        };
        self.option_roms().into_iter().chain(self.images()).map(verified).collect()
    }
}
