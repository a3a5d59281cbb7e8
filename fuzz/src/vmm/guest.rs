//! A virtio device with a driver whose program the input is: any access to registers and memory, in any order.
//!
//! After each turn of the device a [`Ledger`] compares memory with what it may have changed.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portcullis_vmm::devices::Device;
use portcullis_vmm::memory::GuestRam;
use portcullis_vmm::virtio::queue_thread::QueueThread;
use portcullis_vmm::virtio::registers::{offset, status};
use portcullis_vmm::virtio::{EventLoop, MmioTransport, Slot, SlotState, VirtioDevice};
use vmm_sys_util::eventfd::EventFd;

use super::input::Input;
use super::ledger::Ledger;
use super::log;
use super::memory::{self, Image};

/// Operations of one program, at most.
const MAX_STEPS: usize = 256;
/// Turns after which a device has nothing to do any more, whatever its driver has put into its queues.
const MAX_TURNS: usize = 4096;
/// Lines that one device may log: errors of its driver, and of the host.
const MAX_LINES: usize = 32;

/// The host's side of a device.
pub trait Host {
    /// The device after power-on. The one before is gone.
    fn device(&mut self) -> Box<dyn VirtioDevice>;

    /// Something happens on the host's side.
    fn act(&mut self, slot: &Slot, input: &mut Input<'_>);

    /// Panics unless the host's side is as it may be.
    fn check(&mut self) {}

    /// Bytes that the device writes for one chain, at most.
    fn most(&self) -> u64 {
        u64::MAX
    }

    /// What the device may change of guest memory for a chain of queue `index`, beside what is there for it to write.
    fn takes(&self, _index: usize, _readable: &[u8]) -> Vec<std::ops::Range<u64>> {
        Vec::new()
    }
}

/// Runs a program against the device of `host`. Gives whether it was a driver's whom the device served to the end.
pub fn run<H: Host>(host: H, input: &mut Input<'_>) -> bool {
    let (guest, lines) = log::lines(|| {
        let mut guest = Guest::new(host);
        for _ in 0..MAX_STEPS {
            if input.is_empty() {
                break;
            }
            guest.step(input);
        }
        guest.settle();
        guest
    });
    let (lines, devices) = (lines - guest.lines, guest.devices);
    assert!(lines <= MAX_LINES * devices, "{lines} lines were logged of {devices} devices");
    guest.ledger.served() > 0 && guest.status() & status::NEEDS_RESET == 0
}

/// The device in its place.
struct Place {
    slot: Arc<Slot>,
    registers: MmioTransport,
    events: EventLoop,
    /// What serves queues on threads, where there are threads.
    threads: Vec<QueueThread>,
}

struct Guest<H> {
    /// Nobody's only while one is replaced by another.
    place: Option<Place>,
    host: H,
    ram: GuestRam,
    ledger: Ledger,
    /// What the driver has put into each queue: chains, and descriptors.
    offered: Vec<(u16, u16)>,
    size: u16,
    /// Devices that there were, one after the other.
    devices: usize,
    /// Lines that were logged of what the host's side has done.
    lines: usize,
}

fn base(queue: usize) -> u64 {
    0x2000 * u64::try_from(queue).expect("a few")
}

impl Place {
    fn new(device: Box<dyn VirtioDevice>, ram: &GuestRam) -> Self {
        let line = EventFd::new(libc::EFD_NONBLOCK).expect("an event counter");
        let slot = Slot::new(device, ram.clone(), line).expect("a slot");
        let mut events = EventLoop::new().expect("an event loop");
        events.add(Arc::clone(&slot)).expect("a place in it");
        let threads = events.take_threads();
        events.resume();
        Self { registers: MmioTransport::new(Arc::clone(&slot)), slot, events, threads }
    }

    fn is_busy(&self) -> bool {
        self.threads.iter().map(AsRawFd::as_raw_fd).chain([self.events.as_raw_fd()]).any(is_ready)
    }

    /// One turn.
    fn serve(&mut self) {
        self.events.serve().expect("a turn");
        for thread in &mut self.threads {
            thread.serve(0).expect("a turn");
        }
        // What its queue's thread has met, the device hears of.
        self.events.serve().expect("a turn");
    }
}

fn is_ready(fd: RawFd) -> bool {
    // SAFETY: the descriptor lives as long as the loop or the thread, which the caller borrows.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) {
            // libFuzzer looks at its clock by a signal.
            Err(Errno::EINTR) => {}
            result => return result.expect("a poll") > 0,
        }
    }
}

