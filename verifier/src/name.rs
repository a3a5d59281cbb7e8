//! Names of hosts, verifiers, tenants, VMs and volumes.

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// A name that is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} must be 1 to {MAX_NAME} characters of a-z, 0-9, '.' and '-'")]
pub struct NameError {
    what: &'static str,
}

/// Checks that `name` is 1 to 64 characters of `[a-z0-9.-]`, the only form that is bound into quotes.
/// `what` says in the error what was named.
pub fn check(what: &'static str, name: &str) -> Result<(), NameError> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
        return Err(NameError { what });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_of_at_most_64_bytes() {
        for good in ["a", "host-1.rack-2", &"x".repeat(64)] {
            assert_eq!(check("host", good), Ok(()));
        }
        for bad in ["", "A", "a b", "a/b", "ä", "a\n", "a\0", &"x".repeat(65)] {
            assert!(check("host", bad).is_err(), "{bad:?}");
        }
    }
}
