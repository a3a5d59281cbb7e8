//! The quote, signatures over it, and what it is bound to: N01 to N18, N23, N27, N35, N36, N42, N74, N80 and N81. Every input
//! is genuine but for the one thing named; `genuine_quotes_pass` is the twin without the defect.

mod software_tpm;

use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
use portcullis_attest::binding::{Binding, Purpose};
use portcullis_attest::evidence::{Evidence, MAX_QUOTES, PcrValues};
use portcullis_attest::key::{Bank, QuotingKey, SignatureError};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::{Denial, ReasonCode as Code};
use software_tpm::*;

/// Signs whatever `change` makes of a genuine quote, and gives the codes it is denied for.
fn denied_after(change: impl FnOnce(&mut Attest)) -> Vec<Code> {
    let tpm = SoftTpm::new();
    let mut attest = tpm.attest(&binding(), &pcrs());
    change(&mut attest);
    denied(&evidence(&binding(), vec![tpm.quote(&attest, &pcrs())]), &tpm, &binding())
}

/// Gives the codes for which a genuine quote is denied that comes with other values.
fn denied_with_values(change: impl FnOnce(&mut PcrValues)) -> Vec<Code> {
    let tpm = SoftTpm::new();
    let mut evidence = tpm.evidence(&binding(), &pcrs());
    change(&mut evidence.quotes[0].pcrs);
    denied(&evidence, &tpm, &binding())
}

#[test]
fn genuine_quotes_pass() {
    assert_eq!(denied_after(|_| ()), []);
    assert_eq!(denied_with_values(|_| ()), []);
    for tpm in [
        SoftTpm::new(),
        SoftTpm::ecdsa(P384, Bank::Sha384, &ECDSA_P384_SHA384_FIXED_SIGNING),
        SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256),
        SoftTpm::rsa(KeySize::Rsa2048, RSAPSS, Bank::Sha256),
        SoftTpm::rsa(KeySize::Rsa3072, RSASSA, Bank::Sha384),
    ] {
        let evidence = tpm.evidence(&binding(), &pcrs());
        let quote = VerifiedQuote::verify(&evidence, &tpm.enrolled().unwrap(), &binding()).unwrap();
        assert_eq!(quote.pcr(Bank::Sha384, 14), Some([15; 48].as_slice()));
        assert_eq!(quote.clock().reset_count, 3);
        assert_eq!(quote.ak_name(), tpm.ak.name());
    }
}

#[test]
fn n01_magic() {
    assert_eq!(denied_after(|attest| attest.magic = 0xFF54_4346), [Code::QuoteMagic]);
    assert_eq!(denied_after(|attest| attest.magic = 0), [Code::QuoteMagic]);
}

#[test]
fn n02_other_kinds_of_attestation() {
    for kind in [0x8014, 0x8015, 0x8016, 0x8017, 0x8019, 0x801A, 0x801C, 0x8000, 0] {
        assert_eq!(denied_after(|attest| attest.kind = kind), [Code::QuoteType], "{kind:#06x}");
    }
}

#[test]
fn n03_trailing_bytes() {
    assert_eq!(denied_after(|attest| attest.body.push(0)), [Code::QuoteMalformed]);
}

#[test]
fn n04_truncated_anywhere_and_sizes_beyond_the_end() {
    let tpm = SoftTpm::new();
    let whole = tpm.attest(&binding(), &pcrs()).bytes();
    for length in 0..whole.len() {
        let message = whole[..length].to_vec();
        let signature = tpm.sign(&message);
        let quote = portcullis_attest::evidence::SignedQuote { message, signature, pcrs: pcrs() };
        let codes = denied(&evidence(&binding(), vec![quote]), &tpm, &binding());
        assert_eq!(codes, [Code::QuoteMalformed], "cut to {length} bytes");
    }
    // The size of qualifiedSigner, extraData and pcrDigest, each larger than what is left.
    let digest_at = whole.len() - 34;
    for offset in [6, 6 + 2 + 34, digest_at] {
        let mut message = whole.clone();
        message[offset] = 0xFF;
        let signature = tpm.sign(&message);
        let quote = portcullis_attest::evidence::SignedQuote { message, signature, pcrs: pcrs() };
        let codes = denied(&evidence(&binding(), vec![quote]), &tpm, &binding());
        assert_eq!(codes, [Code::QuoteMalformed], "size at {offset}");
    }
    // The signature, too, at every length.
    let genuine = tpm.evidence(&binding(), &pcrs());
    for length in 0..genuine.quotes[0].signature.len() {
        let mut evidence = genuine.clone();
        evidence.quotes[0].signature.truncate(length);
        assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteSignatureMalformed], "cut to {length} bytes");
    }
    let mut longer = genuine;
    longer.quotes[0].signature.push(0);
    assert_eq!(denied(&longer, &tpm, &binding()), [Code::QuoteSignatureMalformed]);
}

