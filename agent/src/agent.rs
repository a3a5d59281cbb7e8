//! The agent's life: a state machine that proves, takes orders, runs VMs and ends them.
//!
//! ```text
//! Opening ──► Enrolling ──► Attesting ──trusted──► Serving ──order──► Launching ──► Serving
//!    ▲                         ▲  │                   │
//!    └──────the TPM fails──────┴──┴─denied: wait──────┴─every interval
//! ```
//!
//! One thread does all of it, the one that starts VMs: they end with it (see [`crate::child`]). VMs and signals wake
//! it through one channel. A verifier that cannot be reached stops nothing that runs; evidence that the verifier
//! denied ends every VM on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use portcullis_attest::appraise::BootInstance;
use portcullis_verifier::api::Admission;
use portcullis_verifier::client::ClientError;
use portcullis_verifier::order::VerifiedOrder;
use portcullis_verifier::reason::{Code, Reason, ServiceCode};

use crate::backoff::Backoff;
use crate::child;
use crate::launch::{self, LaunchError, Launcher, Vm, check_order};
use crate::machine::{MachineEvent, Wake};
use crate::prover::ProverError;
use crate::receipts;
use crate::session::{AgentError, Session};
use crate::store::{Store, StoreLock};
use crate::vm_record::{self, VmRecord, VmState};
use crate::volume::{OpenVolume, Volumes};

/// How long a program may take to tell its version.
const SHOW_LIMIT: Duration = Duration::from_secs(10);
/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// What the agent does next.
#[derive(Debug)]
enum Phase {
    /// Open the TPM, after it failed.
    Opening,
    /// Prove to the verifier that the keys are in this TPM.
    Enrolling,
    /// Prove this boot's state.
    Attesting,
    /// Look for orders; quote again when it is time.
    Serving,
    /// Carry out one order.
    Launching(Box<VerifiedOrder>),
}

/// The running agent.
#[derive(Debug)]
pub struct Agent {
    session: Session,
    volumes: Volumes,
    vms: BTreeMap<String, Vm>,
    owed: Vec<VmRecord>,
    /// VMs that are gone and whose volumes could not be closed.
    stuck: Vec<(VmRecord, OpenVolume)>,
    refused: BTreeSet<String>,
    boot: Option<BootInstance>,
    quote_due: Instant,
    backoff: Backoff,
    launches: Backoff,
    wake: Sender<Wake>,
    wakes: Receiver<Wake>,
    _lock: StoreLock,
}

impl Agent {
    /// Cleans up after an earlier agent and makes this one ready.
    ///
    /// Another agent's volumes are no leftovers as long as it runs, so the runtime directory is taken too.
    pub fn new(session: Session) -> Result<Self, AgentError> {
        let lock = Store::open(&session.config.runtime_dir)?.lock()?;
        show_programs([&session.config.cryptsetup, &session.config.vmm]);
        let volumes = Volumes::new(&session.config);
        let removed = volumes.remove_leftovers() + launch::remove_leftovers(&session.config);
        let vm_record::Unsettled { owed, unfinished } = vm_record::recover(&session.store.vms_dir())?;
        if removed > 0 || !owed.is_empty() || !unfinished.is_empty() {
            let (receipts_owed, vms) = (owed.len(), unfinished.len());
            tracing::warn!(removed, receipts_owed, vms, "an earlier agent ended without a word");
        }
        let left = |record: VmRecord| {
            let volume = volumes.left_open(&record.status.order).ok()?;
            Some((record, volume))
        };
        let stuck = unfinished.into_iter().filter_map(left).collect();
        let (poll, longest) = (session.config.poll(), session.config.interval());
        let (wake, wakes) = channel();
        let mut agent = Self {
            session,
            volumes,
            vms: BTreeMap::new(),
            owed,
            stuck,
            refused: BTreeSet::new(),
            boot: None,
            quote_due: Instant::now(),
            backoff: Backoff::new(FIRST_WAIT, longest),
            launches: Backoff::new(poll, longest),
            wake,
            wakes,
            _lock: lock,
        };
        agent.close_stuck();
        Ok(agent)
    }

    /// Where to send [`Wake::Stop`].
    pub fn waker(&self) -> Sender<Wake> {
        self.wake.clone()
    }

