//! Why something was denied: a stable code, where it was seen, what was expected and what was found.
//!
//! Scripts rely on the codes, people on the sentences. A code, once published, keeps its name and its meaning.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::work;

/// Longest text that a reason repeats from evidence, in characters. What is longer is cut and says so.
pub const MAX_QUOTED_CHARS: usize = 600;

/// One reason for a denial.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// What is wrong, as a stable code.
    pub code: ReasonCode,
    /// The PCR that it concerns, if it concerns one.
    pub pcr: Option<u32>,
    /// The event that it concerns, in words: "kernel command line", "initrd", "Secure Boot off".
    pub event: Option<String>,
    /// What a good host would have shown.
    pub expected: Option<String>,
    /// What this host showed.
    pub found: Option<String>,
    /// One sentence for a person.
    pub text: String,
}

impl Reason {
    /// A reason whose sentence is the code's own.
    pub fn new(code: ReasonCode) -> Self {
        Self { code, pcr: None, event: None, expected: None, found: None, text: code.sentence().to_owned() }
    }

    /// The same reason, naming the PCR.
    #[must_use]
    pub fn pcr(mut self, pcr: u32) -> Self {
        self.pcr = Some(pcr);
        self
    }

    /// The same reason, naming the event in words.
    #[must_use]
    pub fn event(mut self, event: impl AsRef<str>) -> Self {
        self.event = Some(printable(event.as_ref()));
        self
    }

    /// The same reason with what a good host would have shown.
    #[must_use]
    pub fn expected(mut self, expected: impl AsRef<str>) -> Self {
        self.expected = Some(printable(expected.as_ref()));
        self
    }

    /// The same reason with what this host showed.
    #[must_use]
    pub fn found(mut self, found: impl AsRef<str>) -> Self {
        self.found = Some(printable(found.as_ref()));
        self
    }

    /// The same reason with a sentence that says more than the code's own.
    #[must_use]
    pub fn text(mut self, text: impl AsRef<str>) -> Self {
        self.text = printable(text.as_ref());
        self
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)?;
        if let Some(pcr) = self.pcr {
            write!(f, " [PCR {pcr}]")?;
        }
        if let Some(event) = &self.event {
            write!(f, " [{event}]")?;
        }
        if let Some(expected) = &self.expected {
            write!(f, " expected: {expected};")?;
        }
        if let Some(found) = &self.found {
            write!(f, " found: {found}")?;
        }
        Ok(())
    }
}

/// Why something is denied: at least one reason. The error of every check in this crate that judges evidence or keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Every reason that the check found.
    pub reasons: Vec<Reason>,
}

impl From<Vec<Reason>> for Denial {
    fn from(reasons: Vec<Reason>) -> Self {
        Self { reasons }
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reasons: vec![reason] }
    }
}

impl From<ReasonCode> for Denial {
    fn from(code: ReasonCode) -> Self {
        Reason::new(code).into()
    }
}

impl From<Denial> for Vec<Reason> {
    fn from(denial: Denial) -> Self {
        denial.reasons
    }
}

impl core::ops::Deref for Denial {
    type Target = [Reason];

    fn deref(&self) -> &[Reason] {
        &self.reasons
    }
}

impl IntoIterator for Denial {
    type Item = Reason;
    type IntoIter = std::vec::IntoIter<Reason>;

    fn into_iter(self) -> Self::IntoIter {
        self.reasons.into_iter()
    }
}

/// One reason a line.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.reasons.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Denial {}

