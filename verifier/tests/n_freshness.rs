//! What is fresh and what is over: N103 and N104. Each case beside what is accepted.

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_attest::binding::Purpose;
use portcullis_verifier::api::{self, OrderState};
use portcullis_verifier::client::Identity;
use portcullis_verifier::receipt::{Event, Receipt};
use support::host::{Host, KEY, codes, launch_request};
use support::service::{Running, Setup};

/// Stops the wall clock of a program that is started with it.
const FROZEN_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static time_t frozen(void) { return atoll(getenv("FROZEN_AT")); }
int clock_gettime(clockid_t id, struct timespec *ts) {
    if (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE) return syscall(SYS_clock_gettime, id, ts);
    ts->tv_sec = frozen();
    ts->tv_nsec = 0;
    return 0;
}
int gettimeofday(struct timeval *tv, void *zone) {
    tv->tv_sec = frozen();
    tv->tv_usec = 0;
    return 0;
}
time_t time(time_t *t) {
    if (t) *t = frozen();
    return frozen();
}
"#;

/// Has the service of `setup` see the same second always.
fn freeze(setup: &mut Setup) {
    setup.write("clock.c", FROZEN_CLOCK);
    let (source, library) = (setup.path("clock.c"), setup.path("clock.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o", &library, &source]).status().unwrap();
    assert!(built.success());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    setup.env = vec![("LD_PRELOAD".into(), library), ("FROZEN_AT".into(), now.to_string())];
}

/// The challenges that a service gives to these keys, 16 each, in order.
fn nonces(service: &Running, keys: &[Identity]) -> Vec<[u8; 32]> {
    let of_key = |key: &Identity| {
        let client = service.client(Some(key));
        let nonce = |_| hex::decode(client.challenge("h1", Purpose::Attest).unwrap().nonce).unwrap();
        (0..16).map(nonce).map(|nonce| nonce.try_into().unwrap()).collect::<Vec<[u8; 32]>>()
    };
    keys.iter().flat_map(of_key).collect()
}

/// `a - b`, as numbers of 256 bits.
fn minus(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    let (mut difference, mut borrow) = ([0; 32], false);
    for i in (0..32).rev() {
        let (first, one) = a[i].overflowing_sub(b[i]);
        let (second, two) = first.overflowing_sub(u8::from(borrow));
        (difference[i], borrow) = (second, one || two);
    }
    difference
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

#[test]
fn n38_n103_challenges_follow_from_nothing_that_anybody_knows() {
    let mut setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    assert!(service.terminate().success());
    // Two services with the same state and the same second, asked the same by the same keys.
    freeze(&mut setup);
    let keys: Vec<Identity> = (0..8).map(|_| Identity::new_for_host("h1").unwrap()).collect();
    let request = host.enrol_request();
    let client_of = |service: &Running| service.client(Some(&keys[0]));
    let (mut seen, mut enrolments) = (Vec::new(), BTreeSet::new());
    for setup in [setup.copy(), setup] {
        let service = setup.serve();
        seen.push(nonces(&service, &keys));
        let challenge = client_of(&service).enrol(&request).unwrap();
        let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
        enrolments.extend([challenge.enrolment, hex::encode(&secret)]);
        assert!(service.terminate().success());
    }
    assert_eq!(enrolments.len(), 4, "ids or secrets of enrolments follow from state and time");
    let all: BTreeSet<[u8; 32]> = seen.iter().flatten().copied().collect();
    assert_eq!(all.len(), 2 * 16 * keys.len(), "nonces follow from state and time");
    for nonces in &seen {
        // Each of the 256 bits is 0 in some and 1 in others: none is of a clock, a counter or a constant. For 128 random
        // values the chance of an exception is below 2^-118.
        let (ones, zeros) = nonces.iter().fold(([0; 32], [0; 32]), |(ones, zeros), nonce| {
            let inverse = xor(nonce, &[0xff; 32]);
            (std::array::from_fn(|i| ones[i] | nonce[i]), std::array::from_fn(|i| zeros[i] | inverse[i]))
        });
        assert_eq!((ones, zeros), ([0xff; 32], [0xff; 32]), "a bit is the same in all of them");
        // No step from one to the next comes twice.
        for step in [minus, xor] {
            let steps: BTreeSet<[u8; 32]> = nonces.windows(2).map(|pair| step(&pair[1], &pair[0])).collect();
            assert_eq!(steps.len(), nonces.len() - 1);
        }
    }
}

#[test]
fn n104_after_a_fence_the_host_says_nothing_more_of_its_order() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let mut host = Host::new("h1");
    host.join(&service);
    for disk in ["a", "b"] {
        tenant.put_volume(disk, KEY).unwrap();
    }
    let (fenced, other) = (tenant.launch(&launch_request("a")).unwrap(), tenant.launch(&launch_request("b")).unwrap());
    for order in [&fenced, &other] {
        assert_eq!(host.release(&service, order).unwrap(), KEY);
    }
    operator.fence(&fenced.order_id, "power off").unwrap();
    for event in [Event::Started, Event::Ended, Event::Started] {
        assert_eq!(codes(host.receipt(&service, &fenced, event)), ["receipt.out-of-order"]);
    }
    assert_eq!(codes(host.release(&service, &fenced)), ["order.used"]);
    let seen = |id: &str| tenant.vms().unwrap().vms.into_iter().find(|vm| vm.order_id == id).unwrap();
    let vm = seen(&fenced.order_id);
    assert_eq!((vm.state, vm.detail.as_str()), (OrderState::Ended, "fenced by olga: power off"));
    // Of the other order it does.
    for (event, state) in [(Event::Started, OrderState::Running), (Event::Ended, OrderState::Ended)] {
        host.receipt(&service, &other, event).unwrap();
        assert_eq!(seen(&other.order_id).state, state);
    }
}

