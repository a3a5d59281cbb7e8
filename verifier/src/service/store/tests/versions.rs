//! Databases of earlier versions go on, others are refused.

use super::*;

/// Takes away what version 4 added.
const AS_IN_VERSION_3: &str = "ALTER TABLE admissions DROP COLUMN banks; ALTER TABLE admissions DROP COLUMN certificate; \
                               ALTER TABLE admissions DROP COLUMN ek_certificate; ALTER TABLE admissions DROP COLUMN cordon;";

/// Takes away what version 3 added.
const AS_IN_VERSION_2: &str = "DROP INDEX one_tpm_a_host; ALTER TABLE admissions DROP COLUMN host; \
                               ALTER TABLE hosts DROP COLUMN judged_policy; \
                               ALTER TABLE hosts DROP COLUMN judged_signer; ALTER TABLE volumes DROP COLUMN pins; \
                               ALTER TABLE hosts DROP COLUMN banks;";

#[test]
fn n90_a_database_of_the_third_version_goes_on_and_keeps_what_is_forgotten_from_then_on() {
    let (dir, store) = placed();
    store
        .transact(|t| -> Result<(), StoreError> {
            t.execute_batch(AS_IN_VERSION_3)?;
            Ok(t.pragma_update(None, "user_version", 3)?)
        })
        .unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("db")).unwrap();
    let row = store.host("h1", 1).unwrap().unwrap();
    assert!(row.why_untrusted(1).is_empty(), "an upgrade closes no host");
    assert_eq!(store.remove_host("h1", 60).unwrap(), Some(true));
    let new = enrolment("h1", EK);
    let other = serde_json::from_str(r#"{"sha256":"extended"}"#).unwrap();
    assert_eq!(store.enrol(&new, &other, 60).unwrap(), [ServiceCode::EnrolmentBanksConflict]);
    assert_eq!(store.enrol(&new, &banks(), 60).unwrap(), []);
    drop(store);
    // The version is recorded: it is not upgraded again.
    assert!(Store::open(&dir.path().join("db")).unwrap().host("h1", 60).unwrap().unwrap().admitted);
}

#[test]
fn a_database_of_the_second_version_goes_on_and_its_admissions_keep_their_hosts_names() {
    let (dir, store) = placed();
    let waiting = "c".repeat(64);
    store
        .transact(|t| -> Result<(), StoreError> {
            t.execute(
                "INSERT INTO admissions (ek, note, admitted_by, admitted_at) VALUES (?1, 'before it enrolled', 'o', 0)",
                [&waiting],
            )?;
            t.execute_batch(AS_IN_VERSION_3)?;
            t.execute_batch(AS_IN_VERSION_2)?;
            Ok(t.pragma_update(None, "user_version", 2)?)
        })
        .unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("db")).unwrap();
    let names: Vec<_> = store.admissions().unwrap().into_iter().map(|admission| admission.host).collect();
    assert_eq!(names, [Some("h1".to_owned()), None]);
    let row = store.host("h1", 1).unwrap().unwrap();
    assert!(row.admitted && row.judged_policy.is_none());
    assert_eq!(store.pins("t", "v").unwrap(), Some(Pins::default()));
    // An admission without a name admits nothing, until an operator gives it one.
    let new = enrolment("lab-1", &waiting);
    assert_eq!(store.enrol(&new, &banks(), 1).unwrap(), []);
    assert!(!store.host("lab-1", 1).unwrap().unwrap().admitted);
    admit(&store, &waiting, "lab-1");
    assert!(store.host("lab-1", 1).unwrap().unwrap().admitted);
}

#[test]
fn a_database_of_the_first_version_goes_on() {
    let (dir, store) = placed();
    store
        .transact(|t| -> Result<(), StoreError> {
            t.execute_batch(AS_IN_VERSION_3)?;
            t.execute_batch(AS_IN_VERSION_2)?;
            t.execute_batch("ALTER TABLE hosts DROP COLUMN ek_certificate")?;
            t.execute_batch("ALTER TABLE enrolments DROP COLUMN ek_certificate")?;
            Ok(t.pragma_update(None, "user_version", 1)?)
        })
        .unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("db")).unwrap();
    assert_eq!(store.host("h1", 1).unwrap().unwrap().ek_certificate, None);
    // The next enrolment brings the certificate, and none takes it away.
    let same = |ek_certificate| Enrolment { ek_certificate, ak_name: "a".into(), ..enrolment("h1", EK) };
    for (given, kept) in [(None, None), (Some(vec![7]), Some(vec![7])), (None, Some(vec![7]))] {
        let conflicts = store.enrol(&same(given), &banks(), 1).unwrap();
        assert_eq!(conflicts, []);
        assert_eq!(store.host("h1", 1).unwrap().unwrap().ek_certificate, kept);
    }
}

#[test]
fn n90_hosts_of_the_second_version_are_not_trusted_until_their_banks_are_known() {
    let (dir, store) = placed();
    assert!(store.host("h1", 1).unwrap().unwrap().why_untrusted(1).is_empty());
    store
        .transact(|t| -> Result<(), StoreError> {
            t.execute_batch(AS_IN_VERSION_3)?;
            t.execute_batch(AS_IN_VERSION_2)?;
            Ok(t.pragma_update(None, "user_version", 2)?)
        })
        .unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("db")).unwrap();
    let row = store.host("h1", 1).unwrap().unwrap();
    let codes: Vec<_> = row.why_untrusted(1).into_iter().map(|reason| reason.code).collect();
    assert_eq!(codes, [ServiceCode::HostBanksUnknown, ServiceCode::HostNeverAttested].map(Into::into));
    let good = release("", row.generation).judgement;
    let same = Enrolment { ak_name: "a".into(), ..enrolment("h1", EK) };
    assert_eq!(store.enrol(&same, &banks(), 1).unwrap(), []);
    assert!(store.record_trusted("h1", &good, 500, 1).unwrap());
    assert!(store.host("h1", 1).unwrap().unwrap().why_untrusted(1).is_empty());
}

#[test]
fn a_database_of_another_version_is_refused() {
    let (dir, store) = store();
    store.transact(|t| -> Result<(), StoreError> { Ok(t.pragma_update(None, "user_version", 5)?) }).unwrap();
    drop(store);
    let opened = Store::open(&dir.path().join("db")).map(drop);
    assert!(matches!(opened, Err(StoreError::Version { found: 5 })), "{opened:?}");
    std::fs::write(dir.path().join("rubbish"), vec![7; 8192]).unwrap();
    assert!(matches!(Store::open(&dir.path().join("rubbish")), Err(StoreError::Sqlite(_))));
}
