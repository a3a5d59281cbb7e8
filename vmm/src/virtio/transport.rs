//! A virtio device between its two sides: vCPU threads, which meet its registers, and the main thread, which serves it.
//!
//! Both sides share a [`Slot`] behind a lock. The main thread holds it while it serves a queue; a vCPU takes it for
//! the registers of the start and for configuration space, not for what is frequent: notifications are event counters
//! that KVM writes itself, and the interrupt's registers are atomic.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::{IoEventAddress, VmFd};
use serde::{Deserialize, Serialize};
use tracing::warn;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::device::{Active, Progress, VirtioDevice};
use super::event_loop::{Source, Watch};
use super::queue::{Queue, QueueError, QueueState};
use super::queue_thread::QueueThread;
use super::queue_thread::desk::{Desk, Served};
use super::registers::{Change, Registers, offset};
use crate::devices::{Action, Device, Line};
use crate::jail::seccomp::Call;
use crate::memory::GuestRam;

/// Errors of a driver that are logged for one device; later ones are only counted. A guest must not fill the log.
const LOGGED_ERRORS: u64 = 8;
/// Tokens of the transport's own descriptors.
const QUEUE_TOKENS: u32 = Source::RESERVED;
const WAKE_TOKEN: u32 = Source::RESERVED + 0xffff;

/// What both sides share.
struct Inner {
    registers: Registers,
    device: Box<dyn VirtioDevice>,
    active: Option<Active>,
    /// The driver has reset the device, and the device does not know yet.
    reset: bool,
    /// The driver is ready, and the device does not know yet.
    fresh: bool,
    /// The device knows of its driver, and its queues have not been looked at since.
    unserved: bool,
    /// What the driver did wrong, and nobody was told of yet.
    broken: Option<QueueError>,
    errors: u64,
}

/// One virtio device in its place.
pub struct Slot {
    /// The device's name.
    name: String,
    inner: Mutex<Inner>,
    ram: GuestRam,
    interrupt: Arc<Interrupt>,
    /// One for each queue: the driver has put something into it.
    doorbells: Vec<Arc<EventFd>>,
    /// The driver's state has changed, or a queue's thread has something to say.
    wake: Arc<EventFd>,
    /// One for each queue, if threads of their own serve them.
    desks: Vec<Arc<Desk>>,
    /// What serves them, until there are the threads.
    threads: Mutex<Vec<QueueThread>>,
}

/// What a snapshot keeps of a slot.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    registers: Registers,
    queues: Option<Vec<Option<QueueState>>>,
    interrupt: u32,
    device: Vec<u8>,
}

