use std::path::PathBuf;

use proptest::prelude::*;

use super::list_builder::{ListBuilder, template_data};
use super::*;
use crate::key::Bank;

/// The digest that an appended signature is of.
const APPENDED: &[u8] = b"sha256:\0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

fn small() -> ListBuilder {
    let mut list = ListBuilder::default();
    list.file("boot_aggregate", b"pcrs").file("/init", b"init").file("/usr/bin/a b", b"a b");
    list.entry("ima-ng", Bank::Sha256, &[7; 32], b"/usr/bin/ng", &[]);
    list.entry("ima-buf", Bank::Sha256, &[8; 32], b"kexec-cmdline", &[b"root=/dev/vda"]);
    list.entry("ima-modsig", Bank::Sha256, &[9; 32], b"/lib/modules/kvm.ko", &[b"\x03sig", APPENDED, b"pkcs7"]);
    list
}

#[test]
fn a_real_list_replays_as_an_independent_program_computed() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !path.is_dir() {
        eprintln!("ATTENTION: no corpus at {}: replay of a real IMA list was NOT checked", path.display());
        return;
    }
    let expected = std::fs::read_to_string(path.join("expected-ima.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&expected).unwrap();
    for (name, expected) in &expected {
        let bytes = std::fs::read(path.join("ima").join(name)).unwrap();
        let list = ImaList::parse(&bytes).unwrap();
        assert_eq!(list.len() as u64, expected["entries"]);
        assert_eq!(list.violations() as u64, expected["violations"]);
        let mismatches = list.entries().filter(|entry| !entry.template_digest_holds()).count();
        assert_eq!(mismatches as u64, expected["template_mismatches"]);
        for (bank, rule, key) in [
            (Bank::Sha1, ExtendRule::Digest, "sha1"),
            (Bank::Sha256, ExtendRule::Digest, "sha256"),
            (Bank::Sha384, ExtendRule::Digest, "sha384"),
            (Bank::Sha256, ExtendRule::PaddedSha1, "sha256_padded_sha1"),
        ] {
            assert_eq!(hex::encode(list.replay(bank, rule)), expected["banks"][key], "{name} {key}");
        }
    }
}

#[test]
fn both_forms_of_one_list_say_the_same() {
    let binary = small().bytes();
    let binary = ImaList::parse(&binary).unwrap();
    let mut lines = Vec::new();
    for entry in binary.entries() {
        let digest = entry.digest();
        let more = match entry.template.name() {
            "ima-ng" => String::new(),
            "ima-sig" => " ".to_owned(),
            "ima-buf" => format!(" {}", hex::encode(b"root=/dev/vda")),
            _ => format!(" {} sha256:{} {}", hex::encode(b"\x03sig"), hex::encode([b'x'; 32]), hex::encode(b"pkcs7")),
        };
        lines.push(format!(
            "{} {} {} {}:{} {}{more}\n",
            entry.pcr,
            hex::encode(entry.template_digest),
            entry.template.name(),
            digest.algorithm,
            hex::encode(digest.digest),
            entry.name_lossy(),
        ));
    }
    let ascii = lines.concat();
    let ascii = ImaList::parse(ascii.as_bytes()).unwrap();
    assert!(ascii.entries().all(|entry| entry.template_digest_holds()));
    for bank in Bank::ALL {
        assert_eq!(ascii.replay(bank, ExtendRule::Digest), binary.replay(bank, ExtendRule::Digest));
    }
    assert_eq!(ascii.entries().nth(2).unwrap().name(), b"/usr/bin/a b");
}

#[test]
fn the_oldest_template_hashes_its_name_padded() {
    let digest = Bank::Sha1.hash(b"content");
    let mut data = [&digest[..], b"/sbin/init"].concat();
    data.resize(276, 0);
    let line = format!("10 {} ima {} /sbin/init\n", hex::encode(Bank::Sha1.hash(&data)), hex::encode(&digest));
    let list = ImaList::parse(line.as_bytes()).unwrap();
    assert!(list.entries().next().unwrap().template_digest_holds());
    assert_eq!(list.entries().next().unwrap().name(), b"/sbin/init");
    let binary = [
        &10_u32.to_le_bytes()[..],
        &Bank::Sha1.hash(&data),
        &3_u32.to_le_bytes(),
        b"ima",
        &digest,
        &10_u32.to_le_bytes(),
        b"/sbin/init",
    ]
    .concat();
    let binary = ImaList::parse(&binary).unwrap();
    assert!(binary.entries().next().unwrap().template_digest_holds());
    assert_eq!(binary.entries().next().unwrap().digest().digest, digest);
}

#[test]
fn n65_a_violation_extends_ones() {
    let mut list = ListBuilder::default();
    list.violation("/usr/bin/x");
    let bytes = list.bytes();
    let list = ImaList::parse(&bytes).unwrap();
    assert_eq!(list.violations(), 1);
    let expected = Bank::Sha256.extend(&[0; 32], &[0xff; 32]);
    assert_eq!(list.replay(Bank::Sha256, ExtendRule::Digest), expected);
}

#[test]
fn n66_a_template_digest_of_something_else_is_seen() {
    let mut list = ListBuilder::default();
    let data = template_data("sha256", &[1; 32], b"/usr/bin/x", &[]);
    list.raw(10, &[5; 20], "ima-ng", &data);
    let bytes = list.bytes();
    assert!(!ImaList::parse(&bytes).unwrap().entries().next().unwrap().template_digest_holds());
    let good = small().bytes();
    assert!(ImaList::parse(&good).unwrap().entries().all(|entry| entry.template_digest_holds()));
}

#[test]
fn n69_the_quoted_value_ends_what_is_believed() {
    let bytes = small().bytes();
    let list = ImaList::parse(&bytes).unwrap();
    let mut shorter = small();
    shorter.entries.truncate(2);
    let shorter = shorter.bytes();
    let quoted = ImaList::parse(&shorter).unwrap().replay(Bank::Sha256, ExtendRule::Digest);
    assert_eq!(list.position_of(Bank::Sha256, ExtendRule::Digest, &quoted), Some(2));
    assert_eq!(list.position_of(Bank::Sha256, ExtendRule::Digest, &[0; 32]), Some(0));
    assert_eq!(list.position_of(Bank::Sha256, ExtendRule::Digest, &[1; 32]), None);
}

#[test]
fn n86_a_list_continues_what_was_judged_or_it_does_not() {
    let bytes = small().bytes();
    let list = ImaList::parse(&bytes).unwrap();
    let quoted = list.replay(Bank::Sha256, ExtendRule::Digest);
    let mut first = small();
    first.entries.truncate(3);
    let first = first.bytes();
    let pcr = ImaList::parse(&first).unwrap().replay(Bank::Sha256, ExtendRule::Digest);
    let continues = |entries, pcr: &[u8]| {
        let mut lanes = [Lane::new(Bank::Sha256, ExtendRule::Digest, &quoted).through(Some((entries, pcr)))];
        assert_eq!(list.walk(&mut lanes, |_, _| {}), Some(6));
        lanes[0].continues
    };
    assert!(continues(3, &pcr));
    assert!(!continues(2, &pcr));
    assert!(!continues(7, &pcr));
    assert!(!continues(3, &[9; 32]));
}

#[test]
fn n86_a_list_that_leaves_out_what_was_judged_goes_on_from_there() {
    let all = small().bytes();
    let rest = after(&all, 4).unwrap();
    assert_eq!(rest, ListBuilder { entries: small().entries[4..].to_vec() }.bytes());
    assert_eq!(after(&all, 6), Ok(&[][..]));
    assert_eq!(after(&all, 7), Err(ImaError::TooFew { there: 6, wanted: 7 }));
    let first = ListBuilder { entries: small().entries[..4].to_vec() }.bytes();
    let quoted = ImaList::parse(&all).unwrap().replay(Bank::Sha256, ExtendRule::Digest);
    let pcr = ImaList::parse(&first).unwrap().replay(Bank::Sha256, ExtendRule::Digest);
    let rest = ImaList::parse(rest).unwrap();
    let lane = || Lane::new(Bank::Sha256, ExtendRule::Digest, &quoted);
    let reach = |lane| rest.walk(&mut [lane], |_, _| {});
    assert_eq!(reach(lane().from(&pcr).unwrap()), Some(2));
    assert_eq!(reach(lane().from(&[0; 32]).unwrap()), None);
    assert_eq!(reach(lane()), None);
    assert!(lane().from(&[0; 20]).is_none());
}

#[test]
fn n72_a_digest_of_another_length_than_its_algorithms_is_refused() {
    let mut list = ListBuilder::default();
    let data = template_data("sha256", &[1; 20], b"/usr/bin/x", &[]);
    list.raw(10, &Bank::Sha1.hash(&data), "ima-ng", &data);
    assert!(matches!(ImaList::parse(&list.bytes()), Err(ImaError::Field { entry: 1, .. })));
}

#[test]
fn n87_padded_sha1_leads_elsewhere_than_the_banks_own_hash() {
    let bytes = small().bytes();
    let list = ImaList::parse(&bytes).unwrap();
    let padded = list.replay(Bank::Sha384, ExtendRule::PaddedSha1);
    assert_ne!(padded, list.replay(Bank::Sha384, ExtendRule::Digest));
    assert_eq!(list.position_of(Bank::Sha384, ExtendRule::Digest, &padded), None);
    assert_eq!(list.position_of(Bank::Sha384, ExtendRule::PaddedSha1, &padded), Some(6));
}

#[test]
fn malformed_entries_are_refused_with_their_number() {
    let good = small();
    let with = |entry: Vec<u8>| [good.bytes(), entry].concat();
    let raw = |template: &str, data: &[u8]| {
        let mut list = ListBuilder::default();
        list.raw(10, &[1; 20], template, data).bytes()
    };
    let digest = template_data("sha256", &[1; 32], b"/x", &[]);
    assert!(matches!(ImaList::parse(&with(raw("ima-new", &digest))), Err(ImaError::Template { entry: 7, .. })));
    assert!(matches!(ImaList::parse(&with(raw("ima-sig", &digest))), Err(ImaError::Field { entry: 7, .. })));
    for (algorithm, name, more) in [
        ("sha256", &b"/x\0/y"[..], &[][..]),
        ("SHA256", b"/x", &[]),
        ("", b"/x", &[]),
        ("sha256", b"/x", &[&b"more"[..]]),
    ] {
        let data = template_data(algorithm, &[1; 32], name, more);
        assert!(matches!(ImaList::parse(&with(raw("ima-ng", &data))), Err(ImaError::Field { entry: 7, .. })));
    }
    let mut endless = good.bytes();
    endless.extend([10, 0, 0, 0]);
    assert!(matches!(ImaList::parse(&endless), Err(ImaError::Truncated { entry: 7, .. })));
    assert!(ImaList::parse(b"10 00 ima-ng sha256:00 /x\n").is_err());
    assert!(ImaList::parse(b"").unwrap().is_empty());
}

#[test]
fn n70_a_newline_in_a_name_does_not_make_two_entries_of_one_line() {
    let mut list = ListBuilder::default();
    list.entry("ima-ng", Bank::Sha256, &[1; 32], b"/tmp/x\n10 aaaa ima-ng sha256:bb /usr/bin/good", &[]);
    let binary = list.bytes();
    let list = ImaList::parse(&binary).unwrap();
    let entry = list.entries().next().unwrap();
    let line = format!(
        "10 {} ima-ng sha256:{} {}\n",
        hex::encode(entry.template_digest),
        hex::encode(entry.digest().digest),
        entry.name_lossy()
    );
    assert!(ImaList::parse(line.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn no_damage_makes_the_parser_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        text in any::<bool>(),
    ) {
        let mut bytes = if text {
            b"10 1d8d532d463c9f8c205d0df7787669a85f93e260 ima-sig sha1:0000000000000000000000000000000000000000 /x 0302\n".to_vec()
        } else {
            small().bytes()
        };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        for parse in [ImaList::parse_binary, ImaList::parse_ascii] {
            let Ok(list) = parse(&bytes) else { continue };
            for bank in Bank::ALL {
                prop_assert_eq!(list.replay(bank, ExtendRule::PaddedSha1).len(), bank.digest_size());
            }
        }
    }
}