    /// Runs until it is told to stop; then ends every VM, closes every volume and tells the verifier if it can.
    pub fn run(mut self) {
        let mut phase = Phase::Attesting;
        let mut next = Instant::now();
        loop {
            match self.wakes.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Wake::Machine(order, event)) => self.machine_event(&order, event),
                Err(RecvTimeoutError::Timeout) => {
                    let (following, wait) = self.step(phase);
                    phase = following;
                    next = Instant::now() + wait;
                }
                // Disconnected: cannot be while `self.wake` lives.
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        tracing::info!(vms = self.vms.len(), "stopping");
        self.end_all("the agent was told to stop");
        self.close_stuck();
        self.send_owed();
    }

    /// One step, and the time until the next.
    fn step(&mut self, phase: Phase) -> (Phase, Duration) {
        let result = match phase {
            Phase::Opening => self.session.reopen_tpm().map(|()| (Phase::Attesting, Duration::ZERO)),
            Phase::Enrolling => self.enrol(),
            Phase::Attesting => self.attest(),
            Phase::Serving => self.serve(),
            Phase::Launching(order) => {
                // After a failure not at once, and ever later: it may be tried again.
                let wait = if self.launch(&order) { Duration::ZERO } else { self.launches.failed() };
                Ok((Phase::Serving, wait.min(self.quote_due.saturating_duration_since(Instant::now()))))
            }
        };
        result.unwrap_or_else(|error| self.after(&error))
    }

    fn enrol(&mut self) -> Result<(Phase, Duration), AgentError> {
        let enrolled = self.session.enrol()?;
        let fingerprint = enrolled.ek_fingerprint;
        match enrolled.state {
            Admission::Admitted => tracing::info!(ek = fingerprint, "enrolled"),
            Admission::Pending => tracing::warn!(
                ek = fingerprint,
                "enrolled, but not admitted: an operator has to run `portcullis host admit {fingerprint} --name {}`",
                self.session.party.host
            ),
        }
        Ok((Phase::Attesting, Duration::ZERO))
    }

    fn attest(&mut self) -> Result<(Phase, Duration), AgentError> {
        let (result, boot) = self.session.attest()?;
        self.backoff.succeeded();
        if self.boot.as_ref() != Some(&boot) {
            tracing::info!(resets = boot.reset_count, restarts = boot.restart_count, "trusted");
        }
        self.boot = Some(boot);
        // Well before the result ends, so that a slow quote does not leave the host without one.
        let lifetime = Duration::from_secs(result.expires_in_s / 2).max(FIRST_WAIT);
        self.quote_due = Instant::now() + self.session.config.interval().min(lifetime);
        self.close_stuck();
        self.send_owed();
        Ok((Phase::Serving, Duration::ZERO))
    }

    fn serve(&mut self) -> Result<(Phase, Duration), AgentError> {
        self.look_after_vms();
        let now = Instant::now();
        if now >= self.quote_due {
            return Ok((Phase::Attesting, Duration::ZERO));
        }
        for jws in self.session.client.orders(&self.session.party.host)?.orders {
            if let Some(order) = self.accept(&jws) {
                return Ok((Phase::Launching(Box::new(order)), Duration::ZERO));
            }
        }
        self.backoff.succeeded();
        Ok((Phase::Serving, self.session.config.poll().min(self.quote_due.saturating_duration_since(now))))
    }

    /// An order that this host should carry out now. Each refused one is logged once.
    fn accept(&mut self, jws: &str) -> Option<VerifiedOrder> {
        let party = &self.session.party;
        let order = match VerifiedOrder::verify(jws, &self.session.order_keys, &party.host, SystemTime::now()) {
            Ok(order) => order,
            Err(error) => {
                if self.refused.insert(jws.to_owned()) {
                    tracing::error!(%error, "refused an order");
                }
                return None;
            }
        };
        let id = &order.order().id;
        if self.refused.contains(id) || self.vms.contains_key(id) || self.is_unsettled(id) {
            return None;
        }
        let room = usize::try_from(self.session.config.max_vms).unwrap_or(usize::MAX);
        match check_order(order.order(), &party.verifier, self.boot.as_ref(), self.vms.len(), room) {
            Ok(()) => Some(order),
            Err(error) => {
                tracing::error!(order = id, error, "refused an order");
                self.refused.insert(id.clone());
                None
            }
        }
    }

    /// Whether a VM of this order came to an end that the verifier has not heard of.
    fn is_unsettled(&self, order: &str) -> bool {
        let stuck = self.stuck.iter().map(|(record, _)| record);
        self.owed.iter().chain(stuck).any(|record| record.status.order == order)
    }