impl Slot {
    /// A device after power-on, whose interrupt is `line`.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        line: impl Line + 'static,
    ) -> std::io::Result<Arc<Self>> {
        let counter = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let doorbells = device.queue_sizes().iter().map(|_| counter()).collect::<Result<Vec<_>, _>>()?;
        let wake = counter()?;
        let (mut desks, mut threads) = (Vec::new(), Vec::new());
        for (server, doorbell) in device.queue_servers()?.into_iter().zip(&doorbells) {
            let desk = Arc::new(Desk::new(Arc::clone(doorbell), Arc::clone(&wake)));
            threads.push(QueueThread::new(Arc::clone(&desk), doorbell, server)?);
            desks.push(desk);
        }
        let id = device.kind() as u32;
        let registers = Registers::new(id, device.features(), device.queue_sizes());
        let (reset, fresh, unserved) = (false, false, false);
        let inner = Inner { registers, device, active: None, reset, fresh, unserved, broken: None, errors: 0 };
        let interrupt = Arc::new(Interrupt::new(line));
        let (name, inner, threads) = (inner.device.name(), Mutex::new(inner), Mutex::new(threads));
        Ok(Arc::new(Self { name, inner, ram, interrupt, doorbells, wake, desks, threads }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic has aborted the process: the lock is never poisoned.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects the doorbells of the device at `base` to KVM.
    pub fn connect(&self, vm: &VmFd, base: u64) -> Result<(), kvm_ioctls::Error> {
        let address = IoEventAddress::Mmio(base + offset::QUEUE_NOTIFY);
        (0u32..).zip(&self.doorbells).try_for_each(|(index, doorbell)| vm.register_ioevent(doorbell, &address, index))
    }

    /// Does `work` with the device, for a control command. The configuration space may have changed when `work` gives
    /// `true` with its result; the driver is then told.
    pub fn control<T>(&self, work: impl FnOnce(&mut dyn VirtioDevice, Option<&mut Active>) -> (T, bool)) -> T {
        let inner = &mut *self.lock();
        self.catch_up(inner);
        let (result, changed) = work(inner.device.as_mut(), inner.active.as_mut());
        if changed {
            inner.registers.next_generation();
            if inner.registers.is_live() {
                self.interrupt.config_changed();
            }
        }
        // What had to wait may go on under other limits.
        self.ring_threads();
        result
    }

    /// The device's counters since the last call, see [`VirtioDevice::metrics`].
    pub fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        self.lock().device.metrics()
    }

    /// What a snapshot keeps. The VM is paused.
    pub fn save(&self) -> SlotState {
        let inner = &mut *self.lock();
        self.catch_up(inner);
        let device = inner.device.save(inner.active.as_mut());
        let queues = self.queue_states(inner);
        SlotState { registers: inner.registers.clone(), queues, interrupt: self.interrupt.status(), device }
    }

    /// Where the queues are and how far, if the driver is ready. Threads that serve them stand still.
    pub fn queues(&self) -> Option<Vec<Option<QueueState>>> {
        let inner = &mut *self.lock();
        self.catch_up(inner);
        self.queue_states(inner)
    }

    fn queue_states(&self, inner: &Inner) -> Option<Vec<Option<QueueState>>> {
        let own = |queue: &Option<Queue>| queue.as_ref().map(Queue::state);
        let active = inner.active.as_ref()?;
        Some(if self.desks.is_empty() {
            active.queues.iter().map(own).collect()
        } else {
            self.desks.iter().map(|desk| desk.state()).collect()
        })
    }

    /// What serves the queues on threads of their own, once.
    pub(super) fn take_threads(&self) -> Vec<QueueThread> {
        std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// See [`EventLoop::resume`](super::EventLoop::resume).
    pub(super) fn resume(&self) {
        self.desks.iter().for_each(|desk| desk.resume());
    }

    /// Whether the threads stand still within `limit`.
    pub(super) fn pause(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        self.desks.iter().all(|desk| desk.pause(end.saturating_duration_since(Instant::now())))
    }

    /// See [`EventLoop::end`](super::EventLoop::end).
    pub(super) fn end(&self) {
        self.desks.iter().for_each(|desk| desk.end());
    }

    /// The device's name. It waits for nobody.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn ring_threads(&self) {
        self.desks.iter().for_each(|desk| desk.ring());
    }

    /// Puts a device, which was just made, into the state of a snapshot. The text says what does not fit.
    pub fn restore(&self, state: SlotState) -> Result<(), String> {
        let inner = &mut *self.lock();
        if !inner.registers.fit(&state.registers) || !Interrupt::is_status(state.interrupt) {
            return Err(format!("{}: the snapshot was made with another device", inner.device.name()));
        }
        inner.device.restore(&state.device)?;
        // Of a device whose driver is not ready nothing is served: what is kept of its queues concerns nobody.
        if state.registers.is_live() {
            let queues = state.queues.filter(|queues| same_places(queues, &state.registers.queues()));
            let queues = queues
                .ok_or_else(|| format!("{}: the snapshot's queues are not this device's", inner.device.name()))?;
            let active = self.make_queues(queues, state.registers.features());
            inner.active = Some(active.map_err(|e| format!("{}: {e}", inner.device.name()))?);
            inner.fresh = true;
        }
        inner.registers = state.registers;
        self.interrupt.restore(state.interrupt);
        // Whatever the driver has put in since the last doorbell, or was left in the queues, is looked at once.
        let _ = self.wake.write(1);
        Ok(())
    }

    fn make_queues(&self, states: Vec<Option<QueueState>>, features: u64) -> Result<Active, QueueError> {
        let make = |state: Option<QueueState>| state.map(|state| Queue::new(self.ram.clone(), state)).transpose();
        let queues = states.into_iter().map(make).collect::<Result<_, _>>()?;
        Ok(Active { ram: self.ram.clone(), queues, features, interrupt: Arc::clone(&self.interrupt) })
    }

    /// A write to a register, on a vCPU thread.
    fn write_register(&self, at: u64, value: u32) {
        let inner = &mut *self.lock();
        let change = inner.registers.write(at, value);
        match change {
            Change::None if !inner.registers.is_live() => {
                // The driver may have said that it gives up.
                self.desks.iter().for_each(|desk| desk.halt());
                return;
            }
            Change::None => return,
            Change::Reset => {
                self.desks.iter().for_each(|desk| desk.close());
                // From here on nothing of the guest's memory is touched for this device.
                inner.active = None;
                (inner.fresh, inner.reset) = (false, true);
                self.interrupt.acknowledge(u32::MAX);
            }
            Change::Activate => match self.make_queues(inner.registers.queues(), inner.registers.features()) {
                Ok(active) => {
                    inner.active = Some(active);
                    inner.fresh = true;
                }
                Err(error) => inner.give_up(error, &self.interrupt),
            },
        }
        // Full only if it says so already.
        let _ = self.wake.write(1);
    }

    /// The driver has put something into queue `index`. Once it is connected ([`Slot::connect`]) KVM rings the doorbells
    /// itself; what comes here then names a queue that does not exist, as often as the guest likes, and is not logged.
    fn notify(&self, index: u32) {
        if let Some(doorbell) = usize::try_from(index).ok().and_then(|index| self.doorbells.get(index)) {
            // Full only if it says so already.
            let _ = doorbell.write(1);
        }
    }

    /// See [`VirtioDevice::system_calls`].
    pub(super) fn system_calls(&self) -> &'static [Call] {
        self.lock().device.system_calls()
    }

    /// See [`VirtioDevice::settle`].
    pub(super) fn settle(&self) {
        self.lock().device.settle();
    }

    /// See [`VirtioDevice::largest_file`].
    pub(crate) fn largest_file(&self) -> u64 {
        self.lock().device.largest_file()
    }

    /// The counters that vCPUs ring.
    pub(super) fn counters(&self) -> Vec<RawFd> {
        self.doorbells.iter().chain([&self.wake]).map(AsRawFd::as_raw_fd).collect()
    }

    /// What the event loop has to watch for this slot from the start.
    pub(super) fn sources(&self) -> Vec<Source> {
        let doorbells = (QUEUE_TOKENS..).zip(&self.doorbells).filter(|_| self.desks.is_empty());
        let doorbells = doorbells.map(|(token, doorbell)| (doorbell, token));
        let own = doorbells.chain([(&self.wake, WAKE_TOKEN)]);
        // By edges: each write to a counter is told once, and nobody has to read it.
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let own = own.map(|(fd, token)| Source { fd: fd.as_raw_fd(), token, set });
        own.chain(self.lock().device.sources()).collect()
    }

    /// Something that the event loop watches for this slot is ready.
    pub(super) fn serve(&self, token: u32, set: EventSet, watch: Watch<'_>) {
        let inner = &mut *self.lock();
        self.catch_up(inner);
        if let Some(error) = self.desks.iter().find_map(|desk| desk.take_fault()) {
            self.desks.iter().for_each(|desk| desk.halt());
            inner.give_up(error, &self.interrupt);
        }
        if std::mem::take(&mut inner.unserved) {
            // What came before the device knew of its driver.
            (0..self.doorbells.len()).for_each(|index| self.ring(inner, index));
        }
        if let Some(index) = token.checked_sub(QUEUE_TOKENS).and_then(|index| usize::try_from(index).ok()) {
            // The token of `wake` is no queue's.
            self.ring(inner, index);
        } else {
            let active = inner.active.as_mut().filter(|_| inner.registers.is_live());
            if let Err(error) = inner.device.serve_source(active, token, set, watch) {
                inner.give_up(error, &self.interrupt);
            }
        }
        inner.report();
    }

    /// Tells the device of a reset or a start that it does not know of.
    fn catch_up(&self, inner: &mut Inner) {
        if std::mem::take(&mut inner.reset) {
            inner.device.reset();
        }
        if std::mem::take(&mut inner.fresh)
            && let Some(active) = inner.active.as_mut()
        {
            inner.device.activate(active);
            inner.unserved = true;
            let (features, interrupt) = (active.features, &active.interrupt);
            // What is not live any more was closed and is not opened again.
            let desks = self.desks.iter().filter(|_| inner.registers.is_live());
            for (desk, queue) in desks.zip(&mut active.queues) {
                let served =
                    |queue| Served { ram: active.ram.clone(), queue, features, interrupt: Arc::clone(interrupt) };
                queue.take().map(served).into_iter().for_each(|served| desk.open(served));
            }
        }
    }

    /// Serves queue `index` until it is empty or others should have a turn.
    fn ring(&self, inner: &mut Inner, index: usize) {
        let live = inner.registers.is_live();
        let set_up = |active: &&mut Active| active.queues.get(index).is_some_and(Option::is_some);
        let Some(active) = inner.active.as_mut().filter(|_| live).filter(set_up) else {
            return;
        };
        match inner.device.serve_queue(active, index) {
            Ok(Progress::Idle) => {}
            Ok(Progress::More) => {
                let _ = self.doorbells.get(index).map(|doorbell| doorbell.write(1));
            }
            Err(error) => inner.give_up(error, &self.interrupt),
        }
    }
}

