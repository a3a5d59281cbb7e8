//! Continued attestation: what was judged is not sent and not judged again, and nothing is skipped that was not judged by
//! the rules in force, in the same boot.

mod support;

use portcullis_attest::binding::Purpose;
use portcullis_attest::evidence::Evidence;
use portcullis_verifier::api::Trust;
use portcullis_verifier::client::Identity;
use portcullis_verifier::receipt::Event;
use support::boot::{Boot, POLICY, references};
use support::host::{Host, KEY, codes, launch_request};
use support::service::{Running, Setup};

const VMM: (&str, &[u8]) = ("/usr/bin/portcullis-vmm", b"the vmm");
const BAD: (&str, &[u8]) = ("/tmp/tool", b"not listed anywhere");

fn trust(service: &Running) -> Trust {
    service.person("olga").host("h1").unwrap().trust
}

/// From where the verifier asks this host's key for its list.
fn asked(service: &Running, host: &Host) -> u64 {
    host.client(service).challenge("h1", Purpose::Attest).unwrap().ima_from
}

/// Evidence for a fresh challenge that leaves out so many entries, whatever the verifier asks for.
fn leaving_out(service: &Running, host: &mut Host, entries: u64) -> Evidence {
    let nonce = host.client(service).challenge("h1", Purpose::Attest).unwrap().nonce;
    let binding = host.binding(Purpose::Attest, &nonce, &[]);
    host.evidence_after(&binding, entries)
}

fn send(service: &Running, host: &Host, evidence: Evidence) -> Result<bool, portcullis_verifier::client::ClientError> {
    host.client(service).attest("h1", evidence).map(|answer| answer.trusted)
}

#[test]
fn a_continued_attestation_sends_and_checks_only_what_is_new() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    assert_eq!(host.enrol(&service).map(|_| asked(&service, &host)).unwrap(), 0);
    host.join(&service);
    // boot_aggregate and the agent.
    assert_eq!(asked(&service, &host), 2);
    let evidence = leaving_out(&service, &mut host, 2);
    assert!(evidence.ima.is_empty());
    assert!(send(&service, &host, evidence).unwrap());
    host.program(VMM.0, VMM.1);
    let evidence = leaving_out(&service, &mut host, 2);
    assert!(evidence.ima.len() < 200, "one entry, not {} bytes", evidence.ima.len());
    assert!(send(&service, &host, evidence).unwrap());
    assert_eq!(asked(&service, &host), 3);
    // The whole list is always good too.
    let evidence = leaving_out(&service, &mut host, 0);
    assert!(send(&service, &host, evidence).unwrap());
    // Launches and receipts go on from there as well.
    let tenant = service.person("alice");
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
    host.receipt(&service, &placed, Event::Started).unwrap();
    // How far a host was judged is nobody else's business.
    let other = service.client(Some(&Identity::new_for_host("h1").unwrap()));
    assert_eq!(other.challenge("h1", Purpose::Attest).unwrap().ima_from, 0);
}

#[test]
fn n86_a_continued_list_must_lead_to_the_quote() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    host.program(BAD.0, BAD.1);
    // The bad program hidden: an empty list from where the verifier knows it, or one that goes on elsewhere.
    let mut evidence = leaving_out(&service, &mut host, 2);
    evidence.ima.clear();
    assert_eq!(codes(send(&service, &host, evidence)), ["ima.pcr-mismatch"; 3], "one for each bank");
    assert_eq!(trust(&service), Trust::Untrusted);
    assert_eq!(asked(&service, &host), 2, "what was judged good remains what was judged");
    let evidence = leaving_out(&service, &mut host, 3);
    assert_eq!(codes(send(&service, &host, evidence)), ["nonce.history-moved"]);
    // Shown, it is judged.
    let evidence = leaving_out(&service, &mut host, 2);
    assert_eq!(codes(send(&service, &host, evidence)), ["ima.unlisted"]);
    let evidence = leaving_out(&service, &mut host, 0);
    assert_eq!(codes(send(&service, &host, evidence)), ["ima.unlisted"]);
}

#[test]
fn other_rules_ask_for_the_whole_list() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    host.program(VMM.0, VMM.1);
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(asked(&service, &host), 3);
    let early = leaving_out(&service, &mut host, 3);
    assert!(service.terminate().success());
    // Another policy: what the challenge of before allowed is no longer good, which is not the host's fault.
    setup.write("policy.toml", &POLICY.replace("name = \"test\"", "name = \"stricter\""));
    let service = setup.serve();
    assert_eq!(asked(&service, &host), 0);
    assert_eq!(codes(send(&service, &host, early)), ["nonce.history-moved"]);
    assert_eq!(trust(&service), Trust::Trusted);
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(asked(&service, &host), 3);
    assert!(service.terminate().success());
    // Other reference values, which no longer list a program that ran long ago.
    let values = references();
    let blocks: Vec<&str> = values.split("[[ima]]").filter(|block| !block.contains(VMM.0)).collect();
    assert_eq!(blocks.len(), 2, "{values}");
    setup.write("reference.toml", &blocks.join("[[ima]]"));
    let service = setup.serve();
    assert_eq!(asked(&service, &host), 0);
    assert_eq!(codes(host.attest(&service)), ["ima.unlisted"]);
    assert_eq!(trust(&service), Trust::Untrusted);
}

#[test]
fn after_a_reset_the_whole_list_is_judged() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    // The same process, as after hibernation: its key is known, but the boot is another.
    let identity = host.identity.clone();
    host.reboot(Boot::good());
    host.identity = identity;
    assert_eq!(asked(&service, &host), 2);
    let evidence = leaving_out(&service, &mut host, 2);
    assert_eq!(codes(send(&service, &host, evidence)), ["nonce.history-moved"]);
    assert_eq!(trust(&service), Trust::Trusted);
    let evidence = leaving_out(&service, &mut host, 0);
    assert!(send(&service, &host, evidence).unwrap());
    // As after a reboot with a new process.
    host.reboot(Boot::good());
    assert_eq!(asked(&service, &host), 0);
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(asked(&service, &host), 2);
}

#[test]
fn a_verifier_killed_at_any_time_skips_nothing() {
    let setup = Setup::new(&[]);
    let mut service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let mut entries = 2;
    for round in 0..4_u64 {
        // Between challenge and evidence.
        let evidence = {
            host.program(VMM.0, VMM.1);
            leaving_out(&service, &mut host, entries)
        };
        service.kill9();
        service = setup.serve();
        let client = host.client(&service);
        let asking = std::thread::spawn(move || client.attest("h1", evidence).is_ok());
        // While it is judged and written down.
        std::thread::sleep(std::time::Duration::from_micros(round * 1500));
        service.kill9();
        let answered = asking.join().unwrap();
        service = setup.serve();
        let known = asked(&service, &host);
        let new = entries + 1;
        assert!(known == new || (known == entries && !answered), "{known} of {new} entries, answered: {answered}");
        // From wherever it is now, the next evidence is good.
        assert!(host.attest(&service).unwrap().trusted);
        entries = new;
        assert_eq!(asked(&service, &host), entries);
    }
    host.program(BAD.0, BAD.1);
    assert_eq!(codes(host.attest(&service)), ["ima.unlisted"]);
}
