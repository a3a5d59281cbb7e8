//! N95: what a judgement costs grows with its evidence, and no faster. Counted in steps ([`crate::work`]), not in time,
//! which depends on the machine.
//!
//! Each family multiplies one kind of thing that an attacker can have as many of as he likes: by another kind of his, or
//! by what policy and reference values list. Where such evidence can be good, the same amount of it is accepted.

mod programs;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use programs::rule;

use super::tests::host::{Host, codes};
use crate::appraise::{Claims, Policy, ReplayedLog};
use crate::eventlog::log_builder::{LogBuilder, signature_list, utf16, variable};
use crate::eventlog::{CertificateCache, EventType, Guid};
use crate::evidence::Evidence;
use crate::ima::ExtendRule;
use crate::ima::list_builder::ListBuilder;
use crate::key::Bank;
use crate::quote::VerifiedQuote;
use crate::reason::ReasonCode as Code;
use crate::reference::{Pattern, ReferenceBuilder, ReferenceValues, Slot};
use crate::work;

/// Most steps for each byte of a log or list of which the good host is accepted: every byte is hashed once for each
/// quoted bank, every event extends a PCR in each, and all is read some times.
const MOST_FOR_A_BYTE: usize = 9;

/// What it costs to judge evidence, and how many bytes it has.
fn cost_of(host: &Host, evidence: &Evidence) -> (usize, usize) {
    let ((), done) = work::of(|| drop(host.appraise_with(evidence, None)));
    (done, evidence.eventlog.len() + evidence.ima.len())
}

fn cost(host: &Host) -> (usize, usize) {
    cost_of(host, &host.evidence_of(host.pcrs()))
}

/// Twice as much evidence costs twice as much, and no byte of it more than bytes do.
fn is_linear(size: usize, evidence: impl Fn(usize) -> (usize, usize)) {
    is_linear_with(MOST_FOR_A_BYTE, size, evidence);
}

fn is_linear_with(most: usize, size: usize, evidence: impl Fn(usize) -> (usize, usize)) {
    let ((once, _), (twice, bytes)) = (evidence(size), evidence(2 * size));
    assert!(twice * 10 <= once * 22, "{size}: {once} steps, twice as much: {twice}");
    assert!(twice <= most * bytes, "{twice} steps for {bytes} bytes: {}", twice / bytes);
    println!("{once} steps, twice as much: {twice}, {} for each byte", twice / bytes);
}

fn policy(more: &str) -> Policy {
    Policy::from_toml(&format!("{}{more}\n", super::tests::host::POLICY)).unwrap()
}

/// A kernel's load options, of which the log has no text: their digest is that of this text.
fn load_options(log: &mut LogBuilder, text: &str) {
    let data = [&0x8f3b_22ed_u32.to_le_bytes()[..], &0_u32.to_le_bytes()].concat();
    log.measure(9, EventType::EVENT_TAG, &data, &utf16(&format!("{text}\0")));
}

fn certificate(number: usize) -> Vec<u8> {
    let content = u32::try_from(number).unwrap().to_be_bytes();
    [&[9; 16][..], &[0x30, 6, 0x04, 4], &content].concat()
}

fn authority(log: &mut LogBuilder, number: usize) {
    log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(Guid::SHIM_LOCK, "MokListRT", &certificate(number)));
}

#[test]
fn n95_many_command_lines_and_many_load_options() {
    let make = |count: usize, good: bool| {
        let mut host = Host::good();
        host.policy = policy("command_line = { forbid = [\"init\"] }");
        for number in 0..count {
            host.log.grub("kernel_cmdline", &format!("/vmlinuz root=/dev/sda{number}"));
            let kernel = if good { "/vmlinuz" } else { "/other" };
            load_options(&mut host.log, &format!("BOOT_IMAGE={kernel} root=/dev/sda{number}"));
        }
        if good { host.accept_log() } else { &mut host }.boot_aggregate(10);
        host
    };
    is_linear(300, |count| cost(&make(count, false)));
    is_linear(300, |count| cost(&make(count, true)));
    assert!(make(20, false).codes().contains(&Code::EventlogCommandLine));
    make(20, true).appraise().unwrap();
    // More than any boot has are not judged.
    assert_eq!(make(40, true).codes(), [Code::PolicyCommandLine]);
}

