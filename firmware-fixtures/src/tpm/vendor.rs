//! The lab's TPM vendor: a root CA and an issuing CA that sign EK and platform certificates, made by `swtpm_localca`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::{SwtpmError, io_error, tail};
use crate::workdir::{self, CacheLock};

/// A TPM vendor of the lab with its own keys. TPMs of two vendors chain to different roots.
#[derive(Debug, Clone)]
pub struct VendorCa {
    dir: PathBuf,
    /// Removes the directory with the last user of a vendor made for one test.
    _own: Option<Arc<TempDir>>,
}

impl VendorCa {
    /// The vendor all TPMs of the lab come from unless said otherwise; kept in the cache directory.
    ///
    /// # Errors
    /// When the certificates cannot be made.
    pub fn shared() -> Result<Self, SwtpmError> {
        let cache = workdir::cache_dir().map_err(io_error("cannot make the lab's cache directory"))?;
        Self::in_dir(&cache.join("tpm-vendor"), None)
    }

    /// Another vendor, for one test: same names in its certificates, other keys.
    ///
    /// # Errors
    /// When the certificates cannot be made.
    pub fn new() -> Result<Self, SwtpmError> {
        let dir = workdir::scratch("vendor").map_err(io_error("cannot make a directory for a TPM vendor"))?;
        let path = dir.path().to_owned();
        Self::in_dir(&path, Some(Arc::new(dir)))
    }

    fn in_dir(dir: &Path, own: Option<Arc<TempDir>>) -> Result<Self, SwtpmError> {
        fs::create_dir_all(dir).map_err(io_error(format!("cannot make {}", dir.display())))?;
        let vendor = Self { dir: dir.to_owned(), _own: own };
        let _lock = CacheLock::take_in(dir, "vendor").map_err(io_error("cannot lock the TPM vendor's directory"))?;
        if !vendor.dir.join("ready").exists() {
            vendor.found()?;
        }
        Ok(vendor)
    }

    /// The root certificate's PEM file: what a verifier is told to trust.
    pub fn root_pem(&self) -> PathBuf {
        self.dir.join("swtpm-localca-rootca-cert.pem")
    }

    /// The issuing CA's PEM file: the intermediate between the root and EK certificates.
    pub fn issuer_pem(&self) -> PathBuf {
        self.dir.join("issuercert.pem")
    }

    /// Root and issuing CA in one PEM text.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn chain_pem(&self) -> Result<String, SwtpmError> {
        let mut chain = String::new();
        for path in [self.root_pem(), self.issuer_pem()] {
            chain += &fs::read_to_string(&path).map_err(io_error(format!("cannot read {}", path.display())))?;
        }
        Ok(chain)
    }

    /// Makes keys and certificates. `swtpm_localca` makes them when it signs for the first time, so it signs once for a key
    /// nobody has.
    fn found(&self) -> Result<(), SwtpmError> {
        let dir = self.dir.display();
        let write = |name: &str, text: String| {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(io_error(format!("cannot write {}", path.display())))
        };
        write(
            "localca.conf",
            format!(
                "statedir = {dir}\nsigningkey = {dir}/signkey.pem\nissuercert = {dir}/issuercert.pem\n\
                 certserial = {dir}/certserial\n"
            ),
        )?;
        let options = "--platform-manufacturer Portcullis-Lab\n--platform-version 1.0\n--platform-model QEMU\n";
        write("localca.options", options.to_owned())?;
        write(
            "setup.conf",
            format!(
                "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {dir}/localca.conf\n\
                 create_certs_tool_options = {dir}/localca.options\nactive_pcr_banks = sha1,sha256,sha384\n"
            ),
        )?;
        let mut command = Command::new("swtpm_localca");
        command.args(["--type", "ek", "--ek", &"c5".repeat(256), "--dir"]).arg(&self.dir);
        command.args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"]);
        command.args(["--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023"]);
        command.args(["--tpm2", "--vmid", "first"]);
        command.arg("--configfile").arg(self.dir.join("localca.conf"));
        command.arg("--optsfile").arg(self.dir.join("localca.options"));
        run("swtpm_localca", command)?;
        write("ready", String::new())
    }

    /// Manufactures a TPM into `state`: new seeds (so distinct keys), EKs, certificates in NV, PCR banks.
    pub(super) fn manufacture(&self, state: &Path) -> Result<(), SwtpmError> {
        let mut command = Command::new("swtpm_setup");
        command.arg("--tpm2").arg("--tpmstate").arg(state);
        command.arg("--config").arg(self.dir.join("setup.conf"));
        command.args(["--createek", "--create-ek-cert", "--create-platform-cert"]);
        command.args(["--pcr-banks", "sha1,sha256,sha384"]);
        command.arg("--write-ek-cert-files").arg(state);
        run("swtpm_setup", command)
    }
}

fn run(program: &str, mut command: Command) -> Result<(), SwtpmError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fail = |source| SwtpmError::Program { program: program.to_owned(), source };
    let output = crate::child::spawn_guarded(command).map_err(fail)?.wait_with_output().map_err(fail)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Err(SwtpmError::Manufacture { program: program.to_owned(), status: output.status.to_string(), output: tail(&text) })
}
