//! `vsock`, as Firecracker writes it.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, objects_only};

/// Lowest address of a guest: those below belong to hypervisor, loopback and host (virtio 1.2, section 5.10.4).
pub const MIN_CID: u32 = 3;
/// Highest address of a guest: all ones means "any".
pub const MAX_CID: u32 = u32::MAX - 1;
/// Most bytes of the socket's path: with `_` and the longest port, 11 bytes, it is as long as `sockaddr_un` can hold
/// beside its final NUL.
const MAX_PATH: usize = 107 - 11;

/// Sockets between guest and host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct VsockConfig {
    /// Firecracker's old name of the device, which means nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// The guest's address, [`MIN_CID`] to [`MAX_CID`].
    pub guest_cid: u32,
    /// The unix socket that programs of the host connect to. It must not exist. The guest's own connections to port P
    /// of the host go to the socket of this path followed by `_P`.
    pub uds_path: PathBuf,
}

objects_only!(VsockConfig);

impl VsockConfig {
    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(MIN_CID..=MAX_CID).contains(&self.guest_cid) {
            return Err(ConfigError::OutOfRange {
                field: "vsock.guest_cid",
                found: self.guest_cid.to_string(),
                allowed: format!("{MIN_CID} to {MAX_CID}"),
            });
        }
        let path = self.uds_path.as_os_str().as_bytes();
        if !(1..=MAX_PATH).contains(&path.len()) || path.contains(&0) {
            return Err(ConfigError::OutOfRange {
                field: "vsock.uds_path",
                found: format!("a path of {} bytes", path.len()),
                allowed: format!("1 to {MAX_PATH} bytes without NUL"),
            });
        }
        Ok(())
    }
}