/// A quote's body with this selection and the digest of `values`.
fn body(count: u32, selections: &[Vec<u8>], values: &[&[u8]]) -> Vec<u8> {
    [&count.to_be_bytes()[..], &selections.concat(), &sized(&Bank::Sha256.hash_parts(values))].concat()
}

#[test]
fn n05_unknown_or_repeated_banks() {
    let one = select(0x000B, &[0]);
    let unknown = select(0x0027, &[0]);
    for body in [
        body(2, &[one.clone(), one.clone()], &[&[1; 32], &[1; 32]]),
        body(2, &[one.clone(), unknown], &[&[1; 32]]),
        body(17, &vec![one.clone(); 17], &[&[1; 32]]),
        body(u32::MAX, std::slice::from_ref(&one), &[&[1; 32]]),
    ] {
        assert_eq!(denied_after(|attest| attest.body = body), [Code::QuoteSelection]);
    }
}

#[test]
fn n06_selections_of_another_size() {
    for select in [&[0, 0x0B, 2, 1, 0][..], &[0, 0x0B, 4, 1, 0, 0, 1], &[0, 0x0B, 0]] {
        let body = body(1, &[select.to_vec()], &[&[1; 32]]);
        assert_eq!(denied_after(|attest| attest.body = body), [Code::QuoteSelection], "{select:?}");
    }
}

#[test]
fn n07_nothing_selected() {
    for selections in [vec![], vec![select(0x000B, &[])], vec![select(0x000B, &[]), select(0x000C, &[])]] {
        let body = body(u32::try_from(selections.len()).unwrap(), &selections, &[]);
        assert_eq!(denied_after(|attest| attest.body = body), [Code::QuoteEmptySelection]);
    }
    // Beside a bank with PCRs, one without any is what TPMs answer for a bank that is off: harmless.
    let tpm = SoftTpm::new();
    let some: PcrValues = [(Bank::Sha256, [(0, vec![1; 32])].into())].into();
    let mut attest = tpm.attest(&binding(), &some);
    attest.body = body(2, &[select(0x000B, &[0]), select(0x000C, &[])], &[&[1; 32]]);
    let evidence = evidence(&binding(), vec![tpm.quote(&attest, &some)]);
    let quote = VerifiedQuote::verify(&evidence, &tpm.enrolled().unwrap(), &binding()).unwrap();
    assert_eq!(quote.banks().collect::<Vec<_>>(), [Bank::Sha256]);
}

#[test]
fn n08_a_selected_pcr_without_value() {
    assert_eq!(
        denied_with_values(|pcrs| drop(pcrs.get_mut(&Bank::Sha256).unwrap().remove(&7))),
        [Code::QuotePcrMissing]
    );
    assert_eq!(denied_with_values(|pcrs| drop(pcrs.remove(&Bank::Sha384))), [Code::QuotePcrMissing; 12]);
}

#[test]
fn n09_relabelled_values() {
    // Values of PCR 8 and 9 changed for one another: the same set of values, another meaning.
    let codes = denied_with_values(|pcrs| {
        let bank = pcrs.get_mut(&Bank::Sha256).unwrap();
        let (eight, nine) = (bank[&8].clone(), bank[&9].clone());
        bank.extend([(8, nine), (9, eight)]);
    });
    assert_eq!(codes, [Code::QuotePcrDigestMismatch]);
    // PCR 14's value shown as that of PCR 15.
    let codes = denied_with_values(|pcrs| {
        let bank = pcrs.get_mut(&Bank::Sha256).unwrap();
        let value = bank.remove(&14).unwrap();
        bank.insert(15, value);
    });
    assert_eq!(codes, [Code::QuotePcrMissing, Code::QuotePcrExtra]);
}

