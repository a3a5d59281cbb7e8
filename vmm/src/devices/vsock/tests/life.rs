//! How connections, drivers and VMs come and go.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::super::connection::{CLOSING_TIMEOUT, REQUEST_TIMEOUT};
use super::*;

#[test]
fn a_program_that_dies_is_the_end_for_the_guest_too() {
    let mut guest = Guest::ready();
    let (ports, stream) = guest.accepted(WINDOW);
    guest.data(ports, b"never read");
    drop(stream);
    // With bytes unread the socket breaks, else it closes; either ends it.
    let end = guest.receive("the end").op;
    assert!(matches!(end, Op::Reset | Op::Shutdown(CLOSED)), "{end:?}");
    let (ports, stream) = guest.accepted(WINDOW);
    drop(stream);
    guest.expect(Op::Shutdown(CLOSED));
    // What is on its way does no harm, and the window does not fill up.
    for _ in 0..3 {
        guest.data(ports, &pattern(0, 0x8000));
    }
    guest.expect(Op::CreditUpdate);
    // A guest that does not answer has its time.
    let now = Instant::now();
    guest.vsock(|vsock| vsock.muxer.expire(now + CLOSING_TIMEOUT / 2));
    assert_eq!(guest.vsock(|vsock| vsock.muxer.count()), 1);
    guest.vsock(|vsock| vsock.muxer.expire(now + CLOSING_TIMEOUT));
    assert_eq!(guest.vsock(|vsock| vsock.muxer.count()), 0);
    assert_eq!(guest.counter("conns_killed"), 1);
    // The event that would have brought it is the test's.
    guest.vsock(|vsock| vsock.muxer.again());
    while guest.receive("the reset") != (Got { ports, credit: Credit::default(), op: Op::Reset, bytes: Vec::new() }) {}
}

#[test]
fn requests_that_nobody_answers_and_programs_that_say_nothing_have_their_time() {
    let mut guest = Guest::ready();
    let mut asked = guest.connect();
    let ports = guest.expect(Op::Request).ports;
    let mut silent = UnixStream::connect(&guest.path).unwrap();
    let mut wrong = UnixStream::connect(&guest.path).unwrap();
    wrong.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    guest.driver.until("both are heard", |driver| {
        (count(driver) == 2 && driver.slot.metrics()[0].1["conn_event_fails"] == 1).then_some(())
    });
    assert_eq!(wrong.read(&mut [0]).map_err(|e| e.kind()).unwrap_or(0), 0);
    guest.vsock(|vsock| vsock.muxer.expire(Instant::now() + REQUEST_TIMEOUT));
    assert_eq!(asked.read(&mut [0]).unwrap(), 0);
    guest.vsock(|vsock| vsock.muxer.again());
    assert_eq!(guest.expect(Op::Reset).ports, ports);
    // The guest's late answer is to nothing.
    guest.send(ports, WINDOW, Op::Response, &[]);
    assert_eq!(guest.expect(Op::Reset).ports, ports);
    guest.vsock(|vsock| vsock.muxer.expire(Instant::now() + Duration::from_secs(61)));
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.vsock(|vsock| vsock.muxer.count()), 0);
}

#[test]
fn who_connects_before_the_driver_is_ready_waits_and_who_connects_to_nobody_is_told() {
    let mut guest = Guest::new();
    guest.driver.set(crate::virtio::registers::offset::STATUS, 0);
    let mut early = guest.connect();
    guest.driver.settle();
    assert_eq!(count(&guest.driver), 0);
    guest.driver.start(0);
    guest.give_buffers();
    let ports = guest.expect(Op::Request).ports;
    // Nobody listens in the guest.
    guest.send(ports, Credit::default(), Op::Reset, &[]);
    assert_eq!(early.read(&mut [0]).unwrap(), 0);
    assert_eq!(count(&guest.driver), 0);
    // Nor in the host; the second time somebody does.
    let ports = Ports { host: 9, guest: 1 };
    guest.send(ports, WINDOW, Op::Request, &[]);
    assert_eq!(guest.expect(Op::Reset).ports, ports);
    guest.connected(9, WINDOW);
}

#[test]
fn a_reset_in_the_middle_ends_connections_and_the_next_driver_gets_new_ones() {
    let mut guest = Guest::ready();
    let (old, mut stream) = guest.accepted(WINDOW);
    stream.write_all(b"on its way").unwrap();
    let mut half = UnixStream::connect(&guest.path).unwrap();
    half.write_all(b"CONN").unwrap();
    guest.driver.until("the other is heard", |driver| (count(driver) == 2).then_some(()));
    guest.driver.start(0);
    guest.give_buffers();
    guest.driver.settle();
    // Whether it ends or breaks depends on what was unread.
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(half.read(&mut [0]).unwrap_or(0), 0);
    // The old one is unknown to the device too.
    guest.data(old, b"x");
    assert_eq!(guest.expect(Op::Reset).ports, old);
    let (new, _stream) = guest.accepted(WINDOW);
    assert_ne!(new, old);
    assert_eq!(count(&guest.driver), 1);
}

