//! The VM's parts, put together.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::VmError;
use super::kvm::{self, EmptyVm, Groundwork, KvmError};
use super::watch::Watch;
use crate::boot::{BootFiles, Entry};
use crate::config::{HugePages, VmConfig};
use crate::console::Outlet;
use crate::devices::acpi_power::{self, AcpiPower};
use crate::devices::boot_timer;
use crate::devices::i8042::{self, I8042};
use crate::devices::ioapic::{self, Ioapic, Pin};
use crate::devices::serial::{self, Serial};
use crate::devices::vm_generation;
use crate::devices::{Bus, Line as _};
use crate::memory::{self, GuestRam, Handler, layout, layout::VirtioPlace};
use crate::snapshot::{KvmClock, SnapshotError, State};
use crate::vcpu::{self, VcpuError, VcpuState};
use crate::virtio::{EventLoop, MmioTransport, Slot, VirtioDevice};

/// A VM that is ready to run.
///
/// Fields are dropped in this order: vCPUs and VM before the memory that they use.
pub(super) struct Machine {
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) ports: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
    /// The virtio devices.
    pub(super) devices: EventLoop,
    pub(super) fixed: Fixed,
    /// Where the serial line goes.
    pub(super) outlet: Outlet,
    /// What `CPUID` answers on each vCPU.
    cpuids: Vec<Vec<kvm_cpuid_entry2>>,
    /// Registers of a vCPU that KVM can save.
    msrs: Vec<u32>,
    vm: Arc<VmFd>,
    ram: GuestRam,
    /// Who hands out the pages of the memory, and who watches it.
    pub(super) handler: Option<(Handler, Watch)>,
}

/// The devices that every VM has.
pub(super) struct Fixed {
    pub(super) serial: Arc<Serial>,
    pub(super) keyboard: Arc<I8042>,
    power: Arc<AcpiPower>,
    ioapic: Arc<Ioapic>,
    /// The interrupt of [`vm_generation`].
    generation: Pin,
}

/// What has no vCPUs yet.
struct Board {
    machine: Machine,
    places: Vec<VirtioPlace>,
}

impl Machine {
    /// Puts the VM of `config` together and loads what it boots. `wake` wakes the main thread.
    pub(super) fn boot(
        groundwork: Groundwork,
        config: &VmConfig,
        files: BootFiles,
        virtio: Vec<Box<dyn VirtioDevice>>,
        boot_timer: bool,
        wake: Arc<EventFd>,
    ) -> Result<Self, VmError> {
        let mib = config.machine_config.mem_size_mib;
        let ram = match config.machine_config.huge_pages {
            HugePages::None => memory::reserve(mib),
            HugePages::TwoMib => memory::reserve_huge(mib),
        }?;
        let (mut empty, supported) = groundwork.empty_vm()?;
        config.cpu_config().map_or(Ok(()), |template| empty.prepare(template))?;
        let tsc_deadline = empty.tsc_deadline;
        let Board { mut machine, places } = Self::assemble(empty, ram, virtio, boot_timer, wake)?;
        // Its thread may know less confinement than this one. It has ended before anything of a tenant's is looked at.
        let supported = supported.wait()?;
        let entry = files.load(&machine.ram, config, &places)?;
        vm_generation::renew(&machine.ram).map_err(VmError::Random)?;
        machine.boot_vcpus(&supported, tsc_deadline, config, entry)?;
        Ok(machine)
    }

    /// Puts the VM of a snapshot together, as it stood when it was saved.
    pub(super) fn restore(
        state: &State,
        config: &VmConfig,
        ram: GuestRam,
        virtio: Vec<Box<dyn VirtioDevice>>,
        options: Restore,
        wake: Arc<EventFd>,
    ) -> Result<Self, VmError> {
        let (mut empty, supported) = kvm::groundwork()?;
        config.cpu_config().map_or(Ok(()), |template| empty.prepare(template))?;
        let Board { mut machine, .. } = Self::assemble(empty, ram, virtio, options.boot_timer, wake)?;
        state.check_cpu(&supported)?;
        let elapsed_ns = if options.clock_realtime { state.clock.elapsed_ns() } else { 0 };
        for (number, vcpu) in (0u8..).zip(&state.vcpus) {
            let fd = create_vcpu(&machine.vm, number)?;
            vcpu.restore(&fd, number, elapsed_ns)?;
            machine.vcpus.push(fd);
            machine.cpuids.push(vcpu.cpuid.clone());
        }
        state.clock.restore(&machine.vm, elapsed_ns)?;
        machine.restore_devices(state)?;
        // Behind the interrupt controllers' state: the edge would be lost before.
        vm_generation::renew(&machine.ram).map_err(VmError::Random)?;
        machine.fixed.generation.pulse();
        machine.first_run()?;
        Ok(machine)
    }