impl<H: Host> Guest<H> {
    fn new(mut host: H) -> Self {
        let ram = memory::reserve();
        let device = host.device();
        let queues = device.queue_sizes().len();
        let place = Some(Place::new(device, &ram));
        let ledger = Ledger::new(&ram, host.most());
        Self { place, host, ram, ledger, offered: vec![(0, 0); queues], size: 0, devices: 1, lines: 0 }
    }

    fn place(&self) -> &Place {
        self.place.as_ref().expect("there is one between two steps")
    }

    fn read(&self, at: u64) -> u32 {
        let mut data = [0xff; 4];
        self.place().registers.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        assert_eq!(self.place().registers.write(at, data), None, "devices behind registers ask nothing of the VM");
        if at == offset::STATUS && data == [0; 4] {
            assert_eq!(self.status(), 0);
            self.ledger.reset();
        }
    }

    fn set(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.read(offset::STATUS)
    }

    /// One operation.
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 | 1 => self.start(input),
            2 | 3 => self.offer(input),
            4 => self.set(offset::QUEUE_NOTIFY, u32::from(input.u8())),
            5 | 6 => self.serve(),
            7 => {
                let (at, len) = (input.address(), input.below(0..64));
                memory::poke(&self.ram, at, input.bytes(len));
            }
            8 => {
                let (at, value) = (u64::from(input.u8()) * 4, input.u32());
                self.set(at, value);
            }
            9 => {
                let (at, len) = (u64::from(input.u16() % 0x1000), input.below(0..9));
                self.write(at, input.bytes(len));
            }
            10 => self.look(input),
            11 => {
                let (at, len) = (offset::CONFIG + u64::from(input.u8()), input.below(0..9));
                self.write(at, input.bytes(len));
            }
            12 => self.save_and_restore(),
            13 => self.damage(input),
            _ => self.act(input),
        }
    }

    /// As a driver does it, with some of the features, and queues of the same size.
    fn start(&mut self, input: &mut Input<'_>) {
        let (wanted, exponent) = (input.u32(), input.u8());
        self.size = 1 << (exponent % 9);
        for value in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
            self.set(offset::STATUS, value);
        }
        for half in [0, 1] {
            self.set(offset::DEVICE_FEATURES_SEL, half);
            let offered = self.read(offset::DEVICE_FEATURES);
            self.set(offset::DRIVER_FEATURES_SEL, half);
            self.set(offset::DRIVER_FEATURES, if half == 0 { offered & wanted } else { offered });
        }
        self.set(offset::STATUS, 11);
        // One of the bits stands for a queue that is left out.
        for queue in (0..self.offered.len()).filter(|queue| exponent >> 4 & (1 << queue) == 0) {
            let at = base(queue);
            self.set(offset::QUEUE_SEL, u32::try_from(queue).expect("a few"));
            self.set(offset::QUEUE_NUM, u32::from(self.size));
            for (register, part) in
                [(offset::QUEUE_DESC_LOW, 0), (offset::QUEUE_DRIVER_LOW, 0x1000), (offset::QUEUE_DEVICE_LOW, 0x1400)]
            {
                self.set(register, u32::try_from(at + part).expect("low memory"));
            }
            memory::poke(&self.ram, at + 0x1000, &[0; 4]);
            memory::poke(&self.ram, at + 0x1400, &[0; 4]);
            self.set(offset::QUEUE_READY, 1);
        }
        self.offered.fill((0, 0));
        self.set(offset::STATUS, 15);
    }

    /// Puts a chain into a queue: direct, or behind an indirect descriptor.
    fn offer(&mut self, input: &mut Input<'_>) {
        let (kind, writable) = (input.u8(), input.u8());
        let (queue, count) = (usize::from(kind & 3) % self.offered.len(), u16::from(kind >> 2 & 7) + 1);
        let size = self.size.max(1);
        let (chains, descriptors) = self.offered[queue];
        let table = base(queue);
        let indirect = kind & 0x80 != 0;
        let place = |number: u16| if indirect { number } else { descriptors.wrapping_add(number) % size };
        // Where indirect tables are is nothing that the standard cares about.
        let list = if indirect { 0xf000 + 0x80 * u64::from(chains % 32) } else { table };
        for number in 0..count {
            let next = u16::from(number + 1 < count);
            let flags = next | u16::from(writable >> number & 1) << 1;
            let (address, len) = (input.address(), input.len());
            let at = list + 16 * u64::from(place(number));
            self.descriptor(at, address, len, flags, place(number + 1));
        }
        let head = descriptors % size;
        if indirect {
            self.descriptor(table + 16 * u64::from(head), list, 16 * u32::from(count), 4, 0);
        }
        self.offered[queue] = (chains.wrapping_add(1), descriptors.wrapping_add(if indirect { 1 } else { count }));
        memory::poke(&self.ram, table + 0x1004 + 2 * u64::from(chains % size), &head.to_le_bytes());
        memory::poke(&self.ram, table + 0x1002, &chains.wrapping_add(1).to_le_bytes());
    }

    fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let parts = [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        memory::poke(&self.ram, at, &parts.concat());
    }

    /// Reads a register, or what is none.
    fn look(&mut self, input: &mut Input<'_>) {
        let (at, len) = (u64::from(input.u16() % 0x1000), input.below(0..17));
        let mut data = vec![0xff; len];
        self.place().registers.read(at, &mut data);
        if at < offset::CONFIG && (len != 4 || at % 4 != 0) {
            assert!(data.iter().all(|byte| *byte == 0), "{data:x?} was read at {at:#x}");
        }
    }

    fn is_live(&self) -> bool {
        self.status() & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == status::DRIVER_OK
    }

    /// One turn of the device, by itself.
    fn serve(&mut self) {
        self.watch(|guest| {
            guest.place.as_mut().expect("there is one between two steps").serve();
        });
        self.host.check();
    }

    /// Does `work`, and enters into the ledger what the device has made of it.
    fn watch(&mut self, work: impl FnOnce(&mut Self)) {
        let live = self.is_live();
        let queues = self.place().slot.queues();
        let host = &self.host;
        self.ledger.begin(&self.ram, queues, live, |index, readable| host.takes(index, readable));
        work(self);
        let queues = self.place().slot.queues();
        let told = self.read(offset::INTERRUPT_STATUS) & 1 != 0 || !self.is_live();
        let host = &self.host;
        self.ledger.end(&self.ram, queues, told, |index, readable| host.takes(index, readable));
    }

    /// Something happens on the host's side, or is asked of the device by the API.
    fn act(&mut self, input: &mut Input<'_>) {
        self.watch(|guest| {
            let slot = Arc::clone(&guest.place().slot);
            let ((), lines) = log::lines(|| guest.host.act(&slot, input));
            guest.lines += lines;
        });
    }

    /// Turns until the device has nothing to do. One that always has keeps the VM's main thread busy for ever.
    fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            if !self.place().is_busy() {
                return;
            }
            self.serve();
        }
        panic!("the device is busy for ever");
    }

    /// The state that a snapshot keeps, as it comes out of the file.
    fn save(&mut self) -> SlotState {
        let mut state = None;
        self.watch(|guest| state = Some(guest.place().slot.save()));
        let state = state.expect("it was saved");
        let bytes = postcard::to_stdvec(&state).expect("it can be written");
        assert_eq!(postcard::from_bytes::<SlotState>(&bytes).as_ref(), Ok(&state));
        state
    }

    fn replace(&mut self) {
        self.place = None;
        self.devices += 1;
        self.place = Some(Place::new(self.host.device(), &self.ram));
    }

    /// The guest goes on in another process: the same memory, another device.
    fn save_and_restore(&mut self) {
        let state = self.save();
        let seen = |guest: &Self| {
            let registers = [offset::STATUS, offset::INTERRUPT_STATUS, offset::QUEUE_READY, offset::CONFIG_GENERATION];
            // A device that waits for its reset has none any more.
            let queues = guest.place().slot.queues().filter(|_| guest.is_live());
            (queues, registers.map(|register| guest.read(register)))
        };
        let before = seen(self);
        self.replace();
        self.place().slot.restore(state).expect("what was saved can be restored");
        assert_eq!(seen(self), before, "what was restored is what was saved");
    }

    /// The same, but somebody has changed the state meanwhile. It is refused, or the device goes on with it.
    fn damage(&mut self, input: &mut Input<'_>) {
        let mut bytes = postcard::to_stdvec(&self.save()).expect("it can be written");
        for _ in 0..input.below(0..8) {
            let (at, value) = (usize::from(input.u16()) % bytes.len(), input.u8());
            bytes[at] = value;
        }
        self.replace();
        let restored = postcard::from_bytes(&bytes).is_ok_and(|state| self.place().slot.restore(state).is_ok());
        if !restored {
            // The VMM ends; here, somebody begins anew.
            self.replace();
        }
        self.ledger.distrust();
        self.place().slot.queues();
    }
}

/// Bytes of ranges of an image, one after the other.
pub fn gather(image: &Image, ranges: &[std::ops::Range<u64>]) -> Vec<u8> {
    let byte = |at| image.number::<1>(at).and_then(|byte| u8::try_from(byte).ok()).unwrap_or_default();
    ranges.iter().cloned().flatten().take(0x4000).map(byte).collect()
}
