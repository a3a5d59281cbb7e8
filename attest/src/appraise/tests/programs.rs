//! The IMA list: N65 to N72, N86, N87.

use super::host::{BANKS, Host, codes};
use crate::appraise::{Appraisal, BankCaveat, Judged};
use crate::evidence::Evidence;
use crate::ima::list_builder::{ListBuilder, template_data};
use crate::ima::{ExtendRule, ImaList};
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode as Code};

#[test]
fn a_program_that_is_not_listed_is_named() {
    let mut host = Host::good();
    host.ima.file("/usr/bin/xmrig", b"miner");
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::ImaUnlisted]);
    assert_eq!((reasons[0].pcr, reasons[0].event.as_deref()), (Some(10), Some("/usr/bin/xmrig")));
}

#[test]
fn without_the_policys_demand_programs_are_not_compared_but_the_list_must_hold() {
    let mut host = Host::good();
    host.policy.ima = false;
    host.ima.file("/usr/bin/anything", b"?");
    host.appraise().unwrap();
    host.tamper = Some(|evidence| evidence.ima.clear());
    assert_eq!(host.codes(), [Code::ImaMissing]);
}

#[test]
fn n65_a_violation_is_a_denial() {
    let mut host = Host::good();
    host.ima.violation("/usr/bin/portcullis-vmm");
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::ImaViolation]);
    assert_eq!((reasons[0].pcr, reasons[0].event.as_deref()), (Some(10), Some("/usr/bin/portcullis-vmm")));
    // Whether or not the policy asks which programs ran.
    host.policy.ima = false;
    assert_eq!(host.codes(), [Code::ImaViolation]);
    // The twin: the same list without it.
    host.ima.entries.pop();
    host.appraise().unwrap();
    host.policy.ima = true;
    host.appraise().unwrap();
}

#[test]
fn n66_an_entry_whose_digest_is_of_something_else_is_a_denial() {
    let mut host = Host::good();
    let data = template_data("sha256", &Bank::Sha256.hash(b"vmm"), b"/usr/bin/portcullis-vmm", &[b""]);
    host.ima.raw(10, &[7; 20], "ima-sig", &data);
    assert_eq!(host.codes(), [Code::ImaTemplateMismatch]);
}

#[test]
fn n67_the_list_begins_with_the_boot_that_was_quoted() {
    // Over PCRs 0 to 7, as kernels before 5.8 do: accepted.
    let mut host = Host::good();
    host.boot_aggregate(8);
    host.appraise().unwrap();
    // Over some other number.
    host.boot_aggregate(9);
    assert_eq!(host.codes(), [Code::ImaBootAggregate]);
    // Not first.
    let mut host = Host::good();
    host.ima.entries.swap(0, 1);
    assert!(host.codes().contains(&Code::ImaBootAggregate));
    // Not there.
    let mut host = Host::good();
    host.ima.entries.remove(0);
    assert_eq!(host.codes(), [Code::ImaBootAggregate]);
    // Under another name: an entry that a program caused could have any digest.
    let mut host = Host::good();
    let bytes = host.ima.bytes();
    let digest = ImaList::parse_binary(&bytes).unwrap().entries().next().unwrap().digest().digest.to_vec();
    let mut renamed = ListBuilder::default();
    renamed.entry("ima-sig", Bank::Sha256, &digest, b"boot_aggregate2", &[b""]);
    host.ima.entries[0] = renamed.entries.remove(0);
    assert_eq!(host.codes(), [Code::ImaBootAggregate]);
    // As a violation: then no digest covers what it says.
    let mut host = Host::good();
    host.ima.entries[0][4..24].fill(0);
    assert_eq!(host.codes(), [Code::ImaBootAggregate]);
    // Twice: what a kexec that got past everything would leave.
    let mut host = Host::good();
    let again = host.ima.entries[0].clone();
    host.ima.entries.push(again);
    assert_eq!(host.codes(), [Code::ImaUnlisted]);
    // An empty list, and a PCR 10 that was never extended.
    let mut host = Host::good();
    host.ima = ListBuilder::default();
    assert_eq!(host.codes(), [Code::ImaMissing]);
}

