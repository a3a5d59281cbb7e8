//! The main thread's event loop over all virtio devices: one epoll instance, in which the thread waits while the VM runs.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::queue_thread::QueueThread;
use super::transport::Slot;
use crate::jail::seccomp::Call;

/// Events of one turn, at most.
const BATCH: usize = 32;
/// Time after which a turn ends with the event that it is at: a guest must not keep signals and commands waiting for more
/// than one of its requests.
const TURN: Duration = Duration::from_millis(10);
/// What the kernel says of descriptors that belong to no device.
const OTHER: u64 = u64::MAX;

/// A descriptor that a device wants to hear of.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The descriptor. It stays open for as long as it is watched.
    pub fd: RawFd,
    /// The device's own number for it, below [`Source::RESERVED`].
    pub token: u32,
    /// What to hear of.
    pub set: EventSet,
}

impl Source {
    /// From here on tokens belong to the transport.
    pub const RESERVED: u32 = 0xffff_0000;
}

/// Changes what one device hears of.
///
/// Closing a descriptor ends its watch. An event that was already taken from the kernel is delivered all the same:
/// devices ignore tokens that they no longer know.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    epoll: &'a Epoll,
    slot: u32,
}

impl Watch<'_> {
    /// Hears of a new descriptor.
    pub fn add(&self, source: Source) -> std::io::Result<()> {
        self.control(ControlOperation::Add, source)
    }

    /// Hears of other events of a descriptor that is watched.
    pub fn modify(&self, source: Source) -> std::io::Result<()> {
        self.control(ControlOperation::Modify, source)
    }

    /// Hears no more of a descriptor that stays open.
    pub fn remove(&self, source: Source) -> std::io::Result<()> {
        self.control(ControlOperation::Delete, source)
    }

    fn control(&self, operation: ControlOperation, source: Source) -> std::io::Result<()> {
        let data = (u64::from(self.slot) << 32) | u64::from(source.token);
        self.epoll.ctl(operation, source.fd, EpollEvent::new(source.set, data))
    }
}

/// All virtio devices of a VM.
pub struct EventLoop {
    epoll: Epoll,
    slots: Vec<Arc<Slot>>,
}

/// What [`EventLoop::wait`] has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A device had something, and was served.
    Device,
    /// There is something of what is no device's.
    Other,
    /// Time has passed.
    Nothing,
}

impl EventLoop {
    /// A loop without devices.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, slots: Vec::new() })
    }

    /// Serves one more device from now on.
    pub fn add(&mut self, slot: Arc<Slot>) -> std::io::Result<()> {
        let number = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let watch = Watch { epoll: &self.epoll, slot: number };
        slot.sources().into_iter().try_for_each(|source| watch.add(source))?;
        self.slots.push(slot);
        Ok(())
    }

    /// The devices, in the order in which they were added.
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// System calls that the devices need on the thread that serves them.
    pub fn system_calls(&self) -> Vec<Call> {
        self.slots.iter().flat_map(|slot| slot.system_calls()).copied().collect()
    }

    /// What is watched for the devices from the start.
    pub fn watched(&self) -> Vec<RawFd> {
        self.slots.iter().flat_map(|slot| slot.sources()).map(|source| source.fd).collect()
    }

    /// The counters that a vCPU rings when its driver has something to say.
    pub fn counters(&self) -> Vec<RawFd> {
        self.slots.iter().flat_map(|slot| slot.counters()).collect()
    }

    /// Tells the devices that the VM is about to run, see [`VirtioDevice::settle`](super::VirtioDevice::settle).
    pub fn settle(&self) {
        self.slots.iter().for_each(|slot| slot.settle());
    }

    /// What serves queues on threads of their own, once. The devices stand still until [`EventLoop::resume`].
    pub fn take_threads(&self) -> Vec<QueueThread> {
        self.slots.iter().flat_map(|slot| slot.take_threads()).collect()
    }

    /// Lets the queues' threads go on, or begin.
    pub fn resume(&self) {
        self.slots.iter().for_each(|slot| slot.resume());
    }

    /// Lets them stand still: nothing is in flight then. If one is not ready by the end of `limit`, all go on, and its
    /// device's name is given back.
    pub fn pause(&self, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        let late = self.slots.iter().find(|slot| !slot.pause(end.saturating_duration_since(Instant::now())));
        late.map_or(Ok(()), |slot| {
            self.resume();
            Err(slot.name().to_owned())
        })
    }

    /// Lets them end.
    pub fn end(&self) {
        self.slots.iter().for_each(|slot| slot.end());
    }

    /// Hears also of a descriptor that is no device's, each time that there is something new to be read.
    pub fn hear_of(&self, fd: RawFd) -> std::io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(edges, OTHER))
    }

    /// Waits for one event, so many milliseconds at most (-1: for ever), and serves it if it is a device's.
    ///
    /// One by one: what is taken from the kernel has to be served, and the kernel sees to it that all have a turn.
    pub fn wait(&self, timeout_ms: i32) -> std::io::Result<Heard> {
        let mut event = [EpollEvent::default()];
        match self.epoll.wait(timeout_ms, &mut event) {
            Ok(0) => return Ok(Heard::Nothing),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(Heard::Nothing),
            result => result?,
        };
        let [event] = event;
        if event.data() == OTHER {
            return Ok(Heard::Other);
        }
        let (number, token) = (event.data() >> 32, event.data() & 0xffff_ffff);
        let slot = usize::try_from(number).ok().and_then(|number| self.slots.get(number));
        if let (Some(slot), Ok(number), Ok(token)) = (slot, u32::try_from(number), u32::try_from(token)) {
            slot.serve(token, event.event_set(), Watch { epoll: &self.epoll, slot: number });
        }
        Ok(Heard::Device)
    }

    /// Serves what is ready, without waiting, until others should have their turn. Gives whether it has heard of something
    /// that is no device's, which nobody will be told of again.
    pub fn serve(&self) -> std::io::Result<bool> {
        let (begin, mut other) = (Instant::now(), false);
        for _ in 0..BATCH {
            let heard = self.wait(0)?;
            other |= heard == Heard::Other;
            if heard == Heard::Nothing || begin.elapsed() >= TURN {
                break;
            }
        }
        Ok(other)
    }
}

impl AsRawFd for EventLoop {
    /// Readable when the kernel has something for [`EventLoop::serve`].
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
