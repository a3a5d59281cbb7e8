//! Where a queue lies while its thread does not serve it.
//!
//! The thread takes the queue for a turn and puts it back. Whoever wants it meanwhile (a vCPU that resets the device, the
//! main thread that pauses the VM) says so and waits: the thread looks between two requests, and between two pieces of a
//! large one, which goes back into the queue and is done from its beginning later. What takes long and touches no guest
//! memory, a flush, is done beside the desk: nobody waits for it, and who comes between undoes its request.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::virtio::{Interrupt, Queue, QueueError, QueueState};

/// A queue whose driver is ready, and what serving it takes.
pub struct Served {
    /// The guest's memory.
    pub ram: GuestRam,
    /// The queue.
    pub queue: Queue,
    /// The features that both sides have.
    pub features: u64,
    /// The way to the driver.
    pub interrupt: Arc<Interrupt>,
}

impl Served {
    /// Calls the driver if it wants to hear of what was used.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if self.queue.needs_notification()? {
            self.interrupt.used_buffers();
        }
        Ok(())
    }
}

/// Why a turn ends before its queue is empty.
#[derive(Debug)]
pub enum Stop {
    /// Somebody has come between. What the queue held is done later, if its driver still wants it.
    Over,
    /// The driver broke the rules.
    Broken(QueueError),
}

impl From<QueueError> for Stop {
    fn from(error: QueueError) -> Self {
        Self::Broken(error)
    }
}

/// Where the queue is.
enum Place {
    /// There is none: its driver is not ready.
    Nowhere,
    /// It is served no more until its driver resets the device; how far it was.
    Halted(QueueState),
    Here(Served),
    /// The thread has it.
    Taken,
    /// Here, and the thread does one request of it that needs neither the queue nor guest memory.
    Aside(Served),
}

impl Place {
    /// The same, served no more.
    fn halted(self) -> Self {
        match self {
            Self::Here(served) | Self::Aside(served) => Self::Halted(served.queue.state()),
            place => place,
        }
    }
}

struct Inner {
    place: Place,
    /// The VM runs.
    runs: bool,
    /// The thread is to end.
    ends: bool,
    /// What is put back is served no more.
    halts: bool,
    /// What the driver did wrong, and nobody was told of yet.
    fault: Option<QueueError>,
}

/// The place of one queue.
pub(in crate::virtio) struct Desk {
    inner: Mutex<Inner>,
    /// Told when the queue is put back and somebody waits.
    returned: Condvar,
    /// How many wait.
    wanted: AtomicU32,
    /// Wakes the thread. The driver's doorbell, too.
    doorbell: Arc<EventFd>,
    /// Wakes the main thread for this device.
    wake: Arc<EventFd>,
}

impl Desk {
    /// A desk without a queue, of a VM that stands still.
    pub(in crate::virtio) fn new(doorbell: Arc<EventFd>, wake: Arc<EventFd>) -> Self {
        let inner = Inner { place: Place::Nowhere, runs: false, ends: false, halts: false, fault: None };
        Self { inner: Mutex::new(inner), returned: Condvar::new(), wanted: AtomicU32::new(0), doorbell, wake }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic has aborted the process: the lock is never poisoned.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread: there may be something to do.
    pub(in crate::virtio) fn ring(&self) {
        // Full only if it rings already.
        let _ = self.doorbell.write(1);
    }

    /// The driver is ready: its queue may be served.
    pub(in crate::virtio) fn open(&self, served: Served) {
        let mut inner = self.lock();
        (inner.place, inner.halts) = (Place::Here(served), false);
        drop(inner);
        self.ring();
    }

    /// The driver has reset the device: from here on the thread touches no guest memory.
    pub(in crate::virtio) fn close(&self) {
        let mut inner = self.take_over(None);
        (inner.place, inner.halts, inner.fault) = (Place::Nowhere, false, None);
    }

    /// The device is served no more until its driver resets it, but for what the thread is at: nobody waits for that. What
    /// the queue's driver did wrong is forgotten: it is known.
    pub(in crate::virtio) fn halt(&self) {
        let mut inner = self.lock();
        (inner.halts, inner.fault) = (true, None);
        let place = std::mem::replace(&mut inner.place, Place::Nowhere);
        inner.place = place.halted();
    }

    /// Lets the thread stand still. `false` when it did not within `limit`: the VM goes on then.
    pub(in crate::virtio) fn pause(&self, limit: Duration) -> bool {
        self.lock().runs = false;
        let mut inner = self.take_over(Some(limit));
        match std::mem::replace(&mut inner.place, Place::Nowhere) {
            Place::Taken => {
                inner.place = Place::Taken;
                drop(inner);
                self.resume();
                return false;
            }
            Place::Aside(mut served) => {
                served.queue.unpop();
                inner.place = Place::Here(served);
            }
            place => inner.place = place,
        }
        true
    }

    /// Lets the thread go on, or begin.
    pub(in crate::virtio) fn resume(&self) {
        self.lock().runs = true;
        self.ring();
    }

    /// Lets the thread end when it has put the queue back.
    pub(in crate::virtio) fn end(&self) {
        self.lock().ends = true;
        self.ring();
    }

    /// How far the queue is, while the thread stands still; `None` if there is none.
    pub(in crate::virtio) fn state(&self) -> Option<QueueState> {
        match &self.lock().place {
            Place::Here(served) => Some(served.queue.state()),
            Place::Halted(state) => Some(*state),
            Place::Nowhere | Place::Taken | Place::Aside(_) => None,
        }
    }

    /// What the driver did wrong, once.
    pub(in crate::virtio) fn take_fault(&self) -> Option<QueueError> {
        self.lock().fault.take()
    }

    /// Whether somebody waits for the queue.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) > 0
    }

