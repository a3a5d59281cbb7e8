use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::*;
use crate::virtio::transport::driver::{Driver, FREE, Part};
use crate::virtio::{Active, DeviceKind, QueueError, VirtioDevice};

const LONG: Duration = Duration::from_secs(20);

/// How the test's device does a request.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// With the queue in its hands.
    Holding,
    /// The same, and it looks whether somebody wants the queue.
    Looking,
    /// Beside the desk.
    Aside,
    /// Not at all: its driver breaks the rules.
    Refusing,
}

/// Tells when it does a request, and waits for leave to finish it.
struct Server {
    way: Way,
    begun: Sender<()>,
    leave: Receiver<()>,
    timer: TimerFd,
    finished: Arc<AtomicU32>,
}

impl Server {
    fn wait(begun: &Sender<()>, leave: &Receiver<()>) {
        begun.send(()).unwrap();
        leave.recv_timeout(LONG).unwrap();
    }
}

impl QueueServer for Server {
    fn system_calls(&self) -> &'static [Call] {
        &[]
    }

    fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn timer_event(&mut self) {}

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<Progress, Stop> {
        let wish = turn.wish();
        let served = turn.served()?;
        let Some(chain) = served.queue.pop()? else {
            return Ok(Progress::Idle);
        };
        match self.way {
            Way::Refusing => return Err(QueueError::BadRequest("on purpose").into()),
            Way::Holding => Self::wait(&self.begun, &self.leave),
            Way::Looking => {
                self.begun.send(()).unwrap();
                while !wish() {
                    std::thread::yield_now();
                }
                served.queue.unpop();
                return Ok(Progress::More);
            }
            Way::Aside => turn.aside(|| Self::wait(&self.begun, &self.leave))?,
        }
        let served = turn.served()?;
        chain.writable.write_at(&served.ram, 0, b"done")?;
        served.queue.push(chain.head, 4)?;
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::More)
    }
}

struct Slow(Option<Server>);

impl VirtioDevice for Slow {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn name(&self) -> String {
        "slow".to_owned()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(7);
    }

    fn queue_servers(&mut self) -> std::io::Result<Vec<Box<dyn QueueServer>>> {
        Ok(self.0.take().into_iter().map(|server| Box::new(server) as _).collect())
    }