/// Evidence is written by whoever is judged: what is repeated from it is cut to a bound, and nothing in it moves a
/// terminal's cursor or hides text.
fn printable(text: &str) -> String {
    work::steps(text.len().min(MAX_QUOTED_CHARS));
    let mut out = String::with_capacity(text.len().min(MAX_QUOTED_CHARS));
    for (count, c) in text.chars().enumerate() {
        if count >= MAX_QUOTED_CHARS {
            out.push_str("… (cut)");
            break;
        }
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that are not control characters to Unicode and yet change how a line is read: separators, zero-width
/// marks, and the marks that turn the direction of writing.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{e0000}'..='\u{e007f}')
}

/// Makes an enum of stable codes from one table, so that a code, its sentence and the list of all of them cannot drift
/// apart.
///
/// The table begins with the enum's head; then each line is `Variant = "room.what-is-wrong", "One sentence.";`. The enum has
/// `ALL`, `as_str` and `sentence`.
#[macro_export]
macro_rules! reason_codes {
    ($(#[$meta:meta])* $vis:vis enum $name:ident; $($variant:ident = $code:literal, $sentence:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        $vis enum $name {
            $(#[doc = concat!("`", $code, "`: ", $sentence)] $variant,)*
        }

        impl $name {
            /// Every code, in the order of this file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as a string, `room.what-is-wrong`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// What the code means, in one sentence.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

reason_codes! {
    /// The stable code of a reason. Serialises as its string.
    pub enum ReasonCode;

    // The firmware event log.
    EventlogUnreadable = "eventlog.unreadable", "The firmware event log cannot be read, so nothing in it can be believed.";
    EventlogMissing = "eventlog.missing", "The evidence has no firmware event log.";
    EventlogTrailing = "eventlog.trailing-bytes", "The firmware event log goes on after its last event with bytes that nothing accounts for.";
    EventlogPcrMismatch = "eventlog.pcr-mismatch", "The firmware event log does not lead to the value that the TPM signed for this PCR.";
    EventlogPcrWithoutEvents = "eventlog.pcr-without-events", "The TPM signed a value for this PCR, but the firmware event log has no event for it.";
    EventlogPcrNotQuoted = "eventlog.pcr-not-quoted", "The firmware event log has events of a PCR that the TPM did not sign.";
    EventlogBankMissing = "eventlog.bank-missing", "The TPM signed PCRs of a bank of which the firmware event log has not all digests.";
    EventlogBankUnextended = "eventlog.bank-unextended", "A PCR that every firmware extends still has its initial value: the firmware does not measure into this bank.";
    EventlogForgedNoAction = "eventlog.forged-no-action", "An event that says it extends no PCR carries a digest.";
    EventlogUnknownEvent = "eventlog.unknown-event", "An event has a type that has no place in a measured boot.";
    EventlogUnexpectedType = "eventlog.unexpected-type", "An event has a type that no firmware and no boot loader measures into this PCR: the type is covered by no digest and may hide what the event is.";
    EventlogRepeated = "eventlog.repeated-event", "The firmware measured something twice that it measures once, with different content.";
    EventlogDigestMismatch = "eventlog.digest-mismatch", "An event's digest does not cover what the event says.";
    EventlogTextNotCovered = "eventlog.text-not-covered", "An event's text is not what its digest was made of.";
    EventlogLocality = "eventlog.startup-locality", "The event that tells the startup locality is malformed, repeated or comes too late.";
    EventlogSeparatorMissing = "eventlog.separator-missing", "The separator between firmware and operating system is missing in this PCR.";
    EventlogSeparatorRepeated = "eventlog.separator-repeated", "The separator between firmware and operating system appears more than once in this PCR.";
    EventlogSeparatorError = "eventlog.separator-error", "The firmware reported an error where the separator should be.";
    EventlogAfterSeparator = "eventlog.after-separator", "Firmware state was measured after the separator, where an operating system could have done it.";
    EventlogEventUnexpected = "eventlog.unexpected-event", "The host measured something that no reference value foresees.";
    EventlogEventMissing = "eventlog.missing-event", "The host did not measure something that the reference values require.";
    EventlogEventMismatch = "eventlog.event-mismatch", "The host measured another value than the reference values accept.";
    EventlogCommandLine = "eventlog.command-line", "The kernel was started with another command line than the reference values accept.";
    EventlogGrubCommand = "eventlog.grub-command", "The boot loader ran another command than the reference values accept.";
    EventlogBootFile = "eventlog.boot-file", "The boot loader read another file than the reference values accept.";
    EventlogKernel = "eventlog.kernel", "Another kernel was started than the reference values accept.";
    EventlogInitrd = "eventlog.initrd", "Another initrd was loaded than the reference values accept.";
    EventlogBootLoader = "eventlog.boot-loader", "Another boot loader was started than the reference values accept.";
    EventlogFirmware = "eventlog.firmware", "The firmware itself is not the one that the reference values accept.";

    // Secure Boot.
    SecureBootDisabled = "secure-boot.disabled", "Secure Boot is off: the firmware starts any boot loader.";
    SecureBootUnknown = "secure-boot.unknown", "No event that a digest covers says whether Secure Boot is on.";
    SecureBootRepeated = "secure-boot.repeated-variable", "A variable of Secure Boot was measured more than once.";
    SecureBootMalformed = "secure-boot.malformed-variable", "A variable of Secure Boot was measured with a content it cannot have.";
    SecureBootVariableMissing = "secure-boot.variable-missing", "A variable that Secure Boot rests on (PK, KEK, db, dbx) was not measured.";
    SecureBootNoAuthority = "secure-boot.no-authority", "Secure Boot is said to be on, but nothing was verified by it.";
    SecureBootDebugMode = "secure-boot.debug-mode", "The firmware runs in debug mode, in which what it measures can be forged.";

    // Shim, which verifies what Secure Boot does not.
    ShimAmbiguous = "shim.ambiguous-setting", "A setting of shim was measured twice with different content, or after shim had verified something: an operating system could have done that.";
    PolicyShimValidation = "policy.shim-validation", "Shim's own validation is disabled (MokSBState), or cannot be told: it starts anything though Secure Boot is on.";
    PolicySbat = "policy.sbat", "Shim starts boot loaders of older generations (SBAT) than the policy takes, or did not measure which.";
    PolicyMokList = "policy.mok-list", "Shim trusts another list of keys (MokList) than the policy names.";

    // The IMA list.
    ImaUnreadable = "ima.unreadable", "The list of programs that the kernel measured (IMA) cannot be read.";
    ImaMissing = "ima.missing", "The evidence has no list of the programs that the kernel measured (IMA).";
    ImaPcrMismatch = "ima.pcr-mismatch", "The list of measured programs does not lead to the value that the TPM signed for PCR 10.";
    ImaPaddedSha1 = "ima.padded-sha1", "PCR 10 of this bank holds SHA-1 digests padded with zeros, which is no evidence for the bank.";
    ImaViolation = "ima.violation", "A file was written while it was measured, so its measurement says nothing.";
    ImaTemplateMismatch = "ima.template-mismatch", "An entry of the list of measured programs has a hash that is not made of what the entry says.";
    ImaWrongPcr = "ima.wrong-pcr", "An entry of the list of measured programs names another PCR than 10.";
    ImaBootAggregate = "ima.boot-aggregate", "The list of measured programs does not begin with the boot that the TPM signed.";
    ImaUnlisted = "ima.unlisted", "The host ran or loaded something that is in no list of reference values.";
    ImaWrongHash = "ima.wrong-hash", "A file has another content than the reference values accept.";
    ImaWeakHash = "ima.weak-hash", "A file was measured with a hash that can be forged.";
    ImaBadName = "ima.bad-name", "A measured name is not a plain file name.";
    ImaHistoryChanged = "ima.history-changed", "The list of measured programs is shorter than, or different from, what this boot showed before.";
    ImaHistoryMissing = "ima.history-missing", "The list of measured programs leaves out entries that were not judged before, or not by these rules: the whole list is needed.";

    ImaPcrNotQuoted = "ima.pcr-not-quoted", "The TPM did not sign PCR 10, so nothing vouches for the list of measured programs: quote PCR 10, too.";
    ImaUnsigned = "ima.unsigned", "A file that must be signed carries no signature.";
    ImaSignatureKey = "ima.signature-key", "A file is signed by a key that is not in the policy's keyring.";
    ImaSignatureInvalid = "ima.signature-invalid", "A file's signature is not by the key that it names, or is of another content.";
    ImaSignatureUnusable = "ima.signature-unusable", "A file's signature cannot be read, or is of a kind that proves nothing of its content.";

    // Freshness and the boot instance.
    BootChanged = "boot.changed", "The host was restarted since it was judged.";
    BootResetCount = "boot.reset-count", "The TPM counts fewer resets than it did before.";
    BootRestartCount = "boot.restart-count", "The TPM counts fewer restarts than it did before.";
    BootClock = "boot.clock", "The TPM's clock went backwards within one boot.";
    BootFirmwareVersion = "boot.tpm-firmware", "The TPM's own firmware is another version than before.";
    BootOtherTpm = "boot.other-tpm", "The quote comes from another TPM than the one that was judged.";
    BootStaticPcrs = "boot.static-pcrs", "What was measured at boot changed since the host was judged.";

    // Reference values and policy.
    PolicyEmpty = "policy.empty", "The policy requires nothing, so it trusts nothing.";
    PolicyBank = "policy.bank", "The evidence has no quote over the PCR bank that the policy demands.";
    PolicyBankUnextended = "policy.bank-unextended", "The policy demands a PCR bank into which the host's firmware did not measure when the host enrolled.";
    PolicyPcr = "policy.pcr-not-quoted", "The quote leaves out a PCR that the policy needs.";
    PolicyHost = "policy.host", "The policy is for other hosts.";
    PolicyBootSigner = "policy.boot-signer", "Something was verified by other than the policy's signers.";
    PolicyKernel = "policy.kernel", "The kernel is none of those that the policy names.";
    PolicyCommandLine = "policy.command-line", "The kernel's command line is not as the policy requires.";
    PolicyDbx = "policy.dbx", "Secure Boot has not revoked what the policy requires.";
    PolicyDmaProtection = "policy.dma-protection", "The firmware let devices read and write memory during the boot.";
    PolicyFirmwareVersion = "policy.firmware-version", "The firmware is another version than the policy names.";
    PolicyOptionRom = "policy.option-rom", "A driver was loaded from an option ROM that the policy does not name.";
    ReferenceMissing = "reference.missing", "No reference values are there for this host, so nothing can be compared.";
    ReferenceUnsigned = "reference.unsigned", "The reference values are not signed, and the policy does not take them unsigned.";
    ReferenceSignerUnknown = "reference.signer-unknown", "The reference values are signed by a key that the policy does not name.";
    ReferenceSignatureExpired = "reference.signature-expired", "The signature of the reference values has ended.";
    ReferenceSignatureEndless = "reference.signature-endless", "The signature of the reference values never ends, and the policy wants one that does.";
    ReferenceVersionTooOld = "reference.version-too-old", "The reference values are an older edition than the policy takes.";

    // Quotes, keys and credentials: append below.
    EvidenceMalformed = "evidence.malformed", "The evidence cannot be read.";
    EvidenceAbandoned = "evidence.abandoned", "Nobody waited any more for the judgement of the evidence, so it was stopped.";
    EvidenceNoQuote = "evidence.no-quote", "The evidence holds no quote, so nothing in it is proved.";
    QuoteMalformed = "quote.malformed", "The quote is not a well-formed TPMS_ATTEST structure.";
    QuoteMagic = "quote.magic", "The signed structure was not made by a TPM: its magic number is wrong.";
    QuoteType = "quote.type", "The signed structure is not a quote.";
    QuoteSelection = "quote.selection", "The quote selects PCRs in a way that no quote of ours does.";
    QuoteEmptySelection = "quote.empty-selection", "The quote covers no PCR at all.";
    QuoteSignatureMalformed = "quote.signature-malformed", "The quote's signature cannot be read: it has none of the forms that a signature by this kind of key has.";
    QuoteSignatureScheme = "quote.signature-scheme", "The signature's scheme or hash is not the one that the attestation key is bound to.";
    QuoteSignatureInvalid = "quote.signature-invalid", "The signature does not verify: the attestation key did not sign this quote.";
    QuoteSignerMismatch = "quote.signer-mismatch", "The quote does not name the enrolled attestation key under the enrolled endorsement key as its signer.";
    QuoteNonceMismatch = "quote.nonce-mismatch", "The quote answers another challenge: it is old, or was made for someone else.";
    QuotePurposeMismatch = "quote.purpose-mismatch", "The quote was made for another purpose.";
    QuoteVerifierMismatch = "quote.verifier-mismatch", "The quote was made for another verifier.";
    QuoteHostMismatch = "quote.host-mismatch", "The quote was made in the name of another host.";
    QuoteTlsKeyMismatch = "quote.tls-key-mismatch", "The quote is bound to another TLS key than the one this connection proved.";
    QuoteBodyMismatch = "quote.body-mismatch", "The quote is bound to another order, receipt or posture.";
    QuoteBindingMismatch = "quote.binding-mismatch", "The quote's extraData is not what was asked for.";
    QuotePcrDigestMismatch = "quote.pcr-digest-mismatch", "The PCR values sent along are not those that the TPM signed.";
    QuotePcrMissing = "quote.pcr-missing", "A PCR that the quote selects has no value.";
    QuotePcrExtra = "quote.pcr-extra", "A PCR value was sent that the quote does not cover.";
    QuotePcrLength = "quote.pcr-length", "A PCR value has not the length of its bank's digests.";
    QuotePcrConflict = "quote.pcr-conflict", "Two quotes of the same evidence give different values for one PCR.";
    QuoteBankMissing = "quote.bank-missing", "The quote leaves out a PCR bank that was active when the host enrolled.";
    QuoteBankUnknown = "quote.bank-unknown", "The quote covers a PCR bank that was not active when the host enrolled.";
    QuoteBankChanged = "quote.bank-changed", "The firmware measured into a PCR bank when the host enrolled and does no longer, or somebody extended a bank into which it did not.";
    QuoteInstanceMismatch = "quote.instance-mismatch", "The quotes of this evidence come from different boots or firmware.";

    // Attestation keys.
    AkMalformed = "ak.malformed", "The attestation key is not a well-formed TPMT_PUBLIC.";
    AkNameAlgorithm = "ak.name-algorithm", "The attestation key's name algorithm is missing, unknown or too weak.";
    AkNotRestricted = "ak.not-restricted", "The attestation key is not restricted: it would sign what no TPM made.";
    AkNotSigning = "ak.not-signing", "The attestation key is not a signing key.";
    AkDecrypts = "ak.decrypts", "The attestation key may also decrypt.";
    AkNotFixedTpm = "ak.not-fixed-tpm", "The attestation key may be duplicated to another TPM.";
    AkNotFixedParent = "ak.not-fixed-parent", "The attestation key may be moved under another parent.";
    AkForeignSecret = "ak.foreign-secret", "The attestation key's secret was not made by the TPM.";
    AkWeakKey = "ak.weak-key", "The attestation key is too weak or of an unknown kind.";
    AkScheme = "ak.scheme", "The attestation key's signing scheme is missing, unknown or too weak.";

    // Endorsement keys and their certificates.
    EkMalformed = "ek.malformed", "The endorsement key is not a well-formed TPMT_PUBLIC.";
    EkAttributes = "ek.attributes", "The endorsement key lacks the attributes of an endorsement key.";
    EkWeakKey = "ek.weak-key", "The endorsement key is too weak or of an unknown kind.";
    EkCertificateMalformed = "ek.certificate-malformed", "The endorsement key's certificate is not an X.509 certificate in strict DER.";
    EkCertificateExpired = "ek.certificate-expired", "A certificate of the endorsement key's chain has expired.";
    EkCertificateNotYetValid = "ek.certificate-not-yet-valid", "A certificate of the endorsement key's chain is not valid yet.";
    EkCertificateCa = "ek.certificate-ca", "The endorsement key's certificate is that of a certificate authority.";
    EkCertificateKeyUsage = "ek.certificate-key-usage", "The endorsement key's certificate does not allow what an endorsement key does.";
    EkCertificateExtendedKeyUsage = "ek.certificate-extended-key-usage", "The certificate does not say that it is an endorsement key's (2.23.133.8.1).";
    EkCertificateSubject = "ek.certificate-subject", "The endorsement key's certificate has an empty subject and no critical name of its TPM.";
    EkCertificateExtension = "ek.certificate-extension", "A certificate of the endorsement key's chain has a critical extension that is unknown here.";
    EkCertificateKeyMismatch = "ek.certificate-key-mismatch", "The certificate is for another endorsement key.";
    EkNotCertified = "endorsement.not-certified", "The policy requires a TPM whose endorsement key a configured vendor certified, and nothing shows that this one is.";
    EkRootUnknown = "ek.root-unknown", "The endorsement key's certificate leads to no configured root.";
    EkChainInvalid = "ek.chain-invalid", "The endorsement key's certificate chain does not hold.";
    EkRevoked = "ek.revoked", "The endorsement key, its certificate or an authority of its chain was revoked.";
    EkCrlExpired = "ek.crl-expired", "A revocation list of the endorsement key's chain should have been replaced by a newer one.";
    EkCrlInvalid = "ek.crl-invalid", "A revocation list of the endorsement key's chain is not its authority's.";
    EkChainWeakSignature = "ek.chain-weak-signature", "The endorsement key's chain is signed with an algorithm that no longer proves anything.";

    // Storage parents that wrapped keys are made for.
    ParentMalformed = "parent.malformed", "The storage parent or its certification cannot be read.";
    ParentAttributes = "parent.attributes", "The storage parent could leave its TPM or be used for something else.";
    ParentWeakKey = "parent.weak-key", "The storage parent is too weak or of an unknown kind.";
    ParentNotCertified = "parent.not-certified", "The attestation key did not certify this storage parent.";
    ParentHierarchy = "parent.hierarchy", "The storage parent is not a primary key of the NULL hierarchy, so it would outlive the boot.";
    ParentBindingMismatch = "parent.binding-mismatch", "The storage parent was certified for another challenge or order.";
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A string that is no reason code of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no reason code that this version knows")]
pub struct UnknownReasonCode(String);

impl FromStr for ReasonCode {
    type Err = UnknownReasonCode;

    fn from_str(code: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|known| known.as_str() == code).ok_or_else(|| UnknownReasonCode(printable(code)))
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ReasonCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A borrowed str would refuse JSON that needs unescaping.
        let code = String::deserialize(deserializer)?;
        code.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_come_back_from_json() {
        let mut seen = std::collections::BTreeSet::new();
        for code in ReasonCode::ALL {
            assert!(seen.insert(code.as_str()), "{code} is there twice");
            assert!(code.as_str().contains('.'), "{code} names no room");
            assert!(code.sentence().ends_with('.'), "{code} has no sentence");
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(serde_json::from_str::<ReasonCode>(&json).unwrap(), *code);
        }
    }

    #[test]
    fn what_evidence_says_cannot_move_the_cursor_or_flood_the_screen() {
        let reason = Reason::new(ReasonCode::EventlogCommandLine)
            .found("quiet\u{1b}[2K\nroot=\u{202e}x")
            .expected("a".repeat(100_000));
        assert_eq!(reason.found.as_deref(), Some("quiet\\u{1b}[2K\\nroot=\\u{202e}x"));
        assert!(reason.expected.unwrap().chars().count() < MAX_QUOTED_CHARS + 20);
    }

    #[test]
    fn a_reason_with_an_unknown_field_or_code_is_refused() {
        let good = serde_json::to_value(Reason::new(ReasonCode::PolicyEmpty)).unwrap();
        assert!(serde_json::from_value::<Reason>(good.clone()).is_ok());
        let mut extra = good.clone();
        extra["more"] = 1.into();
        assert!(serde_json::from_value::<Reason>(extra).is_err());
        let mut unknown = good;
        unknown["code"] = "quote.never-heard".into();
        assert!(serde_json::from_value::<Reason>(unknown).is_err());
    }
}
