//! Everything that must be there before the hosts are turned on: images, reference values, a verifier that serves, TPMs
//! that an operator admitted, a tenant with an encrypted volume.

pub mod reference;
pub mod tenant;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use der::{Decode, Encode};
use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program, Variant};
use portcullis_firmware_fixtures::lab::machine::{Disk, VERIFIER_ADDRESS, VERIFIER_PORT};
use portcullis_firmware_fixtures::lab::record;
use portcullis_firmware_fixtures::lab::rootfs::HostFile;
use portcullis_firmware_fixtures::tpm::{Swtpm, Transport};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use x509_cert::Certificate;

use crate::narrator::{Narrator, Tone};
use crate::programs::Programs;
use crate::service::{Authority, Person, Service};
use crate::{Trouble, stage::tenant::Tenant};

/// The three hosts of the demonstration, and the one thing in which each differs from a good host.
pub const HOSTS: [&str; 3] = ["honest", "tampered", "insecure"];
/// What the tampered host's command line has at its end: no mitigation of CPU side channels between tenants.
pub const TAMPERED: &str = "mitigations=off";
/// Where the disk with the attacker's tools is mounted when it is used.
pub const TOOLS: &str = "/run/tools";

const REFERENCE: &str = "reference.toml";
const POLICY: &str = "policy.toml";

/// What a host runs at its start.
const START: &str = "#!/bin/sh
# The volumes come from a shared store; the agent does the rest.
mkdir -p /var/lib/portcullis/volumes /var/log
mount -t ext4 -o ro /dev/vdc /var/lib/portcullis/volumes
exec /usr/bin/portcullis-agent --json run >/var/log/portcullis-agent.log 2>&1
";

/// The stage, set.
pub struct Stage {
    /// The verifier.
    pub service: Service,
    /// The programs under test.
    pub programs: Programs,
    /// The tenant.
    pub tenant: Tenant,
    images: BTreeMap<&'static str, Image>,
    tpms: BTreeMap<&'static str, Swtpm>,
    disks: Vec<Disk>,
    /// Everything of this run; last, so that it goes away after what uses it.
    dir: TempDir,
}

impl Stage {
    /// Sets the stage.
    pub fn set(narrator: &Narrator) -> Result<Self, Trouble> {
        let programs = Programs::find()?;
        let dir = portcullis_firmware_fixtures::workdir::scratch("stage")?;
        narrator.waiting("making a verifier: its CA, its signing keys, certificates for an operator and a tenant");
        let authority = Authority::init(&programs, dir.path(), &[VERIFIER_ADDRESS, "127.0.0.1"])?;

        narrator.waiting("building the hosts' images");
        let images = images(&programs, authority.trust()?)?;
        narrator.line("", Tone::Plain, "built three images: good, command line edited, Secure Boot off");

        let files = BootFiles::fetch()?;
        narrator.waiting("encrypting the tenant's volume");
        let tenant = Tenant::make(&files, dir.path())?;
        let disks = disks(&programs, &tenant, dir.path())?;

        let good = &images["honest"];
        let machine = spec("honest", good, &disks).machine();
        narrator.waiting("recording a good boot of the firmware (once for this firmware and machine)");
        let recording = record::firmware_boot(&machine)?;
        let values = reference::values("lab-host", good, &recording)?;
        let (reference, policy) = (dir.path().join(REFERENCE), dir.path().join(POLICY));
        reference::write(&values, &reference, &policy)?;
        narrator.line("", Tone::Plain, "reference values: from the image's build and the recorded firmware, signed");

        let mut tpms = BTreeMap::new();
        for name in HOSTS {
            narrator.waiting(&format!("manufacturing {name}'s TPM"));
            tpms.insert(name, Swtpm::builder().transport(Transport::QemuSocket).build()?);
        }
        let roots = dir.path().join("roots");
        fs::create_dir(&roots)?;
        let vendor = tpms["honest"].vendor();
        fs::copy(vendor.root_pem(), roots.join("root.pem"))?;
        fs::copy(vendor.issuer_pem(), roots.join("issuer.pem"))?;

        let service = authority.serve(&roots, &reference, &policy)?;
        for (name, tpm) in &tpms {
            let fingerprint = fingerprint(&tpm.ek_certificate_der()?)?;
            service.must(Person::Operator, &["host", "admit", &fingerprint, "--name", name, "--note", name])?;
        }
        let key = dir.path().join("volume.key");
        fs::write(&key, &*tenant.volume.key)?;
        let key_path = key.display().to_string();
        service.must(Person::Tenant, &["volume", "put", tenant::VOLUME, "--key-file", &key_path])?;
        fs::remove_file(&key)?;
        narrator.line(
            "",
            Tone::Plain,
            "the verifier serves; three TPMs are admitted; the tenant deposited its volume key",
        );
        Ok(Self { service, programs, tenant, images, tpms, disks, dir })
    }