/// Lines of as many arguments as the kernel reads, and a policy that lists as many.
#[test]
fn n95_many_arguments_and_many_that_the_policy_allows() {
    let make = |count: usize, lines: usize, other: usize, list: &str| {
        let mut host = Host::good();
        let name = |number: usize| format!("\"{number:03x}\"");
        let rules: Vec<_> = (0..count).map(|number| name(number + other)).collect();
        let genuine = if list == "allow" { ", \"console\", \"quiet\"" } else { "" };
        host.policy = policy(&format!("command_line = {{ {list} = [{}{genuine}] }}", rules.join(", ")));
        for _ in 0..lines {
            let line = (0..count).map(|number| format!("{number:03x}")).collect::<Vec<_>>().join(" ");
            host.log.grub("kernel_cmdline", &format!("/vmlinuz {line}"));
        }
        host.accept_log();
        host
    };
    for list in ["allow", "forbid"] {
        for other in [0, 0x800] {
            is_linear(250, |count| cost(&make(count, 20, other, list)));
            is_linear(30, |lines| cost(&make(500, lines, other, list)));
        }
    }
    let denied = make(500, 20, 0x800, "allow").denied();
    assert!(denied.iter().all(|reason| reason.code == Code::PolicyCommandLine));
    assert_eq!(denied.len(), crate::appraise::MAX_REASONS);
    make(500, 20, 0, "allow").appraise().unwrap();
    make(500, 20, 0x800, "forbid").appraise().unwrap();
    assert_eq!(make(500, 20, 0, "forbid").denied().len(), crate::appraise::MAX_REASONS);
}

/// Many lines that reference values leave to the policy, and many rules: the rules are prepared once, not for each line.
#[test]
fn n95_many_lines_that_are_left_to_many_rules() {
    let make = |lines: usize, rules: usize| {
        let mut host = Host::good();
        for _ in 0..lines {
            host.log.grub("kernel_cmdline", "/vmlinuz console=ttyS0 quiet");
        }
        host.accept_log();
        let values = host.reference().to_toml().unwrap();
        let by_rule = values
            .replace("text = [\"/vmlinuz console=ttyS0 quiet\"]", "rule = \"command-line\"\nreason = \"roots differ\"");
        assert_ne!(values, by_rule);
        host.references = vec![ReferenceValues::from_toml(&by_rule).unwrap()];
        let names: Vec<_> = (0..rules).map(|number| format!("\"a{number}\"")).collect();
        let (allow, forbid) = (names.join(", "), names.join(", ").replace('a', "b"));
        host.policy =
            policy(&format!("command_line = {{ allow = [\"console\", \"quiet\", {allow}], forbid = [{forbid}] }}"));
        host
    };
    make(60, 10).appraise().unwrap();
    // Beyond 64 lines the policy's demands are not even tried.
    let (few, many) = (cost(&make(2000, 10)).0, cost(&make(2000, 1000)).0);
    assert!(many < few + few / 10 + 20 * 1000, "{few} steps with ten rules, {many} with a thousand");
}

/// One name and many values, in the policy and on the line.
#[test]
fn n95_many_values_of_one_argument() {
    let make = |count: usize, other: usize, list: &str| {
        let mut host = Host::good();
        let values: Vec<_> = (0..count).map(|number| format!("\"{:03x}\"", number + other)).collect();
        host.policy =
            policy(&format!("command_line = {{ {list} = [{{ name = \"a\", values = [{}] }}] }}", values.join(", ")));
        host.log.events.retain(|event| event[0] != 8 && event[0] != 9);
        for _ in 0..20 {
            let line = (0..count).map(|number| format!("a={number:03x}")).collect::<Vec<_>>().join(" ");
            host.log.grub("kernel_cmdline", &format!("/vmlinuz {line}"));
        }
        host.accept_log();
        host
    };
    for list in ["allow", "require"] {
        for other in [0, 0x800] {
            is_linear(150, |count| cost(&make(count, other, list)));
        }
        make(300, 0, list).appraise().unwrap();
        assert!(make(300, 0x800, list).codes().contains(&Code::PolicyCommandLine));
    }
}

