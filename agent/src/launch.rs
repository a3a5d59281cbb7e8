//! From a verified order to a running VM, and back. Each step that fails undoes the steps before it.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use portcullis_attest::appraise::BootInstance;
use portcullis_verifier::client::{Client, ClientError};
use portcullis_verifier::order::{Order, VerifiedOrder, VmSpec, VolumeFile};
use portcullis_vmm::config::VmConfig;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::machine::{Machine, MachineError, MachineSetup, Wake};
use crate::prover::{Party, Prover, ProverError};
use crate::store::{self, StoreError, make_private_dir};
use crate::vm_record::{RecordError, VmRecord, VmState, VmStatus};
use crate::volume::{NotOpened, OpenVolume, VolumeError, Volumes};
use crate::volume_file::{self, VolumeFileError};

/// A VM that sets no boot mark is reported as started after this time.
const BOOT_PATIENCE: Duration = Duration::from_mins(1);
/// A kernel that prints no release is not waited for longer than this.
const KERNEL_PATIENCE: Duration = Duration::from_millis(500);

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It is for another boot of this host, or for another TPM.
    #[error("the order is for another boot of this host (ordered: {ordered}; this boot: {this})")]
    OtherBoot {
        /// The boot in the order, in words.
        ordered: String,
        /// This boot, in words.
        this: String,
    },
    /// The host has no room.
    #[error("this host runs {0} VMs already, its max_vms")]
    Full(usize),
    /// The host has not enough memory free.
    #[error("the VM wants {wanted_mib} MiB and this host has {available_mib} MiB available")]
    Memory {
        /// What the order asks for.
        wanted_mib: u64,
        /// What the kernel says can be had without swapping.
        available_mib: u64,
    },
    /// The VM's directory cannot be made, or the order was carried out before.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The VM is larger than the VMM can run.
    #[error("the VMM cannot run {0} vCPUs")]
    Vcpus(u32),
    /// TPM or verifier.
    #[error(transparent)]
    Prover(#[from] ProverError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file in the volume.
    #[error(transparent)]
    VolumeFile(#[from] VolumeFileError),
    /// A digest in the order is none.
    #[error("the order's SHA-256 for {0} is not 64 hex digits")]
    Digest(String),
    /// The VM's configuration.
    #[error("the VM's configuration cannot be used: {0}")]
    Config(String),
    /// A file of ours.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VMM.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A launch that failed: everything was undone, but perhaps for the volume.
#[derive(Debug)]
pub struct FailedLaunch {
    /// What the host keeps of it; a receipt is owed when the verifier may have released the key.
    pub record: VmRecord,
    /// Why it failed.
    pub error: LaunchError,
    /// The volume, if it could not be closed again.
    pub still_open: Option<OpenVolume>,
}

/// A step that failed, with the volume if that could not be closed again.
struct Failed {
    error: LaunchError,
    still_open: Option<Box<OpenVolume>>,
}

impl<E: Into<LaunchError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), still_open: None }
    }
}

impl From<NotOpened> for Failed {
    fn from(failed: NotOpened) -> Self {
        Self { error: failed.error.into(), still_open: failed.still_open }
    }
}

/// A VM that runs. Dropped in this order: the process first, then its volume and its configuration.
#[derive(Debug)]
pub struct Vm {
    machine: Machine,
    volume: OpenVolume,
    _config: RemovedFile,
    /// What the host keeps of it.
    pub record: VmRecord,
    /// When its process was started.
    pub started: Instant,
    /// When the guest's init ran, once it did.
    pub booted: Option<Instant>,
    /// Whether the verifier was told that it runs.
    pub start_told: bool,
    /// Waits between tries to tell it.
    pub telling: Backoff,
    /// Not told before.
    pub tell_after: Instant,
}

impl Vm {
    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.machine.ended().is_some()
    }

    /// Whether it is time to tell the verifier that it runs: its guest has booted, or is not going to say so. The kernel's
    /// release comes on another stream than the boot mark and is waited for a moment.
    pub fn start_is_due(&self) -> bool {
        let named = self.record.status.kernel.is_some();
        !self.start_told
            && Instant::now() >= self.tell_after
            && (self.booted.is_some_and(|booted| named || booted.elapsed() >= KERNEL_PATIENCE)
                || self.started.elapsed() >= BOOT_PATIENCE)
    }

    /// Waits, shortly, until all that the ended process wrote has been told.
    pub fn wait_for_last_words(&self) {
        self.machine.wait_for_last_words();
    }

    /// Asks it to end, without waiting.
    pub fn ask_to_end(&mut self) {
        self.machine.ask_to_end();
    }

    /// Ends the VM, closes its volume and writes down why. The receipt is owed only if the volume is closed; else it comes
    /// too, to be closed later.
    pub fn tear_down(self, reason: &str) -> (VmRecord, Option<OpenVolume>) {
        let Self { mut machine, mut volume, _config: config, mut record, .. } = self;
        machine.end();
        let status = machine.ended();
        drop((machine, config));
        let told = record.status.reason.take();
        let how = status.map_or_else(|| "still ending".to_owned(), |status| status.to_string());
        record.status.reason = Some(match told {
            Some(told) if reason.is_empty() => format!("{told} ({how})"),
            Some(told) => format!("{reason}; {told} ({how})"),
            None if reason.is_empty() => format!("the VMM ended without a word ({how})"),
            None => format!("{reason} ({how})"),
        });
        match volume.close() {
            Ok(()) => {
                record.closed(VmState::Ended);
                (record, None)
            }
            Err(error) => {
                record.stuck(&error.to_string());
                (record, Some(volume))
            }
        }
    }
}

