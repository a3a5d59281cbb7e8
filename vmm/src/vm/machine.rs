//! The VM's parts, put together.

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::VmError;
use super::kvm::{self, KvmError};
use crate::boot::{BootFiles, Entry};
use crate::config::VmConfig;
use crate::devices::Bus;
use crate::devices::acpi_power::{self, AcpiPower};
use crate::devices::boot_timer;
use crate::devices::i8042::{self, I8042};
use crate::devices::serial::{self, Serial};
use crate::memory::{self, GuestRam, layout, layout::VirtioPlace};
use crate::vcpu::{self, VcpuError};
use crate::virtio::{EventLoop, MmioTransport, Slot, VirtioDevice};

/// A VM that is ready to run.
///
/// Fields are dropped in this order: vCPUs and VM before the memory that they use.
pub(super) struct Machine {
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) ports: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
    pub(super) serial: Arc<Serial>,
    /// The virtio devices.
    pub(super) devices: EventLoop,
    _vm: VmFd,
    _ram: GuestRam,
}

impl Machine {
    /// Puts the VM of `config` together and loads what it boots. `wake` wakes the main thread.
    pub(super) fn build(
        config: &VmConfig,
        files: BootFiles,
        virtio: Vec<Box<dyn VirtioDevice>>,
        boot_timer: bool,
        wake: Arc<EventFd>,
    ) -> Result<Self, VmError> {
        let step = |step| move |source| KvmError::Step { step, source };
        let kvm = kvm::open()?;
        let ram = memory::reserve(config.machine_config.mem_size_mib)?;
        let vm = kvm::create_vm(&kvm)?;
        // Before the irqchip: with one, every change of the slots waits for a grace period, some milliseconds.
        memory::register(&vm, &ram)?;
        vm.set_tss_address(layout::KVM_TSS).map_err(step("set the TSS address"))?;
        vm.create_irq_chip().map_err(step("create the interrupt controllers"))?;

        let interrupt = event_fd()?;
        vm.register_irqfd(&interrupt, u32::from(serial::IRQ)).map_err(step("connect the serial line's interrupt"))?;
        let serial = Arc::new(Serial::new(interrupt, wake));
        let (ports, mut mmio) = buses(&serial, boot_timer);
        let mut devices = EventLoop::new().map_err(VmError::EventFd)?;
        let places = place_devices(virtio, &vm, &ram, &mut mmio, &mut devices)?;

        let entry = files.load(&ram, config, &places)?;
        let vcpus = create_vcpus(&kvm, &vm, &ram, config.machine_config.vcpu_count, entry)?;
        Ok(Self { vcpus, ports: Arc::new(ports), mmio: Arc::new(mmio), serial, devices, _vm: vm, _ram: ram })
    }
}

/// Puts the devices into their places on the bus, in KVM and in the event loop.
fn place_devices(
    virtio: Vec<Box<dyn VirtioDevice>>,
    vm: &VmFd,
    ram: &GuestRam,
    mmio: &mut Bus,
    devices: &mut EventLoop,
) -> Result<Vec<VirtioPlace>, VmError> {
    let mut places = layout::virtio_places();
    let mut taken = Vec::with_capacity(virtio.len());
    for device in virtio {
        let place = places.next().ok_or(VmError::TooManyDevices)?;
        let slot = Slot::new(device, ram.clone(), event_fd()?).map_err(VmError::EventFd)?;
        slot.connect(vm, place.base, u32::from(place.gsi))
            .map_err(|source| KvmError::Step { step: "connect a device's interrupt and doorbells", source })?;
        mmio.attach(place.base, layout::VIRTIO_LEN, Arc::new(MmioTransport::new(Arc::clone(&slot))));
        devices.add(slot).map_err(VmError::EventFd)?;
        taken.push(place);
    }
    Ok(taken)
}

fn event_fd() -> Result<EventFd, VmError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmError::EventFd)
}

/// The port bus and the memory-mapped one.
fn buses(serial: &Arc<Serial>, boot_timer: bool) -> (Bus, Bus) {
    let (mut ports, mut mmio) = (Bus::default(), Bus::default());
    ports.attach(u64::from(serial::PORT), u64::from(serial::PORTS), Arc::clone(serial) as _);
    ports.attach(u64::from(i8042::PORT), i8042::PORTS, Arc::new(I8042));
    ports.attach(u64::from(acpi_power::EVENT_PORT), acpi_power::PORTS, Arc::new(AcpiPower::default()));
    if boot_timer {
        ports.attach(u64::from(boot_timer::PORT), 1, Arc::new(boot_timer::Port::default()));
        let register = Arc::new(boot_timer::Register::default());
        mmio.attach(boot_timer::MMIO, boot_timer::MMIO_LEN, Arc::clone(&register) as _);
        mmio.attach(boot_timer::OLD_MMIO, boot_timer::MMIO_LEN, register);
    }
    (ports, mmio)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, ram: &GuestRam, count: u8, entry: Entry) -> Result<Vec<VcpuFd>, VmError> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| KvmError::Step { step: "say which CPUID it supports", source })?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let shared = vcpu::Shared { supported: &supported, vcpus: count, tsc_deadline, entry };
    (0..count)
        .map(|number| {
            let fd = vm.create_vcpu(u64::from(number)).map_err(|source| VcpuError::Kvm {
                vcpu: number,
                step: "create it",
                source,
            })?;
            vcpu::configure(&fd, number, &shared, ram)?;
            Ok(fd)
        })
        .collect()
}