#[test]
fn n10_values_that_the_quote_does_not_cover() {
    let codes = denied_with_values(|pcrs| drop(pcrs.get_mut(&Bank::Sha256).unwrap().insert(23, vec![0; 32])));
    assert_eq!(codes, [Code::QuotePcrExtra]);
    let codes = denied_with_values(|pcrs| drop(pcrs.insert(Bank::Sha1, [(0, vec![0; 20])].into())));
    assert_eq!(codes, [Code::QuotePcrExtra]);
    let codes = denied_with_values(|pcrs| drop(pcrs.insert(Bank::Sha512, [].into())));
    assert_eq!(codes, [Code::QuotePcrExtra]);
}

#[test]
fn n11_a_pcr_named_twice() {
    let tpm = SoftTpm::new();
    let json = String::from_utf8(tpm.evidence(&binding(), &pcrs()).to_json().unwrap()).unwrap();
    Evidence::from_json(json.as_bytes()).unwrap();
    let value = format!("\"{}\"", hex::encode([8; 32]));
    let twice = json.replacen(&format!("\"7\":{value}"), &format!("\"7\":{value},\"7\":{value}"), 1);
    assert_ne!(json, twice);
    assert!(Evidence::from_json(twice.as_bytes()).is_err());
    // The same PCR, written in another way.
    let other = json.replacen(&format!("\"7\":{value}"), &format!("\"7\":{value},\"07\":{value}"), 1);
    assert!(Evidence::from_json(other.as_bytes()).is_err());
}

#[test]
fn n12_values_of_another_length() {
    for length in [0, 20, 31, 33, 48] {
        let codes = denied_with_values(|pcrs| drop(pcrs.get_mut(&Bank::Sha256).unwrap().insert(0, vec![1; length])));
        assert_eq!(codes, [Code::QuotePcrLength], "{length} bytes");
    }
    // A byte moved from one value to the next leaves the hashed bytes as they were.
    let codes = denied_with_values(|pcrs| {
        let bank = pcrs.get_mut(&Bank::Sha256).unwrap();
        let moved = bank.get_mut(&0).unwrap().pop().unwrap();
        bank.get_mut(&1).unwrap().insert(0, moved);
    });
    assert_eq!(codes, [Code::QuotePcrLength, Code::QuotePcrLength]);
}

#[test]
fn n13_the_digest_is_of_the_schemes_hash() {
    let codes = denied_after(|attest| {
        let values: Vec<Vec<u8>> = pcrs().values().flat_map(|bank| bank.values().cloned()).collect();
        let selection = attest.body[..attest.body.len() - 34].to_vec();
        attest.body = [selection, sized(&Bank::Sha384.hash(&values.concat()))].concat();
    });
    assert_eq!(codes, [Code::QuotePcrDigestMismatch]);
}

#[test]
fn n14_the_signed_order_of_banks_decides() {
    let tpm = SoftTpm::new();
    let values = pcrs();
    let concat = |bank: Bank| values[&bank].values().flatten().copied().collect::<Vec<u8>>();
    let pcrs_of = |bank: Bank| select(bank.tpm_alg_id(), &values[&bank].keys().copied().collect::<Vec<_>>());
    let (first, second) = (concat(Bank::Sha384), concat(Bank::Sha256));
    let quote = |digest: &[&[u8]]| {
        let mut attest = tpm.attest(&binding(), &values);
        attest.body = body(2, &[pcrs_of(Bank::Sha384), pcrs_of(Bank::Sha256)], digest);
        denied(&evidence(&binding(), vec![tpm.quote(&attest, &values)]), &tpm, &binding())
    };
    // Another order is fine if the digest follows it, and a forgery if it does not.
    assert_eq!(quote(&[&first, &second]), []);
    assert_eq!(quote(&[&second, &first]), [Code::QuotePcrDigestMismatch]);
}

