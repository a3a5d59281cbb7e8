//! What the database itself holds to, whatever the code above it does.

mod forgotten;
mod receipts;
mod versions;

use std::panic::{AssertUnwindSafe, catch_unwind};

use portcullis_attest::appraise::PinnedBanks;
use rusqlite::params;

use super::*;
use crate::api::{AdmissionView, Pins};
use crate::reason::{Reason, ServiceCode};

const EK: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const BOOT: &str = "{}";
const BANKS: &str = r#"{"sha1":"unextended","sha256":"extended"}"#;

fn banks() -> PinnedBanks {
    serde_json::from_str(BANKS).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    (dir, store)
}

/// A trusted host `h1` that quoted the TLS key 1, two volumes, and an order for each, placed.
fn placed() -> (tempfile::TempDir, Store) {
    let (dir, store) = store();
    store
        .transact(|t| -> Result<(), StoreError> {
            t.execute(
                "INSERT INTO admissions (ek, note, admitted_by, admitted_at, host) VALUES (?1, '', 'o', 0, 'h1')",
                [EK],
            )?;
            t.execute(
                "INSERT INTO hosts (host, ek, ek_public, certificate, ak_public, ak_name, enrolled_at, tls_spki, boot, \
                 trusted_until, banks) VALUES ('h1', ?1, x'', 'none', x'', 'a', 0, ?2, ?3, 100, ?4)",
                params![EK, [1u8; 32], BOOT, BANKS],
            )?;
            Ok(())
        })
        .unwrap();
    for volume in ["v", "w"] {
        assert_eq!(store.put_volume("t", volume, &sealed(Pins::default()), 0).unwrap(), VolumePut::New);
        let id = volume.repeat(32);
        assert_eq!(store.place(&order(&id, volume), 0).unwrap(), None);
    }
    (dir, store)
}

fn order(id: &str, volume: &str) -> NewOrder {
    let text = |text: &str| text.to_owned();
    let row = OrderRow {
        id: text(id),
        host: text("h1"),
        tenant: text("t"),
        volume: text(volume),
        vm: text("m"),
        boot: text(BOOT),
        jws: text("jws"),
        state: text("placed"),
        placed_at: 0,
        expires_at: 50,
        detail: String::new(),
    };
    NewOrder { row, max_vms: 8 }
}

fn release(id: &str, generation: i64) -> Release {
    let judgement = Judgement {
        tls_spki: [1; 32],
        judged: "{}".into(),
        boot: BOOT.into(),
        generation,
        ak_name: "a".into(),
        policy_sha256: "p".into(),
        reference_signer: None,
    };
    Release { order: id.into(), host: "h1".into(), judgement }
}

fn sealed(pins: Pins) -> SealedVolume {
    SealedVolume { sealed_key: b"sealed".to_vec(), pins }
}

fn state(store: &Store, id: &str) -> String {
    store.order(id).unwrap().unwrap().state
}

#[test]
fn a_release_is_all_or_nothing_and_once() {
    let (_dir, store) = placed();
    let id = "v".repeat(32);
    assert_eq!(store.release(&release(&id, 0), 1).unwrap(), None);
    assert_eq!(store.release(&release(&id, 1), 1).unwrap(), Some(ServiceCode::OrderUsed));
    assert_eq!(store.check().unwrap(), 1);
    // A panic in the middle of a transaction leaves what was there, and the store usable.
    let other = "w".repeat(32);
    let broken = catch_unwind(AssertUnwindSafe(|| {
        store.transact(|t| -> Result<(), StoreError> {
            t.execute("UPDATE orders SET state = 'released' WHERE id = ?1", [&other])?;
            panic!("in the middle")
        })
    }));
    assert!(broken.is_err());
    assert_eq!(state(&store, &other), "placed");
    // Half a release, written by whatever means, is found.
    store
        .transact(|t| -> Result<(), StoreError> {
            t.execute("UPDATE orders SET state = 'released' WHERE id = ?1", [&other])?;
            Ok(())
        })
        .unwrap();
    assert!(matches!(store.check(), Err(StoreError::Content { .. })));
}