#[test]
fn n67_a_boot_aggregate_in_sha1_ties_the_list_to_no_boot() {
    let aggregate = |host: &Host, bank: Bank| {
        let values: Vec<u8> =
            host.pcrs()[&bank].iter().filter(|(pcr, _)| **pcr < 10).flat_map(|(_, v)| v.clone()).collect();
        let mut list = ListBuilder::default();
        list.entry("ima-sig", bank, &bank.hash(&values), b"boot_aggregate", &[b""]);
        list.entries.remove(0)
    };
    let mut host = Host::good();
    // All of SHA-1 is quoted, and the digest is right: but whoever can make collisions chooses the boot.
    host.selection.insert(Bank::Sha1, (0..=9).collect());
    host.appraise().unwrap();
    host.ima.entries[0] = aggregate(&host, Bank::Sha1);
    assert_eq!(host.codes(), [Code::ImaBootAggregate]);
    // The twin: the same digest of a bank that proves something, be it another one than is judged.
    for bank in [Bank::Sha256, Bank::Sha384] {
        host.ima.entries[0] = aggregate(&host, bank);
        host.appraise().unwrap();
    }
}

#[test]
fn n68_an_entry_of_another_pcr_is_a_denial() {
    let mut host = Host::good();
    let data = template_data("sha256", &Bank::Sha256.hash(b"vmm"), b"/usr/bin/portcullis-vmm", &[b""]);
    host.ima.raw(11, &Bank::Sha1.hash(&data), "ima-sig", &data);
    assert_eq!(host.codes(), [Code::ImaWrongPcr]);
}

#[test]
fn n69_what_follows_the_quoted_value_is_neither_believed_nor_held_against_the_host() {
    let host = Host::good();
    let mut evidence = host.evidence_of(host.pcrs());
    let mut more = Host::good().ima;
    more.file("/usr/bin/later", b"later");
    evidence.ima = more.bytes();
    let appraisal = host.appraise_with(&evidence, None).unwrap();
    assert_eq!(appraisal.ima_entries(), 3);
    // A list that never reaches the quoted value is a denial.
    let mut fewer = Host::good().ima;
    fewer.entries.pop();
    evidence.ima = fewer.bytes();
    assert_eq!(codes(&host.appraise_with(&evidence, None).unwrap_err()), [Code::ImaPcrMismatch]);
    evidence.ima = b"not a list".to_vec();
    assert_eq!(codes(&host.appraise_with(&evidence, None).unwrap_err()), [Code::ImaUnreadable]);
}

#[test]
fn n70_a_listed_path_with_another_content_or_a_devious_name_is_a_denial() {
    let mut host = Host::good();
    host.ima.file("/usr/bin/portcullis-vmm", b"trojan");
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::ImaWrongHash]);
    let expected = format!("sha256:{}", hex::encode(Bank::Sha256.hash(b"vmm")));
    assert_eq!(reasons[0].expected.as_deref(), Some(expected.as_str()));
    for (name, code) in [
        ("/usr/bin/../bin/portcullis-vmm", Code::ImaBadName),
        ("/usr/bin/./portcullis-vmm", Code::ImaBadName),
        ("/usr/bin/portcullis-vmm\n", Code::ImaBadName),
        ("/usr/bin/portcullis-vmm\u{1b}[2K", Code::ImaBadName),
        ("/usr/bin/portcullis-vmm ", Code::ImaUnlisted),
        (" /usr/bin/portcullis-vmm", Code::ImaUnlisted),
        ("", Code::ImaBadName),
    ] {
        let mut host = Host::good();
        host.ima.file(name, b"vmm");
        assert_eq!(host.codes(), [code], "{name:?}");
    }
}

