//! Which PCR banks a host has, and what binds it to them: N56, N90 (CVE-2021-42299), and that keys are released to the values
//! of the boot that was judged.

mod support;

use portcullis_attest::appraise::{BankState, QUOTED_PCRS};
use portcullis_attest::binding::Purpose;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::Bank;
use portcullis_verifier::api::Trust;
use portcullis_verifier::client::{ClientError, Identity};
use portcullis_verifier::receipt::Event;
use support::boot::{BANKS, Boot, POLICY, references_of};
use support::host::{Host, KEY, codes, launch_request};
use support::service::{Running, Setup};

fn trust(service: &Running) -> Trust {
    service.person("olga").host("h1").unwrap().trust
}

/// Attests with a quote of these banks and PCRs.
fn attest_with(service: &Running, host: &mut Host, selection: &[(Bank, Vec<u8>)]) -> Result<bool, ClientError> {
    let client = host.client(service);
    let nonce = client.challenge(&host.name, Purpose::Attest).unwrap().nonce;
    let binding = host.binding(Purpose::Attest, &nonce, &[]);
    let quote = host.tpm().quote(&binding, selection).unwrap();
    let evidence = Evidence::new(binding, vec![quote], host.boot.eventlog(), host.boot.ima());
    client.attest(&host.name, evidence).map(|answer| answer.trusted)
}

fn all(banks: &[Bank]) -> Vec<(Bank, Vec<u8>)> {
    banks.iter().map(|bank| (*bank, QUOTED_PCRS.collect())).collect()
}

#[test]
fn n90_an_active_bank_that_is_left_out_of_the_quote_closes_the_host() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let pinned = service.person("olga").host("h1").unwrap().banks.unwrap();
    assert!(BANKS.into_iter().all(|bank| pinned.get(bank) == Some(BankState::Extended)));
    for left in [[Bank::Sha256, Bank::Sha384], [Bank::Sha1, Bank::Sha256]] {
        assert!(attest_with(&service, &mut host, &all(&BANKS)).unwrap());
        assert_eq!(codes(attest_with(&service, &mut host, &all(&left))), ["quote.bank-missing"]);
        assert_eq!(trust(&service), Trust::Untrusted);
    }
    // Nor may PCRs of a bank be left out, be it one on which nothing rests.
    for pcr in [3, 9, 10, 15] {
        let mut selection = all(&BANKS);
        selection[0].1.retain(|quoted| *quoted != pcr);
        assert_eq!(codes(attest_with(&service, &mut host, &selection)), ["policy.pcr-not-quoted"]);
    }
    assert!(attest_with(&service, &mut host, &all(&BANKS)).unwrap());
}

#[test]
fn n89_a_pcr_that_was_extended_and_left_out_of_quote_and_log_is_refused() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    for pcr in [11, 12, 13, 15] {
        let mut host = Host::new(&format!("h{pcr}"));
        host.join(&service);
        host.measure(pcr, b"what nobody should know of");
        let hidden: Vec<_> =
            BANKS.map(|bank| (bank, QUOTED_PCRS.filter(|quoted| u32::from(*quoted) != pcr).collect())).to_vec();
        let found = codes(attest_with(&service, &mut host, &hidden));
        assert!(found.iter().all(|code| code == "policy.pcr-not-quoted"), "{found:?}");
        let found = codes(host.attest(&service));
        assert_eq!(found, ["eventlog.pcr-without-events"; 3], "PCR {pcr}");
    }
}