#[test]
fn every_condition_of_a_release_is_checked_where_it_is_recorded() {
    let id = "v".repeat(32);
    let refused = |change: &str, release: &Release, now: u64, expected: ServiceCode| {
        let (_dir, store) = placed();
        store.transact(|t| -> Result<(), StoreError> { Ok(t.execute_batch(change)?) }).unwrap();
        assert_eq!(store.release(release, now).unwrap(), Some(expected), "{change}");
        assert_eq!(state(&store, &id), "placed");
        assert_eq!(store.check().unwrap(), 0);
    };
    let good = release(&id, 0);
    refused("", &good, 50, ServiceCode::OrderExpired);
    refused("", &release(&id, 7), 1, ServiceCode::HostConcurrent);
    refused("DELETE FROM admissions", &good, 1, ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET trusted_until = NULL", &good, 1, ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET trusted_until = 1", &good, 1, ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET banks = NULL", &good, 1, ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET tls_spki = zeroblob(32)", &good, 1, ServiceCode::HostOtherKey);
    refused("UPDATE orders SET host = 'h2'", &good, 1, ServiceCode::OrderOtherHost);
    refused("UPDATE orders SET boot = '[]'", &good, 1, ServiceCode::OrderOtherBoot);
    let unknown = release(&"x".repeat(32), 0);
    refused("", &unknown, 1, ServiceCode::OrderUnknown);
}

#[test]
fn every_condition_of_a_placement_is_checked_where_it_is_recorded() {
    let placed_with = |change: &str, new: NewOrder| {
        let (_dir, store) = placed();
        assert_eq!(store.put_volume("t", "x", &sealed(Pins::default()), 0).unwrap(), VolumePut::New);
        store.transact(|t| -> Result<(), StoreError> { Ok(t.execute_batch(change)?) }).unwrap();
        store.place(&new, 1).unwrap()
    };
    let new = || order(&"x".repeat(32), "x");
    let refused = |change: &str, expected| assert_eq!(placed_with(change, new()), Some(expected), "{change}");
    assert_eq!(placed_with("", new()), None);
    refused("DELETE FROM hosts", ServiceCode::HostUnknown);
    refused("DELETE FROM admissions", ServiceCode::HostUntrusted);
    refused("UPDATE admissions SET host = 'h2'", ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET trusted_until = NULL", ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET cordon = 'closed'", ServiceCode::HostUntrusted);
    refused("UPDATE hosts SET boot = '[]'", ServiceCode::OrderOtherBoot);
    refused("DELETE FROM volumes WHERE name = 'x'", ServiceCode::VolumeUnknown);
    assert_eq!(placed_with("", NewOrder { max_vms: 2, ..new() }), Some(ServiceCode::HostBusy));
    assert_eq!(placed_with("", NewOrder { max_vms: 3, ..new() }), None);
}

#[test]
fn one_host_has_few_enrolments_pending() {
    let (_dir, store) = store();
    let begin = |id: usize, tls: u8, now| {
        let enrolment = enrolment("h", EK);
        let pending = Pending { enrolment, secret_sha256: [0; 32], tls_spki: [tls; 32], expires_at: 100 };
        store.begin_enrolment(&id.to_string(), &pending, now).unwrap()
    };
    assert!((0..8).all(|id| begin(id, 1, 1).is_empty()));
    assert_eq!(begin(8, 1, 1), [ServiceCode::EnrolmentsFull]);
    // Another key is not kept out, and what has expired keeps nobody out.
    assert_eq!(begin(9, 2, 1), []);
    assert_eq!(begin(10, 1, 100), []);
}

#[test]
fn one_volume_is_never_open_twice_even_if_the_code_forgets_to_look() {
    let (_dir, store) = placed();
    let twice = store.transact(|t| -> Result<(), StoreError> {
        t.execute("UPDATE orders SET volume = 'v', state = 'released'", [])?;
        Ok(())
    });
    assert!(matches!(twice, Err(StoreError::Sqlite(_))), "{twice:?}");
    assert_eq!(store.place(&order(&"y".repeat(32), "v"), 1).unwrap(), Some(ServiceCode::VolumeBusy));
    // An order that was never used frees its volume when it expires.
    assert_eq!(store.volume_free("t", "v", 50).unwrap(), None);
    assert_eq!(store.release(&release(&"v".repeat(32), 0), 1).unwrap(), None);
    assert_eq!(store.volume_free("t", "v", 5_000_000).unwrap(), Some(ServiceCode::VolumeBusy));
}

#[test]
fn a_denial_wins_over_a_verdict_that_was_reached_on_older_knowledge() {
    let (_dir, store) = placed();
    let good = release("", 0).judgement;
    store.record_denied("h1", "a", &[ServiceCode::HostUntrusted.into()], 5).unwrap();
    assert!(!store.record_trusted("h1", &good, 500, 5).unwrap());
    let row = store.host("h1", 5).unwrap().unwrap();
    assert_eq!(row.trusted_until, None);
    assert!(store.record_trusted("h1", &Judgement { generation: row.generation, ..good }, 500, 6).unwrap());
    assert!(store.host("h1", 6).unwrap().unwrap().why_untrusted(6).is_empty());
}