#[test]
fn n72_a_file_measured_with_sha1_is_a_denial() {
    let mut host = Host::good();
    let digest = Bank::Sha1.hash(b"vmm");
    host.ima.entry("ima-sig", Bank::Sha1, &digest, b"/usr/bin/portcullis-vmm", &[b""]);
    assert_eq!(host.codes(), [Code::ImaWeakHash]);
    // The twin: the same file, measured with SHA-256.
    host.ima.entries.pop();
    host.ima.file("/usr/bin/portcullis-vmm", b"vmm");
    host.appraise().unwrap();
}

#[test]
fn n86_within_one_boot_the_list_only_grows() {
    let first = Host::good();
    let judged = first.appraise().unwrap().judged();
    let later = |change: fn(&mut Host)| {
        let mut host = Host::good();
        host.clock_ms += 1_000;
        change(&mut host);
        let evidence = host.evidence_of(host.pcrs());
        host.appraise_with(&evidence, Some(&judged))
    };
    // The same list, and a longer one.
    later(|_| {}).unwrap().continues(&judged).unwrap();
    let longer = later(|host| {
        host.ima.file("/usr/bin/portcullis-vmm", b"vmm");
    });
    longer.unwrap().continues(&judged).unwrap();
    // Shorter, and of the same length but with another past.
    let shorter = later(|host| {
        host.ima.entries.pop();
    });
    assert_eq!(codes(&shorter.unwrap_err()), [Code::ImaHistoryChanged]);
    let other = later(|host| host.ima.entries.swap(1, 2));
    assert_eq!(codes(&other.unwrap_err()), [Code::ImaHistoryChanged]);
    // After a reset the list begins anew.
    let reset = later(|host| {
        host.reset_count += 1;
        host.ima.entries.pop();
    });
    reset.unwrap();
}

#[test]
fn n86_a_history_that_can_be_compared_in_sha1_alone_is_refused() {
    // A host of which PCR 10 is quoted in these banks alone.
    let quoting = |banks: &[Bank]| {
        let mut host = Host::good();
        for bank in BANKS {
            let pcrs = host.selection.entry(bank).or_default();
            pcrs.retain(|pcr| *pcr != 10);
            pcrs.extend(banks.contains(&bank).then_some(10));
            pcrs.sort_unstable();
        }
        host.selection.retain(|_, pcrs| !pcrs.is_empty());
        host
    };
    let judged = quoting(&[Bank::Sha1, Bank::Sha256]).appraise().unwrap().judged();
    let later = |banks: &[Bank]| {
        let mut host = quoting(banks);
        host.clock_ms += 1_000;
        host.appraise_with(&host.evidence_of(host.pcrs()), Some(&judged))
    };
    // What was judged before was judged in SHA-1 and SHA-256; of these, only SHA-1 was quoted again.
    assert_eq!(codes(&later(&[Bank::Sha1, Bank::Sha384]).unwrap_err()), [Code::ImaHistoryChanged]);
    // The twin: with SHA-256, too.
    later(&[Bank::Sha1, Bank::Sha256, Bank::Sha384]).unwrap().continues(&judged).unwrap();
}

/// The host a moment after it was judged, with `change` made to it, and its evidence from entry `from` on.
fn goes_on(change: fn(&mut Host), from: u64, tamper: fn(&mut Evidence)) -> (Judged, Result<Appraisal, Vec<Reason>>) {
    let judged = Host::good().appraise().unwrap().judged();
    let mut host = Host::good();
    host.clock_ms += 1_000;
    change(&mut host);
    let mut evidence = host.evidence_of(host.pcrs());
    evidence.ima_from = from;
    let left_out = usize::try_from(from).unwrap().min(host.ima.entries.len());
    evidence.ima = ListBuilder { entries: host.ima.entries[left_out..].to_vec() }.bytes();
    tamper(&mut evidence);
    let appraisal = host.appraise_with(&evidence, Some(&judged));
    (judged, appraisal)
}

