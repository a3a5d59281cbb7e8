//! What the API knows of its VM: the configuration that grows before the start, and what is asked of the VM after it.

mod deprecated;
mod devices;
mod metadata;

use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::fault::Fault;
use crate::api::files;
use crate::api::http::{Method, Request, Response};
use crate::api::route::{self, Operation};
use crate::api::server::Service;
use crate::boot::BootFiles;
use crate::config::{
    BalloonConfig, BootSource, CpuConfig, CpuConfigOrPath, DriveConfig, EntropyConfig, LoggerConfig, MachineConfig,
    MetricsConfig, SerialConfig, VmConfig, VsockConfig,
};
use crate::devices::vsock::Vsock;
use crate::log;
use crate::mmds::SharedMmds;
use crate::snapshot::{self, Base, Saved, SnapshotCreate, SnapshotLoad, SnapshotType, Written};
use crate::vm::{Command, Controller, Options, VmError, VmState};

/// `PUT /actions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize, Clone, Copy)]
enum ActionType {
    InstanceStart,
    SendCtrlAltDel,
    FlushMetrics,
}

/// `PATCH /vm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmPatch {
    state: WantedState,
}

#[derive(Deserialize, Clone, Copy)]
enum WantedState {
    Paused,
    Resumed,
}

/// One VM as its API sees it. Answers requests, see [`Service`].
pub struct Session {
    id: String,
    controller: Controller,
    /// What the guest reads of the metadata service.
    metadata: SharedMmds,
    /// What has been put together so far, or what runs.
    config: VmConfig,
    /// Whether the VM was started with a configuration and without a request; it may not run yet.
    launched: bool,
    /// Whether a kernel was named: a configuration always has a place for it.
    bootable: bool,
    /// Whether anything was configured that a snapshot brings along itself.
    configured: bool,
    /// What a differential snapshot is the difference to.
    base: Base,
}

type Answer = Result<Response, Fault>;

/// The version of Firecracker whose API this one follows. Clients ask for it to find out which requests there are: the
/// VMM's own version would tell them that there is hardly any.
pub const FIRECRACKER_VERSION: &str = "1.16.0";

impl Session {
    /// A session with a VM that was not started, or that runs with `config`.
    pub fn new(options: &Options, controller: Controller, config: Option<VmConfig>) -> Self {
        let (id, metadata) = (options.id.clone(), SharedMmds::clone(&options.metadata));
        let bootable = config.is_some();
        let config = config.unwrap_or_else(|| VmConfig::new(""));
        Self {
            id,
            controller,
            metadata,
            config,
            launched: bootable,
            bootable,
            configured: bootable,
            base: Base::booted(),
        }
    }

    /// Sends metrics to this file, as the command line asks.
    pub fn send_metrics_to(&mut self, path: &Path) {
        self.config.metrics = Some(MetricsConfig::new(path));
    }

    fn carry_out(&mut self, operation: Operation, name: Option<&str>, request: &Request) -> Answer {
        match (request.method, request.body.is_empty()) {
            (Method::Get, false) => return Err(Fault::new("GET request cannot have a body.")),
            (Method::Put | Method::Patch, true) => {
                return Err(Fault::new(format!("Empty {} request.", request.method)));
            }
            _ => {}
        }
        self.perform(operation, name.map(checked_name).transpose()?.unwrap_or_default(), &request.body)
    }

