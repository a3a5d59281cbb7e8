//! A verifier (the real service, in this process) and hosts with a software TPM.
#![allow(dead_code, missing_docs)]

// One boot and one verifier for the tests of all crates, so that all sides speak of the same.
#[path = "../../../verifier/tests/support/boot.rs"]
pub mod boot;
#[path = "../../../agent/tests/support/verifier.rs"]
pub mod verifier;

use std::path::{Path, PathBuf};

use portcullis_agent::config::Config;
use portcullis_agent::session::{Exclusive, Session};
use portcullis_firmware_fixtures::tpm::Swtpm;

use boot::Boot;
use verifier::Verifier;

/// A person's configuration file.
pub fn config_of(verifier: &Verifier, person: &str, dir: &Path) -> String {
    let path = dir.join(format!("{person}.toml"));
    let files = verifier.person_files(person);
    let text = format!(
        "url = {:?}\nca = \"{dir}/ca.pem\"\ncert = \"{dir}/cert.pem\"\nkey = \"{dir}/key.pem\"\n",
        verifier.url(),
        dir = files.display()
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A host: a TPM that went through a boot, and an agent on it.
pub struct Host {
    // Before the TPM: the session is its one client.
    pub session: Session,
    pub dir: tempfile::TempDir,
    pub boot: Boot,
    _swtpm: Swtpm,
}

impl Host {
    pub fn new(name: &str, verifier: &Verifier) -> Self {
        Self::booted(name, verifier, Boot::good())
    }

    pub fn booted(name: &str, verifier: &Verifier, mut boot: Boot) -> Self {
        let swtpm = Swtpm::new().unwrap();
        boot.extend(&swtpm);
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("eventlog"), boot.eventlog()).unwrap();
        std::fs::write(path("ima"), boot.ima()).unwrap();
        let text = format!(
            "host = {name:?}\nverifier_url = {:?}\ntrust_dir = \"{}\"\ntcti = {:?}\n\
             state_dir = \"{dir}/state\"\neventlog = \"{dir}/eventlog\"\nima = \"{dir}/ima\"\n",
            verifier.url(),
            verifier.trust().display(),
            swtpm.tcti(),
            dir = dir.path().display(),
        );
        let config = Config::parse(Path::new("agent.toml"), &text).unwrap();
        let session = Session::start(config, Exclusive::Yes).unwrap();
        Self { session, dir, boot, _swtpm: swtpm }
    }

    pub fn fingerprint(&self) -> String {
        hex::encode(self.session.prover.ek())
    }

    /// Writes evidence for `nonce` and the keys that were enrolled; gives the directory.
    pub fn evidence(&mut self, nonce: &str) -> PathBuf {
        let evidence = self.session.offline_evidence(hex::decode(nonce).unwrap()).unwrap();
        let dir = self.dir.path().to_owned();
        std::fs::write(dir.join("evidence.json"), evidence.to_json().unwrap()).unwrap();
        std::fs::write(dir.join("ak.tpmt"), self.session.prover.ak_public()).unwrap();
        std::fs::write(dir.join("ek.tpmt"), self.session.prover.ek_public()).unwrap();
        std::fs::write(dir.join("reference.toml"), boot::references()).unwrap();
        std::fs::write(dir.join("policy.toml"), boot::POLICY).unwrap();
        dir
    }
}
