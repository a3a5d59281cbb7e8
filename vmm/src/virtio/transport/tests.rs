use std::sync::atomic::{AtomicU32, Ordering};

use super::super::registers::status::NEEDS_RESET;
use super::*;
use crate::memory::reserve;
use crate::virtio::{DeviceKind, EventLoop};

const RINGS: u64 = 0x1000;
const READY: u32 = 15;

/// A device that gives every chain back, and counts what happens to it.
#[derive(Default)]
struct Echo {
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    activated: AtomicU32,
    reset: AtomicU32,
    served: AtomicU32,
    /// Milliseconds that serving takes.
    slowness: AtomicU32,
}

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }
    fn name(&self) -> String {
        "echo".to_owned()
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[4, 4]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap_or(0xee));
    }
    fn activate(&mut self, _active: &mut Active) {
        self.calls.activated.fetch_add(1, Ordering::SeqCst);
    }
    fn reset(&mut self) {
        self.calls.reset.fetch_add(1, Ordering::SeqCst);
    }
    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        self.calls.served.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(self.calls.slowness.load(Ordering::SeqCst).into()));
        while let Some(chain) = active.queue(index)?.pop()? {
            active.queue(index)?.push(chain.head, 0)?;
        }
        active.notify(index)?;
        Ok(Progress::Idle)
    }
    fn save(&mut self, _active: Option<&mut Active>) -> Vec<u8> {
        vec![7]
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        if state == [7] { Ok(()) } else { Err("not an echo".to_owned()) }
    }
    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

struct Bench {
    ram: GuestRam,
    slot: Arc<Slot>,
    events: EventLoop,
    registers: MmioTransport,
    calls: Arc<Calls>,
    line: EventFd,
}

impl Bench {
    fn new() -> Self {
        Self::over(reserve(2).unwrap())
    }

    fn over(ram: GuestRam) -> Self {
        let calls = Arc::new(Calls::default());
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let device = Box::new(Echo { calls: Arc::clone(&calls) });
        let slot = Slot::new(device, ram.clone(), line.try_clone().unwrap()).unwrap();
        let mut events = EventLoop::new().unwrap();
        events.add(Arc::clone(&slot)).unwrap();
        Self { ram, registers: MmioTransport::new(Arc::clone(&slot)), slot, events, calls, line }
    }

    fn set(&self, at: u64, value: u32) {
        assert_eq!(self.registers.write(at, &value.to_le_bytes()), None);
    }