#[test]
fn n86_a_list_may_leave_out_exactly_what_was_judged_before() {
    let later = |host: &mut Host| {
        host.ima.file("/usr/bin/portcullis-vmm", b"vmm");
    };
    for (change, entries) in [(later as fn(&mut Host), 4), (|_| {}, 3)] {
        let (judged, appraisal) = goes_on(change, 3, |_| {});
        let appraisal = appraisal.unwrap();
        appraisal.continues(&judged).unwrap();
        assert_eq!(appraisal.ima_entries(), entries);
        // The state is what judging the whole list would have left.
        let (_, whole) = goes_on(change, 0, |_| {});
        assert_eq!(appraisal.judged(), whole.unwrap().judged());
    }
    let denied = |change, from, tamper| codes(&goes_on(change, from, tamper).1.unwrap_err());
    for from in [1, 2, 4] {
        assert_eq!(denied(later, from, |_| {}), [Code::ImaHistoryMissing], "{from}");
    }
    // What is new is judged as ever; a second beginning is no program.
    assert_eq!(
        denied(
            |host| {
                host.ima.file("/usr/bin/xmrig", b"miner");
            },
            3,
            |_| {}
        ),
        [Code::ImaUnlisted]
    );
    assert_eq!(
        denied(
            |host| {
                host.ima.violation("/usr/bin/portcullis-vmm");
            },
            3,
            |_| {}
        ),
        [Code::ImaViolation]
    );
    assert_eq!(denied(|host| host.ima.entries.push(host.ima.entries[0].clone()), 3, |_| {}), [Code::ImaUnlisted]);
    // New entries that do not lead to the quoted value, or none of them.
    assert_eq!(denied(later, 3, |evidence| evidence.ima.clear()), [Code::ImaPcrMismatch]);
    assert_eq!(denied(later, 3, |evidence| evidence.ima_from = 0), [Code::ImaPcrMismatch]);
    // Another past: what the PCR holds does not come from the judged state.
    assert_eq!(denied(|host| host.ima.entries.swap(1, 2), 3, |_| {}), [Code::ImaPcrMismatch]);
    // Without a PCR 10 that proves something nothing says what was judged, whatever the list leaves out.
    for from in [0, 3] {
        let unquoted = |host: &mut Host| {
            for bank in [Bank::Sha256, Bank::Sha384] {
                host.selection.get_mut(&bank).unwrap().retain(|pcr| *pcr != 10);
            }
        };
        assert_eq!(denied(unquoted, from, |_| {}), [Code::ImaHistoryChanged], "{from}");
    }
    // A bank whose past nobody judged.
    let without_sha384 = {
        let mut host = Host::good();
        host.selection.get_mut(&Bank::Sha384).unwrap().retain(|pcr| *pcr != 10);
        host.appraise().unwrap().judged()
    };
    let mut host = Host::good();
    host.selection.get_mut(&Bank::Sha384).unwrap().push(10);
    let mut evidence = host.evidence_of(host.pcrs());
    host.appraise_with(&evidence, Some(&without_sha384)).unwrap();
    (evidence.ima_from, evidence.ima) = (3, Vec::new());
    let reasons = host.appraise_with(&evidence, Some(&without_sha384)).unwrap_err();
    assert_eq!(codes(&reasons), [Code::ImaHistoryMissing]);
    // Another boot has no past.
    assert_eq!(denied(|host| host.reset_count += 1, 3, |_| {}), [Code::ImaHistoryMissing]);
}

