//! The metadata service as a neighbour on the card's link: its frames never reach the tap.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use vmm_sys_util::timerfd::TimerFd;

use super::frame::HEADER;
use crate::memory::GuestRam;
use crate::mmds::{MmdsConfig, Network, SharedMmds};
use crate::virtio::{Buffers, QueueError};

/// The service, and the timer of its connections.
pub(super) struct Metadata {
    network: Network,
    timer: TimerFd,
    armed: bool,
}

impl Metadata {
    pub(super) fn new(config: &MmdsConfig, mmds: SharedMmds) -> io::Result<Self> {
        let network = Network::new(mmds, config)?;
        Ok(Self { network, timer: TimerFd::new().map_err(io::Error::from)?, armed: false })
    }

    /// Whether a frame that the guest sends is for the service, by its first bytes behind the header.
    pub(super) fn takes(&self, frame: &[u8]) -> bool {
        self.network.takes(frame)
    }

    /// Takes a frame whose first bytes, the header's too, are `head`.
    pub(super) fn receive(&mut self, head: &[u8], mut rest: Buffers, ram: &GuestRam) -> Result<(), QueueError> {
        let mut frame = head.get(HEADER..).unwrap_or_default().to_vec();
        let start = frame.len();
        // The frame as a whole has been judged: it is not larger than a frame may be.
        frame.resize(start.saturating_add(usize::try_from(rest.len()).unwrap_or(0)), 0);
        rest.read(ram, frame.get_mut(start..).unwrap_or_default())?;
        self.network.receive(frame, Instant::now());
        self.set_timer();
        Ok(())
    }

    /// Writes the next frame for the guest, behind an empty header, into `to`; gives the bytes of both.
    pub(super) fn next_frame(&mut self, to: &mut [u8]) -> Option<usize> {
        let frame = self.network.next_frame(Instant::now())?;
        self.set_timer();
        let (header, rest) = to.split_at_mut_checked(HEADER)?;
        header.fill(0);
        rest.get_mut(..frame.len())?.copy_from_slice(&frame);
        Some(HEADER.saturating_add(frame.len()))
    }

    pub(super) fn has_frames(&self) -> bool {
        self.network.has_frames()
    }

    /// The timer has gone off.
    pub(super) fn timer_event(&mut self) {
        self.network.poll(Instant::now());
        self.set_timer();
    }

    pub(super) fn clear(&mut self) {
        self.network.clear();
        self.set_timer();
    }

    fn set_timer(&mut self) {
        match self.network.wait(Instant::now()) {
            Some(wait) => self.armed = self.timer.reset(wait, None).is_ok(),
            // Setting it also takes back that it went off.
            None if std::mem::take(&mut self.armed) => drop(self.timer.clear()),
            None => {}
        }
    }
}

impl AsRawFd for Metadata {
    /// The timer's descriptor.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