    fn get(&self, at: u64) -> u32 {
        let mut data = [0xff; 4];
        self.registers.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    /// As a driver does it, with only the first queue, whose descriptor table is at `table`.
    fn start(&self, table: u32) {
        for status in [0, 1, 3] {
            self.set(offset::STATUS, status);
        }
        self.set(offset::DRIVER_FEATURES_SEL, 1);
        self.set(offset::DRIVER_FEATURES, 1);
        self.set(offset::STATUS, 11);
        self.set(offset::QUEUE_NUM, 4);
        self.set(offset::QUEUE_DESC_LOW, table);
        self.set(offset::QUEUE_DRIVER_LOW, 0x2000);
        self.set(offset::QUEUE_DEVICE_LOW, 0x3000);
        self.set(offset::QUEUE_READY, 1);
        self.set(offset::STATUS, READY);
    }

    fn offer(&self, count: u16, address: u64) {
        use vm_memory::{Bytes, GuestAddress};
        self.ram.write_obj(address, GuestAddress(RINGS)).unwrap();
        self.ram.write_obj(4u32, GuestAddress(RINGS + 8)).unwrap();
        self.ram.write_obj(count, GuestAddress(0x2002)).unwrap();
    }

    fn used(&self) -> u16 {
        use vm_memory::{Bytes, GuestAddress};
        self.ram.read_obj(GuestAddress(0x3002)).unwrap()
    }

    fn counts(&self) -> (u32, u32) {
        (self.calls.activated.load(Ordering::SeqCst), self.calls.reset.load(Ordering::SeqCst))
    }
}

#[test]
fn a_driver_starts_the_device_and_is_called_back() {
    let bench = Bench::new();
    bench.start(0x1000);
    assert_eq!(bench.counts(), (0, 0), "devices are told on the main thread");
    bench.offer(1, 0x8000);
    bench.events.serve().unwrap();
    assert_eq!((bench.counts(), bench.used()), ((1, 1), 1), "what came before the first doorbell is served too");
    assert_eq!((bench.get(offset::INTERRUPT_STATUS), bench.line.read().unwrap()), (1, 1));
    bench.set(offset::INTERRUPT_ACK, 1);
    assert_eq!(bench.get(offset::INTERRUPT_STATUS), 0);
    bench.offer(2, 0x8000);
    bench.set(offset::QUEUE_NOTIFY, 0);
    bench.events.serve().unwrap();
    assert_eq!((bench.counts(), bench.used()), ((1, 1), 2));
}

#[test]
fn slow_devices_take_turns_with_whatever_else_there_is() {
    let (mut one, other) = (Bench::new(), Bench::new());
    one.events.add(Arc::clone(&other.slot)).unwrap();
    let served = || [&one, &other].map(|bench| bench.calls.served.load(Ordering::SeqCst)).iter().sum::<u32>();
    for bench in [&one, &other] {
        bench.start(0x1000);
        bench.calls.slowness.store(20, Ordering::SeqCst);
        bench.slot.wake.read().unwrap();
    }
    // Both are fresh: each is served once for the start and once for its doorbell.
    for bench in [&one, &other] {
        bench.slot.doorbells[0].write(1).unwrap();
    }
    one.events.serve().unwrap();
    assert_eq!(served(), 2, "one event a turn");
    one.events.serve().unwrap();
    assert_eq!(served(), 4);
}

#[test]
fn a_control_command_before_the_first_turn_loses_nothing() {
    let bench = Bench::new();
    bench.start(0x1000);
    bench.offer(1, 0x8000);
    bench.slot.control(|_, active| (assert!(active.is_some()), false));
    assert_eq!(bench.counts().0, 1);
    bench.events.serve().unwrap();
    assert_eq!((bench.counts().0, bench.used()), (1, 1));
}

#[test]
fn a_notification_of_a_queue_that_is_not_there_is_lost() {
    let bench = Bench::new();
    bench.start(0x1000);
    bench.events.serve().unwrap();
    let served = bench.calls.served.load(Ordering::SeqCst);
    bench.offer(1, 0x8000);
    for queue in [2, u32::MAX] {
        bench.set(offset::QUEUE_NOTIFY, queue);
        bench.events.serve().unwrap();
    }
    assert_eq!((bench.calls.served.load(Ordering::SeqCst), bench.used()), (served, 0));
    bench.set(offset::QUEUE_NOTIFY, 0);
    bench.events.serve().unwrap();
    assert_eq!(bench.used(), 1);
}

#[test]
fn a_reset_device_touches_no_memory() {
    let bench = Bench::new();
    bench.start(0x1000);
    bench.events.serve().unwrap();
    bench.offer(1, 0x8000);
    bench.set(offset::QUEUE_NOTIFY, 0);
    bench.set(offset::STATUS, 0);
    bench.events.serve().unwrap();
    assert_eq!((bench.used(), bench.get(offset::STATUS)), (0, 0));
    // And starts anew.
    bench.start(0x1000);
    bench.events.serve().unwrap();
    assert_eq!((bench.used(), bench.counts()), (1, (2, 3)));
}

#[test]
fn a_queue_outside_memory_or_a_bad_chain_stops_the_device_until_its_reset() {
    let bench = Bench::new();
    bench.start(0xffff_f000);
    assert_eq!(bench.get(offset::STATUS), READY | NEEDS_RESET);
    assert_eq!(bench.get(offset::INTERRUPT_STATUS), 2);

    bench.start(0x1000);
    bench.offer(1, u64::MAX);
    bench.events.serve().unwrap();
    assert_eq!(bench.get(offset::STATUS), READY | NEEDS_RESET);
    let served = bench.calls.served.load(Ordering::SeqCst);
    bench.set(offset::QUEUE_NOTIFY, 0);
    bench.events.serve().unwrap();
    assert_eq!(bench.calls.served.load(Ordering::SeqCst), served);

    bench.start(0x1000);
    bench.offer(1, 0x8000);
    bench.events.serve().unwrap();
    assert_eq!((bench.get(offset::STATUS), bench.used()), (READY, 1));
}

#[test]
fn odd_accesses_do_nothing() {
    let bench = Bench::new();
    for (at, len) in [(0u64, 1usize), (0, 2), (0, 8), (2, 4), (0x71, 4)] {
        let mut data = vec![0xff; len];
        bench.registers.read(at, &mut data);
        assert_eq!(data, vec![0; len], "{at:#x} {len}");
        assert_eq!(bench.registers.write(at, &vec![1; len]), None);
    }
    assert_eq!(bench.get(offset::STATUS), 0);
    let mut data = [0; 3];
    bench.registers.read(offset::CONFIG + 5, &mut data);
    assert_eq!(data, [5; 3]);
}

#[test]
fn a_saved_slot_goes_on_in_another() {
    let bench = Bench::new();
    bench.start(0x1000);
    bench.offer(1, 0x8000);
    bench.events.serve().unwrap();
    let state = bench.slot.save();
    let bytes = postcard::to_stdvec(&state).unwrap();

    let other = Bench::over(bench.ram.clone());
    other.slot.restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
    assert_eq!(other.get(offset::INTERRUPT_STATUS), 1, "the driver has not acknowledged it");
    other.events.serve().unwrap();
    assert_eq!(other.counts().0, 1);
    other.offer(2, 0x8000);
    other.set(offset::QUEUE_NOTIFY, 0);
    other.events.serve().unwrap();
    assert_eq!((other.used(), other.get(offset::STATUS)), (2, READY));
}

#[test]
fn what_is_no_devices_and_comes_while_devices_are_served_is_told() {
    let bench = Bench::new();
    bench.start(0x1000);
    assert!(!bench.events.serve().unwrap());
    let other = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    bench.events.hear_of(other.as_raw_fd()).unwrap();
    other.write(1).unwrap();
    bench.offer(1, 0x8000);
    bench.set(offset::QUEUE_NOTIFY, 0);
    assert!(bench.events.serve().unwrap());
    assert_eq!(bench.used(), 1);
    // Once: who was told has to look.
    assert!(!bench.events.serve().unwrap());
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    bench.start(0x1000);
    let good = bench.slot.save();
    let other = |change: fn(&mut SlotState)| {
        let mut state = good.clone();
        change(&mut state);
        Bench::over(bench.ram.clone()).slot.restore(state)
    };
    assert_eq!(other(|_| {}), Ok(()));
    let bad: [fn(&mut SlotState); 14] = [
        |state| state.interrupt = 4,
        |state| state.device.clear(),
        |state| state.registers = Registers::new(4, 0, &[4]),
        |state| state.registers = Registers::new(2, 0, &[4, 4]),
        |state| state.queues = None,
        |state| state.queues.as_mut().unwrap().truncate(1),
        |state| state.queues.as_mut().unwrap()[0] = None,
        |state| state.queues.as_mut().unwrap()[1] = state.queues.as_ref().unwrap()[0],
        |state| queue(state).size = 8,
        // It would be a queue, but not the one that the driver was promised.
        |state| queue(state).size = 2,
        |state| queue(state).used += 0x100,
        |state| queue(state).used = 1 << 40,
        |state| queue(state).event_idx ^= true,
        |state| queue(state).indirect ^= true,
    ];
    for (number, bad) in bad.into_iter().enumerate() {
        assert!(other(bad).is_err(), "{number}");
    }
    // How far it is served is the queue's alone.
    assert_eq!(other(|state| (queue(state).next_available, queue(state).next_used) = (9, 8)), Ok(()));
}

fn queue(state: &mut SlotState) -> &mut QueueState {
    state.queues.as_mut().unwrap()[0].as_mut().unwrap()
}

#[test]
fn a_device_whose_driver_was_not_ready_is_restored_and_judged_all_the_same() {
    let bench = Bench::new();
    let state = |status: u32| {
        let mut state = bench.slot.save();
        assert!(state.queues.is_none());
        for step in [1, 3] {
            state.registers.write(offset::STATUS, step);
        }
        state.registers.write(offset::DRIVER_FEATURES_SEL, 1);
        state.registers.write(offset::DRIVER_FEATURES, 1);
        state.registers.write(offset::STATUS, status);
        state.registers.write(offset::QUEUE_NUM, 4);
        state
    };
    // Between the features and the end, with a queue that is set up; and before.
    for status in [11, 3] {
        let other = Bench::over(bench.ram.clone());
        other.slot.restore(state(status)).unwrap();
        assert_eq!((other.get(offset::STATUS), other.counts().0), (status, 0));
    }
    // What is kept of queues that are not served is not looked at.
    let mut bent = state(11);
    bent.queues = Some(Vec::new());
    assert_eq!(Bench::over(bench.ram.clone()).slot.restore(bent), Ok(()));
}
