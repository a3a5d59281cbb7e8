//! The real verifier service on a loopback port.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::thread::JoinHandle;

use portcullis_attest::appraise::Policy;
use portcullis_attest::endorsement::EkRoots;
use portcullis_attest::reference::ReferenceValues;
use portcullis_firmware_fixtures::tpm::VendorCa;
use portcullis_verifier::client::{Client, Identity, Limits};
use portcullis_verifier::service::Ready;
use portcullis_verifier::service::config::Config;
use portcullis_verifier::service::peer::Role;
use portcullis_verifier::service::rules::Rules;
use portcullis_verifier::service::state::{self, State};
use tokio::sync::watch;

use super::boot;

pub const VERIFIER: &str = "verifier.test";

/// A verifier's state and its address; it serves between [`Verifier::start`] and [`Verifier::stop`].
pub struct Verifier {
    dir: tempfile::TempDir,
    address: SocketAddr,
    serving: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Verifier {
    /// A new verifier that does not serve yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        state::init(&state, VERIFIER, &["127.0.0.1".to_owned()]).unwrap();
        for (role, name) in [(Role::Operator, "olga"), (Role::Tenant, "alice")] {
            state::certificate(&state, role, name, 1, &dir.path().join(name)).unwrap();
        }
        // Free now, and hardly anybody else asks for it before the service does.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { dir, address, serving: None }
    }

    /// A new verifier that serves.
    pub fn started() -> Self {
        let mut verifier = Self::new();
        verifier.start();
        verifier
    }

    pub fn start(&mut self) {
        let (state, address) = (State::open(&self.dir.path().join("state")).unwrap(), self.address);
        let (stop, stopped) = watch::channel(false);
        let (ready, when_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
            runtime.block_on(async {
                let service = Ready::new(state, rules(), Config::default(), address).await.unwrap();
                ready.send(()).unwrap();
                service.serve(stopped).await;
            });
        });
        when_ready.recv().expect("the verifier did not start");
        self.serving = Some((stop, thread));
    }

    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.serving.take() {
            stop.send(true).unwrap();
            thread.join().unwrap();
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The service's database.
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("state/verifier.db")
    }

    /// What the measured initrd lays into the trust directory.
    pub fn trust(&self) -> PathBuf {
        self.dir.path().join("state/trust")
    }

    /// The directory with a person's `cert.pem`, `key.pem` and `ca.pem`.
    pub fn person_files(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client of `olga` (operator) or `alice` (tenant).
    pub fn person(&self, name: &str) -> Client {
        let read = |file: &str| std::fs::read(self.person_files(name).join(file)).unwrap();
        let identity = Identity::from_pem(&read("cert.pem"), &read("key.pem")).unwrap();
        let ca = std::fs::read(self.trust().join("ca.pem")).unwrap();
        Client::new(&self.url(), &ca, Some(&identity), Limits::default()).unwrap()
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stop();
    }
}

fn rules() -> Rules {
    let vendor = VendorCa::shared().unwrap();
    let files = [vendor.root_pem(), vendor.issuer_pem()]
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()));
    let references = vec![ReferenceValues::from_toml(&boot::references()).unwrap()];
    Rules::new(EkRoots::from_dir_files(files).unwrap(), references, vec![Policy::from_toml(boot::POLICY).unwrap()])
}