/// Whether queues lie where, and are as, the registers say. How far they were served is the queues' own.
fn same_places(queues: &[Option<QueueState>], registers: &[Option<QueueState>]) -> bool {
    let place = |queue: &Option<QueueState>| queue.map(|queue| QueueState { next_available: 0, next_used: 0, ..queue });
    queues.iter().map(place).eq(registers.iter().map(place))
}

impl Inner {
    fn give_up(&mut self, error: QueueError, interrupt: &Interrupt) {
        self.broken = Some(error);
        if self.registers.set_needs_reset() {
            interrupt.config_changed();
        }
    }

    /// Logs what the driver did wrong. For the main thread: a vCPU would wait for the log with the device locked.
    fn report(&mut self) {
        let Some(error) = self.broken.take() else {
            return;
        };
        self.errors = self.errors.saturating_add(1);
        if self.errors <= LOGGED_ERRORS {
            warn!(device = self.device.name(), %error, "the guest's driver broke the rules, the device waits for a reset");
        }
    }
}

/// A slot on the bus.
pub struct MmioTransport {
    slot: Arc<Slot>,
}

impl MmioTransport {
    /// Bytes of a device's registers.
    pub const LEN: u64 = 0x1000;

    /// The registers of `slot`.
    pub fn new(slot: Arc<Slot>) -> Self {
        Self { slot }
    }
}

impl Device for MmioTransport {
    fn read(&self, at: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = at.checked_sub(offset::CONFIG) {
            self.slot.lock().device.read_config(at, data);
            return;
        }
        // Registers are 32 bits wide and aligned; other accesses read zeros.
        if data.len() != 4 || !at.is_multiple_of(4) {
            return;
        }
        let value = match at {
            offset::INTERRUPT_STATUS => self.slot.interrupt.status(),
            _ => self.slot.lock().registers.read(at).unwrap_or(0),
        };
        data.copy_from_slice(&value.to_le_bytes());
    }

    fn write(&self, at: u64, data: &[u8]) -> Option<Action> {
        if let Some(at) = at.checked_sub(offset::CONFIG) {
            self.slot.lock().device.write_config(at, data);
            return None;
        }
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match at {
            _ if !at.is_multiple_of(4) => {}
            offset::INTERRUPT_ACK => self.slot.interrupt.acknowledge(value),
            offset::QUEUE_NOTIFY => self.slot.notify(value),
            _ => self.slot.write_register(at, value),
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod driver;
#[cfg(test)]
mod tests;