#[test]
fn n86_what_was_judged_by_other_rules_is_judged_again() {
    assert_eq!(codes(&goes_on(|host| host.policy.name.push('2'), 3, |_| {}).1.unwrap_err()), [Code::ImaHistoryMissing]);
    goes_on(|host| host.policy.name.push('2'), 0, |_| {}).1.unwrap();
    // Reference values that list more, or that list something else: the beginning matches those of before alone.
    let relisted = |host: &mut Host| {
        let log = host.log.bytes();
        let log = crate::eventlog::EventLog::parse(&log).unwrap();
        let mut builder = crate::reference::ReferenceBuilder::new("other", "");
        builder.recorded(&log, &[Bank::Sha256], &crate::appraise::STATIC_PCRS);
        builder.ima("/usr/bin/new", Bank::Sha256.hash(b"new").as_slice().try_into().unwrap());
        host.references.push(builder.build().unwrap());
        host.policy.references.push("other".to_owned());
        host.ima.file("/usr/bin/new", b"new");
    };
    let judged = {
        let mut host = Host::good();
        host.policy.references.push("other".to_owned());
        host.appraise().unwrap().judged()
    };
    let mut host = Host::good();
    relisted(&mut host);
    let mut evidence = host.evidence_of(host.pcrs());
    // Neither accepts the whole list, so neither may accept the end of it.
    assert_eq!(codes(&host.appraise_with(&evidence, Some(&judged)).unwrap_err()), [Code::ImaUnlisted]);
    evidence.ima_from = 3;
    evidence.ima = ListBuilder { entries: host.ima.entries[3..].to_vec() }.bytes();
    let reasons = host.appraise_with(&evidence, Some(&judged)).unwrap_err();
    assert!(
        codes(&reasons).iter().all(|code| matches!(code, Code::ImaUnlisted | Code::ImaHistoryMissing)),
        "{reasons:?}"
    );
}

#[test]
fn n87_a_bank_of_padded_sha1_is_no_evidence() {
    // Neither alone, nor beside others of its kind or SHA-1, whichever of them is the policy's.
    for padded in [vec![Bank::Sha256], vec![Bank::Sha256, Bank::Sha384]] {
        for sha1 in [false, true] {
            let mut host = Host::good();
            host.padded = padded.clone();
            host.selection.retain(|bank, _| padded.contains(bank) || sha1 && *bank == Bank::Sha1);
            let reasons = host.denied();
            assert_eq!(codes(&reasons), [Code::ImaPaddedSha1]);
            assert_eq!((reasons.len(), reasons[0].pcr), (padded.len(), Some(10)));
            // The same with digests of the banks' own.
            host.padded.clear();
            host.appraise().unwrap();
            // SHA-1's own values, cut or filled, are those of no rule.
            host.pcr10 = Some([host.pcrs()[&Bank::Sha256][&10][..20].to_vec(), vec![0; 12]].concat());
            assert_eq!(host.codes(), [Code::ImaPcrMismatch]);
        }
    }
}

#[test]
fn n87_a_padded_bank_is_consistent_beside_one_with_digests_of_its_own() {
    for padded in [Bank::Sha384, Bank::Sha256] {
        let mut host = Host::good();
        host.padded = vec![padded];
        let appraisal = host.appraise().unwrap();
        assert_eq!(appraisal.bank_caveats(), [(padded, BankCaveat::PaddedSha1)]);
        assert_eq!(appraisal.ima_entries(), 3);
        assert_eq!(appraisal.judged().ima.unwrap().padded.into_iter().collect::<Vec<_>>(), [padded]);
        // What it holds must still be the list's: by one rule or the other, and after as many entries as in the others.
        for (bank, value) in [(padded, None), (padded, Some(2)), (Bank::Sha1, None), (Bank::Sha1, Some(2))] {
            let mut pcrs = host.pcrs();
            let mut shorter = host.ima.clone();
            shorter.entries.truncate(value.unwrap_or_default());
            let bytes = shorter.bytes();
            let earlier = ImaList::parse_binary(&bytes).unwrap().replay(bank, ExtendRule::PaddedSha1);
            let earlier = if value.is_some() { earlier } else { vec![7; bank.digest_size()] };
            pcrs.get_mut(&bank).unwrap().insert(10, earlier);
            let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
            assert_eq!((codes(&reasons), reasons.len()), (vec![Code::ImaPcrMismatch], 1), "{bank}");
            assert!(reasons[0].expected.as_deref().unwrap().starts_with(bank.name()));
        }
        // Nor may one into which the kernel measured nothing hide where the list ends in the others.
        let mut pcrs = host.pcrs();
        pcrs.get_mut(&padded).unwrap().insert(10, vec![0; padded.digest_size()]);
        let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
        assert_eq!((codes(&reasons), reasons.len()), (vec![Code::ImaPcrMismatch], 1));
        // What follows the quoted value is no more of interest in it than in the others.
        let mut evidence = host.evidence_of(host.pcrs());
        let mut more = host.ima.clone();
        more.file("/usr/bin/later", b"later");
        evidence.ima = more.bytes();
        assert_eq!(host.appraise_with(&evidence, None).unwrap().ima_entries(), 3);
    }
}