/// Lists that the log calls shim's, and a policy with as many.
#[test]
fn n95_many_of_shims_lists_and_many_in_the_policy() {
    let make = |count: usize, other: usize| {
        let mut host = Host::good();
        let mut known = vec![Bank::Sha256.hash(b"mok list")];
        for number in 0..count {
            host.log.measure(14, EventType::IPL, b"MokList\0", &number.to_le_bytes());
            known.push(Bank::Sha256.hash(&(number + other).to_le_bytes()));
        }
        host.policy.shim.mok_lists = Some(known);
        host.accept_log();
        host
    };
    is_linear(300, |count| cost(&make(count, 1 << 24)));
    is_linear(300, |count| cost(&make(count, 0)));
    assert_eq!(make(300, 1 << 24).denied().len(), crate::appraise::MAX_REASONS);
    assert!(make(20, 1 << 24).codes().iter().all(|code| *code == Code::PolicyMokList));
    make(300, 0).appraise().unwrap();
}

#[test]
fn n95_many_images_and_many_authorities() {
    let make = |count: usize| {
        let mut host = Host::good();
        for number in 0..count {
            authority(&mut host.log, number);
            let image = number.to_le_bytes();
            host.log.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &[0; 32], &image);
        }
        host.accept_log();
        host
    };
    is_linear(300, |count| {
        let host = make(count);
        let evidence = host.evidence_of(host.pcrs());
        let certificates = CertificateCache::new();
        let quote = VerifiedQuote::verify(&evidence, &host.ak, &Host::binding()).unwrap();
        let replayed = ReplayedLog::replay(quote, &evidence, None).unwrap();
        let claims = Claims::read(replayed, Bank::Sha256, &certificates).unwrap();
        let (verified, done) = work::of(|| claims.verified_by());
        assert_eq!(verified.len(), 3 + count);
        assert_eq!(verified.last().unwrap().authorities.len(), count);
        (done, evidence.eventlog.len())
    });
    make(600).appraise().unwrap();
}

#[test]
fn n95_many_authorities_and_many_signers_in_the_policy() {
    let make = |count: usize, is_known: bool| {
        let mut host = Host::good();
        host.log.events.retain(|event| !event.ends_with(b"Microsoft UEFI CA"));
        let mut signers = Vec::new();
        for number in 0..count {
            authority(&mut host.log, number);
            let other = usize::from(!is_known) << 24;
            signers.push(format!("\"{}\"", hex::encode(Bank::Sha256.hash(&certificate(number + other)[16..]))));
        }
        let db = [&[9; 16][..], &[0x30, 1, 0]].concat();
        host.log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(Guid::IMAGE_SECURITY, "db", &db));
        signers.push(format!("\"{}\"", hex::encode(Bank::Sha256.hash(&[0x30, 1, 0]))));
        host.policy = policy(&format!("boot_signers = [{}]", signers.join(", ")));
        host.accept_log();
        host
    };
    is_linear(300, |count| cost(&make(count, false)));
    is_linear(300, |count| cost(&make(count, true)));
    assert_eq!(make(300, false).codes(), [Code::PolicyBootSigner]);
    make(300, true).appraise().unwrap();
}