    /// Carries out an order; gives whether it worked.
    fn launch(&mut self, order: &VerifiedOrder) -> bool {
        let id = order.order().id.clone();
        tracing::info!(order = id, vm = order.order().vm.name, tenant = order.order().tenant, "launching");
        let mut launcher = Launcher {
            config: &self.session.config,
            vms_dir: self.session.store.vms_dir(),
            volumes: &self.volumes,
            prover: &mut self.session.prover,
            client: &self.session.client,
            party: &self.session.party,
            wake: &self.wake,
        };
        match launcher.launch(order) {
            Ok(vm) => {
                tracing::info!(order = id, "running");
                self.launches.succeeded();
                self.vms.insert(id, vm);
                true
            }
            Err(failed) => {
                let launch::FailedLaunch { record, error, still_open } = *failed;
                tracing::error!(order = id, %error, "the launch failed");
                let temporary = matches!(&error, LaunchError::Prover(error) if error.is_temporary());
                self.settle(record, still_open);
                self.send_owed();
                // Only what failed for want of a verifier is tried again.
                if !temporary {
                    self.refused.insert(id);
                }
                vm_record::prune(&self.session.store.vms_dir());
                false
            }
        }
    }

    /// What to do after a step failed.
    fn after(&mut self, error: &AgentError) -> (Phase, Duration) {
        let wait = self.backoff.failed();
        let AgentError::Prover(error) = error else {
            tracing::error!(%error, "trying again");
            return (Phase::Attesting, wait);
        };
        match error {
            ProverError::Tpm(_) | ProverError::Keys(_) | ProverError::Quote(_) => {
                tracing::error!(%error, "the TPM fails, trying again");
                (Phase::Opening, wait)
            }
            ProverError::Client(ClientError::Denied { reasons }) => self.after_denial(reasons, wait),
            error => {
                tracing::warn!(%error, wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "trying again");
                (Phase::Attesting, wait)
            }
        }
    }

    fn after_denial(&mut self, reasons: &[Reason], wait: Duration) -> (Phase, Duration) {
        let is = |wanted: ServiceCode| reasons.iter().any(|reason| reason.code == Code::Service(wanted));
        let enrols = is(ServiceCode::HostUnknown) || is(ServiceCode::HostBanksUnknown);
        for reason in reasons {
            tracing::error!(code = reason.code.as_str(), "denied: {reason}");
        }
        if reasons.iter().any(|reason| is_verdict(&reason.code)) && !self.vms.is_empty() {
            self.end_all("fenced: the verifier does not trust this host any more");
            self.send_owed();
        }
        (if enrols { Phase::Enrolling } else { Phase::Attesting }, wait)
    }

    fn machine_event(&mut self, order: &str, event: MachineEvent) {
        // A VM that was ended may still have had something to say.
        let Some(vm) = self.vms.get_mut(order) else { return };
        match event {
            MachineEvent::Kernel(release) => vm.record.status.kernel = Some(release),
            MachineEvent::Booted(ms) => {
                tracing::info!(order, boot_ms = ms, "the guest's init runs");
                vm.record.status.boot_ms = Some(ms);
                vm.booted = Some(Instant::now());
            }
            MachineEvent::Ending(words) => vm.record.status.reason = Some(words),
            MachineEvent::Closed => {}
        }
        vm.record.save_or_warn();
        self.look_after_vms();
    }

    /// Reports VMs that started, tears down those that ended.
    fn look_after_vms(&mut self) {
        let Session { prover, client, party, .. } = &mut self.session;
        for vm in self.vms.values_mut() {
            if vm.start_is_due() && !vm.has_ended() {
                match receipts::started(prover, client, party, &vm.record.status) {
                    Ok(()) => vm.start_told = true,
                    Err(error) => {
                        tracing::warn!(order = vm.record.status.order, %error, "the receipt was not taken");
                        // Only what may be different next time is tried again.
                        vm.start_told = !error.is_temporary();
                        vm.tell_after = Instant::now() + vm.telling.failed();
                    }
                }
            }
        }
        let ended: Vec<String> =
            self.vms.iter_mut().filter_map(|(id, vm)| vm.has_ended().then(|| id.clone())).collect();
        for vm in ended.iter().filter_map(|id| self.vms.get(id)) {
            vm.wait_for_last_words();
        }
        if !ended.is_empty() {
            self.hear_what_was_told();
        }
        for id in &ended {
            if let Some(vm) = self.vms.remove(id) {
                let (record, still_open) = vm.tear_down("");
                tracing::info!(order = id, reason = record.status.reason, "the VM has ended");
                self.settle(record, still_open);
            }
        }
        if !ended.is_empty() {
            self.send_owed();
            vm_record::prune(&self.session.store.vms_dir());
        }
    }

