use super::*;
use crate::eventlog::EventLog;

/// What firmware and boot loaders really log must not look like an attack. Logs that are cut, that have SHA-1 only, or
/// whose boot loader puts its text where firmware measures are left out.
#[test]
fn real_logs_contradict_nothing() {
    const NOT_WHOLE: [&str; 4] =
        ["misc-sb_cert.bin", "misc-short_no_action.bin", "hygon-sm3.bin", "misc-option_rom.bin"];
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/eventlogs");
    if !corpus.is_dir() {
        eprintln!("ATTENTION: no corpus of real logs at {}: claims of real logs were NOT checked", corpus.display());
        return;
    }
    let cache = CertificateCache::new();
    let mut states = Vec::new();
    for file in std::fs::read_dir(corpus).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if NOT_WHOLE.contains(&name.as_str()) {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let bank = if log.banks().contains(&Bank::Sha256) { Bank::Sha256 } else { Bank::Sha1 };
        let coverage: Vec<_> = log.events().iter().map(|event| event.coverage(bank)).collect();
        let covered = CoveredLog::new(log.events(), &coverage, bank);
        let mut reasons = contradictions::check(covered);
        reasons.extend(separators::check(log.events(), bank));
        let state = SecureBoot::read(covered, &cache, &mut reasons).state().map(|claim| claim.value);
        states.push((name.clone(), state));
        assert_eq!(reasons, [], "{name}");
    }
    let on: Vec<_> = states.iter().filter(|(_, on)| *on == Some(true)).map(|(name, _)| name.as_str()).collect();
    assert!(states.iter().all(|(_, state)| state.is_some()), "{states:?}");
    for name in ["gcp-rhel8-uefi.bin", "gcp-cos-101-amd-sev.bin", "tools-event-moklisttrusted.bin"] {
        assert!(on.contains(&name), "{name}");
    }
    assert!(!on.contains(&"gcp-ubuntu-2104-no-secure-boot.bin"));
}