    /// Turns a host on.
    pub fn start(&mut self, name: &'static str) -> Result<Host, Trouble> {
        let image = self.images.get(name).ok_or_else(|| Trouble::Step(format!("there is no image for {name}")))?;
        let mut spec = spec(name, image, &self.disks);
        spec.tpm = self.tpms.remove(name);
        spec.verifier_port = Some(self.service.port());
        spec.files.push(HostFile::data("/etc/portcullis/agent.toml", agent_config(name)));
        Ok(Host::start(spec)?)
    }

    /// The reference values' file.
    pub fn reference(&self) -> PathBuf {
        self.dir().join(REFERENCE)
    }

    /// The policy's file.
    pub fn policy(&self) -> PathBuf {
        self.dir().join(POLICY)
    }

    /// Where this run keeps its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn agent_config(host: &str) -> String {
    // The lab keeps what the agent sends and gets, so that attackers have something to use.
    format!(
        "host = \"{host}\"\nverifier_url = \"https://{VERIFIER_ADDRESS}:{VERIFIER_PORT}\"\ninterval_s = 20\npoll_s = 1\n\
         keep_artifacts = true\n"
    )
}

fn images(programs: &Programs, trust: Vec<(String, Vec<u8>)>) -> Result<BTreeMap<&'static str, Image>, Trouble> {
    let program = |path: &str, source: PathBuf| Program { path: path.to_owned(), source };
    let good = ImageSpec {
        trust: trust.into_iter().collect(),
        programs: vec![
            program("/usr/bin/portcullis-agent", programs.path("portcullis-agent")),
            program("/usr/bin/portcullis-vmm", programs.path("portcullis-vmm")),
            program("/usr/sbin/cryptsetup", "/usr/sbin/cryptsetup".into()),
        ],
        files: vec![HostFile::program("/etc/portcullis/start", START)],
        ..ImageSpec::default()
    };
    let tampered = good.with(Variant::Cmdline(TAMPERED.to_owned()));
    let insecure = good.with(Variant::SecureBootOff);
    Ok(BTreeMap::from([
        ("honest", Image::build(&good)?),
        ("tampered", Image::build(&tampered)?),
        ("insecure", Image::build(&insecure)?),
    ]))
}

/// `/dev/vdc`, the store of volumes, and `/dev/vdd`, what an attacker with access to the machine would plug in. Every
/// host has both, so that hosts differ in nothing but their variant.
fn disks(programs: &Programs, tenant: &Tenant, dir: &Path) -> Result<Vec<Disk>, Trouble> {
    let attacker = dir.join("portcullis-attacker");
    // Without its debug information it is a tenth of the size.
    let mut strip = std::process::Command::new("strip");
    crate::volume::run(strip.arg("-o").arg(&attacker).arg(programs.path("portcullis-attacker")), &[])?;
    let store = tenant::disk(&dir.join("store.ext4"), &[&tenant.volume.path])?;
    let tools = tenant::disk(&dir.join("tools.ext4"), &[&attacker])?;
    Ok([store, tools].into_iter().map(|image| Disk { image, read_only: true }).collect())
}

fn spec(name: &str, image: &Image, disks: &[Disk]) -> HostSpec {
    let mut spec = HostSpec::new(name, image);
    spec.memory_mib = 1536;
    // Three hosts share two processors that other programs use too.
    spec.boot_limit = Duration::from_mins(8);
    spec.disks = disks.to_vec();
    spec
}

/// What an operator reads off a TPM's certificate: SHA-256 of its SubjectPublicKeyInfo.
fn fingerprint(certificate: &[u8]) -> Result<String, Trouble> {
    let words = |e: der::Error| Trouble::Step(format!("the EK certificate cannot be read: {e}"));
    let certificate = Certificate::from_der(certificate).map_err(words)?;
    let spki = certificate.tbs_certificate().subject_public_key_info().to_der().map_err(words)?;
    Ok(hex::encode(Sha256::digest(spki)))
}
