//! Programs that reference values do not list: accepted by rules about content, each with its reason. N70, N71.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::host::{Host, codes};
use crate::appraise::{Appraisal, MAX_REASONS};
use crate::ima::list_builder::{ListBuilder, template_data};
use crate::key::Bank;
use crate::reason::ReasonCode as Code;
use crate::result::{AttestationResult, ResultContext};

const VMM: &str = "/usr/bin/portcullis-vmm";

/// A host with these rules in its policy.
fn with_rules(rules: &str) -> Host {
    let mut host = Host::good();
    host.policy.programs = toml::from_str(rules).unwrap();
    host
}

fn rule(names: &str, accept: &str, reason: &str) -> String {
    format!("[[rules]]\nnames = \"{names}\"\naccept = {accept}\nreason = \"{reason}\"\n")
}

/// What the verdict says of rules, or the codes against the host.
fn verdict(host: &Host) -> Result<Vec<(String, u64)>, Vec<Code>> {
    match host.appraise() {
        Ok(appraisal) => Ok(appraisal.programs_by_rule().map(|(reason, count)| (reason.to_owned(), count)).collect()),
        Err(reasons) => Err(codes(&reasons)),
    }
}

fn by(reason: &str, count: u64) -> Vec<(String, u64)> {
    vec![(reason.to_owned(), count)]
}

#[test]
fn a_copy_of_a_listed_program_is_accepted_by_its_content_and_not_by_its_name() {
    let rules = rule("memfd:**", "\"listed\"", "a copy of itself");
    let mut host = with_rules(&rules);
    assert_eq!(verdict(&host), Ok(Vec::new()));
    host.ima.file("memfd:vmm", b"vmm").file("memfd:agent", b"agent");
    assert_eq!(verdict(&host), Ok(by("a copy of itself", 2)));
    host.ima.file("memfd:vmm", b"trojan");
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
    // Under a name that the rule is not about.
    let mut host = with_rules(&rules);
    host.ima.file("/tmp/vmm", b"vmm");
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
    // No rule, no acceptance.
    let mut host = Host::good();
    host.ima.file("memfd:vmm", b"vmm");
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
}

#[test]
fn a_listed_digest_counts_only_by_its_own_hash() {
    // The bytes of a listed digest, said to be another hash's, or that of a tree.
    let digest = Bank::Sha256.hash(b"vmm");
    let data = |head: &str| {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let digest = [head.as_bytes(), b"\0", &digest[..]].concat();
        [field(&digest), field(b"memfd:vmm\0"), field(b"")].concat()
    };
    for (head, template, accepted) in [
        ("ima:sha256:", "ima-sigv2", true),
        ("verity:sha256:", "ima-sigv2", false),
        ("sm3:", "ima-sig", false),
        ("sha3-256:", "ima-sig", false),
    ] {
        let mut host = with_rules(&rule("memfd:**", "\"listed\"", "a copy of itself"));
        let data = data(head);
        host.ima.raw(10, &Bank::Sha1.hash(&data), template, &data);
        assert_eq!(verdict(&host).is_ok(), accepted, "{head}");
    }
}

/// A file with this digest in a tree of fs-verity, whose digests are not of files.
fn tree(host: &mut Host, name: &str, digest: &[u8], text: Option<&[u8]>) {
    let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
    let digest = [&b"verity:sha256:\0"[..], digest].concat();
    let fields = [field(&digest), field(format!("{name}\0").as_bytes()), text.map_or_else(Vec::new, field)];
    let template = if text.is_some() { "d-ngv2|n-ng|buf" } else { "ima-ngv2" };
    host.ima.raw(10, &Bank::Sha1.hash(&fields.concat()), template, &fields.concat());
}

#[test]
fn n70_the_digest_of_a_tree_is_that_of_no_file_and_no_text() {
    let digest = Bank::Sha256.hash(b"init");
    let mut host =
        with_rules(&rule("/init", &format!("{{ digests = {{ sha256 = [\"{}\"] }} }}", hex::encode(&digest)), "x"));
    host.ima.file("/init", b"init");
    assert_eq!(verdict(&host), Ok(by("x", 1)));
    tree(&mut host, "/init", &digest, None);
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));

    let mut host = with_rules(&rule("version", "{ text = [\"6.1\"] }", "x"));
    let digest = Bank::Sha256.hash(b"6.1");
    host.ima.entry("ima-buf", Bank::Sha256, &digest, b"version", &[b"6.1"]);
    assert_eq!(verdict(&host), Ok(by("x", 1)));
    tree(&mut host, "version", &digest, Some(b"6.1"));
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
}

