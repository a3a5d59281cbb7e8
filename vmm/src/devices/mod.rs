//! The guest's devices, and the buses that find the device of an access.
//!
//! Every device is a folder of its own. The old ones have one type that implements [`Device`]: it sees offsets into its
//! own range, bytes, and nothing else of the VM. What it wants from the VM it says by returning an [`Action`]. The
//! virtio ones have one type that implements [`VirtioDevice`], which sees its queues; all of them have the same rooms:
//! `mod.rs` the device, `config.rs` what is configured, `metrics.rs` what is counted.

pub mod acpi_power;
pub mod balloon;
pub mod block;
pub mod boot_timer;
pub mod entropy;
pub mod i8042;
pub mod ioapic;
pub mod net;
pub mod serial;
pub mod vm_generation;
pub mod vsock;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::config::VmConfig;
use crate::log::MarkSource;
use crate::mmds::SharedMmds;
use crate::virtio::VirtioDevice;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// What the configuration names for it is not usable. Exit code 2.
    #[error("{device}: {reason}")]
    Unusable {
        /// The device, such as `drive rootfs`.
        device: String,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The host lacks something. Exit code 3.
    #[error("{device}: the host cannot {step}: {source}")]
    Host {
        /// The device, such as `drive rootfs`.
        device: String,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl DeviceError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unusable { .. } => 2,
            Self::Host { .. } => 3,
        }
    }
}

/// Makes the virtio devices of a configuration, in the order in which the guest finds them.
///
/// Their metadata service gives `metadata`, and is configured as the VM is.
pub fn virtio(config: &VmConfig, metadata: &SharedMmds) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    // The root device is the first of them.
    for drive in block::DriveConfig::in_order(&config.drives) {
        devices.push(Box::new(block::Block::open(drive)?));
    }
    for interface in &config.network_interfaces {
        let service = config.mmds_config.as_ref().filter(|mmds| mmds.serves(&interface.iface_id));
        devices.push(Box::new(net::Net::open(interface, service.map(|mmds| (mmds, metadata)))?));
    }
    if let Some(balloon) = &config.balloon {
        devices.push(Box::new(balloon::Balloon::new(balloon, config.machine_config.mem_size_mib)?));
    }
    if let Some(vsock) = &config.vsock {
        devices.push(Box::new(vsock::Vsock::open(vsock)?));
    }
    if let Some(entropy) = &config.entropy {
        devices.push(Box::new(entropy::Entropy::new(entropy)?));
    }
    Ok(devices)
}

/// What a device asks of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the VM: the guest reset itself.
    Reset,
    /// End the VM: the guest powered off.
    PowerOff,
    /// Note the time: the guest set a mark.
    Mark(MarkSource, u8),
}

/// A device on the port bus or in the memory-mapped hole.
///
/// `offset` is relative to the device's own range. Both calls come from vCPU threads, at any time and in any order
/// the guest likes: they must not block, panic, or take memory that grows with the number of calls.
pub trait Device: Send + Sync {
    /// Fills `data` with what the guest reads. It comes filled with `0xff`, what an empty bus answers.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes.
    fn write(&self, offset: u64, data: &[u8]) -> Option<Action>;
}

/// What carries edges from a device to an interrupt controller.
pub trait Line: Send + Sync {
    /// One edge.
    fn pulse(&self);
}

impl Line for EventFd {
    fn pulse(&self) {
        // Full only if nobody has looked for billions of edges.
        let _ = self.write(1);
    }
}

/// One device and its range of addresses.
struct Place {
    base: u64,
    len: u64,
    device: Arc<dyn Device>,
}

/// Devices by address: one bus for ports, one for memory-mapped registers.
#[derive(Default)]
pub struct Bus {
    places: Vec<Place>,
}

impl Bus {
    /// Puts a device at `base`, for `len` addresses. The ranges of this VMM's devices do not overlap.
    pub fn attach(&mut self, base: u64, len: u64, device: Arc<dyn Device>) {
        debug_assert!(!self.places.iter().any(|place| base < place.base + place.len && place.base < base + len));
        self.places.push(Place { base, len, device });
    }

    fn find(&self, address: u64) -> Option<(&Place, u64)> {
        self.places.iter().find_map(|place| {
            address.checked_sub(place.base).filter(|offset| *offset < place.len).map(|offset| (place, offset))
        })
    }

    /// A read by the guest. Where nothing is, it reads ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((place, offset)) = self.find(address) {
            place.device.read(offset, data);
        }
    }

    /// A write by the guest. Where nothing is, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Action> {
        self.find(address).and_then(|(place, offset)| place.device.write(offset, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Device for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, _data: &[u8]) -> Option<Action> {
            Some(Action::Mark(MarkSource::Mmio, u8::try_from(offset).unwrap()))
        }
    }

    #[test]
    fn an_access_finds_its_device_and_only_that() {
        let mut bus = Bus::default();
        bus.attach(0x100, 8, Arc::new(Echo));
        let read = |at| {
            let mut data = [0; 2];
            bus.read(at, &mut data);
            data[0]
        };
        assert_eq!((read(0xff), read(0x100), read(0x107), read(0x108)), (0xff, 0, 7, 0xff));
        assert_eq!(bus.write(0x103, &[1]), Some(Action::Mark(MarkSource::Mmio, 3)));
        assert_eq!(bus.write(0x108, &[1]), None);
        assert_eq!(bus.write(u64::MAX, &[1]), None);
    }
}
