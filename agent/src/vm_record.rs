//! What the host keeps of every VM, so that a person can see what became of it: one directory an order with
//! `status.json`, `console.log` and `vmm.log`. The status is also what a restarted agent finds out from which VMs
//! ended with the agent before it, so that their receipts are still sent.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_attest::release::WrappedKey;
use serde::{Deserialize, Serialize};

use crate::store::{self, StoreError, make_private_dir};
use crate::volume::is_order_id;

/// Ended VMs whose directories are kept.
const KEPT: usize = 100;

/// Why a VM gets no directory.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The order was carried out before.
    #[error("order {order} was carried out before")]
    Repeated {
        /// The order's id.
        order: String,
    },
    /// It cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a VM's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its key is asked for, its volume is being opened.
    Launching,
    /// Its process runs.
    Running,
    /// Its process ended, or it was ended, and its volume is closed.
    Ended,
    /// Its process is gone, but its volume could not be closed: the key may still be in this host's memory. No receipt is sent,
    /// so the volume is released to no other host until it is closed after all, or an operator has fenced this host.
    Stuck,
    /// It never ran.
    Failed,
}

impl VmState {
    fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Failed)
    }
}

/// The content of `status.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStatus {
    /// The order's id.
    pub order: String,
    /// The tenant whose VM it is.
    pub tenant: String,
    /// The VM's name.
    pub name: String,
    /// The tenant's volume.
    pub volume: String,
    /// Where its life is.
    pub state: VmState,
    /// Whether the TPM gave the volume key and the key opened the volume.
    pub key_opened: bool,
    /// Milliseconds from the VMM's start to the guest's init; absent until the guest got there.
    pub boot_ms: Option<u64>,
    /// The kernel's release, as the guest's kernel printed it on its console.
    pub kernel: Option<String>,
    /// Why it failed or how it ended, in words.
    pub reason: Option<String>,
    /// Whether the verifier still waits for the receipt of the end.
    pub receipt_owed: bool,
    /// When this was written, in seconds since 1970.
    pub updated: u64,
}

/// One VM's directory.
#[derive(Debug)]
pub struct VmRecord {
    dir: PathBuf,
    /// What `status.json` says after the next [`VmRecord::save`].
    pub status: VmStatus,
}

impl VmRecord {
    /// Makes the directory of a new VM. An order whose key may have been released before is not carried out again.
    pub fn create(vms_dir: &Path, status: VmStatus) -> Result<Self, RecordError> {
        let dir = vms_dir.join(&status.order);
        if let Some(before) = load(&dir)
            && (before.status.state != VmState::Failed || before.status.key_opened || before.status.receipt_owed)
        {
            return Err(RecordError::Repeated { order: status.order });
        }
        make_private_dir(&dir)?;
        let mut record = Self { dir, status };
        record.save()?;
        Ok(record)
    }

    /// A record that could not be written: it lives in memory only.
    pub fn unsaved(vms_dir: &Path, status: VmStatus) -> Self {
        Self { dir: vms_dir.join(&status.order), status }
    }