#[test]
fn digests_are_accepted_under_the_names_of_their_rule() {
    let digest = hex::encode(Bank::Sha384.hash(b"init"));
    let mut host = with_rules(&rule("/init", &format!("{{ digests = {{ sha384 = [\"{digest}\"] }} }}"), "image 7"));
    host.ima.entry("ima-sig", Bank::Sha384, &Bank::Sha384.hash(b"init"), b"/init", &[b""]);
    assert_eq!(verdict(&host), Ok(by("image 7", 1)));
    for (name, content) in [("/sbin/init", &b"init"[..]), ("/init", b"trojan")] {
        let entries = host.ima.entries.len();
        host.ima.entry("ima-sig", Bank::Sha384, &Bank::Sha384.hash(content), name.as_bytes(), &[b""]);
        assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]), "{name}");
        host.ima.entries.truncate(entries);
    }
}

#[test]
fn a_measured_text_is_accepted_if_the_digest_covers_it() {
    let rules = rule("kernel_version", "{ text = [\"6.1.0-13\"] }", "the kernel says its version");
    let entry = |digest: &[u8], text: &[u8]| {
        let mut host = with_rules(&rules);
        host.ima.entry("ima-buf", Bank::Sha256, &Bank::Sha256.hash(digest), b"kernel_version", &[text]);
        verdict(&host)
    };
    assert_eq!(entry(b"6.1.0-13", b"6.1.0-13"), Ok(by("the kernel says its version", 1)));
    assert_eq!(entry(b"6.1.0-14", b"6.1.0-14"), Err(vec![Code::ImaUnlisted]));
    // The text that is accepted, beside the digest of another one.
    assert_eq!(entry(b"6.1.0-14", b"6.1.0-13"), Err(vec![Code::ImaUnlisted]));
    let mut host = with_rules(&rules);
    host.ima.entry("ima-buf", Bank::Sha1, &Bank::Sha1.hash(b"6.1.0-13"), b"kernel_version", &[b"6.1.0-13"]);
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
    // A file of that name is no text.
    let mut host = with_rules(&rules);
    host.ima.file("kernel_version", b"6.1.0-13");
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
}

#[test]
fn n70_a_place_that_is_left_out_leaves_out_no_listed_file_and_no_way_around_it() {
    let rules = rule("/usr/bin/**", "\"any\"", "a rule far too wide");
    let mut host = with_rules(&rules);
    host.ima.file("/usr/bin/new", b"new");
    assert_eq!(verdict(&host), Ok(by("a rule far too wide", 1)));
    let with = |name: &str, content: &[u8]| {
        let mut host = with_rules(&rules);
        host.ima.file(name, content);
        verdict(&host)
    };
    assert_eq!(with(VMM, b"trojan"), Err(vec![Code::ImaWrongHash]));
    assert_eq!(with("/usr/bin/../sbin/x", b"x"), Err(vec![Code::ImaBadName]));
    assert_eq!(with("/usr/bin/x\n", b"x"), Err(vec![Code::ImaBadName]));
    assert_eq!(with("/usr/binx", b"x"), Err(vec![Code::ImaUnlisted]));
    assert_eq!(with("usr/bin/x", b"x"), Err(vec![Code::ImaUnlisted]));
    // A star in the middle: what begins alike is not meant.
    let of_place = |name: &str| {
        let mut host = with_rules(&rule("/opt/*/run", "\"any\"", "one for each"));
        host.ima.file(name, b"x");
        verdict(&host)
    };
    assert_eq!(of_place("/opt/a/run"), Ok(by("one for each", 1)));
    for name in ["/opt/a/run2", "/opt/a/b/run", "/opt/a"] {
        assert_eq!(of_place(name), Err(vec![Code::ImaUnlisted]), "{name}");
    }
}

fn violations(names: &str, reason: &str) -> String {
    format!("[[violations]]\nnames = \"{names}\"\nreason = \"{reason}\"\n")
}

