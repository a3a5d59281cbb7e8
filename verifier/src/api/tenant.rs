//! What tenants ask and are answered: volumes and VMs.

use serde::{Deserialize, Serialize};
use serde_with::base64::Base64;
use serde_with::serde_as;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Pins;
use crate::order::{VmSpec, VolumeFile};
use crate::reason::Reason;

/// `PUT /v1/volumes/{name}`: the key that opens the tenant's volume.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// The key, 16 to 128 bytes (what fits a TPM object).
    #[serde_as(as = "Base64")]
    pub key: Vec<u8>,
    /// What the tenant pins. Absent: nothing of a new volume; of one that is there, what was pinned stays. Whoever changes
    /// pins has to know the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[zeroize(skip)]
    pub pins: Option<Pins>,
}

/// One volume, in the answer to `GET /v1/volumes`. Never its key.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// The order that holds it, if one does.
    pub held_by: Option<String>,
    /// What the tenant pinned.
    pub pins: Pins,
}

/// Answer to `GET /v1/volumes`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VolumesResponse {
    /// The tenant's volumes, by name.
    pub volumes: Vec<VolumeView>,
}

/// `POST /v1/vms`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// The tenant's name for the VM.
    pub name: String,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u64,
    /// Kernel command line.
    pub cmdline: String,
    /// The kernel, inside the volume.
    pub kernel: VolumeFile,
    /// The initial RAM file system, inside the volume.
    #[serde(default)]
    pub initrd: Option<VolumeFile>,
    /// The tenant's volume.
    pub volume: String,
    /// Only this host will do.
    #[serde(default)]
    pub host: Option<String>,
}

impl LaunchRequest {
    /// The VM that is asked for.
    pub fn vm(&self) -> VmSpec {
        VmSpec {
            name: self.name.clone(),
            vcpus: self.vcpus,
            mem_mib: self.mem_mib,
            cmdline: self.cmdline.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
        }
    }
}

/// Answer to [`LaunchRequest`].
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct LaunchResponse {
    /// The order's id.
    pub order_id: String,
    /// The host that was chosen.
    pub host: String,
    /// The order's JWS.
    pub order: String,
}

/// Why one host was not chosen.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct WhyNot {
    /// The host.
    pub host: String,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// No host could be found, HTTP 409.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct NotPlaced {
    /// For every host, why not. Empty when no host is enrolled.
    pub why_not: Vec<WhyNot>,
}

/// What became of an order.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OrderState {
    /// Signed, not used yet.
    Placed,
    /// The volume key went to the host.
    Released,
    /// The host says that the VM runs.
    Running,
    /// The host says that the VM is gone.
    Ended,
    /// Never used, and too late now.
    Expired,
}

/// One VM, as its tenant sees it.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VmView {
    /// The order's id.
    pub order_id: String,
    /// The VM's name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Where it is.
    pub host: String,
    /// Its volume.
    pub volume: String,
    /// What became of it.
    pub state: OrderState,
    /// When it was placed, seconds since 1970.
    pub placed_at: u64,
    /// The last receipt's words.
    pub detail: String,
}

/// Answer to `GET /v1/vms`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VmsResponse {
    /// The tenant's VMs, newest first.
    pub vms: Vec<VmView>,
}
