//! `network-interfaces`, as Firecracker writes them.

use serde::{Deserialize, Serialize};

use super::mac::MacAddress;
use crate::config::{ConfigError, objects_only};
use crate::rate_limiter::RateLimiterConfig;

/// Longest name of a network interface of the host, in bytes (`IFNAMSIZ` less the closing NUL).
pub const MAX_HOST_NAME: usize = 15;
/// Longest `iface_id`, in bytes.
const MAX_ID: usize = 64;
/// Least and most of an MTU: what IPv4 asks of every link, and what its header can say.
const MTUS: std::ops::RangeInclusive<u16> = 68..=u16::MAX;

/// A network card of the guest, and the tap of the host that it is plugged into.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name in the API and in metrics.
    pub iface_id: String,
    /// Name of the tap, which must exist.
    pub host_dev_name: String,
    /// The card's address. Frames that the guest sends from another one are dropped. Without it the card is given one,
    /// administered locally, which it keeps for the VM's life and in its snapshots.
    #[serde(default)]
    pub guest_mac: Option<MacAddress>,
    /// Largest packet, in bytes, that the guest is told of.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Limits what the guest receives.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits what the guest sends.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

objects_only!(NetworkInterface);

fn refused<T>(field: &'static str, found: impl Into<String>, allowed: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::OutOfRange { field, found: found.into(), allowed: allowed.into() })
}

/// Whether the host's kernel takes `name` for an interface, as it is: `%d` would stand for a number of its choice.
fn is_host_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    (1..=MAX_HOST_NAME).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..")
}

impl NetworkInterface {
    /// A card on the tap `host_dev_name`, with an address that is made up.
    pub fn new(iface_id: impl Into<String>, host_dev_name: impl Into<String>) -> Self {
        Self {
            iface_id: iface_id.into(),
            host_dev_name: host_dev_name.into(),
            guest_mac: None,
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }

    /// Checks the values.
    pub fn check(&self) -> Result<(), ConfigError> {
        let id_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let id = &self.iface_id;
        if !(1..=MAX_ID).contains(&id.len()) || !id.bytes().all(id_allowed) {
            let allowed = format!("1 to {MAX_ID} letters, digits, underscores and hyphens");
            return refused("network-interfaces.iface_id", format!("{:?}", shortened(id)), allowed);
        }
        let name = &self.host_dev_name;
        if !is_host_name(name) {
            let allowed =
                format!("the name of a tap: 1 to {MAX_HOST_NAME} printable characters without '/', ':' and '%'");
            return refused("network-interfaces.host_dev_name", format!("{:?}", shortened(name)), allowed);
        }
        if let Some(mac) = self.guest_mac.filter(|mac| !mac.is_unicast()) {
            return refused("network-interfaces.guest_mac", format!("{mac}, a group's"), "the address of one card");
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTUS.contains(mtu)) {
            let allowed = format!("{} to {}", MTUS.start(), MTUS.end());
            return refused("network-interfaces.mtu", mtu.to_string(), allowed);
        }
        check_limits(self.rx_rate_limiter.as_ref(), self.tx_rate_limiter.as_ref())
    }

    /// Checks all interfaces of a VM, each and against each other.
    pub fn check_all(interfaces: &[Self]) -> Result<(), ConfigError> {
        for (index, interface) in interfaces.iter().enumerate() {
            interface.check()?;
            let others = interfaces.get(..index).unwrap_or_default();
            let twice = |same: &dyn Fn(&Self) -> bool| others.iter().any(same);
            if twice(&|other| other.iface_id == interface.iface_id) {
                return refused("network-interfaces.iface_id", format!("'{}' twice", interface.iface_id), "each once");
            }
            if twice(&|other| other.host_dev_name == interface.host_dev_name) {
                let found = format!("'{}' twice", interface.host_dev_name);
                return refused("network-interfaces.host_dev_name", found, "a tap for each interface");
            }
            if let Some(mac) = interface.guest_mac
                && twice(&|other| other.guest_mac == Some(mac))
            {
                return refused("network-interfaces.guest_mac", format!("{mac} twice"), "each once");
            }
        }
        Ok(())
    }
}

/// What may be changed of an interface while the VM runs: the buckets that are named; others stay as they are.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkInterfaceUpdate {
    /// Which interface.
    pub iface_id: String,
    /// Limits what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

objects_only!(NetworkInterfaceUpdate);

impl NetworkInterfaceUpdate {
    /// Checks the values.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_limits(self.rx_rate_limiter.as_ref(), self.tx_rate_limiter.as_ref())
    }
}