#[test]
fn n56_n90_a_bank_that_the_firmware_did_not_extend_is_neither_judged_nor_filled() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let firmware = [Bank::Sha1, Bank::Sha256];
    let mut host = Host::booted("h1", Boot::in_banks(&firmware));
    host.join(&service);
    let pinned = service.person("olga").host("h1").unwrap().banks.unwrap();
    assert_eq!(pinned.to_string(), "sha1 (extended), sha256 (extended), sha384 (unextended)");
    // Root fills it with an honest host's whole log. Its list of programs, too, is consistent there.
    host.reboot(Boot::good());
    let found = codes(host.attest(&service));
    assert_eq!(found, ["quote.bank-changed"]);
    // As it was, it is good.
    host.reboot(Boot::in_banks(&firmware));
    assert!(host.attest(&service).unwrap().trusted);
    assert!(service.terminate().success());
    // Where the policy demands that very bank.
    setup.write("policy.toml", &POLICY.replace("sha256", "sha384"));
    let service = setup.serve();
    let found = codes(host.attest(&service));
    assert_eq!(found, ["eventlog.bank-missing", "policy.bank-unextended"]);
    host.reboot(Boot::good());
    let found = codes(host.attest(&service));
    assert_eq!(found, ["policy.bank-unextended", "quote.bank-changed"]);
    // A host whose firmware extended it from the beginning.
    let mut other = Host::new("h2");
    assert!(other.join(&service).trusted);
}

#[test]
fn n90_other_banks_than_those_of_the_enrolment_need_an_operators_word() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let operator = service.person("olga");
    let mut host = Host::new("h1");
    host.join(&service);
    let fewer = [Bank::Sha1, Bank::Sha256];
    host.reboot(Boot::in_banks(&fewer));
    assert_eq!(codes(host.attest(&service)), ["quote.bank-changed"]);
    // To enrol again changes nothing about what is pinned.
    assert_eq!(codes(host.enrol(&service)), ["enrol.banks-conflict"]);
    assert_eq!(operator.host("h1").unwrap().banks.unwrap().get(Bank::Sha384), Some(BankState::Extended));
    assert_eq!(codes(host.attest(&service)), ["quote.bank-changed"]);
    // Nor does it help that an operator forgets the host, as long as its TPM is admitted.
    operator.remove_host("h1").unwrap();
    assert_eq!(codes(host.enrol(&service)), ["enrol.banks-conflict"]);
    host.reboot(Boot::good());
    host.enrol(&service).unwrap();
    assert!(host.attest(&service).unwrap().trusted);
    host.reboot(Boot::in_banks(&fewer));
    assert_eq!(codes(host.attest(&service)), ["quote.bank-changed"]);
    // An operator says that it is right. Until the host has enrolled with its banks nothing is accepted of it.
    operator.accept_banks("h1").unwrap();
    assert!(operator.host("h1").unwrap().banks.is_none());
    assert_eq!(codes(host.attest(&service)), ["host.banks-unknown"]);
    assert!(codes(host.client(&service).orders("h1")).contains(&"host.other-tls-key".to_owned()));
    host.enrol(&service).unwrap();
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(operator.host("h1").unwrap().banks.unwrap().get(Bank::Sha384), Some(BankState::Unextended));
    assert!(operator.accept_banks("h9").is_err());
}