    /// Takes in what VMs have told so far: why one ended is told before its end is seen, but may still be waiting here.
    fn hear_what_was_told(&mut self) {
        let mut stop = false;
        while let Ok(wake) = self.wakes.try_recv() {
            match wake {
                Wake::Machine(order, event) => self.machine_event(&order, event),
                Wake::Stop => stop = true,
            }
        }
        if stop {
            // For the main loop. It cannot fail: we hold the receiver.
            let _ = self.wake.send(Wake::Stop);
        }
    }

    /// Ends every VM at once.
    fn end_all(&mut self, reason: &str) {
        for vm in self.vms.values_mut() {
            vm.ask_to_end();
        }
        for (id, vm) in std::mem::take(&mut self.vms) {
            let (record, still_open) = vm.tear_down(reason);
            tracing::warn!(order = id, reason, "ended a VM");
            self.settle(record, still_open);
        }
    }

    /// Keeps what there is still to do about a VM that is gone.
    fn settle(&mut self, record: VmRecord, still_open: Option<OpenVolume>) {
        match still_open {
            Some(volume) => self.stuck.push((record, volume)),
            None if record.status.receipt_owed => self.owed.push(record),
            None => {}
        }
    }

    /// Tries again to close what could not be closed; only then the end of its VM is told.
    fn close_stuck(&mut self) {
        for (mut record, mut volume) in std::mem::take(&mut self.stuck) {
            match volume.close() {
                Ok(()) => {
                    tracing::info!(order = record.status.order, "the VM's volume is closed");
                    record.closed(VmState::Ended);
                    self.owed.push(record);
                }
                Err(error) => {
                    record.stuck(&error.to_string());
                    self.stuck.push((record, volume));
                }
            }
        }
    }

    /// Sends the receipts that are still owed; what cannot be sent now stays owed, also over a restart.
    fn send_owed(&mut self) {
        let Session { prover, client, party, .. } = &mut self.session;
        let mut reachable = true;
        self.owed.retain_mut(|record| {
            if !reachable {
                return true;
            }
            match receipts::ended(prover, client, party, record) {
                Ok(()) => false,
                Err(error) => {
                    reachable = !error.is_temporary();
                    tracing::warn!(order = record.status.order, %error, "a receipt is still owed");
                    true
                }
            }
        });
    }
}

/// Runs the programs that will get a volume's key or its content, so that the kernel measures them before the first quote.
///
/// What is measured only when it first runs is judged only after that: a program that was replaced on the disk would
/// run with the key of the first launch, and only the next quote would tell. What comes of the runs does not matter.
fn show_programs<const N: usize>(programs: [&Path; N]) {
    for program in programs {
        let mut command = child::command(program);
        command.arg("--version");
        if let Err(error) = child::run(command, &[], SHOW_LIMIT) {
            tracing::warn!(%error, "a program that launches need does not run");
        }
    }
}

/// Whether a reason means that this host itself is not trusted, not only that one call went wrong.
fn is_verdict(code: &Code) -> bool {
    matches!(code, Code::Evidence(_) | Code::Service(ServiceCode::NotAdmitted | ServiceCode::HostUntrusted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_attest::reason::ReasonCode;

    #[test]
    fn programs_run_before_they_are_trusted_with_anything() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n[ \"$1\" = --version ] && : >\"$0.ran\"\nexit 1\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let (one, two) = (program("cryptsetup"), program("vmm"));
        show_programs([&one, Path::new("/nonexistent/program"), &two]);
        assert!(dir.path().join("cryptsetup.ran").exists() && dir.path().join("vmm.ran").exists());
    }

    #[test]
    fn only_verdicts_end_vms() {
        for code in [Code::Evidence(ReasonCode::SecureBootDisabled), Code::Service(ServiceCode::NotAdmitted)] {
            assert!(is_verdict(&code), "{code}");
        }
        for code in [
            Code::Service(ServiceCode::NonceExpired),
            Code::Service(ServiceCode::HostConcurrent),
            Code::Service(ServiceCode::HostExpired),
            Code::Other("of.tomorrow".into()),
        ] {
            assert!(!is_verdict(&code), "{code}");
        }
    }
}