    /// Memory, KVM's VM and all devices.
    fn assemble(
        EmptyVm { vm, msrs, .. }: EmptyVm,
        ram: GuestRam,
        virtio: Vec<Box<dyn VirtioDevice>>,
        boot_timer: bool,
        wake: Arc<EventFd>,
    ) -> Result<Board, VmError> {
        let step = |step| move |source| KvmError::Step { step, source };
        let vm = Arc::new(vm);
        // Before the local APICs: with them, every change of the slots waits for a grace period, some milliseconds.
        memory::register(&vm, &ram)?;
        vm.set_tss_address(layout::KVM_TSS).map_err(step("set the TSS address"))?;
        kvm::add_local_apics(&vm)?;

        let fixed = Fixed::new(lines(virtio.len()), &vm, wake);
        let (ports, mut mmio) = buses(&fixed, boot_timer);
        let mut devices = EventLoop::new().map_err(VmError::EventFd)?;
        let places = place_devices(virtio, &fixed.ioapic, &vm, &ram, &mut mmio, &mut devices)?;
        let machine = Self {
            vcpus: Vec::new(),
            outlet: Outlet::default(),
            cpuids: Vec::new(),
            ports: Arc::new(ports),
            mmio: Arc::new(mmio),
            devices,
            fixed,
            msrs,
            vm,
            ram,
            handler: None,
        };
        Ok(Board { machine, places })
    }

    fn boot_vcpus(
        &mut self,
        supported: &CpuId,
        tsc_deadline: bool,
        config: &VmConfig,
        entry: Entry,
    ) -> Result<(), VmError> {
        let (count, smt) = (config.machine_config.vcpu_count, config.machine_config.smt);
        let template = config.cpu_config();
        let shared = vcpu::Shared { supported, template, vcpus: count, smt, tsc_deadline, entry };
        for number in 0..count {
            let fd = create_vcpu(&self.vm, number)?;
            let cpuid = vcpu::configure(&fd, number, &shared, &self.ram)?;
            self.vcpus.push(fd);
            self.cpuids.push(cpuid.as_slice().to_vec());
        }
        self.first_run()
    }

    fn first_run(&mut self) -> Result<(), VmError> {
        Ok(self.vcpus.first_mut().map_or(Ok(()), vcpu::first_run)?)
    }

    /// What a snapshot keeps beside the memory. `vcpus` stand still, and so do the devices.
    pub(super) fn save(&self, vcpus: &[VcpuFd], mut config: VmConfig) -> Result<State, VmError> {
        // Log and metrics are the process's, not the VM's.
        (config.logger, config.metrics) = (None, None);
        let vcpus: Result<Vec<_>, _> = (0u8..)
            .zip(vcpus)
            .zip(&self.cpuids)
            .map(|((number, fd), cpuid)| VcpuState::save(fd, number, cpuid, &self.msrs))
            .collect();
        Ok(State {
            vmm: env!("CARGO_PKG_VERSION").to_owned(),
            config: config.to_json().map_err(|e| SnapshotError::Config(e.to_string()))?,
            mem_mib: config.machine_config.mem_size_mib,
            vcpus: vcpus?,
            clock: KvmClock::save(&self.vm)?,
            ioapic: self.fixed.ioapic.save(),
            devices: self.devices.slots().iter().map(|slot| slot.save()).collect(),
            serial: self.fixed.serial.save(),
            keyboard: self.fixed.keyboard.save(),
            power: self.fixed.power.save(),
        })
    }

    fn restore_devices(&self, state: &State) -> Result<(), SnapshotError> {
        let slots = self.devices.slots();
        if slots.len() != state.devices.len() {
            return Err(SnapshotError::Devices { found: state.devices.len(), expected: slots.len() });
        }
        // First of all: devices give the edges again that may have been lost.
        self.fixed.ioapic.restore(&state.ioapic)?;
        for (slot, state) in slots.iter().zip(&state.devices) {
            slot.restore(state.clone()).map_err(SnapshotError::Device)?;
        }
        self.fixed.serial.restore(state.serial.clone());
        self.fixed.keyboard.restore(state.keyboard.clone());
        self.fixed.power.restore(state.power);
        Ok(())
    }

