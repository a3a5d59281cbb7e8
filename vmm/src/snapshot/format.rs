//! The file of the state: a head, and the state in postcard's encoding.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | `PCLSNAP` and a zero |
//! | 8 | 4 | version of the format, little endian like all numbers |
//! | 12 | 8 | bytes of the state |
//! | 20 | 32 | SHA-256 of everything else in the file |
//! | 52 | | the state |
//!
//! The checksum finds accidents: files cut short, mixed up or damaged. Against somebody who writes files on purpose
//! everything that is read is checked again where it is used, but what a guest's registers should be nobody can check.
//! And the configuration in it names files, taps and sockets of the host, which are opened with the rights of the process
//! that loads it. So load only what a VMM of yours has written and nobody else could change: a snapshot from a tenant is
//! as dangerous as a `--config-file` from a tenant.

use sha2::{Digest, Sha256};

use super::State;

/// Version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 3;
/// Largest file. 32 vCPUs take half a MiB; the rest is for devices.
pub const MAX_FILE: u64 = 16 << 20;

const MAGIC: [u8; 8] = *b"PCLSNAP\0";
const HEAD: usize = 52;

/// Why bytes are no snapshot that can be loaded. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Another file.
    #[error("this is no snapshot of portcullis-vmm")]
    NotASnapshot,
    /// Made by another version.
    #[error(
        "the snapshot's format is version {0}, this VMM knows version {VERSION}; load it with the VMM that made it"
    )]
    Version(u32),
    /// It ends too early: the VMM that wrote it did not get to its end.
    #[error("the snapshot is cut short: {found} bytes of {expected}")]
    Truncated {
        /// Bytes that the head announces.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// It does not end where it should.
    #[error("the snapshot goes on behind its end: {found} bytes instead of {expected}")]
    TooLong {
        /// Bytes that the head announces.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Larger than any snapshot.
    #[error("the snapshot is larger than {MAX_FILE} bytes")]
    TooBig,
    /// Damaged.
    #[error("the snapshot is damaged: its checksum does not match")]
    Checksum,
    /// Checksum and state do not go together with what this VMM writes.
    #[error("the snapshot's state cannot be read: {0}")]
    State(String),
}

/// What stands at the head.
struct Head {
    version: u32,
    len: u64,
    checksum: [u8; 32],
}

impl Head {
    /// Reads it; gives the rest too.
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(FormatError::NotASnapshot)?;
        if *magic != MAGIC {
            return Err(FormatError::NotASnapshot);
        }
        let short = FormatError::Truncated { expected: HEAD as u64, found: bytes.len() as u64 };
        let (version, rest) = rest.split_first_chunk().ok_or(short.clone())?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let (len, rest) = rest.split_first_chunk().ok_or(short.clone())?;
        let (checksum, rest) = rest.split_first_chunk().ok_or(short)?;
        Ok((Self { version, len: u64::from_le_bytes(*len), checksum: *checksum }, rest))
    }

    fn sum(version: u32, state: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(MAGIC);
        hash.update(version.to_le_bytes());
        hash.update((state.len() as u64).to_le_bytes());
        hash.update(state);
        hash.finalize().into()
    }
}

/// The version of the format that wrote a file, from its first bytes; also where it is none that can be loaded.
pub fn describe(head: &[u8]) -> Result<u32, FormatError> {
    match Head::split(head) {
        Ok((head, _)) => Ok(head.version),
        Err(FormatError::Version(version)) => Ok(version),
        Err(error) => Err(error),
    }
}

/// Reads a whole file.
pub fn parse(bytes: &[u8]) -> Result<State, FormatError> {
    let found = bytes.len() as u64;
    if found > MAX_FILE {
        return Err(FormatError::TooBig);
    }
    let (head, payload) = Head::split(bytes)?;
    let expected = head.len.saturating_add(HEAD as u64);
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => return Err(FormatError::Truncated { expected, found }),
        std::cmp::Ordering::Greater => return Err(FormatError::TooLong { expected, found }),
        std::cmp::Ordering::Equal => {}
    }
    if Head::sum(head.version, payload) != head.checksum {
        return Err(FormatError::Checksum);
    }
    match postcard::take_from_bytes(payload) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(FormatError::State("something follows it".to_owned())),
        Err(error) => Err(FormatError::State(error.to_string())),
    }
}

/// The bytes of a whole file.
pub fn encode(state: &State) -> Result<Vec<u8>, FormatError> {
    let payload = postcard::to_allocvec(state).map_err(|e| FormatError::State(e.to_string()))?;
    let mut file = Vec::with_capacity(HEAD + payload.len());
    file.extend(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend((payload.len() as u64).to_le_bytes());
    file.extend(Head::sum(VERSION, &payload));
    file.extend(payload);
    if file.len() as u64 > MAX_FILE { Err(FormatError::TooBig) } else { Ok(file) }
}

#[cfg(test)]
mod tests;
