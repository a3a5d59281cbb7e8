//! `mmds-config`, as Firecracker writes it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, objects_only};
use crate::devices::net::NetworkInterface;

/// Where the guest finds the service, if nothing else is configured.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How the guest asks.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// By a request.
    #[default]
    V1,
    /// By a request of a session, which begins with a token.
    V2,
}

/// Which cards reach the metadata service, and how.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MmdsConfig {
    /// Whether the guest needs a session.
    #[serde(default)]
    pub version: Version,
    /// The `iface_id` of each card that reaches it.
    pub network_interfaces: Vec<String>,
    /// Where the guest finds it: a link-local address, [`DEFAULT_ADDRESS`] if there is none.
    #[serde(default)]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Whether answers are always lists and text, as those of EC2, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

objects_only!(MmdsConfig);

fn refused<T>(field: &'static str, found: String, allowed: &str) -> Result<T, ConfigError> {
    Err(ConfigError::OutOfRange { field, found, allowed: allowed.to_owned() })
}

/// Whether a host may have the address by itself (RFC 3927, section 2.1: the first and the last 256 are reserved).
fn is_link_local(address: Ipv4Addr) -> bool {
    let [_, _, third, _] = address.octets();
    address.is_link_local() && (1..=254).contains(&third)
}

impl MmdsConfig {
    /// Where the guest finds the service.
    pub fn address(&self) -> Ipv4Addr {
        self.ipv4_address.unwrap_or(DEFAULT_ADDRESS)
    }

    /// The same with the address named.
    #[must_use]
    pub fn with_address(self) -> Self {
        Self { ipv4_address: Some(self.address()), ..self }
    }

    /// Whether the card `iface_id` reaches it.
    pub fn serves(&self, iface_id: &str) -> bool {
        self.network_interfaces.iter().any(|id| id == iface_id)
    }

    /// Checks the values against the VM's cards.
    pub fn check(&self, interfaces: &[NetworkInterface]) -> Result<(), ConfigError> {
        const INTERFACES: &str = "mmds-config.network_interfaces";
        if self.network_interfaces.is_empty() {
            return refused(INTERFACES, "empty".to_owned(), "the iface_id of at least one network interface");
        }
        let known = |id: &&String| interfaces.iter().any(|interface| interface.iface_id == **id);
        if let Some(unknown) = self.network_interfaces.iter().find(|id| !known(id)) {
            let found: String = unknown.chars().take(80).collect();
            return refused(INTERFACES, format!("{found:?}"), "the iface_id of network interfaces of this VM");
        }
        match self.ipv4_address.filter(|address| !is_link_local(*address)) {
            Some(address) => refused("mmds-config.ipv4_address", address.to_string(), "169.254.1.0 to 169.254.254.255"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &str) -> Option<&'static str> {
        let config: MmdsConfig = serde_json::from_str(text).unwrap();
        match config.check(&[NetworkInterface::new("eth0", "tap0")]) {
            Ok(()) => None,
            Err(ConfigError::OutOfRange { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn firecrackers_object_is_read_with_its_defaults() {
        let config: MmdsConfig = serde_json::from_str(r#"{"network_interfaces": ["eth0"]}"#).unwrap();
        let expected = (Version::V1, DEFAULT_ADDRESS, false);
        assert_eq!((config.version, config.address(), config.imds_compat), expected);
        assert!(config.serves("eth0") && !config.serves("eth1"));
        let all = r#"{"version":"V2","network_interfaces":["eth0"],"ipv4_address":"169.254.170.2","imds_compat":true}"#;
        let config: MmdsConfig = serde_json::from_str(all).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), all);
        assert!(serde_json::from_str::<MmdsConfig>(r#"{"network_interfaces": ["eth0"], "port": 80}"#).is_err());
    }

    #[test]
    fn cards_and_addresses_that_cannot_be_are_refused() {
        assert_eq!(field(r#"{"network_interfaces": ["eth0"]}"#), None);
        assert_eq!(field(r#"{"network_interfaces": []}"#), Some("mmds-config.network_interfaces"));
        assert_eq!(field(r#"{"network_interfaces": ["eth0", "eth1"]}"#), Some("mmds-config.network_interfaces"));
        let with = |address| field(&format!(r#"{{"network_interfaces": ["eth0"], "ipv4_address": "{address}"}}"#));
        assert_eq!([with("169.254.1.0"), with("169.254.254.255")], [None; 2]);
        for address in ["10.0.0.1", "169.254.0.255", "169.254.255.0", "255.255.255.255", "0.0.0.0"] {
            assert_eq!(with(address), Some("mmds-config.ipv4_address"), "{address}");
        }
    }
}
