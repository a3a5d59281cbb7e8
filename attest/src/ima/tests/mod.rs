mod reading;

use portcullis_firmware_fixtures::recorded::corpus;
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
    let Some(path) = corpus("replay of a real IMA list") else { return };
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
    // In every bank, over the whole of its digest (Linux, ima_queue.c, ima_init_digests).
    for bank in Bank::ALL {
        let size = bank.digest_size();
        let expected = bank.extend(&vec![0; size], &vec![0xff; size]);
        assert_eq!(list.replay(bank, ExtendRule::Digest), expected, "{bank}");
        assert_eq!(list.replay(bank, ExtendRule::PaddedSha1), expected, "{bank}");
        // Before Linux 5.8 a bank got SHA-1's ones, padded.
        let mut padded = vec![0; size];
        padded[..20].fill(0xff);
        assert_eq!(list.replay(bank, ExtendRule::PaddedThroughout), bank.extend(&vec![0; size], &padded), "{bank}");
    }
    // Whatever it names: the digest of the file, and the name, are covered by nothing.
    let mut other = ListBuilder::default();
    other.violation("/usr/bin/y");
    let other = other.bytes();
    let replay = |list: &ImaList<'_>| list.replay(Bank::Sha256, ExtendRule::Digest);
    assert_eq!(replay(&ImaList::parse(&other).unwrap()), replay(&list));
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
        assert_eq!(list.walk(&mut lanes, |_, _| true), Some(6));
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
    let reach = |lane| rest.walk(&mut [lane], |_, _| true);
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
fn n65_a_violation_may_leave_room_for_a_sha1_only() {
    let data = |size| {
        let digest = [&b"sha256:\0"[..], &vec![0; size]].concat();
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        [field(&digest), field(b"/x\0")].concat()
    };
    let with = |template_digest: &[u8], size| {
        let mut list = ListBuilder::default();
        let bytes = list.raw(10, template_digest, "ima-ng", &data(size)).bytes();
        ImaList::parse(&bytes).map(|list| list.violations())
    };
    assert_eq!(with(&[0; 20], 20), Ok(1));
    assert_eq!(with(&[0; 20], 32), Ok(1));
    // What is no violation has a digest of its hash's length.
    assert!(with(&Bank::Sha1.hash(&data(20)), 20).is_err());
    assert!(with(&[0; 20], 19).is_err());
}

#[test]
fn n72_lists_of_every_banks_template_digests_are_read_and_told_apart() {
    let sha1 = small().bytes();
    let sha1 = ImaList::parse(&sha1).unwrap();
    let quoted = sha1.replay(Bank::Sha256, ExtendRule::Digest);
    for bank in Bank::ALL {
        for rule in [ExtendRule::Digest, ExtendRule::PaddedSha1] {
            let mut list = ListBuilder::default();
            list.raw(10, &vec![0; bank.digest_size()], "ima-ng", &template_data("sha256", &[0; 32], b"/v", &[]));
            let violation = list.bytes().len();
            for entry in sha1.entries() {
                let data = entry.template_data();
                let mut digest = if rule == ExtendRule::Digest { bank.hash(&data) } else { Bank::Sha1.hash(&data) };
                digest.resize(bank.digest_size(), 0);
                list.raw(10, &digest, entry.template.name(), &data);
            }
            let bytes = list.bytes();
            let (bank, rule) = match (bank, rule) {
                (Bank::Sha1, _) => (bank, ExtendRule::Digest),
                // Padded, the digests of one length look the same.
                (Bank::Sm3_256, ExtendRule::PaddedSha1) => (Bank::Sha256, rule),
                _ => (bank, rule),
            };
            let list = ImaList::parse(&bytes[violation..]).unwrap();
            assert_eq!(list.template_hash(), TemplateHash { bank, rule });
            assert!(list.entries().all(|entry| entry.template_digest_holds()));
            assert_eq!(list.replay(Bank::Sha256, ExtendRule::Digest), quoted, "what it shows changes no bank's replay");
            // Also where the first entry is a violation, which shows nothing.
            let list = ImaList::parse(&bytes).unwrap();
            assert_eq!((list.template_hash(), list.violations()), (TemplateHash { bank, rule }, 1));
            // One digest that is made by another rule than the rest.
            let mut other = bytes.clone();
            let in_the_end = bytes.len() - small().entries.last().unwrap().len() + 20 - bank.digest_size() + 4;
            other[in_the_end] ^= 1;
            let other = ImaList::parse(&other).unwrap();
            assert_eq!(other.entries().filter(|entry| !entry.template_digest_holds()).count(), 1);
        }
    }
}

proptest! {
    /// Wherever a list is cut in two, its end goes on from its beginning: to the same PCR as the whole.
    #[test]
    fn n86_a_list_in_two_parts_is_the_whole_list(
        contents in proptest::collection::vec(any::<[u8; 4]>(), 1..40),
        violations in proptest::collection::vec(any::<prop::sample::Index>(), 0..3),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut list = ListBuilder::default();
        for content in &contents {
            list.file("/usr/bin/x", content);
        }
        for at in violations {
            let mut violation = ListBuilder::default();
            list.entries[at.index(contents.len())] = violation.violation("/x").entries.remove(0);
        }
        let bytes = list.bytes();
        let whole = ImaList::parse(&bytes).unwrap();
        let cut = cut.index(contents.len() + 1);
        let first = ListBuilder { entries: list.entries[..cut].to_vec() }.bytes();
        for (bank, rule) in [(Bank::Sha256, ExtendRule::Digest), (Bank::Sha384, ExtendRule::PaddedSha1)] {
            let quoted = whole.replay(bank, rule);
            let pcr = ImaList::parse(&first).unwrap().replay(bank, rule);
            let rest = ImaList::parse_binary(after(&bytes, cut as u64).unwrap()).unwrap();
            let lane = Lane::new(bank, rule, &quoted).from(&pcr).unwrap();
            prop_assert_eq!(rest.walk(&mut [lane], |_, _| true), Some(contents.len() - cut));
            let mut through = [Lane::new(bank, rule, &quoted).through(Some((cut as u64, &pcr)))];
            prop_assert_eq!(whole.walk(&mut through, |_, _| true), Some(contents.len()));
            prop_assert!(through[0].continues);
        }
    }

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