/// Events that say that they are authorities, and whose text no digest covers.
#[test]
fn n95_many_authorities_that_cannot_be_read() {
    let make = |count: usize| {
        let mut host = Host::good();
        host.policy =
            policy(&format!("boot_signers = [\"{}\"]", hex::encode(Bank::Sha256.hash(&certificate(0)[16..]))));
        for number in 0..count {
            authority(&mut host.log, number);
            host.log.measure(7, EventType::EFI_VARIABLE_AUTHORITY, &number.to_le_bytes(), b"something else");
        }
        host.accept_log();
        host
    };
    is_linear(300, |count| cost(&make(count)));
    assert!(make(10).codes().contains(&Code::PolicyBootSigner));
}

#[test]
fn n95_many_kernels_and_option_roms_and_many_of_them_in_the_policy() {
    let make = |count: usize, other: usize| {
        let mut host = Host::good();
        host.policy.ima = false;
        let mut known = vec![Bank::Sha256.hash(b"the kernel"), Bank::Sha256.hash(b"kernel image")];
        for number in 0..count {
            let measured = number.to_le_bytes();
            host.log.measure(9, EventType::IPL, b"/vmlinuz\0", &measured);
            host.log.measure(2, EventType::EFI_BOOT_SERVICES_DRIVER, &[0; 32], &measured);
            known.push(Bank::Sha256.hash(&(number + other).to_le_bytes()));
        }
        host.policy.firmware.option_roms = Some(known.clone());
        host.policy.kernels = known;
        host.accept_log();
        host
    };
    is_linear(300, |count| cost(&make(count, 1 << 24)));
    is_linear(300, |count| cost(&make(count, 0)));
    assert_eq!(make(40, 1 << 24).codes(), [Code::PolicyKernel, Code::PolicyOptionRom]);
    make(300, 0).appraise().unwrap();
}

#[test]
fn n95_many_revoked_certificates_and_many_that_the_policy_wants_revoked() {
    let make = |count: usize, other: usize| {
        let mut host = Host::good();
        let at = host.log.position(&variable(Guid::IMAGE_SECURITY, "dbx", &[]));
        let lists: Vec<u8> = (0..count).flat_map(|number| signature_list(&certificate(number))).collect();
        let mut log = LogBuilder::new(&super::tests::host::BANKS);
        log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::IMAGE_SECURITY, "dbx", &lists));
        host.log.events[at] = log.events.remove(0);
        let wanted = |number: usize| Bank::Sha256.hash(&certificate(number + other)).try_into().unwrap();
        host.policy.dbx.minimum = (0..count).map(wanted).collect();
        host.accept_log();
        host
    };
    is_linear(300, |count| cost(&make(count, 1 << 24)));
    is_linear(300, |count| cost(&make(count, 0)));
    assert_eq!(make(300, 1 << 24).codes(), [Code::PolicyDbx]);
    make(300, 0).appraise().unwrap();
}

/// As many slots as events, of which none is the other's.
#[test]
fn n95_a_log_that_has_nothing_in_common_with_the_reference_values() {
    let values = |count: usize, others: bool| {
        let mut builder = ReferenceBuilder::new("good", "");
        for number in 0..count {
            let hole = Pattern::new(&format!("good {number} {{number}}")).unwrap();
            let slot = Slot { patterns: vec![hole], reason: "a number".to_owned(), ..Slot::grub_command("x") };
            builder.slot(slot);
            if others {
                builder.slot(Slot::grub_command("not there").optional());
            }
        }
        builder.build().unwrap()
    };
    let make = |count: usize, word: &str| {
        let mut host = Host::good();
        host.policy.ima = false;
        host.references = vec![values(count, false), values(count, true)];
        host.log.events.retain(|event| event[0] != 8);
        for number in 0..count {
            host.log.grub("grub_cmd", &format!("{word} {number} 7"));
        }
        host.boot_aggregate(10);
        host
    };
    is_linear(500, |count| cost(&make(count, "evil")));
    // The whole boot with these commands in it is accepted.
    let mut host = make(250, "good");
    host.accept_log();
    let with_patterns = host.references[0]
        .to_toml()
        .unwrap()
        .replace("text = [\"good 9 7\"]", "pattern = [\"good 9 {number}\"]\nreason = \"a number\"");
    host.references = vec![ReferenceValues::from_toml(&with_patterns).unwrap()];
    let appraisal = host.appraise().unwrap();
    assert_eq!(appraisal.by_rule().len(), 1);
}