#[test]
fn n90_at_enrolment_the_banks_are_proved_by_the_key_that_enrols() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    let mut stranger = Host::new("h1");
    let request = host.enrol_request();
    let client = host.client(&service);
    let refused = |host: &mut Host, stranger: &mut Host, case: &str| {
        let challenge = client.enrol(&request).unwrap();
        let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
        let mut evidence = host.enrolment_evidence(&secret);
        let mut binding = evidence.binding.clone();
        match case {
            "another TPM's quote" => evidence = stranger.enrolment_evidence(&secret),
            "no quote" => evidence.quotes.clear(),
            "one of an earlier enrolment" => evidence = host.enrolment_evidence(b"an earlier secret"),
            "one for something else" => {
                binding.purpose = Purpose::Attest;
                evidence = host.evidence(&binding);
            }
            "one over another TLS key" => {
                binding.tls_spki_sha256 = Identity::new_for_host("h1").unwrap().spki_sha256();
                evidence = host.evidence(&binding);
            }
            "one for another host" => {
                binding.host = "h2".to_owned();
                evidence = host.evidence(&binding);
            }
            "one for another verifier" => {
                binding.verifier = "another".to_owned();
                evidence = host.evidence(&binding);
            }
            "one over a body" => {
                binding.body_sha256 = [7; 32];
                evidence = host.evidence(&binding);
            }
            "a part of the PCRs" => {
                let quote = host.tpm().quote(&binding, &[(Bank::Sha256, (0..=9).collect())]).unwrap();
                evidence.quotes = vec![quote];
            }
            _ => {}
        }
        codes(client.activate(&challenge.enrolment, &secret, evidence).map(drop))
    };
    let mut refused = |case: &str| {
        let mut found = refused(&mut host, &mut stranger, case);
        found.dedup();
        found
    };
    assert_eq!(refused("another TPM's quote"), ["quote.signature-invalid"]);
    assert_eq!(refused("no quote"), ["evidence.no-quote"]);
    assert_eq!(refused("one of an earlier enrolment"), ["quote.nonce-mismatch"]);
    assert_eq!(refused("one for something else"), ["quote.purpose-mismatch"]);
    assert_eq!(refused("one over another TLS key"), ["quote.tls-key-mismatch"]);
    assert_eq!(refused("one for another host"), ["quote.host-mismatch"]);
    assert_eq!(refused("one for another verifier"), ["quote.verifier-mismatch"]);
    assert_eq!(refused("one over a body"), ["quote.body-mismatch"]);
    assert_eq!(refused("a part of the PCRs"), ["policy.pcr-not-quoted"]);
    assert!(service.person("olga").host("h1").is_err(), "none of this enrolled the host");
    // The twin is made as those are, with the binding as it must be.
    let challenge = client.enrol(&request).unwrap();
    let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
    let evidence = host.enrolment_evidence(&secret);
    let (binding, host_name) = (evidence.binding.clone(), host.name.clone());
    let evidence = host.evidence(&binding);
    assert_eq!(client.activate(&challenge.enrolment, &secret, evidence).unwrap().host, host_name);
}

/// Firmware and systemd vary PCRs 1 and 9 from boot to boot (SMBIOS, boot counters); what is accepted of them by the reference
/// values must not lock a host out of its keys: they are wrapped to what was judged last, never to what is stored.
#[test]
fn keys_are_released_to_the_values_of_the_boot_that_was_judged() {
    let setup = Setup::new(&[]);
    setup.write("reference.toml", &references_of(&[Boot::varied(0), Boot::varied(1)]));
    let service = setup.serve();
    let tenant = service.person("alice");
    let mut host = Host::booted("h1", Boot::varied(0));
    host.join(&service);
    let pcr_1 = |host: &mut Host| {
        let binding = host.binding(Purpose::Attest, "00", &[]);
        let quote = host.tpm().quote_active(&binding).unwrap();
        quote.pcrs[&Bank::Sha256][&1].clone()
    };
    let mut seen = vec![pcr_1(&mut host)];
    for (disk, boot_order) in [("a", 0), ("b", 1), ("c", 0)] {
        if disk != "a" {
            host.reboot(Boot::varied(boot_order));
            assert!(host.attest(&service).unwrap().trusted);
            seen.push(pcr_1(&mut host));
        }
        tenant.put_volume(disk, KEY).unwrap();
        let placed = tenant.launch(&launch_request(disk)).unwrap();
        assert_eq!(host.release(&service, &placed).unwrap(), KEY);
        host.receipt(&service, &placed, Event::Started).unwrap();
    }
    assert!(seen[0] != seen[1] && seen[0] == seen[2], "PCR 1 did not vary");
    // A value that no reference value accepts gets nothing.
    host.reboot(Boot::varied(2));
    assert!(codes(host.attest(&service)).contains(&"eventlog.event-mismatch".to_owned()));
}