fn enrolment(host: &str, ek: &str) -> Enrolment {
    Enrolment {
        host: host.into(),
        ek: ek.into(),
        ek_public: Vec::new(),
        certificate: "none".into(),
        ek_certificate: None,
        ak_public: Vec::new(),
        ak_name: format!("ak of {ek}"),
    }
}

fn admission(ek: &str, host: &str) -> AdmissionView {
    let (ek_fingerprint, host, by) = (ek.to_owned(), Some(host.to_owned()), "o".to_owned());
    AdmissionView { ek_fingerprint, host, note: String::new(), by, at: 0 }
}

fn admit(store: &Store, ek: &str, host: &str) {
    assert_eq!(store.admit(&admission(ek, host)).unwrap(), Admitted::Yes);
}

#[test]
fn a_name_taken_by_a_tpm_that_nobody_admitted_does_not_keep_an_admitted_one_out() {
    let (_dir, store) = store();
    let (squatter, honest) = (enrolment("h", &"5".repeat(64)), enrolment("h", &"a".repeat(64)));
    assert_eq!(store.enrol(&squatter, &banks(), 1).unwrap(), []);
    // As long as no operator has said which of the two it is, the first one stays.
    assert_eq!(store.enrol(&honest, &banks(), 2).unwrap(), [ServiceCode::HostConflict]);
    admit(&store, &honest.ek, "h");
    let pending = Pending { enrolment: honest.clone(), secret_sha256: [0; 32], tls_spki: [0; 32], expires_at: 9 };
    assert_eq!(store.begin_enrolment("e", &pending, 3).unwrap(), []);
    assert_eq!(store.enrol(&honest, &banks(), 3).unwrap(), []);
    assert_eq!(store.host("h", 3).unwrap().unwrap().ek, honest.ek);
    // And an admitted one is not driven out by another one, nor by its own EK under another name.
    let other = enrolment("h", &"b".repeat(64));
    let taken = store.admit(&admission(&other.ek, "h")).unwrap();
    assert_eq!(taken, Admitted::NameTaken(honest.ek.clone()));
    assert_eq!(store.enrol(&other, &banks(), 4).unwrap(), [ServiceCode::HostConflict]);
    let renamed = Enrolment { host: "i".into(), ..honest };
    assert_eq!(store.enrol(&renamed, &banks(), 4).unwrap(), [ServiceCode::HostOtherName, ServiceCode::EkConflict]);
}

#[test]
fn n97_a_tpm_is_admitted_as_one_host_and_enrols_as_no_other() {
    let (_dir, store) = store();
    let ek = "a".repeat(64);
    let (prod, lab) = (enrolment("prod-7", &ek), enrolment("lab-7", &ek));
    // It waits under a name of its own choice; admitted under another one it is not.
    assert_eq!(store.enrol(&lab, &banks(), 1).unwrap(), []);
    admit(&store, &ek, "prod-7");
    let row = store.host("lab-7", 1).unwrap().unwrap();
    let codes: Vec<_> = row.why_untrusted(1).into_iter().map(|reason| reason.code).collect();
    assert!(!row.admitted && codes.contains(&ServiceCode::HostOtherName.into()), "{codes:?}");
    assert!(!store.record_trusted("lab-7", &judged(&row), 500, 1).unwrap());
    let pending = |enrolment: &Enrolment| Pending {
        enrolment: enrolment.clone(),
        secret_sha256: [0; 32],
        tls_spki: [0; 32],
        expires_at: 9,
    };
    assert_eq!(store.begin_enrolment("e", &pending(&lab), 2).unwrap(), [ServiceCode::HostOtherName]);
    assert_eq!(store.enrol(&lab, &banks(), 2).unwrap(), [ServiceCode::HostOtherName]);
    // Under the name that the operator gave it takes the place of what waits under the other one.
    assert_eq!(store.begin_enrolment("f", &pending(&prod), 2).unwrap(), []);
    assert_eq!(store.enrol(&prod, &banks(), 2).unwrap(), []);
    let row = store.host("prod-7", 2).unwrap().unwrap();
    assert!(row.admitted && store.host("lab-7", 2).unwrap().is_none());
    assert!(store.record_trusted("prod-7", &judged(&row), 500, 2).unwrap());
    // The same admission again is none, another name needs the first one withdrawn.
    admit(&store, &ek, "prod-7");
    assert_eq!(store.admit(&admission(&ek, "lab-7")).unwrap(), Admitted::OtherName("prod-7".to_owned()));
    assert!(store.withdraw(&ek).unwrap());
    admit(&store, &ek, "lab-7");
    assert!(!store.host("prod-7", 3).unwrap().unwrap().admitted);
}