/// A file that goes when this is dropped.
#[derive(Debug)]
struct RemovedFile(PathBuf);

impl Drop for RemovedFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a VM's configuration could not be removed");
        }
    }
}

/// What a launch needs of the agent.
#[derive(Debug)]
pub struct Launcher<'a> {
    /// The agent's configuration.
    pub config: &'a Config,
    /// Where VMs' directories are.
    pub vms_dir: PathBuf,
    /// How volumes are opened.
    pub volumes: &'a Volumes,
    /// The TPM.
    pub prover: &'a mut Prover,
    /// The verifier.
    pub client: &'a Client,
    /// Who quotes for whom.
    pub party: &'a Party,
    /// Where VMs tell what happens to them.
    pub wake: &'a Sender<Wake>,
}

impl Launcher<'_> {
    /// Carries out an order. On failure everything is undone and the record says why.
    pub fn launch(&mut self, order: &VerifiedOrder) -> Result<Vm, Box<FailedLaunch>> {
        let plan = order.order();
        let mut record = match VmRecord::create(&self.vms_dir, first_status(plan)) {
            Ok(record) => record,
            Err(error) => {
                let record = VmRecord::unsaved(&self.vms_dir, first_status(plan));
                return Err(Box::new(FailedLaunch { record, error: error.into(), still_open: None }));
            }
        };
        match self.steps(order, &mut record) {
            Ok((machine, volume, config)) => {
                record.status.state = VmState::Running;
                record.save_or_warn();
                let started = Instant::now();
                Ok(Vm {
                    machine,
                    volume,
                    _config: config,
                    record,
                    started,
                    booted: None,
                    start_told: false,
                    telling: Backoff::new(self.config.poll(), self.config.interval()),
                    tell_after: started,
                })
            }
            Err(Failed { error, still_open }) => {
                record.status.reason = Some(crate::machine::printable(&error.to_string(), 2000));
                if still_open.is_some() {
                    record.stuck("the launch failed half-way");
                } else {
                    record.status.state = VmState::Failed;
                    record.save_or_warn();
                }
                Err(Box::new(FailedLaunch { record, error, still_open: still_open.map(|volume| *volume) }))
            }
        }
    }

    fn steps(
        &mut self,
        order: &VerifiedOrder,
        record: &mut VmRecord,
    ) -> Result<(Machine, OpenVolume, RemovedFile), Failed> {
        let plan = order.order();
        let (request, parent) = self.prover.release_request(self.client, self.party, order)?;
        let released = self.client.release(&plan.id, &request);
        // Only a denial says for sure that the order was not used up.
        record.status.receipt_owed = !matches!(released, Err(ClientError::Denied { .. }));
        let wrapped = released.map_err(ProverError::from)?.wrapped;
        if self.config.keep_artifacts {
            record.keep_wrapped_key(&wrapped);
        }
        let key = self.prover.unseal(parent, &wrapped)?;
        let mut volume = self.volumes.open(&plan.id, &plan.tenant, &plan.volume, &key)?;
        drop(key);
        record.status.key_opened = true;
        record.save_or_warn();
        match self.start(plan, &volume, record) {
            Ok((machine, config)) => Ok((machine, volume, config)),
            Err(error) => {
                let still_open = volume.close().is_err().then(|| Box::new(volume));
                Err(Failed { error, still_open })
            }
        }
    }

    /// Starts the VMM on an open volume.
    fn start(
        &self,
        plan: &Order,
        volume: &OpenVolume,
        record: &VmRecord,
    ) -> Result<(Machine, RemovedFile), LaunchError> {
        let config = self.write_config(&plan.id, &vm_config(&plan.vm, volume)?)?;
        let setup = MachineSetup {
            order: &plan.id,
            program: &self.config.vmm,
            config: &config.0,
            console: &record.console_path(),
            log: &record.vmm_log_path(),
            max_log_bytes: self.config.max_log_bytes,
        };
        Ok((Machine::start(&setup, self.wake)?, config))
    }

    fn write_config(&self, order: &str, config: &VmConfig) -> Result<RemovedFile, LaunchError> {
        let json = config.to_json().map_err(|error| LaunchError::Config(error.to_string()))?;
        let dir = self.config.runtime_dir.join("vms");
        make_private_dir(&dir)?;
        let file = RemovedFile(dir.join(format!("{order}.json")));
        store::write(&file.0, json.as_bytes())?;
        Ok(file)
    }
}

/// Removes the configurations of VMs that ended with an earlier agent. Gives their number.
pub fn remove_leftovers(config: &Config) -> usize {
    let entries = std::fs::read_dir(config.runtime_dir.join("vms")).into_iter().flatten().flatten();
    entries.filter(|entry| std::fs::remove_file(entry.path()).is_ok()).count()
}