    /// What an operation does, with the name in its path.
    fn perform(&mut self, operation: Operation, name: &str, body: &[u8]) -> Answer {
        match operation {
            Operation::GetInstance => Ok(self.instance()),
            Operation::GetVersion => {
                Ok(Response::json(&serde_json::json!({ "firecracker_version": FIRECRACKER_VERSION })))
            }
            Operation::GetConfig => Ok(self.whole_config()),
            Operation::GetMachineConfig => Ok(Response::json(&self.config.machine_config)),
            Operation::PutBootSource => self.put_boot_source(body),
            Operation::PutMachineConfig => self.configure(body, set_machine_config),
            Operation::PatchMachineConfig => self.patch_machine_config(body),
            Operation::PutCpuConfig => self.configure(body, |config, new: CpuConfig| {
                config.cpu_config = Some(CpuConfigOrPath::Template(new));
            }),
            Operation::PutEntropy => self.configure(body, |config, new: EntropyConfig| config.entropy = Some(new)),
            Operation::PutVsock => self.put_vsock(body),
            Operation::PutBalloon => self.configure(body, |config, new: BalloonConfig| config.balloon = Some(new)),
            Operation::GetBalloon => self.balloon(),
            Operation::PatchBalloon => self.patch_balloon(body),
            Operation::GetBalloonStatistics => self.balloon_statistics(),
            Operation::PatchBalloonStatistics => self.patch_balloon_statistics(body),
            Operation::PutDrive => self.put_drive(name, body),
            Operation::PatchDrive => self.patch_drive(name, body),
            Operation::PutNetworkInterface => self.put_network_interface(name, body),
            Operation::PatchNetworkInterface => self.patch_network_interface(name, body),
            Operation::GetMetadata => self.get_metadata(),
            Operation::PutMetadata => self.put_metadata(body),
            Operation::PatchMetadata => self.patch_metadata(body),
            Operation::PutMetadataService => self.put_metadata_service(body),
            Operation::PutSerial => self.configure(body, |config, new: SerialConfig| config.serial = Some(new)),
            Operation::PutLogger => self.put_logger(body),
            Operation::PutMetrics => self.put_metrics(body),
            Operation::PutActions => self.act(body),
            Operation::PatchVm => self.patch_vm(body),
            Operation::CreateSnapshot => self.create_snapshot(body),
            Operation::LoadSnapshot => self.load_snapshot(body),
        }
    }

    fn instance(&self) -> Response {
        if self.launched && self.controller.state() == VmState::NotStarted {
            // As in Firecracker, who asks for a VM of a configuration file is answered when there is one. If there will be
            // none, the process ends, and its state says so.
            let _ = self.controller.wait_for_turn();
        }
        Response::json(&serde_json::json!({
            "app_name": "portcullis-vmm",
            "id": self.id,
            "state": self.controller.state().as_str(),
            "vmm_version": env!("CARGO_PKG_VERSION"),
        }))
    }

    /// Every part by its name, also those that are not there.
    fn whole_config(&self) -> Response {
        let Ok(Value::Object(mut all)) = serde_json::to_value(&self.config) else {
            return Response::json(&Value::Null);
        };
        if let Some(mmds) = &self.config.mmds_config {
            // Also where it was not named.
            all.insert("mmds-config".to_owned(), serde_json::json!(mmds.clone().with_address()));
        }
        // As in Firecracker, which never shows it.
        all.insert("cpu-config".to_owned(), Value::Null);
        // The order in which the guest finds them.
        all.insert(
            "drives".to_owned(),
            serde_json::json!(DriveConfig::in_order(&self.config.drives).collect::<Vec<_>>()),
        );
        for (name, absent) in PARTS {
            all.entry(*name).or_insert_with(|| if *absent == "[]" { Value::Array(Vec::new()) } else { Value::Null });
        }
        Response::json(&all)
    }

    /// The configuration with a change, if it is one that this VMM supports.
    fn changed(&self, change: impl FnOnce(&mut VmConfig)) -> Result<VmConfig, Fault> {
        let mut next = self.config.clone();
        change(&mut next);
        next.check()?;
        Ok(next)
    }

    /// Changes the configuration before the start, as a whole or not at all.
    fn change(&mut self, change: impl FnOnce(&mut VmConfig)) -> Result<(), Fault> {
        self.config = self.changed(change)?;
        Ok(())
    }

    fn started(&self) -> bool {
        self.launched || self.controller.state() != VmState::NotStarted
    }

    fn before_start(&self) -> Result<(), Fault> {
        if self.started() { Err(Fault::too_late()) } else { Ok(()) }
    }

    fn after_start(&self) -> Result<(), Fault> {
        if self.started() { Ok(()) } else { Err(Fault::too_early()) }
    }

    /// Takes a part of the configuration that a snapshot would bring along.
    fn configure<T: DeserializeOwned>(&mut self, body: &[u8], set: impl FnOnce(&mut VmConfig, T)) -> Answer {
        let part = object(body)?;
        self.put_part(|config| set(config, part))
    }

    fn put_part(&mut self, set: impl FnOnce(&mut VmConfig)) -> Answer {
        self.before_start()?;
        self.change(set)?;
        self.configured = true;
        Ok(Response::done())
    }

