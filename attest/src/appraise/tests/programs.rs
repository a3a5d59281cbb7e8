//! The IMA list: N65 to N72, N86, N87.

use super::host::{Host, codes};
use crate::appraise::{Appraisal, Judged};
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
    assert!(codes(&reasons).contains(&Code::ImaViolation), "{reasons:?}");
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
    let mut host = Host::good();
    let bytes = host.ima.bytes();
    let padded = ImaList::parse_binary(&bytes).unwrap().replay(Bank::Sha256, ExtendRule::PaddedSha1);
    host.pcr10 = Some(padded);
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::ImaPaddedSha1]);
    assert_eq!(reasons[0].pcr, Some(10));
}

#[test]
fn programs_are_judged_in_a_bank_that_the_kernel_extends_though_the_boot_is_judged_in_another() {
    let mut host = Host::good();
    host.policy.bank = Some(Bank::Sha384);
    let bytes = host.log.bytes();
    let log = crate::eventlog::EventLog::parse(&bytes).unwrap();
    let mut builder = crate::reference::ReferenceBuilder::new("good", "");
    builder.recorded(&log, &[Bank::Sha384], &crate::appraise::STATIC_PCRS);
    for (path, content) in [("/usr/bin/portcullis-agent", &b"agent"[..]), ("/usr/bin/portcullis-vmm", b"vmm")] {
        builder.ima(path, Bank::Sha256.hash(content).as_slice().try_into().unwrap());
    }
    host.references = vec![builder.build().unwrap()];
    let judged = host.appraise().unwrap().judged();
    assert_eq!(judged.bank, Bank::Sha384);
    assert_eq!(judged.ima.unwrap().pcrs.into_keys().collect::<Vec<_>>(), [Bank::Sha256]);
    // SHA-1 alone does not do for the programs either.
    host.selection.get_mut(&Bank::Sha256).unwrap().retain(|pcr| *pcr != 10);
    host.selection.insert(Bank::Sha1, vec![10]);
    assert_eq!(host.codes(), [Code::PolicyPcr]);
}