#[test]
fn n65_violations_are_accepted_by_name_where_a_rule_gives_its_reason() {
    const JOURNAL: &str = "/var/log/journal/0123/system.journal";
    let rules = violations("/var/log/journal/**", "journald writes it while others read");
    let with = |rules: &str, name: &str| {
        let mut host = with_rules(rules);
        host.ima.violation(name);
        verdict(&host)
    };
    assert_eq!(with(&rules, JOURNAL), Ok(by("journald writes it while others read", 1)));
    // Nowhere else, by no other rule, and with no other name than a plain one.
    let any = rule("/var/log/**", "\"any\"", "data");
    for (rules, name) in [
        ("", JOURNAL),
        (any.as_str(), JOURNAL),
        (&rules, "/var/log/wtmp"),
        (&rules, "/var/log/journal/../../../usr/bin/x"),
        (&rules, "/var/log/journal/a\nb"),
        (&rules, "/var/log/journal/a\u{1b}[2K"),
    ] {
        assert_eq!(with(rules, name), Err(vec![Code::ImaViolation]), "{name:?} {rules}");
    }
    // That the file was written does not make its content known: what was measured of it is judged by itself.
    let mut host = with_rules(&rules);
    host.ima.violation(JOURNAL).file(JOURNAL, b"entries");
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
    let mut host = with_rules(&[&rules, any.as_str()].concat());
    host.ima.violation(JOURNAL).file(JOURNAL, b"entries").violation(JOURNAL);
    assert_eq!(
        verdict(&host),
        Ok(vec![("data".to_owned(), 1), ("journald writes it while others read".to_owned(), 2)])
    );
    // Rules for violations are asked where the policy does not ask for programs, too.
    host.policy.ima = false;
    assert_eq!(verdict(&host), Ok(by("journald writes it while others read", 2)));
}

#[test]
fn n65_a_violation_of_a_listed_program_is_accepted_by_its_own_name_alone() {
    let with = |names: &str| {
        let mut host = with_rules(&violations(names, "it writes itself"));
        host.ima.violation(VMM);
        verdict(&host)
    };
    for wide in ["/usr/**", "/usr/bin/*", "/usr/bin/portcullis-vmm*", "/usr/bin/portcullis-vm"] {
        assert_eq!(with(wide), Err(vec![Code::ImaViolation]), "{wide}");
    }
    assert_eq!(with(VMM), Ok(by("it writes itself", 1)));
}

/// A key that signs files, and a rule for its keyring.
struct Signer {
    key: EcdsaKeyPair,
    rules: String,
}

impl Signer {
    fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, spki.as_ref()).unwrap();
        let rules = format!(
            "{}[keyrings]\ndistribution = [\"\"\"{pem}\"\"\"]\n",
            rule("/usr/**", "{ signed-by = \"distribution\" }", "the distribution signs its programs")
        );
        Self { key, rules }
    }

    /// The attribute that IMA lists for a file with this content.
    fn attribute(&self, content: &[u8]) -> Vec<u8> {
        let id = Bank::Sha1.hash(self.key.public_key().as_ref());
        let signature = self.key.sign(&SystemRandom::new(), content).unwrap();
        let size = u16::try_from(signature.as_ref().len()).unwrap().to_be_bytes();
        [&[3, 2, 4][..], &id[16..], &size, signature.as_ref()].concat()
    }
}

fn signed(list: &mut ListBuilder, name: &str, content: &[u8], attribute: &[u8]) {
    list.entry("ima-sig", Bank::Sha256, &Bank::Sha256.hash(content), name.as_bytes(), &[attribute]);
}

#[test]
fn n71_programs_are_accepted_by_a_signature_of_a_key_of_the_keyring() {
    let (signer, other) = (Signer::new(), Signer::new());
    let with = |name: &str, content: &[u8], attribute: &[u8]| {
        let mut host = with_rules(&signer.rules);
        signed(&mut host.ima, name, content, attribute);
        verdict(&host)
    };
    let accepted = Ok(by("the distribution signs its programs", 1));
    assert_eq!(with("/usr/bin/new", b"new", &signer.attribute(b"new")), accepted);
    // An update of a listed program is signed too.
    assert_eq!(with(VMM, b"update", &signer.attribute(b"update")), accepted);
    for (content, attribute, code) in [
        (&b"new"[..], other.attribute(b"new"), Code::ImaSignatureKey),
        (b"trojan", signer.attribute(b"new"), Code::ImaSignatureInvalid),
        (b"new", Vec::new(), Code::ImaUnsigned),
        (b"new", vec![3, 2, 4], Code::ImaSignatureUnusable),
        (b"new", vec![5; 80], Code::ImaSignatureUnusable),
    ] {
        assert_eq!(with("/usr/bin/new", content, &attribute), Err(vec![code]));
    }
    // The wrong content of a listed path is what there is to say, signature or not.
    assert_eq!(with(VMM, b"trojan", &signer.attribute(b"vmm")), Err(vec![Code::ImaWrongHash]));
    // Where no rule asks for a signature it proves nothing.
    assert_eq!(with("/opt/new", b"new", &signer.attribute(b"new")), Err(vec![Code::ImaUnlisted]));
    let mut host = Host::good();
    signed(&mut host.ima, "/usr/bin/new", b"new", &signer.attribute(b"new"));
    assert_eq!(verdict(&host), Err(vec![Code::ImaUnlisted]));
}

