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
mod metadata;
mod metrics;
mod rx;
mod tap;
mod tx;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;

pub use config::{MAX_HOST_NAME, NetworkInterface, NetworkInterfaceUpdate};
use features::Features;
pub use mac::{MacAddress, NotAMacAddress};
use metadata::Metadata;
use metrics::Metrics;
use rx::Rx;
pub use tap::{Tap, TapError};

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::mmds::{MmdsConfig, SharedMmds};
use crate::rate_limiter::{RateLimiter, RateLimiterState};
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
/// The limiter of what the guest receives lets go on.
const RX_TIMER: u32 = 1;
/// The limiter of what the guest sends lets go on.
const TX_TIMER: u32 = 2;
/// A connection to the metadata service has waited long enough.
const METADATA_TIMER: u32 = 3;
/// What serving a card takes. Random numbers are for the metadata service, and so the last.
const SYSTEM_CALLS: [Call; 6] = {
    let [timer] = RateLimiter::SYSTEM_CALLS;
    [
        Call::any(libc::SYS_readv).on_watched(),
        Call::any(libc::SYS_writev).on_watched(),
        Call::any(libc::SYS_epoll_ctl),
        Call::with(libc::SYS_ioctl, 1, tap::SET_OFFLOAD).on_watched(),
        timer,
        Call::any(libc::SYS_getrandom),
    ]
};

/// What a snapshot keeps. Frames on their way are lost, as on any wire.
#[derive(Serialize, Deserialize)]
struct NetState {
    /// Always there. Before every card had an address it was not, where none was configured.
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    rx_limiter: RateLimiterState,
    tx_limiter: RateLimiterState,
}

/// The device.
pub struct Net {
    id: String,
    tap: Tap,
    mac: MacAddress,
    /// Nobody has configured the address: a snapshot brings along the one that its guest knows.
    made: bool,
    mtu: Option<u16>,
    /// What was agreed on.
    features: Features,
    rx: Rx,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    /// The timer of `tx_limiter` is the pause of somebody who sends much.
    pausing: bool,
    metadata: Option<Metadata>,
    metrics: Metrics,
    /// An error of the tap was logged. A guest must not fill the log.
    complained: bool,
}

impl Net {
    /// Opens the tap of `config`. With `metadata`, the metadata service is a neighbour of the card.
    pub fn open(config: &NetworkInterface, metadata: Option<(&MmdsConfig, &SharedMmds)>) -> Result<Self, DeviceError> {
        let tap = Tap::open(&config.host_dev_name).map_err(std::io::Error::other).map_err(|source| {
            DeviceError::Host { device: Self::name_of(&config.iface_id), step: "open its tap", source }
        })?;
        Self::on(tap, config, metadata)
    }

    /// The card of `config` on a tap that is open already.
    pub fn on(
        tap: Tap,
        config: &NetworkInterface,
        metadata: Option<(&MmdsConfig, &SharedMmds)>,
    ) -> Result<Self, DeviceError> {
        let host = |step| move |source| DeviceError::Host { device: Self::name_of(&config.iface_id), step, source };
        let limiter = |config: &Option<_>| RateLimiter::new(config.as_ref()).map_err(host("make a timer"));
        let made = || MacAddress::random().map_err(host("make up an address"));
        let service = |(config, mmds): (&MmdsConfig, &SharedMmds)| Metadata::new(config, Arc::clone(mmds));
        Ok(Self {
            id: config.iface_id.clone(),
            tap,
            mac: config.guest_mac.map_or_else(made, Ok)?,
            made: config.guest_mac.is_none(),
            mtu: config.mtu,
            features: Features::default(),
            rx: Rx::new(),
            rx_limiter: limiter(&config.rx_rate_limiter)?,
            tx_limiter: limiter(&config.tx_rate_limiter)?,
            pausing: false,
            metadata: metadata.map(service).transpose().map_err(host("make its metadata service"))?,
            metrics: Metrics::default(),
            complained: false,
        })
    }

    /// Takes over new limits while the VM runs.
    pub fn update(&mut self, update: &NetworkInterfaceUpdate) {
        let limits = [
            (&mut self.rx_limiter, update.rx_rate_limiter.as_ref()),
            (&mut self.tx_limiter, update.tx_rate_limiter.as_ref()),
        ];
        for (limiter, config) in limits {
            if let Some(config) = config {
                limiter.update(config);
            }
        }
    }

    /// The name of the device of an interface, see [`VirtioDevice::name`].
    pub fn name_of(iface_id: &str) -> String {
        format!("network interface {iface_id}")
    }

    /// Receives on an event that tells only once, and sees to it that the rest has its turn.
    fn receive_all(&mut self, active: &mut Active, watch: Watch<'_>) -> Result<(), QueueError> {
        if self.receive(active)? == Progress::More && watch.modify(self.tap_source()).is_err() {
            self.metrics.event_fails.inc();
        }
        Ok(())
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

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn name(&self) -> String {
        Self::name_of(&self.id)
    }

    fn features(&self) -> u64 {
        Features::offered(self.mtu.is_some()).0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn system_calls(&self) -> &'static [Call] {
        match &SYSTEM_CALLS {
            all if self.metadata.is_some() => all,
            [without @ .., _] => without,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; CONFIG_LEN];
        let (address, rest) = space.split_at_mut(6);
        address.copy_from_slice(&self.mac.bytes());
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
        // The address is the card's, not the driver's to change.
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
        self.rx_limiter.timer_event();
        self.tx_limiter.timer_event();
        self.pausing = false;
        self.metadata.iter_mut().for_each(Metadata::clear);
    }

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        if index == RX {
            self.metrics.rx_queue_event_count.inc();
            self.receive(active)
        } else {
            self.metrics.tx_queue_event_count.inc();
            let progress = self.transmit(active)?;
            Ok(if self.answer(active)? == Progress::More { Progress::More } else { progress })
        }
    }

