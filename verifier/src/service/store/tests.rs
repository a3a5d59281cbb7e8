//! What the database itself holds to, whatever the code above it does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::params;

use super::*;
use crate::reason::ServiceCode;

const EK: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const BOOT: &str = "{}";

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
            t.execute("INSERT INTO admissions VALUES (?1, '', 'o', 0)", [EK])?;
            t.execute(
                "INSERT INTO hosts (host, ek, ek_public, certificate, ak_public, ak_name, enrolled_at, tls_spki, boot, \
                 trusted_until) VALUES ('h1', ?1, x'', 'none', x'', 'a', 0, ?2, ?3, 100)",
                params![EK, [1u8; 32], BOOT],
            )?;
            Ok(())
        })
        .unwrap();
    for volume in ["v", "w"] {
        assert_eq!(store.put_volume("t", volume, b"sealed", 0).unwrap(), VolumePut::New);
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
    let judgement = Judgement { tls_spki: [1; 32], judged: "{}".into(), boot: BOOT.into(), generation };
    Release { order: id.into(), host: "h1".into(), judgement }
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
    refused("UPDATE hosts SET tls_spki = zeroblob(32)", &good, 1, ServiceCode::HostOtherKey);
    refused("UPDATE orders SET host = 'h2'", &good, 1, ServiceCode::OrderOtherHost);
    refused("UPDATE orders SET boot = '[]'", &good, 1, ServiceCode::OrderOtherBoot);
    let unknown = release(&"x".repeat(32), 0);
    refused("", &unknown, 1, ServiceCode::OrderUnknown);
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
    store.record_denied("h1", &[ServiceCode::HostUntrusted.into()], 5).unwrap();
    assert!(!store.record_trusted("h1", &good, 500, 5).unwrap());
    let row = store.host("h1", 5).unwrap().unwrap();
    assert_eq!(row.trusted_until, None);
    assert!(store.record_trusted("h1", &Judgement { generation: row.generation, ..good }, 500, 6).unwrap());
    assert!(store.host("h1", 6).unwrap().unwrap().why_untrusted(6).is_empty());
}

#[test]
fn a_database_of_another_version_is_refused() {
    let (dir, store) = store();
    store.transact(|t| -> Result<(), StoreError> { Ok(t.pragma_update(None, "user_version", 2)?) }).unwrap();
    drop(store);
    let opened = Store::open(&dir.path().join("db")).map(drop);
    assert!(matches!(opened, Err(StoreError::Version { found: 2 })), "{opened:?}");
    std::fs::write(dir.path().join("rubbish"), vec![7; 8192]).unwrap();
    assert!(matches!(Store::open(&dir.path().join("rubbish")), Err(StoreError::Sqlite(_))));
}