/// Refuses a VM that this host has no memory for, before its key is asked for: the guest would be killed, or others.
pub fn check_memory(wanted_mib: u64) -> Result<(), LaunchError> {
    // A kernel that does not say is no reason to refuse: the VMM's own allocation is the next check.
    let available = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available_mib);
    match available {
        Some(available_mib) if wanted_mib > available_mib => Err(LaunchError::Memory { wanted_mib, available_mib }),
        _ => Ok(()),
    }
}

/// `MemAvailable` of `/proc/meminfo` (proc(5)), which is in KiB.
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

/// Refuses orders that are not for this boot of this TPM.
pub fn check_boot(order: &Order, this: &BootInstance) -> Result<(), LaunchError> {
    if order.boot == *this {
        return Ok(());
    }
    Err(LaunchError::OtherBoot { ordered: order.boot.to_string(), this: this.to_string() })
}

/// Whether this host, which obeys `verifier`, is in `boot` and has `running` VMs of at most `most`, may carry an order out.
pub fn check_order(
    order: &Order,
    verifier: &str,
    boot: Option<&BootInstance>,
    running: usize,
    most: usize,
) -> Result<(), String> {
    if order.verifier != verifier {
        return Err(format!("it is by verifier {:?}, this host obeys {verifier:?}", order.verifier));
    }
    let boot = boot.ok_or_else(|| "this host has not attested".to_owned())?;
    check_boot(order, boot).map_err(|error| error.to_string())?;
    if running >= most {
        return Err(LaunchError::Full(running).to_string());
    }
    check_memory(order.vm.mem_mib).map_err(|error| error.to_string())
}

fn first_status(plan: &Order) -> VmStatus {
    VmStatus {
        order: plan.id.clone(),
        tenant: plan.tenant.clone(),
        name: plan.vm.name.clone(),
        volume: plan.volume.clone(),
        state: VmState::Launching,
        key_opened: false,
        boot_ms: None,
        kernel: None,
        reason: None,
        receipt_owed: false,
        updated: 0,
    }
}

/// The VMM's configuration for what the order asks: its kernel and initrd are the very files that the order names.
fn vm_config(vm: &VmSpec, volume: &OpenVolume) -> Result<VmConfig, LaunchError> {
    let file = |file: &VolumeFile| -> Result<PathBuf, LaunchError> {
        let mut digest = [0_u8; 32];
        hex::decode_to_slice(&file.sha256, &mut digest).map_err(|_| LaunchError::Digest(file.path.clone()))?;
        Ok(volume_file::check(volume.root(), &file.path, &digest)?)
    };
    let vcpus = u8::try_from(vm.vcpus).map_err(|_| LaunchError::Vcpus(vm.vcpus))?;
    let mut config =
        VmConfig::new(file(&vm.kernel)?).with_vcpus(vcpus).with_mem_mib(vm.mem_mib).with_boot_args(&vm.cmdline);
    if let Some(initrd) = &vm.initrd {
        config = config.with_initrd(file(initrd)?);
    }
    config.check().map_err(|error| LaunchError::Config(error.to_string()))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_not_promised() {
        assert_eq!(available_mib("MemTotal: 10 kB\nMemAvailable:   20480 kB\n"), Some(20));
        assert_eq!(available_mib("MemTotal: 10 kB\n"), None);
        assert!(check_memory(16).is_ok());
        assert!(matches!(check_memory(u64::MAX), Err(LaunchError::Memory { .. })));
    }

    #[test]
    fn n85_an_order_is_carried_out_in_its_boot_for_the_one_verifier() {
        let example: serde_json::Value =
            serde_json::from_str(include_str!("../../verifier/schemas/order-1.json")).unwrap();
        let mut order: Order = serde_json::from_value(example["examples"][0].clone()).unwrap();
        order.vm.mem_mib = 16;
        let (verifier, boot) = (order.verifier.clone(), order.boot.clone());
        assert_eq!(check_order(&order, &verifier, Some(&boot), 1, 2), Ok(()));
        let refused = |verifier: &str, boot: Option<&BootInstance>, running, expected: &str| {
            let error = check_order(&order, verifier, boot, running, 2).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused("other.verifier", Some(&boot), 1, "other.verifier");
        refused(&verifier, None, 1, "has not attested");
        for other in [
            BootInstance { reset_count: boot.reset_count + 1, ..boot.clone() },
            BootInstance { restart_count: boot.restart_count + 1, ..boot.clone() },
            BootInstance { ek: Some("00".repeat(32)), ..boot.clone() },
            BootInstance { ek: None, ..boot.clone() },
        ] {
            refused(&verifier, Some(&other), 1, &other.to_string());
        }
        refused(&verifier, Some(&boot), 2, &LaunchError::Full(2).to_string());
        let large = Order { vm: VmSpec { mem_mib: u64::MAX, ..order.vm.clone() }, ..order.clone() };
        assert!(check_order(&large, &verifier, Some(&boot), 1, 2).is_err());
    }
}
