//! Drivers that somebody else wrote (the crate `virtio-drivers`), against the devices: what they take for granted that
//! Linux does not do, such as ACKNOWLEDGE and DRIVER in one write.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use portcullis_vmm::devices::Device;
use portcullis_vmm::devices::block::{Block, CacheType, DriveConfig};
use portcullis_vmm::devices::entropy::Entropy;
use portcullis_vmm::devices::net::{Net, NetworkInterface};
use portcullis_vmm::devices::vsock::{Vsock, VsockConfig};
use portcullis_vmm::memory::{self, GuestRam};
use portcullis_vmm::virtio::queue_thread::QueueThread;
use portcullis_vmm::virtio::registers::offset;
use portcullis_vmm::virtio::{EventLoop, MmioTransport, Slot, VirtioDevice};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::socket::{VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::tap::{EXPERIMENT, TestTap};

const LIMIT: Duration = Duration::from_secs(30);
const RAM_MIB: u64 = 64;

/// The guest's memory, which all drivers of the process share.
fn ram() -> &'static GuestRam {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    RAM.get_or_init(|| memory::reserve(RAM_MIB).unwrap())
}

/// Takes pages of it that nobody has. They are not given back: tests need few.
fn pages(count: usize) -> (PhysAddr, NonNull<u8>) {
    static NEXT: AtomicU64 = AtomicU64::new(PAGE_SIZE as u64);
    let len = (count * PAGE_SIZE) as u64;
    let at = NEXT.fetch_add(len, Ordering::Relaxed);
    assert!(at + len <= RAM_MIB << 20, "the guest has no memory left");
    let pointer = ram().get_host_address(GuestAddress(at)).unwrap();
    (at, NonNull::new(pointer).unwrap())
}

/// The drivers' way to memory: what they share with a device is copied to the guest's and back.
struct GuestHal;

// SAFETY: pages are the guest's, of which no two are given out; they are mapped as long as the process lives, aligned as
// it maps them, and zero.
unsafe impl Hal for GuestHal {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        pages(count)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("there is no PCI")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let (at, to) = pages(buffer.len().div_ceil(PAGE_SIZE));
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller's buffer is valid, and the pages have room for it.
            unsafe { to.as_ptr().copy_from(buffer.as_ptr().cast(), buffer.len()) };
        }
        at
    }

    unsafe fn unshare(at: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let from = ram().get_host_address(GuestAddress(at)).unwrap();
            // SAFETY: as in `share`, the other way round.
            unsafe { buffer.as_ptr().cast::<u8>().copy_from(from, buffer.len()) };
        }
    }
}

/// A device, and the VMM's side that serves it.
struct Bench {
    registers: MmioTransport,
    events: EventLoop,
    threads: RefCell<Vec<QueueThread>>,
}

