//! Real firmware's quotes and endorsement keys, as recorded on lab hosts.

use std::time::SystemTime;

use portcullis_attest::endorsement::{EkRoots, EndorsementKey};
use portcullis_attest::evidence::SignedQuote;
use portcullis_attest::key::{EnrolledAk, PublicArea};
use portcullis_attest::quote::check_unbound;
use portcullis_attest::reason::ReasonCode;
use portcullis_firmware_fixtures::recorded::{ALL, NONCE, RecordedBoot};
use serde_json::json;

fn area(tpm2b: &[u8]) -> Vec<u8> {
    PublicArea::parse_tpm2b(tpm2b).unwrap().bytes().to_vec()
}

fn quote(boot: &RecordedBoot) -> SignedQuote {
    let pcrs: serde_json::Value = serde_json::from_str(boot.pcrs_json).unwrap();
    let mut quote: SignedQuote = serde_json::from_value(json!({"message": "", "signature": "", "pcrs": pcrs})).unwrap();
    // The recording has more values than were quoted.
    for (bank, pcrs) in &mut quote.pcrs {
        let quoted = |pcr: &u8| match bank.name() {
            "sha256" => *pcr <= 10 || *pcr == 14,
            "sha384" => *pcr <= 9 || *pcr == 14,
            _ => false,
        };
        pcrs.retain(|pcr, _| quoted(pcr));
    }
    quote.pcrs.retain(|_, pcrs| !pcrs.is_empty());
    SignedQuote { message: boot.quote_message.to_vec(), signature: boot.quote_signature.to_vec(), ..quote }
}

#[test]
fn recorded_quotes_and_endorsement_keys_hold() {
    for boot in &ALL {
        let ek = area(boot.ek_public);
        let ak = EnrolledAk::new(&area(boot.ak_public), &ek).unwrap();
        assert_eq!(ak.name(), boot.ak_name, "{}", boot.name);
        let clock = check_unbound(&quote(boot), &ak, NONCE).unwrap_or_else(|bad| panic!("{}: {bad:?}", boot.name));
        assert!(clock.reset_count > 0);

        let roots = EkRoots::from_dir_files([("vendor.pem", boot.vendor_pem)]).unwrap();
        let ek = EndorsementKey::check(&ek, Some(boot.ek_certificate), &[], &roots, SystemTime::now()).unwrap();
        assert!(ek.is_certified(), "{}", boot.name);
    }
}

#[test]
fn recorded_quotes_hold_for_nothing_else() {
    let [one, other, ..] = ALL;
    let enrolled = |boot: &RecordedBoot| EnrolledAk::new(&area(boot.ak_public), &area(boot.ek_public)).unwrap();
    let codes = |quote: &SignedQuote, ak: &EnrolledAk, nonce: &[u8]| {
        check_unbound(quote, ak, nonce).unwrap_err().iter().map(|reason| reason.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(&quote(&one), &enrolled(&one), b"another nonce"), [ReasonCode::QuoteNonceMismatch]);
    assert_eq!(codes(&quote(&one), &enrolled(&other), NONCE), [ReasonCode::QuoteSignatureInvalid]);
    // One boot's values under the other's quote.
    let swapped = SignedQuote { pcrs: quote(&other).pcrs, ..quote(&one) };
    assert_eq!(codes(&swapped, &enrolled(&one), NONCE), [ReasonCode::QuotePcrDigestMismatch]);
    // The attestation key under another host's endorsement key.
    let mixed = EnrolledAk::new(&area(one.ak_public), &area(other.ek_public)).unwrap();
    assert_eq!(codes(&quote(&one), &mixed, NONCE), [ReasonCode::QuoteSignerMismatch]);
}