#[test]
fn n87_a_padded_bank_goes_on_as_it_began() {
    let mut host = Host::good();
    host.padded = vec![Bank::Sha384];
    let judged = host.appraise().unwrap().judged();
    let goes_on = |host: &Host, left_out: usize| {
        let mut evidence = host.evidence_of(host.pcrs());
        evidence.ima_from = left_out as u64;
        evidence.ima = ListBuilder { entries: host.ima.entries[left_out..].to_vec() }.bytes();
        host.appraise_with(&evidence, Some(&judged))
    };
    for more in [0, 1, 2] {
        let mut later = Host::good();
        later.padded = vec![Bank::Sha384];
        for _ in 0..more {
            later.ima.file("/usr/bin/portcullis-vmm", b"vmm");
        }
        let part = goes_on(&later, 3).unwrap();
        part.continues(&judged).unwrap();
        assert_eq!(part.bank_caveats(), [(Bank::Sha384, BankCaveat::PaddedSha1)]);
        // The state is what judging the whole list would have left, also where nothing is new.
        let whole = goes_on(&later, 0).unwrap();
        whole.continues(&judged).unwrap();
        assert_eq!(part.judged(), whole.judged());
        // It is no bank of its own digests from here on: alone it compares nothing.
        let mut evidence = later.evidence_of([(Bank::Sha384, later.pcrs()[&Bank::Sha384].clone())].into());
        evidence.ima_from = 3;
        evidence.ima = ListBuilder { entries: later.ima.entries[3..].to_vec() }.bytes();
        assert_eq!(codes(&later.appraise_with(&evidence, Some(&judged)).unwrap_err()), [Code::ImaHistoryChanged]);
    }
    // One that changes its rule within a boot has another past.
    for (padded, left_out, code) in [
        (vec![], 0, Code::ImaHistoryChanged),
        (vec![], 3, Code::ImaPcrMismatch),
        (vec![Bank::Sha256, Bank::Sha384], 3, Code::ImaPcrMismatch),
    ] {
        let mut other = Host::good();
        other.padded = padded;
        other.ima.file("/usr/bin/portcullis-vmm", b"vmm");
        let found = codes(&goes_on(&other, left_out).unwrap_err());
        assert!(found.iter().all(|found| *found == code || *found == Code::ImaPaddedSha1), "{found:?}");
    }
}

#[test]
fn programs_are_judged_in_a_bank_that_the_kernel_extends_though_the_boot_is_judged_in_another() {
    let mut host = Host::good();
    host.policy.bank = Some(Bank::Sha384);
    host.padded = vec![Bank::Sha384];
    let bytes = host.log.bytes();
    let log = crate::eventlog::EventLog::parse(&bytes).unwrap();
    let mut builder = Host::programs(crate::reference::ReferenceBuilder::new("good", ""));
    builder.recorded(&log, &[Bank::Sha384], &crate::appraise::STATIC_PCRS);
    host.references = vec![builder.build().unwrap()];
    let appraisal = host.appraise().unwrap();
    assert_eq!((appraisal.bank(), appraisal.ima_entries()), (Bank::Sha384, 3));
    // SHA-1 alone does not do for the programs either.
    host.selection.get_mut(&Bank::Sha256).unwrap().retain(|pcr| *pcr != 10);
    assert_eq!(host.codes(), [Code::ImaPaddedSha1]);
    host.selection.get_mut(&Bank::Sha384).unwrap().retain(|pcr| *pcr != 10);
    assert_eq!(host.codes(), [Code::PolicyPcr]);
}
