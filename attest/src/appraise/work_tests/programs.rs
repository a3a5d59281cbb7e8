//! The work that lists of measured programs cost, and their signatures.

use super::*;

pub(super) fn rule(names: &str, accept: &str, reason: &str) -> String {
    format!("[[programs.rules]]\nnames = \"{names}\"\naccept = {accept}\nreason = \"{reason}\"\n")
}

/// Names as long as the list is, and rules with `**`.
#[test]
fn n95_one_long_measured_name_and_rules_with_wildcards() {
    let make = |size: usize, rules: usize| {
        let mut host = Host::good();
        let rules = (0..rules).map(|number| rule(&format!("/a/**b**c**d**e{number}"), "\"listed\"", "r"));
        host.policy = policy(&rules.collect::<String>());
        host.ima.file(&format!("/a/{}", "bcd".repeat(size / 3)), b"?");
        host
    };
    is_linear(60_000, |size| cost(&make(size, 16)));
    assert_eq!(make(60_000, 16).codes(), [Code::ImaBadName]);
    // The longest that Linux has.
    let mut host = make(0, 0);
    host.ima.entries.pop();
    host.policy = policy(&rule("/a/**b**c**d**e", "\"listed\"", "r"));
    host.ima.file(&format!("/a/{}e", "bcd".repeat(1364)), b"vmm");
    assert_eq!(host.appraise().unwrap().programs_by_rule().collect::<Vec<_>>(), [("r", 1)]);
}

#[test]
fn n95_many_measured_names_and_many_rules() {
    let make = |count: usize, rules: usize| {
        let mut host = Host::good();
        let rules: Vec<_> = (0..rules).map(|number| rule(&format!("/srv/{number:04}/**"), "\"any\"", "data")).collect();
        host.policy = policy(&rules.concat());
        for number in 0..count {
            host.ima.file(&format!("/srv/{:04}/{number:04}", rules.len() - 1), b"?");
        }
        host
    };
    is_linear(500, |count| cost(&make(count, count)));
    assert_eq!(make(500, 500).appraise().unwrap().programs_by_rule().collect::<Vec<_>>(), [("data", 500)]);
}

/// A list that leads nowhere is replayed once more by the other rule, to say why, whatever number of banks was quoted.
#[test]
fn n95_a_list_that_leads_to_no_bank() {
    let evidence = |count: usize, padded: bool| {
        let mut host = Host::good();
        for bank in Bank::ALL.into_iter().filter(|bank| *bank != Bank::Sha256) {
            host.selection.entry(bank).or_default().push(10);
        }
        for number in 0..count {
            host.ima.file(&format!("/{number:04}"), b"?");
        }
        let mut pcrs = host.pcrs();
        let bytes = host.ima.bytes();
        let list = crate::ima::ImaList::parse_binary(&bytes).unwrap();
        for (bank, pcrs) in &mut pcrs {
            let value = if padded { list.replay(*bank, ExtendRule::PaddedSha1) } else { vec![7; bank.digest_size()] };
            pcrs.insert(10, value);
        }
        let evidence = host.evidence_of(pcrs);
        (host, evidence)
    };
    // All five banks: two hashes of each in the first walk, one in the second.
    is_linear_with(22, 500, |count| {
        let (host, evidence) = evidence(count, false);
        cost_of(&host, &evidence)
    });
    let (host, evidence) = evidence(20, true);
    let reasons = host.appraise_with(&evidence, None).unwrap_err();
    assert!(codes(&reasons).contains(&Code::ImaPaddedSha1), "{reasons:?}");
}

/// Somebody who signs files.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    fn rules(&self, more: &str) -> String {
        use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, der.as_ref()).unwrap();
        let keyrings = format!("[programs.keyrings]\ndistribution = ['''{pem}''']\n");
        [keyrings, rule("/**", "{ signed-by = \"distribution\" }", "signed"), more.to_owned()].concat()
    }

    fn attribute(&self, content: &[u8]) -> Vec<u8> {
        let signature = self.0.sign(&SystemRandom::new(), content).unwrap();
        self.of(signature.as_ref())
    }

    /// The attribute with this for a signature.
    fn of(&self, signature: &[u8]) -> Vec<u8> {
        let id = Bank::Sha1.hash(self.0.public_key().as_ref());
        let size = u16::try_from(signature.len()).unwrap().to_be_bytes();
        [&[3, 2, 4][..], &id[16..], &size, signature].concat()
    }
}

fn signed(list: &mut ListBuilder, name: &str, content: &[u8], attribute: &[u8]) {
    list.entry("ima-sig", Bank::Sha256, &Bank::Sha256.hash(content), name.as_bytes(), &[attribute]);
}

/// One signed file that is listed again and again: its signature is checked once.
#[test]
fn n95_one_signature_in_many_entries() {
    let signer = Signer::new();
    let attribute = signer.attribute(b"new");
    let make = |count: usize| {
        let mut host = Host::good();
        host.policy = policy(&signer.rules(""));
        for number in 0..count {
            signed(&mut host.ima, &format!("/usr/bin/{number}"), b"new", &attribute);
        }
        host
    };
    is_linear(500, |count| cost(&make(count)));
    let count = 500;
    assert_eq!(make(count).appraise().unwrap().programs_by_rule().collect::<Vec<_>>(), [("signed", 500)]);
}

/// Signatures that do not hold, of files that another rule accepts whatever they are.
#[test]
fn n95_many_signatures_that_do_not_hold() {
    let signer = Signer::new();
    let make = |count: usize| {
        let mut host = Host::good();
        host.policy = policy(&signer.rules(&rule("/var/lib/**", "\"any\"", "data")));
        for number in 0..count {
            let wrong = signer.of(&[&[0x30, 6, 2, 1, 1, 2, 1][..], &number.to_le_bytes()].concat());
            signed(&mut host.ima, &format!("/var/lib/{number}"), b"new", &wrong);
        }
        host
    };
    is_linear_with(12, 4000, |count| cost(&make(count)));
    assert_eq!(make(20).appraise().unwrap().programs_by_rule().collect::<Vec<_>>(), [("data", 20)]);
}