#[test]
fn n104_who_has_a_hosts_name_now_does_not_speak_of_the_orders_of_who_had_it_before() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let (mut first, mut second) = (Host::new("h1"), Host::new("h1"));
    first.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    // A host that holds an order is not replaced, nor forgotten.
    let ek = operator.host("h1").unwrap().ek_fingerprint;
    assert_eq!(first.release(&service, &placed).unwrap(), KEY);
    assert_eq!(codes(second.enrol(&service)), ["enrol.host-conflict"]);
    assert!(operator.remove_host("h1").is_err());
    first.receipt(&service, &placed, Event::Ended).unwrap();
    // Forgotten and enrolled anew, in the same boot, the order stays what it was.
    operator.remove_host("h1").unwrap();
    first.enrol(&service).unwrap();
    assert!(first.attest(&service).unwrap().trusted);
    assert_eq!(codes(first.receipt(&service, &placed, Event::Started)), ["receipt.out-of-order"]);
    assert_eq!(codes(first.release(&service, &placed)), ["order.used"]);
    first.receipt(&service, &placed, Event::Ended).expect("the same receipt again");
    // Another TPM under the same name.
    operator.remove_host("h1").unwrap();
    operator.withdraw(&ek).unwrap();
    second.join(&service);
    assert_eq!(codes(second.receipt(&service, &placed, Event::Ended)), ["order.other-tpm"]);
    let found = codes(second.receipt(&service, &placed, Event::Started));
    assert!(found.contains(&"order.other-tpm".into()) && found.contains(&"order.other-boot".into()), "{found:?}");
    assert_eq!(codes(second.release(&service, &placed)), ["order.used", "order.other-boot"]);
    // Its own order it carries out.
    let own = tenant.launch(&launch_request("disk")).unwrap();
    assert_eq!(second.release(&service, &own).unwrap(), KEY);
    second.receipt(&service, &own, Event::Started).unwrap();
    second.receipt(&service, &own, Event::Ended).unwrap();
}

#[test]
fn n32_a_credential_challenge_is_not_answered_late() {
    // In time by far, and too late: how fast a TPM answers says nothing.
    for (config, wait) in [(&[][..], 0), (&["nonce_ttl_s = 1"][..], 3)] {
        let setup = Setup::new(config);
        let service = setup.serve();
        let mut host = Host::new("h1");
        let (request, client) = (host.enrol_request(), host.client(&service));
        let challenge = client.enrol(&request).unwrap();
        let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
        std::thread::sleep(Duration::from_secs(wait));
        let evidence = host.enrolment_evidence(&secret);
        let outcome = client.activate(&challenge.enrolment, &secret, evidence);
        if wait == 0 {
            assert_eq!(outcome.unwrap().host, "h1");
        } else {
            assert_eq!(codes(outcome), ["enrol.unknown"]);
        }
    }
}

#[test]
fn n104_each_part_of_a_receipt_is_that_of_its_order() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.join(&service);
    for disk in ["a", "b"] {
        tenant.put_volume(disk, KEY).unwrap();
    }
    let (placed, second) = (tenant.launch(&launch_request("a")).unwrap(), tenant.launch(&launch_request("b")).unwrap());
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
    let send = |host: &mut Host, change: &dyn Fn(&mut Receipt)| {
        let client = host.client(&service);
        let mut receipt = Receipt::parse(&host.receipt_json(&placed, Event::Ended)).unwrap();
        change(&mut receipt);
        let receipt = serde_json::to_string(&receipt).unwrap();
        let evidence = host.answer(&client, Purpose::Receipt, receipt.as_bytes()).unwrap();
        client.receipt(&placed.order_id, &api::ReceiptRequest { host: host.name.clone(), receipt, evidence })
    };
    assert_eq!(codes(send(&mut host, &|receipt| receipt.order.clone_from(&second.order_id))), ["receipt.mismatch"]);
    assert_eq!(codes(send(&mut host, &|receipt| receipt.host = "h2".into())), ["receipt.mismatch"]);
    assert_eq!(codes(send(&mut host, &|receipt| receipt.vm = "other".into())), ["receipt.mismatch"]);
    // Another trusted host, about an order that is not its own.
    other.join(&service);
    assert_eq!(codes(send(&mut other, &|_| ())), ["receipt.mismatch", "order.other-tpm"]);
    // The host's own TPM, over a TLS key that it did not attest on.
    let quoted = std::mem::replace(&mut host.identity, Identity::new_for_host("h1").unwrap());
    assert_eq!(codes(send(&mut host, &|_| ())), ["host.other-tls-key"]);
    host.identity = quoted;
    send(&mut host, &|_| ()).unwrap();
}

#[test]
fn n104_what_is_judged_while_the_host_is_judged_anew_gives_neither_a_result_nor_a_key() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let mut host = Host::new("h1");
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    let sql = |statement: &str| {
        let database = rusqlite::Connection::open(setup.path("state/verifier.db")).unwrap();
        database.busy_timeout(Duration::from_secs(10)).unwrap();
        database.execute_batch(statement).unwrap();
    };
    // As if somebody else were always the first to record: the host's row is not the one any more that was judged.
    sql("CREATE TRIGGER first BEFORE UPDATE OF judged ON hosts BEGIN SELECT RAISE(IGNORE); END");
    assert_eq!(codes(host.attest(&service)), ["host.concurrent-appraisal"]);
    assert_eq!(codes(host.release(&service, &placed)), ["host.concurrent-appraisal"]);
    sql("DROP TRIGGER first");
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
}