    /// The same for a part that names something of the host. `open` opens it as the start will, and whoever asks hears now
    /// whether that can be. It is closed again: until the start, it is not this VM's.
    fn put_of_host<T>(
        &mut self,
        set: impl FnOnce(&mut VmConfig),
        open: impl FnOnce() -> Result<T, VmError> + Send + 'static,
    ) -> Answer {
        self.before_start()?;
        let next = self.changed(set)?;
        self.controller.before_start(|| open().map(drop))?;
        self.config = next;
        self.configured = true;
        Ok(Response::done())
    }

    fn put_boot_source(&mut self, body: &[u8]) -> Answer {
        let source: BootSource = object(body)?;
        let mut named = VmConfig::new("");
        named.boot_source = source.clone();
        self.put_of_host(|config| config.boot_source = source, move || Ok(BootFiles::open(&named)?))?;
        self.bootable = true;
        Ok(Response::done())
    }

    fn put_vsock(&mut self, body: &[u8]) -> Answer {
        let vsock: VsockConfig = object(body)?;
        let named = vsock.clone();
        self.put_of_host(|config| config.vsock = Some(vsock), move || Ok(Vsock::open(&named)?))
    }

    fn patch_machine_config(&mut self, body: &[u8]) -> Answer {
        let mut patch: serde_json::Map<String, Value> = object(body)?;
        patch.retain(|_, value| !value.is_null());
        if patch.is_empty() {
            return Err(Fault::new("Empty PATCH request."));
        }
        let Value::Object(mut whole) = serde_json::to_value(&self.config.machine_config)? else {
            return Err(Fault::new("Empty PATCH request."));
        };
        whole.extend(patch);
        let next = MachineConfig::deserialize(Value::Object(whole))?;
        self.put_part(|config| set_machine_config(config, next))
    }

    fn put_logger(&mut self, body: &[u8]) -> Answer {
        let logger: LoggerConfig = object(body)?;
        self.before_start()?;
        self.change(|config| config.logger = Some(logger.clone()))?;
        log::redirect(logger.log_path.as_deref(), logger.level()?).map_err(|error| Fault::new(error.to_string()))?;
        Ok(Response::done())
    }

    fn put_metrics(&mut self, body: &[u8]) -> Answer {
        let metrics: MetricsConfig = object(body)?;
        self.before_start()?;
        if self.config.metrics.is_some() {
            return Err(Fault::new("metrics go to a file already"));
        }
        // Opened again at the start; who asked hears now whether that can be.
        metrics.open().map_err(|error| {
            Fault::new(format!("cannot write metrics to {}: {error}", metrics.metrics_path.display()))
        })?;
        self.change(|config| config.metrics = Some(metrics))?;
        Ok(Response::done())
    }

    fn act(&mut self, body: &[u8]) -> Answer {
        let action: Action = object(body)?;
        match action.action_type {
            ActionType::InstanceStart => self.start()?,
            ActionType::SendCtrlAltDel => {
                self.after_start()?;
                self.controller.call(Command::SendCtrlAltDel)?;
            }
            ActionType::FlushMetrics => {
                self.after_start()?;
                self.controller.call(Command::FlushMetrics)?;
            }
        }
        Ok(Response::done())
    }

    fn start(&mut self) -> Result<(), Fault> {
        self.before_start()?;
        if !self.bootable {
            return Err(Fault::new("Cannot start microvm without kernel configuration."));
        }
        self.config.check()?;
        let config = Box::new(self.config.clone());
        Ok(self.controller.call(|reply| Command::Start(config, reply))?)
    }

    fn patch_vm(&mut self, body: &[u8]) -> Answer {
        let patch: VmPatch = object(body)?;
        self.after_start()?;
        match patch.state {
            WantedState::Paused => self.controller.call(Command::Pause)?,
            WantedState::Resumed => self.controller.call(Command::Resume)?,
        }
        Ok(Response::done())
    }

