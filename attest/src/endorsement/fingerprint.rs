//! The fingerprint of a certificate, as operators write it.

use std::str::FromStr;

use thiserror::Error;

/// SHA-256 of a certificate (DER). Read from 64 hex digits, with or without colons between the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateFingerprint(pub [u8; 32]);

/// A text is no fingerprint of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("64 hex digits are needed, as `openssl x509 -fingerprint -sha256` prints them")]
pub struct FingerprintError;

impl FromStr for CertificateFingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.replace(':', ""), &mut bytes).map_err(|_| FingerprintError)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_with_and_without_colons_and_nothing_else_is() {
        let (plain, colons) = ("a1".repeat(32), vec!["A1"; 32].join(":"));
        assert_eq!(plain.parse(), Ok(CertificateFingerprint([0xa1; 32])));
        assert_eq!(colons.parse(), Ok(CertificateFingerprint([0xa1; 32])));
        for wrong in ["", &plain[1..], &format!("{plain}00"), &plain.replace('a', "x"), "SHA256"] {
            assert_eq!(wrong.parse::<CertificateFingerprint>(), Err(FingerprintError), "{wrong:?}");
        }
    }
}
