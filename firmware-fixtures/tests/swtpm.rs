//! The software TPM harness: distinct, certified, resettable, and gone afterwards.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::tpm::{Swtpm, VendorCa};

fn tool(tpm: &Swtpm, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).arg("-T").arg(tpm.tcti()).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn clock_field(tpm: &Swtpm, field: &str) -> String {
    let text = tool(tpm, "tpm2_readclock", &[]);
    let line = text.lines().find(|line| line.trim_start().starts_with(field)).expect(&text);
    line.split(':').nth(1).unwrap().trim().to_owned()
}

fn reset_count(tpm: &Swtpm) -> u32 {
    clock_field(tpm, "reset_count").parse().unwrap()
}

#[test]
fn every_tpm_has_its_own_ek_with_the_manufactured_certificate_in_nv() {
    let tpms: Vec<Swtpm> = (0..3).map(|_| Swtpm::new().unwrap()).collect();
    let certificates: BTreeSet<Vec<u8>> = tpms.iter().map(|tpm| tpm.ek_certificate_der().unwrap()).collect();
    assert_eq!(certificates.len(), 3);
    let dir = tempfile::tempdir().unwrap();
    for tpm in &tpms {
        let file = dir.path().join("certificate");
        tool(tpm, "tpm2_nvread", &["0x01c00002", "-o", file.to_str().unwrap()]);
        assert_eq!(std::fs::read(&file).unwrap(), tpm.ek_certificate_der().unwrap());
    }
}

#[test]
fn the_ek_certificate_chains_to_its_own_vendor_and_to_no_other() {
    let tpm = Swtpm::new().unwrap();
    let other = VendorCa::new().unwrap();
    let certificate = tpm.dir().join("ek.der");
    std::fs::write(&certificate, tpm.ek_certificate_der().unwrap()).unwrap();
    let verify = |vendor: &VendorCa| {
        let output = Command::new("openssl")
            .args(["verify", "-ignore_critical", "-CAfile"])
            .arg(vendor.root_pem())
            .arg("-untrusted")
            .arg(vendor.issuer_pem())
            .arg(&certificate)
            .output()
            .unwrap();
        output.status.success()
    };
    assert!(verify(tpm.vendor()));
    assert!(!verify(&other));
}

#[test]
fn three_banks_are_active() {
    let tpm = Swtpm::new().unwrap();
    let text = tool(&tpm, "tpm2_pcrread", &["sha1:0+sha256:0+sha384:0"]);
    for digits in [40, 64, 96] {
        assert!(text.contains(&format!("0x{}", "0".repeat(digits))), "{text}");
    }
}

#[test]
fn a_power_cycle_raises_the_reset_count_and_clears_pcrs() {
    let mut tpm = Swtpm::new().unwrap();
    let extended = format!("16:sha256={}", "ab".repeat(32));
    tool(&tpm, "tpm2_pcrextend", &[&extended]);
    let (before, tcti) = (reset_count(&tpm), tpm.tcti());
    tpm.power_cycle().unwrap();
    assert_eq!(reset_count(&tpm), before + 1);
    assert_eq!(tpm.tcti(), tcti);
    assert_eq!(clock_field(&tpm, "safe"), "yes");
    assert!(tool(&tpm, "tpm2_pcrread", &["sha256:16"]).contains(&"0".repeat(64)));
}

#[test]
fn after_a_power_cut_the_clock_is_not_safe() {
    let mut tpm = Swtpm::new().unwrap();
    let before = reset_count(&tpm);
    tpm.kill9();
    assert!(tpm.pid().is_none());
    tpm.start().unwrap();
    assert_eq!(clock_field(&tpm, "safe"), "no");
    assert!(reset_count(&tpm) > before);
}

#[test]
fn a_panic_leaves_neither_process_nor_directory() {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let tpm = Swtpm::new().unwrap();
        send.send((tpm.pid().unwrap(), tpm.dir().to_owned())).unwrap();
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    let (pid, dir) = receive.recv().unwrap();
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
    assert!(!dir.exists());
}

#[test]
fn a_tpm_outlives_the_thread_that_made_it() {
    let tpm = std::thread::spawn(|| Swtpm::new().unwrap()).join().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    reset_count(&tpm);
}

#[test]
fn a_killed_process_leaves_no_tpm() {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_portcullis-lab"))
        .arg("tpm")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> =
        BufReader::new(holder.stdout.take().unwrap()).lines().take(4).map(Result::unwrap).collect();
    let told = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(name)).expect(name);
        line.trim_start_matches(name).trim().to_owned()
    };
    let (pid, tpm_dir) = (told("process"), told("directory"));
    assert!(Path::new("/proc").join(&pid).exists());
    holder.kill().unwrap();
    holder.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while Path::new("/proc").join(&pid).exists() {
        assert!(Instant::now() < end, "swtpm {pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The directory of a killed process is removed by the next one that makes a TPM.
    drop(Swtpm::new().unwrap());
    assert!(!Path::new(&tpm_dir).exists());
}