    /// Writes `status.json`.
    pub fn save(&mut self) -> Result<(), StoreError> {
        self.status.updated = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let path = self.dir.join("status.json");
        let mut json = serde_json::to_vec_pretty(&self.status).map_err(|error| StoreError::Io {
            action: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        json.push(b'\n');
        store::write(&path, &json)
    }

    /// Like [`VmRecord::save`], for places where a full disk must not stop what goes on.
    pub fn save_or_warn(&mut self) {
        if let Err(error) = self.save() {
            tracing::error!(order = self.status.order, %error, "the VM's status could not be written");
        }
    }

    /// Writes down that its volume is closed, so that the receipt is owed.
    pub fn closed(&mut self, state: VmState) {
        self.status.state = state;
        self.status.receipt_owed = true;
        self.save_or_warn();
    }

    /// Writes down, and tells loudly, that its volume could not be closed.
    pub fn stuck(&mut self, why: &str) {
        let order = &self.status.order;
        tracing::error!(
            order,
            why,
            "the volume is still open, so no receipt is sent; if it stays so, cut this host off and run `portcullis host fence`"
        );
        if self.status.state != VmState::Stuck {
            let told = self.status.reason.take().unwrap_or_default();
            self.status.reason = Some(format!("{told}; its volume could not be closed: {why}"));
        }
        self.status.state = VmState::Stuck;
        self.status.receipt_owed = false;
        self.save_or_warn();
    }

    /// The file for the guest's console.
    pub fn console_path(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Keeps the wrapped key beside the status (see `keep_artifacts` in the configuration).
    pub fn keep_wrapped_key(&self, wrapped: &WrappedKey) {
        let json = serde_json::to_vec(wrapped).map_err(std::io::Error::from);
        let path = self.dir.join("wrapped.json");
        let kept = json.and_then(|json| store::write(&path, &json).map_err(std::io::Error::other));
        if let Err(error) = kept {
            tracing::warn!(order = self.status.order, %error, "the wrapped key could not be kept");
        }
    }

    /// The file for the VMM's own log.
    pub fn vmm_log_path(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }
}

/// VMs of earlier runs that are not settled.
#[derive(Debug, Default)]
pub struct Unsettled {
    /// Those whose receipt is owed.
    pub owed: Vec<VmRecord>,
    /// Those whose process died with its agent, or whose volume could not be closed: what becomes of them depends on whether
    /// their volume can be closed now.
    pub unfinished: Vec<VmRecord>,
}

/// Reads the VMs of earlier runs and removes the oldest directories beyond the number that is kept.
pub fn recover(vms_dir: &Path) -> Result<Unsettled, StoreError> {
    make_private_dir(vms_dir)?;
    let mut records: Vec<VmRecord> = Vec::new();
    for entry in std::fs::read_dir(vms_dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(is_order_id) {
            continue;
        }
        if let Some(record) = load(&entry.path()) {
            records.push(record);
        } else {
            tracing::warn!(path = %entry.path().display(), "no readable status.json in this VM's directory");
        }
    }
    forget_oldest(&mut records);
    let (over, mut unfinished): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.status.state.is_over());
    for record in &mut unfinished {
        if record.status.state != VmState::Stuck {
            record.status.reason = Some("the agent ended while the VM was alive, the VM with it".to_owned());
        }
    }
    Ok(Unsettled { owed: over.into_iter().filter(|record| record.status.receipt_owed).collect(), unfinished })
}

/// Removes the oldest directories beyond the number that is kept; none of a VM that lives or whose receipt is owed. To be
/// called for every VM that ends: logs of many VMs fill a disk.
pub fn prune(vms_dir: &Path) {
    let entries = std::fs::read_dir(vms_dir).into_iter().flatten().flatten();
    let mut records: Vec<VmRecord> = entries.filter_map(|entry| load(&entry.path())).collect();
    forget_oldest(&mut records);
}

fn forget_oldest(records: &mut [VmRecord]) {
    records.sort_by_key(|record| std::cmp::Reverse(record.status.updated));
    let over = |record: &&VmRecord| record.status.state.is_over() && !record.status.receipt_owed;
    for old in records.iter().filter(over).skip(KEPT) {
        if let Err(error) = std::fs::remove_dir_all(&old.dir) {
            tracing::warn!(path = %old.dir.display(), %error, "an old VM's directory could not be removed");
        }
    }
}

fn load(dir: &Path) -> Option<VmRecord> {
    let bytes = store::read(&dir.join("status.json")).ok()??;
    let status: VmStatus = serde_json::from_slice(&bytes).ok()?;
    (dir.file_name()?.to_str()? == status.order).then(|| VmRecord { dir: dir.to_owned(), status })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(number: usize, state: VmState) -> VmStatus {
        VmStatus {
            order: format!("{number:032x}"),
            tenant: "acme".into(),
            name: "web".into(),
            volume: "data".into(),
            state,
            key_opened: false,
            boot_ms: None,
            kernel: None,
            reason: None,
            receipt_owed: false,
            updated: 0,
        }
    }

    #[test]
    fn vms_that_died_with_the_agent_are_found_once() {
        let dir = tempfile::tempdir().unwrap();
        VmRecord::create(dir.path(), status(1, VmState::Running)).unwrap();
        VmRecord::create(dir.path(), status(2, VmState::Ended)).unwrap();
        std::fs::create_dir(dir.path().join("not-an-order")).unwrap();
        let mut found = recover(dir.path()).unwrap();
        assert_eq!((found.owed.len(), found.unfinished.len()), (0, 1));
        let mut record = found.unfinished.remove(0);
        assert_eq!(record.status.order, format!("{:032x}", 1));
        // As long as its volume is open it owes no receipt, and it is found again.
        record.stuck("a test");
        let mut found = recover(dir.path()).unwrap();
        assert_eq!((found.owed.len(), found.unfinished.len()), (0, 1));
        let mut record = found.unfinished.remove(0);
        record.closed(VmState::Ended);
        let mut found = recover(dir.path()).unwrap();
        assert_eq!((found.owed.len(), found.unfinished.len()), (1, 0));
        let reason = found.owed[0].status.reason.clone().unwrap();
        assert!(reason.contains("the agent ended") && reason.contains("could not be closed"), "{reason}");
        found.owed[0].status.receipt_owed = false;
        found.owed[0].save().unwrap();
        let found = recover(dir.path()).unwrap();
        assert!(found.owed.is_empty() && found.unfinished.is_empty());
    }

    #[test]
    fn an_order_is_carried_out_once() {
        let dir = tempfile::tempdir().unwrap();
        VmRecord::create(dir.path(), status(1, VmState::Ended)).unwrap();
        let again = VmRecord::create(dir.path(), status(1, VmState::Launching));
        assert!(matches!(again, Err(RecordError::Repeated { .. })));
        // One that failed before its key was asked for may be tried again.
        VmRecord::create(dir.path(), status(2, VmState::Failed)).unwrap();
        VmRecord::create(dir.path(), status(2, VmState::Launching)).unwrap();
    }

    #[test]
    fn old_directories_go_but_none_whose_receipt_is_owed() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..KEPT + 5 {
            VmRecord::create(dir.path(), status(number, VmState::Failed)).unwrap();
        }
        let mut owing = status(KEPT + 9, VmState::Ended);
        owing.receipt_owed = true;
        VmRecord::create(dir.path(), owing).unwrap();
        assert_eq!(recover(dir.path()).unwrap().owed.len(), 1);
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(count(), KEPT + 1);
        // While the agent runs on.
        VmRecord::create(dir.path(), status(KEPT + 10, VmState::Running)).unwrap();
        for number in 1000..1005 {
            VmRecord::create(dir.path(), status(number, VmState::Ended)).unwrap();
        }
        prune(dir.path());
        assert_eq!(count(), KEPT + 2, "neither the one that owes nor the one that runs may go");
        prune(&dir.path().join("missing"));
    }
}
