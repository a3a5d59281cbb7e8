//! Bytes, windows and ends of connections.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use super::*;

#[test]
fn megabytes_arrive_whole_in_both_directions_and_within_either_window() {
    const TOTAL: usize = 3 << 20;
    let mut guest = Guest::ready();
    // A window that is no multiple of anything.
    let window = 5001;
    let (ports, stream) = guest.accepted(Credit { buf_alloc: window, fwd_cnt: 0 });
    let mut writer = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        writer.write_all(&pattern(0, TOTAL)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut reader = stream;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    // The guest sends back what it gets, as the host's credit allows.
    let (mut got, mut sent, mut acknowledged, mut host_forwarded) = (Vec::new(), 0usize, 0usize, 0u32);
    while sent < TOTAL {
        guest.driver.events.serve().unwrap();
        while let Some(packet) = guest.poll() {
            guest.give_buffer();
            host_forwarded = packet.credit.fwd_cnt;
            match packet.op {
                Op::Data(_) => got.extend(packet.bytes),
                Op::Shutdown(closed) => assert_eq!(closed, Closed { receive: false, send: true }),
                Op::CreditUpdate | Op::CreditRequest => {}
                other => panic!("{other:?}"),
            }
            assert!(got.len() - acknowledged <= window as usize, "more than the guest has room for");
        }
        let in_flight = u32::try_from(sent).unwrap() - host_forwarded;
        let part = (got.len() - sent).min((BUFFER - in_flight) as usize).min(7000);
        let credit = Credit { buf_alloc: window, fwd_cnt: u32::try_from(got.len()).unwrap() };
        if part > 0 {
            let bytes = got[sent..sent + part].to_vec();
            guest.send(ports, credit, Op::Data(u32::try_from(part).unwrap()), &bytes);
            sent += part;
            acknowledged = got.len();
        } else if acknowledged < got.len() {
            guest.send(ports, credit, Op::CreditUpdate, &[]);
            acknowledged = got.len();
        }
    }
    guest.send(ports, WINDOW, Op::Shutdown(CLOSED), &[]);
    guest.driver.until("the reader ends", |_| reader.is_finished().then_some(()));
    assert!(got == pattern(0, TOTAL), "towards the guest");
    assert!(reader.join().unwrap() == got, "from the guest");
    writer.join().unwrap();
    // Both at once: they begin anew when they have been written.
    let counters = guest.driver.slot.metrics().remove(0).1;
    assert_eq!([&counters["rx_bytes_count"], &counters["tx_bytes_count"]], [TOTAL, TOTAL]);
}

#[test]
fn a_program_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(7, WINDOW);
    let (mut sent, mut forwarded) = (0usize, 0u32);
    // Until the window is full: the device may not say that it is emptier than it is.
    while u32::try_from(sent).unwrap() - forwarded + 4096 <= BUFFER {
        guest.data(ports, &pattern(sent, 4096));
        sent += 4096;
        guest.send(ports, WINDOW, Op::CreditRequest, &[]);
        while let Some(got) = guest.poll() {
            guest.give_buffer();
            assert_eq!(got.op, Op::CreditUpdate);
            forwarded = got.credit.fwd_cnt;
        }
    }
    assert!(sent < 2 << 20, "{sent} bytes went somewhere");
    // The program wakes up: the guest hears of it without asking.
    let mut bytes = vec![0; sent];
    let reader = std::thread::spawn(move || {
        stream.read_exact(&mut bytes).unwrap();
        (bytes, stream)
    });
    guest.expect(Op::CreditUpdate);
    guest.driver.until("all is read", |_| reader.is_finished().then_some(()));
    let (bytes, _stream) = reader.join().unwrap();
    assert!(bytes == pattern(0, sent));
    guest.send(ports, WINDOW, Op::CreditRequest, &[]);
    while guest.receive("the rest of the credit").credit.fwd_cnt != u32::try_from(sent).unwrap() {}
}

#[test]
fn more_than_the_window_ends_the_connection() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(7, WINDOW);
    let block = pattern(0, 0x1_0000);
    // A program that does not read, and a guest that does not care.
    let mut sent = 0;
    let reset = loop {
        guest.data(ports, &block);
        sent += block.len();
        assert!(sent < 8 << 20, "nothing stops it");
        guest.driver.settle();
        if let Some(got) = guest.poll() {
            guest.give_buffer();
            if got.op != Op::CreditUpdate {
                break got;
            }
        }
    };
    assert_eq!((reset.op, reset.ports), (Op::Reset, ports));
    // What came before is the program's.
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes.len() < sent && bytes.starts_with(&block[..1000]));
    // Longer than any packet may be, at once.
    let (ports, _stream) = guest.connected(8, WINDOW);
    guest.data(ports, &pattern(0, 0x1_0001));
    guest.expect(Op::Reset);
}

#[test]
fn a_guest_without_room_is_asked_for_credit_once_and_gets_nothing() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.accepted(Credit { buf_alloc: 3, fwd_cnt: 0 });
    stream.write_all(b"hello").unwrap();
    assert_eq!(guest.expect(Op::Data(3)).bytes, b"hel");
    guest.expect(Op::CreditRequest);
    guest.driver.settle();
    assert_eq!(guest.poll(), None);
    // Having taken more than it got is a lie, which brings nothing.
    guest.send(ports, Credit { buf_alloc: 3, fwd_cnt: 4 }, Op::CreditUpdate, &[]);
    guest.driver.settle();
    assert_eq!(guest.poll(), None);
    guest.send(ports, Credit { buf_alloc: 3, fwd_cnt: 3 }, Op::CreditUpdate, &[]);
    assert_eq!(guest.expect(Op::Data(2)).bytes, b"lo");
}

#[test]
fn each_side_closes_one_direction_and_uses_the_other() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(7, WINDOW);
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Op::Data(4)).bytes, b"last");
    guest.expect(Op::Shutdown(Closed { receive: false, send: true }));
    guest.data(ports, b"still here");
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    guest.send(ports, WINDOW, Op::Shutdown(Closed { receive: false, send: true }), &[]);
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    // Bytes after that are a breach.
    guest.expect(Op::Shutdown(CLOSED));
    guest.data(ports, b"x");
    guest.expect(Op::Reset);

    // A guest that takes nothing any more: who writes to it learns that.
    let (ports, mut stream) = guest.connected(8, WINDOW);
    guest.send(ports, WINDOW, Op::Shutdown(Closed { receive: true, send: false }), &[]);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.data(ports, b"but it sends");
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).unwrap();
    drop(stream);
    assert_eq!(guest.receive("the end").op, Op::Shutdown(CLOSED));
}