fn check_limits(rx: Option<&RateLimiterConfig>, tx: Option<&RateLimiterConfig>) -> Result<(), ConfigError> {
    rx.into_iter().chain(tx).try_for_each(RateLimiterConfig::check)
}

/// The start of a text that may be long.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(interfaces: &[NetworkInterface]) -> Option<&'static str> {
        match NetworkInterface::check_all(interfaces) {
            Ok(()) => None,
            Err(ConfigError::OutOfRange { field, .. }) => Some(field),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn firecrackers_object_is_read_and_written() {
        let text = r#"{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"06:00:ac:10:00:02","mtu":1500,"rx_rate_limiter":null,"tx_rate_limiter":null}"#;
        let interface: NetworkInterface = serde_json::from_str(text).unwrap();
        interface.check().unwrap();
        assert_eq!(interface.guest_mac.unwrap().bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(serde_json::to_string(&interface).unwrap(), text);
        assert!(
            serde_json::from_str::<NetworkInterface>(r#"{"iface_id":"a","host_dev_name":"b","queues":2}"#).is_err()
        );
    }

    #[test]
    fn names_that_the_kernel_would_take_for_something_else_are_refused() {
        for name in ["tap0", "fc-tap_0.1", "abcdefghijklmno"] {
            assert_eq!(field(&[NetworkInterface::new("eth0", name)]), None, "{name}");
        }
        for name in ["", "tap%d", "a/b", "a:1", "tap 0", "tap\n", "..", ".", "abcdefghijklmnop", "täp", "tap\0"] {
            let found = field(&[NetworkInterface::new("eth0", name)]);
            assert_eq!(found, Some("network-interfaces.host_dev_name"), "{name:?}");
        }
        for id in ["", "a b", "../x", "é", &"x".repeat(65)] {
            assert_eq!(field(&[NetworkInterface::new(id, "tap0")]), Some("network-interfaces.iface_id"), "{id:?}");
        }
    }

    #[test]
    fn addresses_and_mtus_out_of_range_are_refused() {
        let with = |mac: &str, mtu| NetworkInterface {
            guest_mac: Some(mac.parse().unwrap()),
            mtu: Some(mtu),
            ..NetworkInterface::new("eth0", "tap0")
        };
        assert_eq!(field(&[with("02:00:00:00:00:01", 68)]), None);
        assert_eq!(field(&[with("03:00:00:00:00:01", 68)]), Some("network-interfaces.guest_mac"));
        assert_eq!(field(&[with("02:00:00:00:00:01", 67)]), Some("network-interfaces.mtu"));
    }

    #[test]
    fn two_interfaces_share_nothing() {
        let mac = Some(MacAddress::new([2, 0, 0, 0, 0, 1]));
        let first = NetworkInterface { guest_mac: mac, ..NetworkInterface::new("eth0", "tap0") };
        let with =
            |id, tap, guest_mac| [first.clone(), NetworkInterface { guest_mac, ..NetworkInterface::new(id, tap) }];
        assert_eq!(field(&with("eth1", "tap1", None)), None);
        assert_eq!(field(&with("eth0", "tap1", None)), Some("network-interfaces.iface_id"));
        assert_eq!(field(&with("eth1", "tap0", None)), Some("network-interfaces.host_dev_name"));
        assert_eq!(field(&with("eth1", "tap1", mac)), Some("network-interfaces.guest_mac"));
    }
}
