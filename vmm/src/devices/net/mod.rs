//! A network card (virtio 1.2, section 5.1) on a tap of the host.
//!
//! Frames go between queues and tap without a stop: `readv` and `writev` on the guest's own buffers. Of a frame that
//! the guest sends, only the first bytes are copied, so that what was looked at is what goes out ([`frame`]).
//!
//! The tap is watched by edges: it tells of new frames once. So after each event it is read until it has no more, or
//! until something else will call again: the driver with new buffers, or a limiter's timer.

mod config;
mod features;
mod frame;
mod mac;
mod metrics;
mod rx;
mod tap;
mod tx;

use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::EventSet;

pub use config::{MAX_HOST_NAME, NetworkInterface};
use features::Features;
pub use mac::{MacAddress, NotAMacAddress};
use metrics::Metrics;
use rx::Rx;
pub use tap::{Tap, TapError};

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::virtio::{Active, DeviceKind, Progress, QueueError, Source, VirtioDevice, Watch};

/// The queue of frames for the guest.
const RX: usize = 0;
/// The queue of frames from the guest.
const TX: usize = 1;
/// Entries of each queue.
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Frames that a tap keeps, at most (its `tx_queue_len` is 500 or 1000).
const TAP_BACKLOG: usize = 1024;
/// Bytes of the configuration space: address, status, number of queue pairs, MTU.
const CONFIG_LEN: usize = 12;
/// The tap has frames.
const TAP: u32 = 0;

/// The device.
pub struct Net {
    id: String,
    tap: Tap,
    mac: Option<MacAddress>,
    mtu: Option<u16>,
    /// What was agreed on.
    features: Features,
    rx: Rx,
    metrics: Metrics,
    /// An error of the tap was logged. A guest must not fill the log.
    complained: bool,
}

impl Net {
    /// Opens the tap of `config`.
    pub fn open(config: &NetworkInterface) -> Result<Self, DeviceError> {
        let tap = Tap::open(&config.host_dev_name).map_err(|error| DeviceError::Host {
            device: name(&config.iface_id),
            step: "open its tap",
            source: std::io::Error::other(error),
        })?;
        Ok(Self {
            id: config.iface_id.clone(),
            tap,
            mac: config.guest_mac,
            mtu: config.mtu,
            features: Features::default(),
            rx: Rx::new(),
            metrics: Metrics::default(),
            complained: false,
        })
    }

    /// What the tap is to be heard of for. Said again, it tells again of frames that are there.
    fn tap_source(&self) -> Source {
        Source { fd: self.tap.as_raw_fd(), token: TAP, set: EventSet::IN | EventSet::EDGE_TRIGGERED }
    }

    fn complain(&mut self, what: &str, error: &std::io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(device = self.name(), %error, "cannot {what} the tap; is it up? (said once)");
        }
    }
}

fn name(id: &str) -> String {
    format!("network interface {id}")
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn name(&self) -> String {
        name(&self.id)
    }

    fn features(&self) -> u64 {
        Features::offered(self.mac.is_some(), self.mtu.is_some()).0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn system_calls(&self) -> &'static [Call] {
        const {
            &[
                Call::any(libc::SYS_readv),
                Call::any(libc::SYS_writev),
                Call::any(libc::SYS_epoll_ctl),
                Call::with(libc::SYS_ioctl, 1, libc::TUNSETOFFLOAD),
            ]
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_LEN];
        let (address, rest) = space.split_at_mut(6);
        address.copy_from_slice(&self.mac.map_or([0; 6], MacAddress::bytes));
        if let Some(mtu) = rest.get_mut(4..) {
            mtu.copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        }
        let from = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
        if from.len() < data.len() {
            self.metrics.cfg_fails.inc();
        }
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The address is the configuration's, not the driver's to change.
        self.metrics.cfg_fails.inc();
    }

    fn activate(&mut self, active: &mut Active) {
        self.features = Features(active.features);
        let (old, new) = (self.tap.offload(), self.features.tap_offload());
        if let Err(error) = self.tap.set_offload(new) {
            self.metrics.activate_fails.inc();
            self.complain("set the offloads of", &error);
        }
        if old & !new != 0 {
            // What has come in since may be more than this driver takes.
            self.drain();
        }
    }

    fn reset(&mut self) {
        self.features = Features::default();
        self.rx.clear();
    }

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        if index == RX {
            self.metrics.rx_queue_event_count.inc();
            self.receive(active)
        } else {
            self.metrics.tx_queue_event_count.inc();
            self.transmit(active)
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![self.tap_source()]
    }

    fn serve_source(
        &mut self,
        active: Option<&mut Active>,
        token: u32,
        _set: EventSet,
        watch: Watch<'_>,
    ) -> Result<(), QueueError> {
        let Some(active) = active.filter(|_| token == TAP) else {
            return Ok(());
        };
        self.metrics.rx_tap_event_count.inc();
        let rearm = self.receive(active)? == Progress::More;
        if rearm && watch.modify(self.tap_source()).is_err() {
            self.metrics.event_fails.inc();
        }
        Ok(())
    }

    fn save(&mut self, active: Option<&mut Active>) -> Vec<u8> {
        if let Some(active) = active {
            self.rx.put_back(active);
        }
        Vec::new()
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![(format!("net_{}", self.id), serde_json::to_value(&self.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
