//! How to reach the verifier, from flags and configuration.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use portcullis_verifier::client::{Client, Identity, Limits};
use serde::Deserialize;

use crate::failure::Failure;
use crate::files::{self, SMALL};

/// Commands that ask the verifier, with how to reach it.
#[derive(Args, Debug)]
pub struct Asking<C: Subcommand> {
    /// How to reach it.
    #[command(flatten)]
    pub connection: ConnectionArguments,
    /// What to ask.
    #[command(subcommand)]
    pub command: C,
}

/// Flags that say how to reach the verifier; each wins over the configuration.
#[derive(Args, Debug, Default)]
pub struct ConnectionArguments {
    /// Configuration: TOML with url, ca, cert and key [default: $XDG_CONFIG_HOME/portcullis/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_CONFIG", help_heading = "Connection")]
    config: Option<PathBuf>,
    /// The verifier: https://name:port
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    url: Option<String>,
    /// The verifier's CA (PEM)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    ca: Option<PathBuf>,
    /// Your certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    cert: Option<PathBuf>,
    /// Your private key (PEM)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    key: Option<PathBuf>,
}

/// The configuration file. Relative paths in it are relative to its directory.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct Config {
    url: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl ConnectionArguments {
    /// A client of the verifier, with the caller's certificate.
    pub fn connect(&self) -> Result<Client, Failure> {
        let config = self.load()?;
        let path = |flag: &Option<PathBuf>, set: Option<PathBuf>, name: &str| {
            flag.clone().or(set).ok_or_else(|| missing(name))
        };
        let url = self.url.clone().or(config.url).ok_or_else(|| missing("url"))?;
        let ca = files::read(&path(&self.ca, config.ca, "ca")?, SMALL)?;
        let cert = files::read(&path(&self.cert, config.cert, "cert")?, SMALL)?;
        let key = files::read_secret(&path(&self.key, config.key, "key")?, 64 * 1024)?;
        let identity = Identity::from_pem(&cert, &key)?;
        Ok(Client::new(&url, &ca, Some(&identity), Limits::default())?)
    }

    fn load(&self) -> Result<Config, Failure> {
        let (path, asked) = match (&self.config, default_path()) {
            (Some(path), _) => (path.clone(), true),
            (None, Some(path)) => (path, false),
            (None, None) => return Ok(Config::default()),
        };
        if !asked && !path.exists() {
            return Ok(Config::default());
        }
        let text = files::read_text(&path, SMALL)?;
        let mut config: Config =
            toml::from_str(&text).map_err(|error| Failure::Content { path: path.clone(), text: error.to_string() })?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for file in [&mut config.ca, &mut config.cert, &mut config.key].into_iter().flatten() {
            *file = dir.join(&*file);
        }
        Ok(config)
    }
}

fn missing(name: &str) -> Failure {
    Failure::Usage(format!("it is not known how to reach the verifier: give --{name}, or `{name}` in a --config file"))
}

fn default_path() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".config")))?;
    Some(base.join("portcullis/config.toml"))
}