#[test]
fn n16_signatures_of_another_kind_of_key() {
    let (ecc, rsa) = (SoftTpm::new(), SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256));
    for (tpm, other) in [(&ecc, &rsa), (&rsa, &ecc)] {
        let mut evidence = tpm.evidence(&binding(), &pcrs());
        evidence.quotes[0].signature = other.sign(&evidence.quotes[0].message);
        assert_eq!(denied(&evidence, tpm, &binding()), [Code::QuoteSignatureScheme]);
        // And one that only says that it is of the key's kind.
        evidence.quotes[0].signature = signature(tpm.ak.scheme, &other.sign_numbers(&evidence.quotes[0].message));
        assert_eq!(denied(&evidence, tpm, &binding()), [Code::QuoteSignatureMalformed]);
    }
}

/// A signature without its structure, as other programs write it: whether it is one, and whether it verifies.
#[test]
fn n16_plain_signatures_of_another_key_are_signatures_that_do_not_verify() {
    let (one, other) =
        (SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256), SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256));
    let key = QuotingKey::parse(&one.ak.bytes()).unwrap();
    let plain = |tpm: &SoftTpm| tpm.sign_numbers(b"message").concat();
    assert_eq!(key.verify(b"message", &plain(&one)), Ok(Bank::Sha256));
    assert_eq!(key.verify(b"message", &plain(&other)), Err(SignatureError::Invalid));
    assert!(matches!(key.verify(b"message", &plain(&one)[1..]), Err(SignatureError::Unreadable { bytes: 255, .. })));
    // A TPMT_SIGNATURE of an unknown hash is one of another scheme.
    let unknown = signature((RSASSA, 0xFFFF), &one.sign_numbers(b"message"));
    assert_eq!(key.verify(b"message", &unknown), Err(SignatureError::Hash(0xFFFF)));
}

#[test]
fn n17_signatures_with_another_hash() {
    let tpm = SoftTpm::new();
    let genuine = tpm.evidence(&binding(), &pcrs());
    for hash in [0x0004, 0x000C, 0x000D, 0x0012, NULL, 0xFFFF] {
        let mut evidence = genuine.clone();
        let numbers = tpm.sign_numbers(&evidence.quotes[0].message);
        evidence.quotes[0].signature = signature((ECDSA, hash), &numbers);
        assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteSignatureScheme], "{hash:#06x}");
    }
}

#[test]
fn n18_impossible_numbers_in_signatures() {
    // The order of P-256.
    let order = hex::decode("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551").unwrap();
    let tpm = SoftTpm::new();
    let genuine = tpm.evidence(&binding(), &pcrs());
    let numbers = tpm.sign_numbers(&genuine.quotes[0].message);
    let with = |r: Vec<u8>, s: Vec<u8>| {
        let mut evidence = genuine.clone();
        evidence.quotes[0].signature = signature((ECDSA, 0x000B), &[r, s]);
        denied(&evidence, &tpm, &binding())
    };
    let (r, s) = (numbers[0].clone(), numbers[1].clone());
    assert_eq!(with(r.clone(), s.clone()), []);
    for bad in [vec![0; 32], order, vec![0xFF; 32]] {
        assert_eq!(with(bad.clone(), s.clone()), [Code::QuoteSignatureInvalid]);
        assert_eq!(with(r.clone(), bad), [Code::QuoteSignatureInvalid]);
    }
    assert_eq!(with(vec![0; 32], vec![0; 32]), [Code::QuoteSignatureInvalid]);
    // Longer than any number of this curve, and longer than any at all.
    for (long, code) in [
        ([vec![0], r.clone()].concat(), Code::QuoteSignatureInvalid),
        (vec![1; 66], Code::QuoteSignatureInvalid),
        (vec![1; 513], Code::QuoteSignatureMalformed),
        (vec![], Code::QuoteSignatureMalformed),
    ] {
        assert_eq!(with(long.clone(), s.clone()), [code]);
        assert_eq!(with(r.clone(), long), [code]);
    }
}