/// Good evidence of an enrolled host.
fn judged(row: &HostRow) -> Judgement {
    Judgement { ak_name: row.ak_name.clone(), generation: row.generation, ..release("", 0).judgement }
}

#[test]
fn n98_a_release_looks_at_the_pins_where_it_is_recorded() {
    let id = "v".repeat(32);
    let pins = |policy: &str, signer: &str| Pins {
        policies: vec!["q".into(), policy.into()],
        signers: vec!["t".into(), signer.into()],
        tpms: Vec::new(),
    };
    let (_dir, store) = placed();
    let mut good = release(&id, 0);
    good.judgement.reference_signer = Some("s".into());
    for (pins, expected) in [
        (pins("other", "s"), ServiceCode::PinnedPolicy),
        (pins("p", "other"), ServiceCode::PinnedSigner),
        (pins("P", "S"), ServiceCode::PinnedPolicy),
    ] {
        store.pin_volume("t", "v", &pins).unwrap();
        assert_eq!(store.release(&good, 1).unwrap(), Some(expected));
        assert_eq!(state(&store, &id), "placed");
    }
    let tpms = |tpm: &str| Pins { tpms: vec!["other".into(), tpm.into()], ..pins("p", "s") };
    store.pin_volume("t", "v", &tpms("another")).unwrap();
    assert_eq!(store.release(&good, 1).unwrap(), Some(ServiceCode::PinnedTpm));
    store.pin_volume("t", "v", &tpms(EK)).unwrap();
    // Reference values that nobody signed match no pin.
    assert_eq!(store.release(&release(&id, 0), 1).unwrap(), Some(ServiceCode::PinnedSigner));
    assert_eq!(store.release(&good, 1).unwrap(), None);
}

#[test]
fn a_host_that_holds_a_volume_is_not_driven_out_though_its_admission_was_withdrawn() {
    let (_dir, store) = placed();
    store.withdraw(EK).unwrap();
    let other = enrolment("h1", &"b".repeat(64));
    admit(&store, &other.ek, "h1");
    assert_eq!(store.enrol(&other, &banks(), 1).unwrap(), [ServiceCode::HostConflict]);
    assert_eq!(store.enrol(&other, &banks(), 5_000).unwrap(), [], "its orders have expired");
}

#[test]
fn a_flood_of_challenges_and_enrolments_keeps_nobody_out() {
    let (_dir, store) = placed();
    store
        .transact(|t| -> Result<(), StoreError> {
            Ok(t.execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT INTO nonces SELECT randomblob(32), 'h1', 'attest', randomblob(32), 1000 FROM n; \
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT INTO enrolments SELECT hex(randomblob(16)), 'x', '', x'', 'none', x'', '', randomblob(32), \
                 randomblob(32), 1000, NULL FROM n; \
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT INTO hosts (host, ek, ek_public, certificate, ak_public, ak_name, enrolled_at) \
                 SELECT 'x' || i, lower(hex(randomblob(32))), x'', 'none', x'', 'x' || i, 0 FROM n;",
                nonces::MAX_OPEN,
                enrolments::MAX_PENDING,
                enrolments::MAX_WAITING,
            ))?)
        })
        .unwrap();
    let nonce = Nonce { host: "h1".into(), purpose: "attest".into(), tls_spki: [1; 32], expires_at: 1_000 };
    assert!(store.open_nonce(&[9; 32], &nonce, 1).unwrap());
    assert_eq!(store.take_nonce(&[9; 32]).unwrap(), Some(nonce));
    let honest = enrolment("h2", &"b".repeat(64));
    let pending = Pending { enrolment: honest.clone(), secret_sha256: [0; 32], tls_spki: [1; 32], expires_at: 1_000 };
    assert_eq!(store.begin_enrolment("e", &pending, 1).unwrap(), []);
    assert!(store.take_enrolment("e").unwrap().is_some());
    assert_eq!(store.enrol(&honest, &banks(), 1).unwrap(), []);
    let count = |table: &str| {
        let query = format!("SELECT count(*) FROM {table}");
        store.transact(|t| -> Result<i64, StoreError> { Ok(t.query_row(&query, [], |row| row.get(0))?) }).unwrap()
    };
    assert!(count("nonces") <= nonces::MAX_OPEN && count("enrolments") <= enrolments::MAX_PENDING);
    // The admitted host is still there, beside those that wait.
    assert_eq!(count("hosts"), enrolments::MAX_WAITING + 1);
    assert!(store.host("h1", 1).unwrap().is_some() && store.host("h2", 1).unwrap().is_some());
    // A placement looks at few of them.
    let seen = store.hosts_for_placement(1).unwrap();
    assert!(seen.len() < 50 && seen.iter().any(|host| host.host == "h1"));
}

