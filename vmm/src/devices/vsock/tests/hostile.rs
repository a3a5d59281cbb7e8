//! Drivers that mean harm.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::super::muxer::MAX_RESETS;
use super::*;
use crate::virtio::registers::offset;

#[test]
fn headers_of_others_are_dropped_and_unknown_ones_answered() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(7, WINDOW);
    let good = header(ports, WINDOW, Op::Data(4));
    // Another guest's address, another destination than the host.
    for at in [0, 7, 8, 15] {
        let mut bad = good;
        bad[at] ^= 0x10;
        guest.offer_raw(&bad, b"evil");
        guest.driver.settle();
    }
    assert_eq!(guest.poll(), None);
    assert_eq!(guest.counter("tx_queue_event_fails"), 4);
    // Kinds and operations that there are not.
    for (at, value) in [(28, 2), (30, 0), (30, 8), (31, 1)] {
        let mut bad = good;
        bad[at] = value;
        guest.offer_raw(&bad, b"evil");
        assert_eq!(guest.expect(Op::Reset).ports, ports);
    }
    // The connection, which the host has, knows nothing of all that.
    guest.data(ports, b"good");
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"good");
}

#[test]
fn packets_out_of_turn_end_only_their_connection() {
    let mut guest = Guest::ready();
    let (_, mut bystander) = guest.connected(6, WINDOW);
    let unknown = Ports { host: 1, guest: 2 };
    for op in [Op::Response, Op::Data(0), Op::Shutdown(CLOSED), Op::CreditUpdate, Op::CreditRequest] {
        guest.send(unknown, WINDOW, op, &[]);
        assert_eq!(guest.expect(Op::Reset).ports, unknown, "{op:?}");
    }
    // Resets of what is not there are not answered.
    guest.send(unknown, WINDOW, Op::Reset, &[]);
    for op in [Op::Request, Op::Response] {
        let (ports, mut stream) = guest.accepted(WINDOW);
        guest.send(ports, WINDOW, op, &[]);
        assert_eq!(guest.expect(Op::Reset).ports, ports, "{op:?}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    // An answer before the question, or bytes before the answer.
    for op in [Op::Data(0), Op::Shutdown(CLOSED), Op::Request] {
        let mut stream = guest.connect();
        let ports = guest.expect(Op::Request).ports;
        guest.send(ports, WINDOW, op, &[]);
        assert_eq!(guest.expect(Op::Reset).ports, ports, "{op:?}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    guest.driver.settle();
    assert_eq!((guest.poll(), count(&guest.driver)), (None, 1));
    bystander.write_all(b"fine").unwrap();
    assert_eq!(guest.expect(Op::Data(4)).bytes, b"fine");
}

#[test]
fn what_waits_for_programs_that_do_not_read_is_bounded_over_all_connections() {
    let mut guest = Guest::ready();
    // Less than two connections may keep by themselves.
    let limit = BUFFER as usize + 10_000;
    guest.vsock(|vsock| vsock.muxer.kept_limit = limit);
    let kept = |guest: &Guest| guest.vsock(|vsock| vsock.muxer.kept());
    let take_news = |guest: &mut Guest| {
        guest.driver.settle();
        while let Some(got) = guest.poll() {
            assert_eq!(got.op, Op::CreditUpdate);
            guest.give_buffer();
        }
    };
    // As much as one connection may keep, which is whole as long as there is room.
    let fill = |guest: &mut Guest, ports: Ports| {
        while kept(guest) < BUFFER as usize {
            let len = (BUFFER as usize - kept(guest)).min(4096);
            guest.data(ports, &pattern(0, len));
            take_news(guest);
        }
    };
    let until_empty = |guest: &mut Guest| {
        guest.driver.until("nothing waits any more", |driver| {
            let empty = |vsock: &mut Vsock| vsock.muxer.kept() == 0;
            driver.slot.control(|device, _| (empty(device.as_any().downcast_mut().unwrap()), false)).then_some(())
        });
        take_news(guest);
    };
    let (first, mut slow) = guest.connected(7, WINDOW);
    fill(&mut guest, first);
    // The second has a window of its own, and the device no room for all of it.
    let (second, _unread) = guest.connected(8, WINDOW);
    let reset = loop {
        guest.data(second, &pattern(0, 4096));
        guest.driver.settle();
        assert!(kept(&guest) <= limit);
        if let Some(got) = guest.poll() {
            guest.give_buffer();
            if got.op == Op::Reset {
                break got.ports;
            }
        }
    };
    assert_eq!((reset, kept(&guest)), (second, BUFFER as usize));
    // Who is read from goes on.
    let (third, mut quick) = guest.connected(9, WINDOW);
    let mut bytes = vec![0; 4096];
    for _ in 0..100 {
        guest.data(third, &pattern(0, 4096));
        quick.read_exact(&mut bytes).unwrap();
        assert!(bytes == pattern(0, 4096));
        take_news(&mut guest);
    }
    // Once the slow one reads there is room again; what a connection kept goes with it.
    let reader = std::thread::spawn(move || slow.read_to_end(&mut Vec::new()).unwrap());
    until_empty(&mut guest);
    let (fourth, unread) = guest.connected(10, WINDOW);
    fill(&mut guest, fourth);
    drop(unread);
    guest.driver.until("the end is told", |driver| {
        let empty = |vsock: &mut Vsock| vsock.muxer.kept() == 0;
        driver.slot.control(|device, _| (empty(device.as_any().downcast_mut().unwrap()), false)).then_some(())
    });
    // And with the driver.
    let mut again = Guest::ready();
    let (only, _unread) = again.connected(11, WINDOW);
    fill(&mut again, only);
    for guest in [&mut guest, &mut again] {
        guest.driver.set(offset::STATUS, 0);
        guest.driver.settle();
        assert_eq!(kept(guest), 0);
    }
    assert!(reader.join().unwrap() > BUFFER as usize);
}

#[test]
fn a_storm_of_resets_waits_for_the_guest_to_take_them() {
    const ALL: u32 = 2000;
    let mut guest = Guest::new();
    let wrong = |i: u32| header(Ports { host: i, guest: i }, WINDOW, Op::CreditUpdate);
    let (mut taken, mut answered, mut seen) = (0u32, 0u32, 0u32);
    // Without buffers to answer in, the device takes so many and no more.
    loop {
        if !guest.driver.has_room(TX) {
            break;
        }
        guest.offer_raw(&wrong(taken), &[]);
        taken += 1;
        guest.driver.settle();
        while guest.driver.used(TX).is_some() {
            seen += 1;
        }
    }
    assert!(u32::from(CHAINS) + 2 * u32::try_from(MAX_RESETS).unwrap() > taken, "{taken} {seen}");
    assert!(!guest.driver.is_busy(), "it waits");
    // As it takes them, it goes on, and none is lost.
    guest.give_buffers();
    while answered < ALL {
        guest.driver.settle();
        while let Some(got) = guest.poll() {
            assert_eq!((got.op, got.ports.host), (Op::Reset, answered));
            answered += 1;
            guest.give_buffer();
        }
        while guest.driver.used(TX).is_some() {}
        while taken < ALL && guest.driver.has_room(TX) {
            guest.offer_raw(&wrong(taken), &[]);
            taken += 1;
        }
    }
    guest.driver.settle();
    assert_eq!(guest.poll(), None);
}

/// Something that no driver may do.
type Breach = fn(&mut Guest, Ports);

#[test]
fn broken_packets_and_buffers_stop_the_device_until_it_is_reset() {
    let breaches: [(&str, Breach); 5] = [
        ("a length beyond its buffers", |guest, ports| {
            guest.offer_raw(&header(ports, WINDOW, Op::Data(5)), b"four");
        }),
        ("a length of 4 GiB", |guest, ports| guest.offer_raw(&header(ports, WINDOW, Op::Data(u32::MAX)), b"four")),
        ("half a header", |guest, ports| guest.offer_raw(&header(ports, WINDOW, Op::CreditUpdate)[..43], &[])),
        ("a packet outside memory", |guest, _| {
            guest.driver.offer(TX, &[(1 << 40, 44, false)]);
        }),
        ("a buffer for a header only", |guest, ports| {
            // The device finds it when it has something to say.
            while guest.poll().is_some() {}
            guest.driver.offer(RX, &[(FREE, 44, true)]);
            guest.offer_raw(&header(ports, WINDOW, Op::CreditRequest), &[]);
        }),
    ];
    for (name, breach) in breaches {
        let mut guest = Guest::new();
        guest.give_buffer();
        let listener = UnixListener::bind(format!("{}_7", guest.path.display())).unwrap();
        let ports = Ports { host: 7, guest: 1000 };
        guest.send(ports, WINDOW, Op::Request, &[]);
        guest.driver.settle();
        let (mut stream, _) = listener.accept().unwrap();
        breach(&mut guest, ports);
        guest.driver.settle();
        assert!(guest.driver.is_given_up(), "{name}");
        // What programs of the host do meanwhile keeps nobody busy, and they do not wait for ever.
        let _ = stream.write_all(b"hello?");
        let _waiting = guest.connect();
        guest.driver.settle();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{name}");
        guest.driver.start(0);
        guest.give_buffers();
        assert!(!guest.driver.is_given_up());
        assert_eq!(guest.receive(name).op, Op::Request, "{name}");
    }
}

/// What a driver may try, with few enough ports that they meet.
fn any_packet() -> impl Strategy<Value = (Ports, Credit, Op, usize)> {
    let ports =
        (prop_oneof![Just(7u32), Just(8), Just(1 << 30), Just((1 << 30) + 1)], prop_oneof![Just(52u32), Just(1000)]);
    let credit = (prop_oneof![Just(0u32), Just(10), Just(65536), any::<u32>()], prop_oneof![Just(0u32), any::<u32>()]);
    let op = prop_oneof![
        3 => Just(Op::Request),
        3 => Just(Op::Response),
        1 => Just(Op::Reset),
        1 => any::<(bool, bool)>().prop_map(|(receive, send)| Op::Shutdown(Closed { receive, send })),
        5 => (0u32..70_000).prop_map(Op::Data),
        1 => Just(Op::CreditUpdate),
        1 => Just(Op::CreditRequest),
    ];
    (ports, credit, op, 0usize..100).prop_map(|((host, guest), (buf_alloc, fwd_cnt), op, less)| {
        (Ports { host, guest }, Credit { buf_alloc, fwd_cnt }, op, less)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_is_sent_the_device_stays_within_its_bounds(packets in proptest::collection::vec(any_packet(), 1..120)) {
        let mut guest = Guest::ready();
        let _listeners: Vec<_> =
            [7, 8].map(|port| UnixListener::bind(format!("{}_{port}", guest.path.display())).unwrap()).into();
        let mut programs = Vec::new();
        for (i, (ports, credit, op, less)) in packets.into_iter().enumerate() {
            if i % 7 == 0 {
                programs.push(guest.connect());
            }
            if i % 11 == 0 && i > 20 {
                programs.remove(0);
            }
            let len = if let Op::Data(len) = op { len as usize } else { 0 };
            // Rarely a packet that is shorter than it says.
            let len = if less == 0 { len / 2 } else { len };
            if !guest.driver.has_room(TX) {
                while guest.driver.used(TX).is_some() {}
            }
            if guest.driver.has_room(TX) {
                guest.offer_raw(&header(ports, credit, op), &pattern(0, len));
            }
            guest.driver.settle();
            // The guest takes some of what there is.
            if less % 3 != 0 && let Some(got) = guest.poll() {
                prop_assert!(got.bytes.len() <= ROOM as usize);
                guest.give_buffer();
            }
            if guest.driver.is_given_up() {
                guest.driver.start(0);
                guest.give_buffers();
            }
            let (kept, resets) = guest.vsock(|vsock| (vsock.muxer.kept(), vsock.muxer.waiting_resets()));
            prop_assert!(kept <= count(&guest.driver) * BUFFER as usize);
            prop_assert!(resets <= MAX_RESETS + 1023);
        }
        drop(programs);
        guest.driver.settle();
    }
}