    /// Bytes of the guest's memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.ram.iter().map(GuestMemoryRegion::len).sum()
    }

    /// KVM's descriptor of the VM.
    pub(super) fn vm_descriptor(&self) -> RawFd {
        self.vm.as_raw_fd()
    }

    /// The guest's memory.
    pub(super) fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// How a VM is restored.
#[derive(Clone, Copy)]
pub(super) struct Restore {
    /// Whether the guest has a boot timer.
    pub(super) boot_timer: bool,
    /// Whether its clocks jump over the time since the snapshot.
    pub(super) clock_realtime: bool,
}

impl Fixed {
    /// `lines` is how many the interrupt controller has.
    fn new(lines: u8, vm: &Arc<VmFd>, wake: Arc<EventFd>) -> Self {
        let ioapic = Arc::new(Ioapic::new(lines, Arc::clone(vm) as _));
        let line = |number| Pin::new(Arc::clone(&ioapic), number);
        Self {
            serial: Arc::new(Serial::new(line(serial::IRQ), wake)),
            keyboard: Arc::new(I8042::new(line(i8042::IRQ))),
            power: Arc::new(AcpiPower::default()),
            generation: line(vm_generation::GSI),
            ioapic,
        }
    }
}

/// How many lines the interrupt controller has: up to the last that a device of this VM is connected to.
fn lines(virtio: usize) -> u8 {
    let places = layout::virtio_places().take(virtio).map(|place| place.gsi);
    let last = places.chain([i8042::IRQ, serial::IRQ, vm_generation::GSI]).max();
    last.map_or(0, |last| last + 1)
}

/// Puts the devices into their places on the bus, in KVM and in the event loop. A configuration that was checked has no
/// more of them than there are places.
fn place_devices(
    virtio: Vec<Box<dyn VirtioDevice>>,
    ioapic: &Arc<Ioapic>,
    vm: &VmFd,
    ram: &GuestRam,
    mmio: &mut Bus,
    devices: &mut EventLoop,
) -> Result<Vec<VirtioPlace>, VmError> {
    let mut taken = Vec::with_capacity(virtio.len());
    for (device, place) in virtio.into_iter().zip(layout::virtio_places()) {
        let pin = Pin::new(Arc::clone(ioapic), place.gsi);
        let slot = Slot::new(device, ram.clone(), pin).map_err(VmError::EventFd)?;
        slot.connect(vm, place.base)
            .map_err(|source| KvmError::Step { step: "connect a device's doorbells", source })?;
        mmio.attach(place.base, layout::VIRTIO_LEN, Arc::new(MmioTransport::new(Arc::clone(&slot))));
        devices.add(slot).map_err(VmError::EventFd)?;
        taken.push(place);
    }
    Ok(taken)
}

/// The port bus and the memory-mapped one.
fn buses(fixed: &Fixed, boot_timer: bool) -> (Bus, Bus) {
    let (mut ports, mut mmio) = (Bus::default(), Bus::default());
    ports.attach(u64::from(serial::PORT), u64::from(serial::PORTS), Arc::clone(&fixed.serial) as _);
    ports.attach(u64::from(i8042::PORT), i8042::PORTS, Arc::clone(&fixed.keyboard) as _);
    ports.attach(u64::from(acpi_power::CONTROL_PORT), acpi_power::PORTS, Arc::clone(&fixed.power) as _);
    mmio.attach(u64::from(layout::IOAPIC), ioapic::LEN, Arc::clone(&fixed.ioapic) as _);
    if boot_timer {
        ports.attach(u64::from(boot_timer::PORT), 1, Arc::new(boot_timer::Port::default()));
        let register = Arc::new(boot_timer::Register::default());
        mmio.attach(boot_timer::MMIO, boot_timer::MMIO_LEN, Arc::clone(&register) as _);
        mmio.attach(boot_timer::OLD_MMIO, boot_timer::MMIO_LEN, register);
    }
    (ports, mmio)
}

fn create_vcpu(vm: &VmFd, number: u8) -> Result<VcpuFd, VcpuError> {
    vm.create_vcpu(u64::from(number)).map_err(|source| VcpuError::Kvm { vcpu: number, step: "create it", source })
}