#[test]
fn what_unknown_hosts_say_of_themselves_takes_little_room_and_reaches_no_tenant() {
    let (_dir, store) = placed();
    let long = Reason::new(ServiceCode::HostUntrusted).values("e".repeat(5_000), "f".repeat(5_000));
    let reasons = vec![long; 100];
    let waiting = enrolment("w", &"b".repeat(64));
    assert_eq!(store.enrol(&waiting, &banks(), 1).unwrap(), []);
    for (host, ak_name, most) in [("w", waiting.ak_name.as_str(), 5_000), ("h1", "a", 70_000)] {
        store.record_denied(host, ak_name, &reasons, 2).unwrap();
        let row = store.host(host, 2).unwrap().unwrap();
        assert!(!row.reasons.is_empty() && to_json("", &row.reasons).unwrap().len() <= most, "{host}");
        assert!(row.reasons.last().unwrap().text.contains("more reasons"), "{:?}", row.reasons.last());
    }
    let told = store.host("w", 2).unwrap().unwrap().why_closed_to_tenants(2);
    assert_eq!(told, [Reason::from(ServiceCode::NotAdmitted)]);
}

#[test]
fn a_judgement_of_another_attestation_key_is_not_recorded() {
    let (_dir, store) = placed();
    let good = Judgement { ak_name: "of the host that had this name before".into(), ..release("", 0).judgement };
    assert!(!store.record_trusted("h1", &good, 500, 1).unwrap());
    store.record_denied("h1", &good.ak_name, &[ServiceCode::HostUntrusted.into()], 1).unwrap();
    assert!(store.host("h1", 1).unwrap().unwrap().why_untrusted(1).is_empty());
}

#[test]
fn a_release_that_comes_while_the_volume_is_placed_elsewhere_is_refused_with_its_reason() {
    let (_dir, store) = placed();
    let (first, second) = ("v".repeat(32), "y".repeat(32));
    // The first order has expired at 50 and a second one was placed; a release that was asked for before comes late.
    assert_eq!(
        store.place(&NewOrder { row: OrderRow { expires_at: 90, ..order(&second, "v").row }, max_vms: 8 }, 50).unwrap(),
        None
    );
    assert_eq!(store.release(&release(&first, 0), 49).unwrap(), Some(ServiceCode::VolumeBusy));
    assert_eq!(store.release(&release(&second, 0), 51).unwrap(), None);
}

#[test]
fn what_was_issued_before_the_clock_was_set_back_does_not_hold_longer_for_that() {
    let (_dir, store) = store();
    admit(&store, EK, "h");
    assert_eq!(store.enrol(&enrolment("h", EK), &banks(), 1).unwrap(), []);
    let good = judged(&store.host("h", 1).unwrap().unwrap());
    assert!(store.record_trusted("h", &good, 1_000_300, 1_000_000).unwrap());
    assert_eq!(store.put_volume("t", "v", &sealed(Pins::default()), 0).unwrap(), VolumePut::New);
    let row =
        OrderRow { host: "h".into(), placed_at: 1_000_000, expires_at: 1_000_300, ..order(&"v".repeat(32), "v").row };
    assert_eq!(store.place(&NewOrder { row, max_vms: 8 }, 1_000_000).unwrap(), None);
    let nonce = Nonce { host: "h".into(), purpose: "attest".into(), tls_spki: [1; 32], expires_at: 1_000_120 };
    for (now, holds) in [(999_950, true), (1_000_119, true), (900_000, false), (1_000_300, false)] {
        let host = store.host("h", now).unwrap().unwrap();
        assert_eq!(host.why_untrusted(now).is_empty(), holds, "{now}");
        assert_eq!(host.vms, u32::from(holds), "{now}");
        let state = store.order(&"v".repeat(32)).unwrap().unwrap().state_at(now);
        assert_eq!(state == crate::api::OrderState::Placed, holds, "{now}");
        // What cannot be used any more holds no volume.
        assert_eq!(store.volume_free("t", "v", now).unwrap().is_some(), holds, "{now}");
        assert_eq!(!nonce.has_expired(120, now), holds, "{now}");
    }
}
