//! What can be set in the service's TOML file. Everything has a default; an unknown setting is an error.

use std::time::Duration;

use serde::Deserialize;

/// The settings.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a challenge can be answered, seconds, 1 to 3600.
    pub nonce_ttl_s: u64,
    /// How long an attestation result is good, seconds, 1 to 86400.
    pub result_ttl_s: u64,
    /// How long an enrolment statement anchors evidence that is judged offline, seconds, 1 to 31622400 (366 days).
    pub enrolment_ttl_s: u64,
    /// How long a launch order can be used, seconds, 1 to 86400.
    pub order_ttl_s: u64,
    /// Most VMs that are placed on one host.
    pub max_vms: u32,
    /// Most connections at a time.
    pub max_connections: usize,
    /// How long a TLS handshake may take, seconds.
    pub handshake_timeout_s: u64,
    /// How long a request may take, its body included, seconds.
    pub request_timeout_s: u64,
    /// How long a connection may stay open, seconds.
    pub connection_lifetime_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nonce_ttl_s: 120,
            result_ttl_s: 300,
            enrolment_ttl_s: 30 * 86_400,
            order_ttl_s: 300,
            max_vms: 8,
            max_connections: 256,
            handshake_timeout_s: 10,
            request_timeout_s: 30,
            connection_lifetime_s: 600,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the TOML of a configuration.
    #[error("the configuration cannot be read: {0}")]
    Toml(#[from] toml::de::Error),
    /// Out of bounds.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
}

impl Config {
    /// Reads and checks TOML.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        let bounds = [
            ("nonce_ttl_s", config.nonce_ttl_s, 3_600),
            ("result_ttl_s", config.result_ttl_s, 86_400),
            ("enrolment_ttl_s", config.enrolment_ttl_s, 366 * 86_400),
            ("order_ttl_s", config.order_ttl_s, 86_400),
            ("max_vms", config.max_vms.into(), 10_000),
            ("max_connections", config.max_connections as u64, 100_000),
            ("handshake_timeout_s", config.handshake_timeout_s, 3_600),
            ("request_timeout_s", config.request_timeout_s, 3_600),
            ("connection_lifetime_s", config.connection_lifetime_s, 86_400),
        ];
        match bounds.iter().find(|(_, value, most)| *value == 0 || value > most) {
            Some((setting, ..)) => Err(ConfigError::Bounds(setting)),
            None => Ok(config),
        }
    }

    /// [`Config::request_timeout_s`] as a duration.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_shows_every_default_and_nothing_else() {
        let example = include_str!("../../config.example.toml");
        assert_eq!(Config::from_toml(example).unwrap(), Config::default());
        let settings: toml::Table = toml::from_str(example).unwrap();
        assert_eq!(settings.len(), 9);
        assert_eq!(Config::from_toml("").unwrap(), Config::default());
        assert!(Config::from_toml("max_vms = 0").is_err());
        assert!(Config::from_toml("nonce_ttl_s = 3601").is_err());
        assert!(Config::from_toml("enrolment_ttl_s = 0").is_err());
        assert!(Config::from_toml("enrolment_ttl_s = 31622401").is_err());
        assert!(Config::from_toml("more = 1").is_err());
    }
}