impl Bench {
    fn new(device: Box<dyn VirtioDevice>) -> Rc<Self> {
        let slot = Slot::new(device, ram().clone(), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
        let mut events = EventLoop::new().unwrap();
        events.add(Arc::clone(&slot)).unwrap();
        let threads = RefCell::new(events.take_threads());
        events.resume();
        Rc::new(Self { registers: MmioTransport::new(slot), events, threads })
    }

    /// Lets the device work.
    fn work(&self) {
        self.events.serve().unwrap();
        for thread in self.threads.borrow_mut().iter_mut() {
            thread.serve(0).unwrap();
        }
        self.events.serve().unwrap();
    }

    /// Lets it work until there is something.
    fn until<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let limit = Instant::now() + LIMIT;
        loop {
            self.work();
            if let Some(found) = done() {
                return found;
            }
            assert!(Instant::now() < limit, "{what}: it never happened");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.registers.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u64, value: u32) {
        assert_eq!(self.registers.write(register, &value.to_le_bytes()), None);
    }
}

/// The device's registers, as virtio 1.2 has them in memory (section 4.2.2).
struct Mmio(Rc<Bench>);

impl Mmio {
    fn of(device: impl VirtioDevice + 'static) -> (Rc<Bench>, Self) {
        let bench = Bench::new(Box::new(device));
        (Rc::clone(&bench), Self(bench))
    }
}

fn half(number: u64, upper: bool) -> u32 {
    u32::try_from(if upper { number >> 32 } else { number & 0xffff_ffff }).unwrap()
}

impl Transport for Mmio {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.0.get(offset::DEVICE_ID)).unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        let half = |select| {
            self.0.set(offset::DEVICE_FEATURES_SEL, select);
            u64::from(self.0.get(offset::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (select, upper) in [(0, false), (1, true)] {
            self.0.set(offset::DRIVER_FEATURES_SEL, select);
            self.0.set(offset::DRIVER_FEATURES, half(features, upper));
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.set(offset::QUEUE_SEL, queue.into());
        self.0.get(offset::QUEUE_NUM_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.0.set(offset::QUEUE_NOTIFY, queue.into());
        self.0.work();
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.get(offset::STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set(offset::STATUS, status.bits());
        self.0.work();
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, table: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.0.set(offset::QUEUE_SEL, queue.into());
        self.0.set(offset::QUEUE_NUM, size);
        for (low, high, at) in [
            (offset::QUEUE_DESC_LOW, offset::QUEUE_DESC_HIGH, table),
            (offset::QUEUE_DRIVER_LOW, offset::QUEUE_DRIVER_HIGH, driver),
            (offset::QUEUE_DEVICE_LOW, offset::QUEUE_DEVICE_HIGH, device),
        ] {
            self.0.set(low, half(at, false));
            self.0.set(high, half(at, true));
        }
        self.0.set(offset::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.set(offset::QUEUE_SEL, queue.into());
        self.0.set(offset::QUEUE_READY, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.set(offset::QUEUE_SEL, queue.into());
        self.0.get(offset::QUEUE_READY) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.0.get(offset::INTERRUPT_STATUS);
        self.0.set(offset::INTERRUPT_ACK, status);
        InterruptStatus::from_bits_retain(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.0.get(offset::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, at: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        self.0.registers.read(offset::CONFIG + at as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, at: usize, value: T) -> virtio_drivers::Result<()> {
        assert_eq!(self.0.registers.write(offset::CONFIG + at as u64, value.as_bytes()), None);
        Ok(())
    }
}

#[test]
fn its_disk_is_read_written_and_flushed() {
    const SECTORS: usize = 128;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let before: Vec<u8> = (0..SECTORS).flat_map(|number| [u8::try_from(number).unwrap(); SECTOR_SIZE]).collect();
    std::fs::write(&path, &before).unwrap();
    let config = DriveConfig { cache_type: CacheType::Writeback, ..DriveConfig::new("rootfs", &path) };
    let (bench, transport) = Mmio::of(Block::open(&config).unwrap());
    let mut disk = VirtIOBlk::<GuestHal, _>::new(transport).unwrap();
    assert_eq!((disk.capacity(), disk.readonly()), (SECTORS as u64, false));
    let mut id = [0; 20];
    let len = disk.device_id(&mut id).unwrap();
    assert_eq!(&id[..len], b"rootfs");
    // More requests than the queue has entries, and requests of several sectors.
    for sectors in [1, 3] {
        for first in (0..SECTORS - sectors).step_by(sectors) {
            let mut data = vec![0; sectors * SECTOR_SIZE];
            disk.read_blocks(first, &mut data).unwrap();
            assert_eq!(data, before[first * SECTOR_SIZE..][..data.len()]);
            for byte in &mut data {
                *byte ^= 0xff;
            }
            disk.write_blocks(first, &data).unwrap();
            disk.write_blocks(first, &before[first * SECTOR_SIZE..][..data.len()]).unwrap();
        }
    }
    disk.write_blocks(7, &[0xaa; SECTOR_SIZE]).unwrap();
    disk.flush().unwrap();
    let mut written = [0; SECTOR_SIZE];
    File::open(&path).unwrap().read_exact_at(&mut written, 7 * SECTOR_SIZE as u64).unwrap();
    assert_eq!(written, [0xaa; SECTOR_SIZE]);
    // Behind the end is an error, and the disk goes on.
    assert!(disk.read_blocks(SECTORS, &mut written).is_err());
    disk.read_blocks(7, &mut written).unwrap();
    drop((disk, bench));
    // Read only, and a copy: another test's child, just forked, may hold the lock of the first a moment longer.
    let copy = dir.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let config = DriveConfig { is_read_only: true, ..DriveConfig::new("rootfs", &copy) };
    let (_bench, transport) = Mmio::of(Block::open(&config).unwrap());
    let mut disk = VirtIOBlk::<GuestHal, _>::new(transport).unwrap();
    assert!(disk.readonly() && disk.write_blocks(0, &[0; SECTOR_SIZE]).is_err());
    disk.read_blocks(7, &mut written).unwrap();
    assert_eq!(written, [0xaa; SECTOR_SIZE]);
}

#[test]
fn its_entropy_is_random() {
    let (_bench, transport) = Mmio::of(Entropy::new(&serde_json::from_str("{}").unwrap()).unwrap());
    let mut source = VirtIORng::<GuestHal, _>::new(transport).unwrap();
    let mut blocks = Vec::new();
    for _ in 0..100 {
        let mut block = [0; 64];
        assert_eq!(source.request_entropy(&mut block).unwrap(), 64);
        blocks.push(block);
    }
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), 100);
}

#[test]
fn its_frames_come_and_go() {
    let tap = TestTap::new();
    let config = NetworkInterface::new("eth0", &tap.name);
    let (bench, transport) = Mmio::of(Net::open(&config, None).unwrap());
    let mut card = VirtIONet::<GuestHal, _, 16>::new(transport, 2048).unwrap();
    let wire = tap.wire();
    let own = card.mac_address();
    let frame = |to: &[u8], from: &[u8], text: &[u8]| [to, from, &EXPERIMENT, text, &[0; 40]].concat();
    // More than the queues hold.
    for number in 0..50u8 {
        let sent = frame(&[0xff; 6], &own, &[number]);
        let mut buffer = card.new_tx_buffer(sent.len());
        buffer.packet_mut().copy_from_slice(&sent);
        bench.until("room to send", || card.can_send().then_some(()));
        card.send(buffer).unwrap();
        assert_eq!(wire.receive(|frame| frame[12..14] == EXPERIMENT), sent);
        let answer = frame(&own, &[2, 0, 0, 0, 0, 1], &[number, number]);
        wire.send(&answer);
        bench.until("a frame", || card.can_recv().then_some(()));
        let received = card.receive().unwrap();
        assert_eq!(received.packet(), answer);
        card.recycle_rx_buffer(received).unwrap();
    }
}

#[test]
fn its_socket_talks_to_the_host() {
    const HOST: VsockAddr = VsockAddr { cid: 2, port: 1234 };
    const PORT: u32 = 4321;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let listener = UnixListener::bind(dir.path().join("v.sock_1234")).unwrap();
    let text = format!(r#"{{"guest_cid": 3, "uds_path": {path:?}}}"#);
    let config: VsockConfig = serde_json::from_str(&text).unwrap();
    let (bench, transport) = Mmio::of(Vsock::open(&config).unwrap());
    let driver = VirtIOSocket::<GuestHal, _>::new(transport).unwrap();
    let mut socket = VsockConnectionManager::new(driver);
    assert_eq!(socket.guest_cid(), 3);
    socket.connect(HOST, PORT).unwrap();
    let event = bench.until("the connection", || socket.poll().unwrap());
    assert!(matches!(event.event_type, VsockEventType::Connected), "{event:?}");
    let (mut host, _) = listener.accept().unwrap();
    host.set_read_timeout(Some(LIMIT)).unwrap();
    for round in 0..50 {
        let text = format!("round {round}");
        socket.send(HOST, PORT, text.as_bytes()).unwrap();
        bench.work();
        let mut heard = vec![0; text.len()];
        host.read_exact(&mut heard).unwrap();
        assert_eq!(heard, text.as_bytes());
        host.write_all(&heard).unwrap();
        let mut answer = Vec::new();
        while answer.len() < text.len() {
            let event = bench.until("the answer", || socket.poll().unwrap());
            if let VsockEventType::Received { length } = event.event_type {
                let mut part = vec![0; length];
                let got = socket.recv(HOST, PORT, &mut part).unwrap();
                answer.extend_from_slice(&part[..got]);
            }
        }
        assert_eq!(answer, text.as_bytes());
        socket.update_credit(HOST, PORT).unwrap();
    }
    drop(host);
    bench.until("the end", || match socket.poll().unwrap()?.event_type {
        VsockEventType::Disconnected { .. } => Some(()),
        _ => None,
    });
}