    fn activate(&mut self, active: &mut Active) {
        assert!(active.queues.iter().all(Option::is_some), "the device sees its queues before the threads have them");
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// A driver, its device, and the device's thread.
struct Scene {
    driver: Driver,
    thread: Option<JoinHandle<()>>,
    begun: Receiver<()>,
    leave: Sender<()>,
    finished: Arc<AtomicU32>,
}

const REQUEST: Part = (FREE, 4, true);

impl Scene {
    fn new(way: Way) -> Self {
        let ((begins, begun), (leave, may)) = (channel(), channel());
        let finished = Arc::<AtomicU32>::default();
        let timer = TimerFd::new().unwrap();
        let server = Server { way, begun: begins, leave: may, timer, finished: Arc::clone(&finished) };
        let mut driver = Driver::new(Box::new(Slow(Some(server))));
        let mut thread = driver.threads.pop().unwrap();
        let thread = std::thread::spawn(move || while thread.serve(-1).unwrap() {});
        driver.start(0);
        driver.events.serve().unwrap();
        Self { driver, thread: Some(thread), begun, leave, finished }
    }

    /// Puts a request into the queue; the thread is at it.
    fn begin(&mut self) {
        self.driver.offer(0, &[REQUEST]);
        self.begins();
    }

    /// The thread is at a request.
    fn begins(&self) {
        self.begun.recv_timeout(LONG).unwrap();
    }

    fn next_available(&self) -> u16 {
        self.driver.slot.queues().unwrap()[0].unwrap().next_available
    }

    fn written(&self) -> u32 {
        vm_memory::Bytes::read_obj(&self.driver.ram, vm_memory::GuestAddress(FREE)).unwrap()
    }

    fn until_used(&mut self) {
        self.driver.until("the request", |driver| driver.used(0));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.driver.events.end();
        let _ = self.leave.send(());
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

#[test]
fn requests_are_done_and_the_thread_ends() {
    let mut scene = Scene::new(Way::Holding);
    for done in 1..4 {
        scene.begin();
        scene.leave.send(()).unwrap();
        scene.until_used();
        assert_eq!(scene.finished.load(Ordering::SeqCst), done);
    }
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_no_longer_than_it_may() {
    let mut scene = Scene::new(Way::Holding);
    scene.begin();
    // The request is not finished: the device's name says whose it is, and the VM goes on.
    let begin = Instant::now();
    assert_eq!(scene.driver.events.pause(Duration::from_millis(30)), Err("slow".to_owned()));
    assert!(begin.elapsed() >= Duration::from_millis(30));
    scene.leave.send(()).unwrap();
    scene.until_used();
    scene.begin();
    let leave = scene.leave.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        leave.send(()).unwrap();
    });
    scene.driver.events.pause(LONG).unwrap();
    later.join().unwrap();
    assert_eq!((scene.driver.used(0), scene.next_available()), (Some((1, 4)), 2));
    // Paused, nothing is begun, whatever the driver puts in.
    scene.driver.offer(0, &[REQUEST]);
    assert!(scene.begun.recv_timeout(Duration::from_millis(50)).is_err());
    assert_eq!(scene.next_available(), 2);
    scene.driver.events.resume();
    scene.begins();
    scene.leave.send(()).unwrap();
    scene.until_used();
}

#[test]
fn a_request_that_lets_go_of_the_queue_is_in_it_again() {
    let mut scene = Scene::new(Way::Looking);
    scene.begin();
    for _ in 0..3 {
        scene.driver.events.pause(LONG).unwrap();
        assert_eq!((scene.driver.used(0), scene.next_available()), (None, 0));
        scene.driver.events.resume();
        scene.begins();
    }
    // Let go for the last time, and away with it.
    scene.driver.start(0);
}

#[test]
fn nobody_waits_for_what_is_done_aside() {
    let mut scene = Scene::new(Way::Aside);
    scene.begin();
    // The thread is still at it, and the request counts as not begun.
    scene.driver.events.pause(Duration::ZERO).unwrap();
    assert_eq!((scene.driver.used(0), scene.next_available()), (None, 0));
    scene.driver.events.resume();
    // What it has done of it counts for nothing: it does it again, once.
    scene.leave.send(()).unwrap();
    scene.begins();
    assert_eq!((scene.driver.used(0), scene.finished.load(Ordering::SeqCst)), (None, 0));
    scene.leave.send(()).unwrap();
    scene.until_used();
    assert_eq!((scene.driver.used(0), scene.finished.load(Ordering::SeqCst)), (None, 1));
    assert_eq!(scene.next_available(), 1);
}

#[test]
fn after_a_reset_nothing_of_the_old_driver_is_answered_or_written() {
    let mut scene = Scene::new(Way::Aside);
    scene.begin();
    // Does not wait, though the thread is at its request.
    scene.driver.start(0);
    scene.driver.events.serve().unwrap();
    scene.leave.send(()).unwrap();
    // A new driver's request is served, by the same thread: it is done with the old one then.
    scene.begin();
    assert_eq!((scene.written(), scene.driver.used(0)), (0, None));
    scene.leave.send(()).unwrap();
    scene.until_used();
    assert_eq!(scene.finished.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reset_waits_for_a_request_that_may_touch_memory() {
    let mut scene = Scene::new(Way::Holding);
    scene.begin();
    let leave = scene.leave.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        leave.send(()).unwrap();
    });
    scene.driver.set(crate::virtio::registers::offset::STATUS, 0);
    // What it had begun is finished before the reset is.
    assert_eq!(scene.finished.load(Ordering::SeqCst), 1);
    later.join().unwrap();
}

#[test]
fn nobody_waits_for_a_request_of_a_driver_that_has_failed() {
    use crate::virtio::registers::{offset, status};
    let mut scene = Scene::new(Way::Holding);
    scene.begin();
    let failed = scene.driver.get(offset::STATUS) | status::FAILED;
    // Would wait for ever.
    scene.driver.set(offset::STATUS, failed);
    scene.leave.send(()).unwrap();
    scene.until_used();
    scene.driver.offer(0, &[REQUEST]);
    assert!(scene.begun.recv_timeout(Duration::from_millis(50)).is_err());
}

#[test]
fn registers_are_read_while_a_request_takes_long() {
    let mut scene = Scene::new(Way::Holding);
    scene.begin();
    assert_eq!(scene.driver.get(crate::virtio::registers::offset::CONFIG), 0x0707_0707);
    assert_eq!(scene.driver.slot.control(|device, _| (device.name(), false)), "slow");
    scene.leave.send(()).unwrap();
    scene.until_used();
}

#[test]
fn a_driver_that_breaks_the_rules_is_served_no_more_until_it_resets() {
    let mut scene = Scene::new(Way::Refusing);
    scene.driver.offer(0, &[REQUEST]);
    scene.driver.until("the refusal", |driver| driver.is_given_up().then_some(()));
    // It had taken the chain.
    assert_eq!(scene.next_available(), 1);
    scene.driver.offer(0, &[REQUEST]);
    assert!(scene.begun.recv_timeout(Duration::from_millis(50)).is_err());
    scene.driver.start(0);
    scene.driver.events.serve().unwrap();
    assert_eq!((scene.driver.is_given_up(), scene.next_available()), (false, 0));
}

#[test]
fn a_driver_that_has_failed_is_not_served() {
    use crate::virtio::registers::{offset, status};
    let mut scene = Scene::new(Way::Holding);
    let failed = scene.driver.get(offset::STATUS) | status::FAILED;
    scene.driver.set(offset::STATUS, failed);
    scene.driver.offer(0, &[REQUEST]);
    assert!(scene.begun.recv_timeout(Duration::from_millis(50)).is_err());
    // Nor one that fails before the device knows that it was ready.
    scene.driver.start(0);
    scene.driver.set(offset::STATUS, failed);
    scene.driver.offer(0, &[REQUEST]);
    scene.driver.events.serve().unwrap();
    assert!(scene.begun.recv_timeout(Duration::from_millis(50)).is_err());
}