#[test]
fn what_rules_accepted_is_counted_over_all_checks_of_a_boot() {
    let rules = rule("memfd:**", "\"listed\"", "a copy of itself");
    let mut host = with_rules(&rules);
    host.ima.file("memfd:vmm", b"vmm");
    let judged = host.appraise().unwrap().judged();
    let entries = host.ima.entries.len();
    host.clock_ms += 1_000;
    host.ima.file("memfd:agent", b"agent").file(VMM, b"vmm");
    let mut evidence = host.evidence_of(host.pcrs());
    evidence.ima_from = u64::try_from(entries).unwrap();
    evidence.ima = ListBuilder { entries: host.ima.entries[entries..].to_vec() }.bytes();
    let appraisal = host.appraise_with(&evidence, Some(&judged)).unwrap();
    assert_eq!(appraisal.programs_by_rule().collect::<Vec<_>>(), [("a copy of itself", 2)]);
    // Other rules, other judgement: the list is needed from its beginning.
    host.policy.programs = toml::from_str(&rule("memfd:**", "\"listed\"", "another reason")).unwrap();
    let reasons = host.appraise_with(&evidence, Some(&judged)).unwrap_err();
    assert_eq!(codes(&reasons), [Code::ImaHistoryMissing]);
}

/// What the verdict says of the programs that ran: 2 if all are known, 3 if only those of the boot are (AR4SI).
fn executables(appraisal: &Appraisal) -> Option<i8> {
    let context = ResultContext { verifier: "verifier", host: "host", issued_at: 0, expires_at: 1 };
    AttestationResult::new(appraisal, &context).submods["host"].trustworthiness_vector.executables
}

#[test]
fn a_verdict_that_rests_on_unknown_content_does_not_vouch_for_what_ran_since_boot() {
    let rules = [rule("memfd:**", "\"listed\"", "a copy of itself"), rule("/var/lib/**", "\"any\"", "mounted noexec")];
    let mut host = with_rules(&rules.concat());
    assert_eq!(executables(&host.appraise().unwrap()), Some(2), "no rule was needed");
    host.ima.file("memfd:vmm", b"vmm");
    assert_eq!(executables(&host.appraise().unwrap()), Some(2), "known by its content");
    let entries = host.ima.entries.len();
    host.ima.file("/var/lib/new", b"whatever");
    let appraisal = host.appraise().unwrap();
    assert_eq!(executables(&appraisal), Some(3));
    // It does not wear off with the checks that come after.
    let judged = appraisal.judged();
    host.clock_ms += 1_000;
    host.ima.file(VMM, b"vmm");
    let mut evidence = host.evidence_of(host.pcrs());
    evidence.ima_from = u64::try_from(entries + 1).unwrap();
    evidence.ima = ListBuilder { entries: host.ima.entries[entries + 1..].to_vec() }.bytes();
    assert_eq!(executables(&host.appraise_with(&evidence, Some(&judged)).unwrap()), Some(3));
    // A violation says nothing of the content, whatever the rule is called.
    let mut host = with_rules(&violations("/var/log/journal/**", "journald writes it"));
    assert_eq!(executables(&host.appraise().unwrap()), Some(2));
    host.ima.violation("/var/log/journal/x");
    assert_eq!(executables(&host.appraise().unwrap()), Some(3));
    // Two rules with one reason: either may have been used.
    let rules = [rule("memfd:**", "\"listed\"", "as agreed"), rule("/var/lib/**", "\"any\"", "as agreed")];
    let mut host = with_rules(&rules.concat());
    assert_eq!(executables(&host.appraise().unwrap()), Some(2));
    host.ima.file("/var/lib/new", b"whatever");
    assert_eq!(executables(&host.appraise().unwrap()), Some(3));
    // No judgement says no more.
    host.policy.ima = false;
    assert_eq!(executables(&host.appraise().unwrap()), Some(3));
}

#[test]
fn a_list_full_of_what_is_wrong_ends_in_as_many_reasons_as_anybody_reads() {
    let data = template_data("sha256", &[0; 32], b"/x", &[]);
    let wrong: [&dyn Fn(&mut ListBuilder); 4] = [
        &|list| {
            list.file("/tmp/x", b"?");
        },
        &|list| {
            list.violation("/tmp/x");
        },
        &|list| {
            list.raw(10, &[7; 20], "ima-ng", &data);
        },
        &|list| {
            list.raw(11, &Bank::Sha1.hash(&data), "ima-ng", &data);
        },
    ];
    for wrong in wrong {
        let mut host = Host::good();
        (0..2_000).for_each(|_| wrong(&mut host.ima));
        assert_eq!(host.denied().len(), MAX_REASONS);
    }
}