    /// Waits until the thread does not have the queue, or the time is over.
    fn take_over(&self, limit: Option<Duration>) -> MutexGuard<'_, Inner> {
        let end = limit.map(|limit| Instant::now() + limit);
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let mut inner = self.lock();
        while matches!(inner.place, Place::Taken) {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            inner = match left {
                None => self.returned.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.returned.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        inner
    }

    /// Whether the thread is to end.
    pub(super) fn is_over(&self) -> bool {
        self.lock().ends
    }

    /// Takes the queue for a turn, if there is one and nobody else wants it. Who does rings when he is done.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        let mut inner = self.lock();
        if !inner.runs || inner.ends || self.is_wanted() {
            return None;
        }
        match std::mem::replace(&mut inner.place, Place::Taken) {
            Place::Here(served) => Some(Turn { desk: self, served: Some(served) }),
            place => {
                inner.place = place;
                None
            }
        }
    }

    fn put(&self, place: Place) {
        let mut inner = self.lock();
        inner.place = if inner.halts { place.halted() } else { place };
        drop(inner);
        if self.is_wanted() {
            self.returned.notify_all();
        }
    }
}

/// A turn of the thread: it has the queue, until somebody comes between.
pub struct Turn<'a> {
    desk: &'a Desk,
    served: Option<Served>,
}

impl<'a> Turn<'a> {
    /// The queue.
    pub fn served(&mut self) -> Result<&mut Served, Stop> {
        self.served.as_mut().ok_or(Stop::Over)
    }

    /// Tells whether somebody waits for the queue, also while it is borrowed.
    pub fn wish(&self) -> impl Fn() -> bool + use<'a> {
        let desk = self.desk;
        move || desk.is_wanted()
    }

    /// Does something that takes long, for the request that was popped last. It may touch neither the queue nor guest
    /// memory: nobody waits for it. If somebody comes between, the request is in the queue again or gone with it.
    pub fn aside<T>(&mut self, work: impl FnOnce() -> T) -> Result<T, Stop> {
        self.desk.put(Place::Aside(self.served.take().ok_or(Stop::Over)?));
        let done = work();
        let mut inner = self.desk.lock();
        match std::mem::replace(&mut inner.place, Place::Taken) {
            Place::Aside(served) => {
                self.served = Some(served);
                Ok(done)
            }
            place => {
                inner.place = place;
                Err(Stop::Over)
            }
        }
    }

    /// Ends the turn, and the work for this driver: it broke the rules.
    pub(super) fn give_up(mut self, error: QueueError) {
        if let Some(served) = self.served.take() {
            self.desk.lock().fault = Some(error);
            self.desk.put(Place::Halted(served.queue.state()));
        }
        // Full only if it says so already.
        let _ = self.desk.wake.write(1);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(served) = self.served.take() {
            self.desk.put(Place::Here(served));
        }
    }
}
