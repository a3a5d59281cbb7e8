//! The agent's configuration: one TOML file, every key checked, unknown keys refused.
//!
//! Only `host` and `verifier_url` have no default. What decides whom the host obeys (the verifier's CA and its
//! order keys) is not in this file but in the trust directory, see [`crate::trust`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Where the configuration is looked for when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/portcullis/agent.toml";

/// A configuration file larger than this is refused: ours has some twenty short lines.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;

/// Why some keys are fixed on measured hosts.
const MEASURED: &str = "this host's measured initrd laid /run/portcullis/trust, and this file is not measured; leave the \
                        key out";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; give another with --config")]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the TOML that is expected.
    #[error("{path} is not a valid configuration: {text}")]
    Parse {
        /// The file that was read.
        path: PathBuf,
        /// The parser's message, with line and column.
        text: String,
    },
    /// A value is outside what is allowed.
    #[error("{path}: `{key}` {text}")]
    Value {
        /// The file that was read.
        path: PathBuf,
        /// The key whose value is refused.
        key: &'static str,
        /// What is wrong and what is allowed.
        text: String,
    },
}

/// The agent's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's id: 1 to 64 characters of `[a-z0-9.-]`. It stands in every quote.
    pub host: String,
    /// Where the verifier listens: `https://name-or-address:port`.
    pub verifier_url: String,
    /// Directory with `ca.pem`, `order-keys.json` and `verifier-id`, laid there by the measured initrd. Where the default
    /// exists, this, `vmm` and `cryptsetup` cannot be set: this file is not measured.
    #[serde(default = "default_trust_dir")]
    pub trust_dir: PathBuf,
    /// What lasts over restarts: the attestation key's blob and one directory a VM.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// What dies with the boot: mount points of open volumes and VM configurations. Should be a tmpfs.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Volume images, named `<tenant>.<volume>.luks`.
    #[serde(default = "default_volumes_dir")]
    pub volumes_dir: PathBuf,
    /// How to reach the TPM, in tss2's words: `device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=2321`. Where no
    /// resource manager stands between (as behind `/dev/tpm0`), a killed agent's keys stay loaded until they are flushed.
    #[serde(default = "default_tcti")]
    pub tcti: String,
    /// The firmware's event log.
    #[serde(default = "default_eventlog")]
    pub eventlog: PathBuf,
    /// IMA's list of measurements, in its binary form.
    #[serde(default = "default_ima")]
    pub ima: PathBuf,
    /// The program that runs one VM.
    #[serde(default = "default_vmm")]
    pub vmm: PathBuf,
    /// The program that opens LUKS2 volumes.
    #[serde(default = "default_cryptsetup")]
    pub cryptsetup: PathBuf,
    /// Seconds between two quotes while serving (1 to 3600).
    #[serde(default = "default_interval")]
    pub interval_s: u32,
    /// Seconds between two looks for orders while serving (1 to 3600).
    #[serde(default = "default_poll")]
    pub poll_s: u32,
    /// VMs that may run at once (1 to 1024).
    #[serde(default = "default_max_vms")]
    pub max_vms: u32,
    /// Bytes kept of each VM's console and of each VM's log (4096 to 1 GiB); what comes later is dropped.
    #[serde(default = "default_log_bytes")]
    pub max_log_bytes: u64,
    /// Keep in the state directory what was last sent and received: `artifacts/attest.json`, the last evidence, and in
    /// each VM's directory `wrapped.json`, its wrapped key. For auditors and tests; nothing in them is secret, but who is
    /// root on this host can open the wrapped key again until the next boot.
    #[serde(default)]
    pub keep_artifacts: bool,
}

fn default_trust_dir() -> PathBuf {
    "/run/portcullis/trust".into()
}
fn default_state_dir() -> PathBuf {
    "/var/lib/portcullis-agent".into()
}
fn default_runtime_dir() -> PathBuf {
    "/run/portcullis-agent".into()
}
fn default_volumes_dir() -> PathBuf {
    "/var/lib/portcullis/volumes".into()
}
fn default_tcti() -> String {
    "device:/dev/tpmrm0".into()
}
fn default_eventlog() -> PathBuf {
    "/sys/kernel/security/tpm0/binary_bios_measurements".into()
}
fn default_ima() -> PathBuf {
    "/sys/kernel/security/ima/binary_runtime_measurements".into()
}
fn default_vmm() -> PathBuf {
    "/usr/bin/portcullis-vmm".into()
}
fn default_cryptsetup() -> PathBuf {
    "/usr/sbin/cryptsetup".into()
}
fn default_interval() -> u32 {
    30
}
fn default_poll() -> u32 {
    2
}
fn default_max_vms() -> u32 {
    16
}
fn default_log_bytes() -> u64 {
    4 * 1024 * 1024
}