/// However many reference values a policy names, the log is laid beside one of them in every detail.
#[test]
fn n95_many_reference_values_of_which_none_matches() {
    let make = |references: usize| {
        let mut host = Host::good();
        host.references = (0..references)
            .map(|number| {
                let mut other = Host::good();
                other.log.grub("grub_cmd", &format!("another {number}"));
                other.reference()
            })
            .collect();
        for number in 0..200 {
            host.log.grub("grub_cmd", &format!("evil {number}"));
        }
        host.boot_aggregate(10);
        host
    };
    let ((one, _), (eight, bytes)) = (cost(&make(1)), cost(&make(8)));
    assert!(eight <= one + one / 4, "{eight} steps, with one {one}, for {bytes} bytes");
    let mut host = make(8);
    let last = host.reference();
    host.references.push(last);
    host.appraise().unwrap();
}

/// Every PCR of every bank leads elsewhere, and only the last event says where.
#[test]
fn n95_a_log_that_leads_to_none_of_the_quoted_values() {
    let evidence = |count: usize| {
        let mut host = Host::good();
        for number in 0..count {
            host.log.event(u32::try_from(number % 8).unwrap(), EventType::EFI_ACTION, b"x");
        }
        let mut pcrs = host.pcrs();
        for value in pcrs.values_mut().flat_map(|pcrs| pcrs.values_mut()) {
            value[0] ^= 1;
        }
        let evidence = host.evidence_of(pcrs);
        cost_of(&host, &evidence)
    };
    is_linear_with(7, 2000, evidence);
}

/// Each event is a reason of its own, with a text of its own.
#[test]
fn n95_a_log_that_contradicts_itself_everywhere() {
    let make = |count: usize| {
        let mut host = Host::good();
        for number in 0..count {
            let text = format!("grub_cmd: {number:0500}\0");
            host.log.measure(8, EventType::IPL, text.as_bytes(), b"something else");
            let late = variable(Guid::IMAGE_SECURITY, "db", &signature_list(&[7; 100]).repeat(20));
            host.log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &late);
            host.log.event(3, EventType::SEPARATOR, &[0; 4]);
        }
        host
    };
    is_linear_with(2, 200, |count| cost(&make(count)));
    let denied = make(200).denied();
    assert!(denied.len() <= crate::appraise::MAX_REASONS);
}

/// A judgement for which nobody waits any more is stopped: the same evidence, judged to its end, is accepted.
#[test]
fn n95_work_that_nobody_waits_for_is_stopped() {
    use std::sync::atomic::AtomicBool;

    use crate::appraise::{Context, appraise};
    let mut host = Host::good();
    host.policy = policy(&rule("/srv/**", "\"any\"", "data"));
    for number in 0..5000 {
        host.ima.file(&format!("/srv/{number:04}"), b"?");
    }
    let evidence = host.evidence_of(host.pcrs());
    let judge = |abandoned: bool| {
        let flag = AtomicBool::new(abandoned);
        let context = Context {
            references: &host.references,
            policy: &host.policy,
            certificates: &CertificateCache::new(),
            previous: None,
            now: host.now,
            abandoned: Some(&flag),
        };
        let quote = VerifiedQuote::verify(&evidence, &host.ak, &Host::binding()).unwrap();
        work::of(|| appraise(quote, &evidence, &context).map(|appraisal| appraisal.ima_entries()))
    };
    let (whole, all) = judge(false);
    assert_eq!(whole.unwrap(), 5003);
    let (stopped, little) = judge(true);
    assert_eq!(codes(&stopped.unwrap_err().reasons), [Code::EvidenceAbandoned]);
    assert!(little * 100 < all, "{little} of {all} steps");
}