#[test]
fn n23_another_signer_than_the_enrolled_key_under_its_ek() {
    // Under the owner hierarchy, under another endorsement key, the plain name, and nothing.
    let tpm = SoftTpm::new();
    let under_owner = tpm.ak.qualified_name(&0x4000_0001_u32.to_be_bytes());
    let under_other = tpm.ak.qualified_name(&ek().qualified_name(&0x4000_000B_u32.to_be_bytes()));
    for signer in [under_owner, under_other, tpm.ak.name(), vec![]] {
        let mut attest = tpm.attest(&binding(), &pcrs());
        attest.qualified_signer = signer;
        let evidence = evidence(&binding(), vec![tpm.quote(&attest, &pcrs())]);
        assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteSignerMismatch]);
    }
}

#[test]
fn n27_rsassa_and_rsapss_are_not_interchangeable() {
    let ssa = SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256);
    let mut evidence = ssa.evidence(&binding(), &pcrs());
    let numbers = ssa.sign_numbers(&evidence.quotes[0].message);
    evidence.quotes[0].signature = signature((RSAPSS, 0x000B), &numbers);
    assert_eq!(denied(&evidence, &ssa, &binding()), [Code::QuoteSignatureScheme]);

    let pss = SoftTpm::rsa(KeySize::Rsa2048, RSAPSS, Bank::Sha256);
    let mut evidence = pss.evidence(&binding(), &pcrs());
    let numbers = pss.sign_numbers(&evidence.quotes[0].message);
    evidence.quotes[0].signature = signature((RSASSA, 0x000B), &numbers);
    assert_eq!(denied(&evidence, &pss, &binding()), [Code::QuoteSignatureScheme]);
}

#[test]
fn n35_nonces_that_are_almost_right() {
    let tpm = SoftTpm::new();
    let expected = binding();
    let nonce = &expected.nonce;
    let ascii = hex::encode(nonce);
    for other in [
        vec![9; 32],
        nonce[..31].to_vec(),
        nonce[..16].to_vec(),
        [nonce.as_slice(), &[0]].concat(),
        vec![],
        ascii.clone().into_bytes(),
        ascii.to_uppercase().into_bytes(),
    ] {
        let answered = Binding { nonce: other, ..expected.clone() };
        assert_eq!(denied(&tpm.evidence(&answered, &pcrs()), &tpm, &expected), [Code::QuoteNonceMismatch]);
    }
    // The nonce itself as extraData, and extraData cut short or gone.
    for extra in [nonce.clone(), expected.extra_data()[..31].to_vec(), expected.extra_data()[..0].to_vec()] {
        assert_eq!(denied_after(|attest| attest.extra_data = extra), [Code::QuoteBindingMismatch]);
    }
}

#[test]
fn n36_the_right_nonce_in_the_envelope_only() {
    let tpm = SoftTpm::new();
    let old = Binding { nonce: vec![9; 32], ..binding() };
    let mut evidence = tpm.evidence(&old, &pcrs());
    evidence.binding = binding();
    assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteBindingMismatch]);
    // And the other way round: a good quote in an envelope that says otherwise.
    let mut evidence = tpm.evidence(&binding(), &pcrs());
    evidence.binding = old;
    assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteBindingMismatch]);
}

#[test]
fn n42_an_unsafe_clock_voids_nothing_but_the_clock() {
    let tpm = SoftTpm::new();
    let mut attest = tpm.attest(&binding(), &pcrs());
    attest.safe = 0;
    let quoted = evidence(&binding(), vec![tpm.quote(&attest, &pcrs())]);
    let quote = VerifiedQuote::verify(&quoted, &tpm.enrolled().unwrap(), &binding()).unwrap();
    assert!(!quote.clock().safe);
    assert_eq!(denied_after(|attest| attest.safe = 2), [Code::QuoteMalformed]);
}

#[test]
fn n74_no_quotes() {
    let tpm = SoftTpm::new();
    assert_eq!(denied(&evidence(&binding(), vec![]), &tpm, &binding()), [Code::EvidenceNoQuote]);
    // One good quote does not carry a bad one, and all reasons are given.
    let mut two = tpm.evidence(&binding(), &pcrs());
    let mut bad = two.quotes[0].clone();
    bad.pcrs.get_mut(&Bank::Sha256).unwrap().insert(0, vec![0xEE; 32]);
    two.quotes.push(bad);
    assert_eq!(denied(&two, &tpm, &binding()), [Code::QuotePcrDigestMismatch]);
    let other = Binding { nonce: vec![9; 32], ..binding() };
    assert_eq!(
        denied(&tpm.evidence(&other, &pcrs()), &tpm, &Binding { host: "other".into(), ..binding() }),
        [Code::QuoteHostMismatch, Code::QuoteNonceMismatch]
    );
}