impl Config {
    /// Reads and checks the configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(read)?;
        file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::Parse {
                path: path.to_owned(),
                text: format!("it is larger than {MAX_CONFIG_BYTES} bytes"),
            });
        }
        let config = Self::parse(path, &text)?;
        if default_trust_dir().exists() {
            config.check_measured().map_err(|key| ConfigError::Value {
                path: path.to_owned(),
                key,
                text: format!("cannot be changed here: {MEASURED}"),
            })?;
        }
        Ok(config)
    }

    /// On a host whose measured initrd laid the trust files, this file must not say whom the host obeys nor which programs
    /// get its keys: it lies on a disk, its contents are measured nowhere, and a listed shell in the place of
    /// `cryptsetup` would be handed the key of a volume without a trace. Gives the key that is not at its default.
    fn check_measured(&self) -> Result<(), &'static str> {
        let fixed = [
            ("trust_dir", &self.trust_dir, default_trust_dir()),
            ("vmm", &self.vmm, default_vmm()),
            ("cryptsetup", &self.cryptsetup, default_cryptsetup()),
        ];
        fixed.into_iter().try_for_each(|(key, is, default)| if *is == default { Ok(()) } else { Err(key) })
    }

    /// Checks the text of a configuration file; `path` is for the messages only.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), text: error.to_string() })?;
        config.check().map_err(|(key, text)| ConfigError::Value { path: path.to_owned(), key, text })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if !is_name(&self.host) {
            return Err((
                "host",
                format!("is {:?}: 1 to 64 characters of a-z, 0-9, '.' and '-' are needed", self.host),
            ));
        }
        if !self.verifier_url.starts_with("https://") || self.verifier_url.len() <= "https://".len() {
            let text = format!("is {:?}: an https:// address is needed", self.verifier_url);
            return Err(("verifier_url", text));
        }
        let directories = [
            ("trust_dir", &self.trust_dir),
            ("state_dir", &self.state_dir),
            ("runtime_dir", &self.runtime_dir),
            ("volumes_dir", &self.volumes_dir),
            ("eventlog", &self.eventlog),
            ("ima", &self.ima),
            ("vmm", &self.vmm),
            ("cryptsetup", &self.cryptsetup),
        ];
        for (key, path) in directories {
            if !path.is_absolute() {
                return Err((key, format!("is {}: an absolute path is needed", path.display())));
            }
        }
        for (key, value, max) in
            [("interval_s", self.interval_s, 3600), ("poll_s", self.poll_s, 3600), ("max_vms", self.max_vms, 1024)]
        {
            if value == 0 || value > max {
                return Err((key, format!("is {value}: 1 to {max} is allowed")));
            }
        }
        if !(4096..=1 << 30).contains(&self.max_log_bytes) {
            return Err(("max_log_bytes", format!("is {}: 4096 to 1073741824 is allowed", self.max_log_bytes)));
        }
        Ok(())
    }

    /// Time between two quotes while serving.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_s.into())
    }

    /// Time between two looks for orders while serving.
    pub fn poll(&self) -> Duration {
        Duration::from_secs(self.poll_s.into())
    }
}

/// Whether `text` may be a host id, a verifier id, a tenant or a volume: it can then stand in a file name too.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "host = \"honest\"\nverifier_url = \"https://10.0.2.100:7000\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("agent.toml"), text)
    }

    #[test]
    fn two_lines_are_enough() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.tcti, "device:/dev/tpmrm0");
        assert_eq!(config.interval(), Duration::from_secs(30));
    }

    #[test]
    fn the_example_shows_every_default() {
        let example = parse(include_str!("../agent.example.toml")).unwrap();
        let mut plain = parse(SMALL).unwrap();
        (plain.host, plain.verifier_url) = (example.host.clone(), example.verifier_url.clone());
        assert_eq!(format!("{example:?}"), format!("{plain:?}"));
        for key in format!("{example:?}").split([' ', '{']).filter_map(|word| word.strip_suffix(':')) {
            assert!(include_str!("../agent.example.toml").contains(&format!("\n{key} = ")), "{key} is not shown");
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = parse(&format!("{SMALL}intervall_s = 3\n")).unwrap_err().to_string();
        assert!(error.contains("intervall_s"), "{error}");
    }

    #[test]
    fn bad_values_name_their_key() {
        for (line, key) in [
            ("host = \"Honest\"", "host"),
            ("host = \"../x\"", "host"),
            ("host = \"\"", "host"),
            ("verifier_url = \"http://10.0.2.100\"", "verifier_url"),
            ("verifier_url = \"https://\"", "verifier_url"),
            ("state_dir = \"state\"", "state_dir"),
            ("interval_s = 0", "interval_s"),
            ("poll_s = 4000", "poll_s"),
            ("max_vms = 0", "max_vms"),
            ("max_log_bytes = 1", "max_log_bytes"),
        ] {
            let (name, _) = line.split_once(" =").unwrap();
            let rest: Vec<&str> = SMALL.lines().filter(|other| !other.starts_with(name)).collect();
            let error = parse(&format!("{}\n{line}\n", rest.join("\n"))).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{line}: {error}");
        }
    }

    #[test]
    fn on_a_measured_host_the_file_cannot_choose_who_gets_keys() {
        assert_eq!(parse(SMALL).unwrap().check_measured(), Ok(()));
        for key in ["trust_dir", "vmm", "cryptsetup"] {
            let config = parse(&format!("{SMALL}{key} = \"/somewhere/else\"\n")).unwrap();
            assert_eq!(config.check_measured(), Err(key));
        }
        let free = parse(&format!("{SMALL}state_dir = \"/somewhere/else\"\n")).unwrap();
        assert_eq!(free.check_measured(), Ok(()));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.toml") && error.contains("--config"), "{error}");
    }
}