    fn sources(&self) -> Vec<Source> {
        let timer = |fd: &dyn AsRawFd, token| Source { fd: fd.as_raw_fd(), token, set: EventSet::IN };
        let mut sources = vec![self.tap_source(), timer(&self.rx_limiter, RX_TIMER), timer(&self.tx_limiter, TX_TIMER)];
        sources.extend(self.metadata.as_ref().map(|metadata| timer(metadata, METADATA_TIMER)));
        sources
    }

    fn serve_source(
        &mut self,
        active: Option<&mut Active>,
        token: u32,
        _set: EventSet,
        watch: Watch<'_>,
    ) -> Result<(), QueueError> {
        match token {
            TAP => self.metrics.rx_tap_event_count.inc(),
            RX_TIMER => {
                self.rx_limiter.timer_event();
                self.metrics.rx_event_rate_limiter_count.inc();
            }
            TX_TIMER => {
                self.tx_limiter.timer_event();
                if !std::mem::take(&mut self.pausing) {
                    self.metrics.tx_rate_limiter_event_count.inc();
                }
            }
            METADATA_TIMER => self.metadata.iter_mut().for_each(Metadata::timer_event),
            _ => return Ok(()),
        }
        let Some(active) = active else {
            return Ok(());
        };
        if token != TX_TIMER {
            return self.receive_all(active, watch);
        }
        if self.transmit(active)? == Progress::More || self.answer(active)? == Progress::More {
            self.tx_limiter.wake_after(Duration::ZERO);
        }
        Ok(())
    }

    fn save(&mut self, active: Option<&mut Active>) -> Vec<u8> {
        if let Some(active) = active {
            self.rx.put_back(active);
        }
        let state = NetState {
            mac: Some(self.mac.bytes()),
            mtu: self.mtu,
            rx_limiter: self.rx_limiter.save(),
            tx_limiter: self.tx_limiter.save(),
        };
        postcard::to_stdvec(&state).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let (state, rest) = postcard::take_from_bytes::<NetState>(state).map_err(|e| e.to_string())?;
        if !rest.is_empty() {
            return Err("it goes on behind its end".to_owned());
        }
        let mac = state.mac.map(MacAddress::new).filter(|mac| mac.is_unicast());
        let mac = mac.ok_or_else(|| "it is of a card without an address of its own".to_owned())?;
        // The driver has read them and will not do it again.
        if (!self.made && mac != self.mac) || state.mtu != self.mtu {
            return Err("it is of a card with another address or MTU".to_owned());
        }
        self.mac = mac;
        self.rx_limiter.restore(state.rx_limiter)?;
        self.tx_limiter.restore(state.tx_limiter)
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![(format!("net_{}", self.id), serde_json::to_value(&self.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn card(guest_mac: Option<MacAddress>) -> Net {
        let (tap, _) = UnixDatagram::pair().unwrap();
        let config = NetworkInterface { guest_mac, ..NetworkInterface::new("eth0", "tap0") };
        Net::on(Tap::from(std::fs::File::from(OwnedFd::from(tap))), &config, None).unwrap()
    }

    fn address(card: &Net) -> [u8; 6] {
        let mut address = [0; 6];
        card.read_config(0, &mut address);
        address
    }

    #[test]
    fn an_address_that_was_made_is_offered_and_stays_the_vms() {
        let mut first = card(None);
        let made = address(&first);
        assert_eq!(made[0] & 3, 2, "{made:x?}");
        assert_ne!(first.features() & (1 << 5), 0);
        let state = first.save(None);
        let mut second = card(None);
        assert_ne!(address(&second), made);
        second.restore(&state).unwrap();
        assert_eq!(address(&second), made);
        // One that was configured is not changed by a snapshot.
        let configured = MacAddress::new([2, 0, 0, 0, 0, 1]);
        let mut other = card(Some(configured));
        assert!(other.restore(&state).unwrap_err().contains("another address"));
        assert_eq!(address(&other), configured.bytes());
        let same = other.save(None);
        other.restore(&same).unwrap();
    }

    #[test]
    fn a_snapshot_gives_a_card_no_address_that_is_none() {
        let limiter = RateLimiterState::default;
        let state = |mac| NetState { mac, mtu: None, rx_limiter: limiter(), tx_limiter: limiter() };
        let restore = |mac| card(None).restore(&postcard::to_stdvec(&state(mac)).unwrap());
        assert!(restore(Some([2, 0, 0, 0, 0, 1])).is_ok());
        // A group's, and none.
        for bad in [Some([3, 0, 0, 0, 0, 1]), None] {
            assert!(restore(bad).unwrap_err().contains("address"), "{bad:?}");
        }
    }
}
