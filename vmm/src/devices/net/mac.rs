//! Hardware addresses, as people write them.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The bit of the first byte that says that an address is a group's.
const GROUP: u8 = 1;
/// The bit of the first byte that says that an address is nobody's but who made it up.
const LOCAL: u8 = 2;

/// An Ethernet address of one card: `06:00:ac:10:00:02`.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Hash)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// From its six bytes, the first on the wire first.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A new address of one card, administered locally (IEEE 802c): 46 random bits.
    pub fn random() -> io::Result<Self> {
        let mut bytes = random_bytes()?;
        let [first, ..] = &mut bytes;
        *first = *first & !GROUP | LOCAL;
        Ok(Self(bytes))
    }

    /// Its six bytes, the first on the wire first.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether it stands for one card and not for a group of them (IEEE 802, the lowest bit of the first byte).
    pub const fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & GROUP == 0
    }
}

fn random_bytes() -> io::Result<[u8; 6]> {
    let mut bytes = [0; 6];
    // SAFETY: the kernel writes at most as many bytes as there are.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few bytes are never given in part.
    if usize::try_from(got) == Ok(bytes.len()) { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no hardware address: six pairs of hexadecimal digits, with colons between them")]
pub struct NotAMacAddress(String);

impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    fn from_str(text: &str) -> Result<Self, NotAMacAddress> {
        // Only the start is repeated: the text may be long.
        let refused = || NotAMacAddress(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let digits = |pair: &&str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
            let pair = pairs.next().filter(digits).ok_or_else(refused)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refused())?;
        }
        if pairs.next().is_some() { Err(refused()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NotAMacAddress;

    fn try_from(text: String) -> Result<Self, NotAMacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: [u8; 6]) {
            let address = MacAddress::new(bytes);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(address.to_string().to_uppercase().parse(), Ok(address));
        }

        #[test]
        fn any_text_is_an_address_or_refused(text in "[0-9a-f:+ é]{0,24}") {
            if let Ok(address) = text.parse::<MacAddress>() {
                prop_assert_eq!(address.to_string(), text.to_lowercase());
            }
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "06:00:00:00:00", "06:00:00:00:00:00:00", "6:0:0:0:0:0", "06-00-00-00-00-00", "+6:00:00:00:00:00"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
        assert!("06:00:00:00:00:01".parse::<MacAddress>().unwrap().is_unicast());
        assert!(!"01:00:5e:00:00:01".parse::<MacAddress>().unwrap().is_unicast());
    }
}