#[test]
fn connections_are_limited_and_free_places_are_used_again() {
    let mut guest = Guest::ready();
    guest.vsock(|vsock| vsock.muxer.limit = 3);
    let (_, first) = guest.accepted(WINDOW);
    let second = UnixStream::connect(&guest.path).unwrap();
    let (ports, third) = guest.connected(7, WINDOW);
    let mut fourth = guest.connect();
    guest
        .driver
        .until("the fourth is taken", |driver| (driver.slot.metrics()[0].1["muxer_event_fails"] == 1).then_some(()));
    let end = fourth.read(&mut [0]);
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    // The guest's own are refused too.
    let another = Ports { host: 7, guest: 1001 };
    guest.send(another, WINDOW, Op::Request, &[]);
    assert_eq!(guest.expect(Op::Reset).ports, another);
    drop(third);
    guest.expect(Op::Shutdown(CLOSED));
    guest.send(ports, WINDOW, Op::Reset, &[]);
    guest.accepted(WINDOW);
    drop((first, second));
}

#[test]
fn a_flood_of_programs_is_taken_up_to_the_limit() {
    let mut guest = Guest::ready();
    guest.vsock(|vsock| vsock.muxer.limit = 100);
    for round in 0..3 {
        // No more than the socket's backlog holds at a time.
        let flood: Vec<_> = (0..120).map(|_| guest.connect()).collect();
        let mut requests = 0;
        while requests < 100 {
            requests += usize::from(guest.receive("a request").op == Op::Request);
            assert!(count(&guest.driver) <= 100);
        }
        guest.driver.settle();
        assert!(guest.poll().is_none(), "round {round}");
        drop(flood);
        guest.vsock(|vsock| vsock.muxer.expire(Instant::now() + REQUEST_TIMEOUT));
        guest.vsock(|vsock| vsock.muxer.again());
        for _ in 0..100 {
            guest.expect(Op::Reset);
        }
        assert_eq!(count(&guest.driver), 0);
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::ready();
    let (one, mut first) = guest.accepted(WINDOW);
    let (two, mut second) = guest.accepted(WINDOW);
    for stream in [&mut first, &mut second] {
        stream.write_all(&pattern(0, 40_000)).unwrap();
    }
    let ports: Vec<Ports> = (0..18).map(|_| guest.receive("bytes").ports).collect();
    for pair in ports.chunks(2) {
        assert!(pair.contains(&one) && pair.contains(&two), "{ports:?}");
    }
}

#[test]
fn what_was_said_before_the_answer_is_not_lost() {
    let mut guest = Guest::ready();
    let mut stream = UnixStream::connect(&guest.path).unwrap();
    stream.write_all(b"CONNECT 52\nearly").unwrap();
    drop(stream);
    let ports = guest.expect(Op::Request).ports;
    guest.send(ports, WINDOW, Op::Response, &[]);
    // That it takes nothing may be said first.
    let mut got = guest.receive("bytes");
    if got.op == Op::Shutdown(Closed { receive: true, send: false }) {
        got = guest.receive("bytes");
    }
    assert_eq!(got.bytes, b"early");
    assert_eq!(guest.receive("the end").op, Op::Shutdown(CLOSED));
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::ready();
    guest.driver.offer(EVENTS, &[(FREE + 0x8_0000, 8, true)]);
    let (ports, mut stream) = guest.accepted(WINDOW);
    guest.driver.settle();
    assert_eq!(guest.driver.used(EVENTS), None);

    let path = guest.dir.path().join("other.sock");
    let restored = guest.driver.restore(Box::new(open(&path))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut restored = Guest { driver: restored, dir, path, room: guest.room };
    restored.driver.ram.write_obj(u64::MAX, GuestAddress(FREE + 0x8_0000)).unwrap();
    let event = restored.driver.until("the event", |driver| driver.used(EVENTS));
    assert_eq!(event, (0, 4));
    let bytes: u64 = restored.driver.ram.read_obj(GuestAddress(FREE + 0x8_0000)).unwrap();
    assert_eq!(bytes, 0xffff_ffff_0000_0000);
    restored.driver.offer(EVENTS, &[(FREE + 0x8_0000, 8, true)]);
    restored.data(ports, b"x");
    assert_eq!(restored.expect(Op::Reset).ports, ports);
    restored.accepted(WINDOW);
    assert_eq!(restored.driver.used(EVENTS), None, "once");
    // Where the snapshot was made all goes on.
    stream.set_nonblocking(true).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_snapshot_of_another_guest_is_refused() {
    let guest = Guest::ready();
    let path = guest.dir.path().join("other.sock");
    let config = VsockConfig { vsock_id: None, guest_cid: CID + 1, uds_path: path.clone() };
    let refused = guest.driver.restore(Box::new(Vsock::open(&config).unwrap())).err().unwrap();
    assert!(refused.contains("guest_cid"), "{refused}");
    let mut vsock = open(&path);
    for junk in [&[][..], &[0xff], &[42, 0]] {
        assert!(vsock.restore(junk).is_err(), "{junk:?}");
    }
}

#[test]
fn a_path_that_exists_is_refused_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    std::fs::write(&path, "mine").unwrap();
    let config = VsockConfig { vsock_id: None, guest_cid: CID, uds_path: path.clone() };
    let error = Vsock::open(&config).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

#[test]
fn metrics_have_firecrackers_names() {
    let guest = Guest::new();
    let all = guest.driver.slot.metrics();
    assert_eq!(all[0].0, "vsock");
    for name in
        ["rx_bytes_count", "tx_packets_count", "conns_added", "conns_killed", "conns_removed", "muxer_event_fails"]
    {
        assert!(all[0].1[name].is_u64(), "{name}");
    }
}