    fn create_snapshot(&mut self, body: &[u8]) -> Answer {
        let request: SnapshotCreate = object(body)?;
        self.after_start()?;
        if self.controller.state() != VmState::Paused {
            return Err(Fault::new("a snapshot needs a paused VM"));
        }
        let new = files::create(&request, self.config.machine_config.mem_size_mib << 20)?;
        let (begin, kind, sync) = (Instant::now(), request.snapshot_type, request.sync_snapshot_files);
        let config = Box::new(self.config.clone());
        let saved = self.controller.call(|reply| Command::CreateSnapshot { config, reply });
        // The files are emptied already.
        let Saved { state, ram } = saved.inspect_err(|_| self.base.forget())?;
        // It stays paused meanwhile: only requests let it go on, and they are answered one by one.
        let track = self.config.machine_config.track_dirty_pages;
        let written = Written { state, ram: &ram, kind, base: &self.base, track };
        let next = snapshot::write(&new.files, &written, sync).map_err(|error| Fault::new(error.to_string()));
        let next = next.and_then(|next| new.publish(sync).map(|()| next));
        // A difference to what nobody can find, or what is half written, is worth nothing.
        self.base = next.inspect_err(|_| self.base.forget())?;
        let latencies = &self.controller.metrics().latencies;
        match kind {
            SnapshotType::Full => latencies.full_create_snapshot.set_since(begin),
            SnapshotType::Diff => latencies.diff_create_snapshot.set_since(begin),
        }
        Ok(Response::done())
    }

    fn load_snapshot(&mut self, body: &[u8]) -> Answer {
        let request: SnapshotLoad = object(body)?;
        request.check()?;
        self.before_start()?;
        if self.configured {
            let message = "Loading a microVM snapshot not allowed after configuring boot-specific resources.";
            return Err(Fault::new(format!("Load snapshot error: {message}")));
        }
        let files = files::open(&request)?;
        let request = Box::new(request);
        let metrics = self.config.metrics.clone();
        let loaded = self.controller.call(|reply| Command::LoadSnapshot { files, request, metrics, reply })?;
        let (logger, metrics) = (self.config.logger.take(), self.config.metrics.take());
        let (config, memory) = loaded;
        self.config = *config;
        // Pages that another process hands out are compared with nothing.
        match memory {
            Some(file) => self.base.load(file),
            None => self.base.forget(),
        }
        (self.config.logger, self.config.metrics) = (logger, metrics);
        (self.bootable, self.configured) = (false, true);
        Ok(Response::done())
    }
}

/// Takes a new size over. If it names a CPU template, that goes before one of `/cpu-config`: the last one counts.
fn set_machine_config(config: &mut VmConfig, new: MachineConfig) {
    if new.cpu_template.is_some() {
        config.cpu_config = None;
    }
    config.machine_config = new;
}

/// Reads a body. All of this API's are objects; a list of values in the order of the fields is none.
fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Fault::unreadable("expected a JSON object"));
    }
    Ok(serde_json::from_slice(body)?)
}

/// A name out of a path, as Firecracker allows them (and with the hyphens that names of interfaces may have).
fn checked_name(name: &str) -> Result<&str, Fault> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match name {
        "" => Err(Fault::new("The ID cannot be empty.")),
        name if name.chars().all(allowed) => Ok(name),
        _ => Err(Fault::new("a name in a path has letters, digits, underscores and hyphens only")),
    }
}

/// Refuses a body that is about something else than the path.
fn same_name(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        return Ok(());
    }
    let body: String = body.chars().take(64).collect();
    Err(Fault::new(format!("the path names {path:?}, and the body {body:?}")))
}

/// The parts of a configuration that may be absent, and how Firecracker shows one that is.
const PARTS: &[(&str, &str)] = &[
    ("balloon", "null"),
    ("entropy", "null"),
    ("logger", "null"),
    ("memory-hotplug", "null"),
    ("metrics", "null"),
    ("mmds-config", "null"),
    ("network-interfaces", "[]"),
    ("pmem", "[]"),
    ("vsock", "null"),
];

impl Service for Session {
    fn answer(&mut self, request: &Request) -> Response {
        let found = route::find(request);
        let deprecated = found.as_ref().is_ok_and(|(operation, _)| deprecated::is_used(*operation, &request.body));
        let answer = found.and_then(|(operation, name)| self.carry_out(operation, name, request));
        let deprecated = deprecated && !answer.as_ref().is_err_and(|fault| fault.unreadable);
        if deprecated {
            self.controller.metrics().deprecated.deprecated_http_api_calls.inc();
        }
        let (method, path) = (request.method.as_str(), request.path.chars().take(128).collect::<String>());
        self.controller.metrics().api.answered(method, &path, answer.is_err());
        let response = match answer {
            Ok(response) => {
                tracing::debug!(method, path, status = response.status.code(), "answered");
                response
            }
            Err(fault) => {
                tracing::debug!(method, path, status = fault.status.code(), fault = fault.message, "refused");
                fault.response()
            }
        };
        Response { deprecated, ..response }
    }
}

#[cfg(test)]
mod tests;