#[test]
fn n74_quotes_that_contradict_each_other() {
    let tpm = SoftTpm::new();
    let mut other = pcrs();
    other.get_mut(&Bank::Sha256).unwrap().insert(0, vec![0xEE; 32]);
    let quotes = [pcrs(), other].map(|values| tpm.quote(&tpm.attest(&binding(), &values), &values));
    assert_eq!(denied(&evidence(&binding(), quotes.to_vec()), &tpm, &binding()), [Code::QuotePcrConflict]);

    // Of two boots, or with the TPM's firmware replaced in between.
    for change in [
        |attest: &mut Attest| attest.reset_count += 1,
        |attest: &mut Attest| attest.restart_count += 1,
        |attest: &mut Attest| attest.firmware_version += 1,
    ] {
        assert_eq!(two_quotes(change).map_err(|reasons| codes(&reasons)).unwrap_err(), [Code::QuoteInstanceMismatch]);
    }
}

/// Evidence of a genuine quote and one like it after `change`.
fn two_quotes(change: impl FnOnce(&mut Attest)) -> Result<VerifiedQuote, Denial> {
    let tpm = SoftTpm::new();
    let first = tpm.attest(&binding(), &pcrs());
    let mut other = first.clone();
    change(&mut other);
    let quotes = [first, other].map(|attest| tpm.quote(&attest, &pcrs()));
    VerifiedQuote::verify(&evidence(&binding(), quotes.to_vec()), &tpm.enrolled().unwrap(), &binding())
}

#[test]
fn n42_the_clock_of_several_quotes_is_the_latest_and_safe_only_if_all_are() {
    let clock = |change: fn(&mut Attest)| two_quotes(change).unwrap().clock();
    assert_eq!((clock(|_| ()).clock_ms, clock(|_| ()).safe), (123_456, true));
    assert_eq!(clock(|attest| attest.clock_ms += 1).clock_ms, 123_457);
    assert_eq!(clock(|attest| attest.clock_ms -= 1).clock_ms, 123_456);
    assert!(!clock(|attest| attest.safe = 0).safe);
}

#[test]
fn n74_more_quotes_than_are_read() {
    let tpm = SoftTpm::new();
    let quote = tpm.quote(&tpm.attest(&binding(), &pcrs()), &pcrs());
    let of = |count| denied(&evidence(&binding(), vec![quote.clone(); count]), &tpm, &binding());
    assert_eq!((of(MAX_QUOTES), of(MAX_QUOTES + 1)), (vec![], vec![Code::EvidenceMalformed]));
}

#[test]
fn n80_a_quote_of_another_tpm() {
    let (honest, tampered) = (SoftTpm::new(), SoftTpm::new());
    let relayed = honest.evidence(&binding(), &pcrs());
    assert_eq!(denied(&relayed, &tampered, &binding()), [Code::QuoteSignatureInvalid]);
}

#[test]
fn n81_bound_to_something_else() {
    let tpm = SoftTpm::new();
    let good = binding();
    let others = [
        (Binding { purpose: Purpose::Launch, ..good.clone() }, Code::QuotePurposeMismatch),
        (Binding { verifier: "verifier.evil".into(), ..good.clone() }, Code::QuoteVerifierMismatch),
        (Binding { host: "tampered".into(), ..good.clone() }, Code::QuoteHostMismatch),
        (Binding { tls_spki_sha256: [8; 32], ..good.clone() }, Code::QuoteTlsKeyMismatch),
        (Binding { body_sha256: [8; 32], ..good.clone() }, Code::QuoteBodyMismatch),
    ];
    for (other, code) in others {
        assert_eq!(denied(&tpm.evidence(&other, &pcrs()), &tpm, &good), [code]);
    }
}
