//! The network card, on taps of this machine.

use portcullis_vmm::config::NetworkInterface;
use portcullis_vmm::log::EndReason;
use portcullis_vmm::rate_limiter::{RateLimiterConfig, TokenBucketConfig};

use crate::guest::Guest;
use crate::harness::{Ended, Setup, Vmm, refused};
use crate::tap::{TestTap, experiment};
use crate::virtio::{BUFFERS, DRIVER_OK, Descriptor, FIRST, NEEDS_RESET, Queue, STATUS, WRITE};

pub const MAC: [u8; 6] = [0x06, 0, 0xac, 0x10, 0, 2];
pub const PEER: [u8; 6] = [0x06, 0, 0xac, 0x10, 0, 1];
/// Bytes before each frame in the queues.
pub const HEADER: u32 = 12;

/// Feature bits (virtio 1.2, section 5.1.3).
const CSUM: u32 = 1;
const GUEST_CSUM: u32 = 1 << 1;
const GUEST_TSO4: u32 = 1 << 7;
const HOST_TSO4: u32 = 1 << 11;
const MRG_RXBUF: u32 = 1 << 15;

/// A TCP segment over IPv4 that is larger than a packet of the link.
struct Segment {
    /// Asks for the checksum and for segments of 1000 bytes.
    header: Vec<u8>,
    /// Its headers; what they carry is zeros.
    frame: Vec<u8>,
    /// Bytes of all of it.
    len: u32,
}

fn tcp_segment(to: [u8; 6], from: [u8; 6], payload: u16) -> Segment {
    // NEEDS_CSUM, TCPV4; 54 bytes of headers, segments of 1000 bytes; the checksum from byte 34 on, at 16 from there.
    let mut header = vec![1, 1];
    header.extend([54u16, 1000, 34, 16, 0].iter().flat_map(|field| field.to_le_bytes()));
    let mut packet = vec![0x45, 0];
    packet.extend((40 + payload).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    let frame = [&to[..], &from, &[8, 0], &packet].concat();
    Segment { header, frame, len: 54 + u32::from(payload) }
}

pub fn rx() -> Queue {
    Queue::at(FIRST, 0, 8)
}

pub fn tx() -> Queue {
    Queue::at(FIRST, 1, 8)
}

pub fn setup(guest: &Guest, tap: &TestTap) -> Setup {
    let mut setup = Setup::new(guest);
    let mac = format!("\"{}\"", MAC.map(|b| format!("{b:02x}")).join(":"));
    let mut interface = NetworkInterface::new("eth0", tap.name.as_str());
    interface.guest_mac = serde_json::from_str(&mac).unwrap();
    setup.config.network_interfaces.push(interface);
    setup
}

fn start(guest: &Guest, tap: &TestTap) -> Vmm {
    setup(guest, tap).start()
}

/// A guest with a driver that agreed on `features`.
pub fn driver(features: u32) -> Guest {
    Guest::new().virtio_start(FIRST, features, &[rx(), tx()])
}

/// Puts a frame behind a header into the guest's memory.
fn place(guest: Guest, at: u32, header: &[u8], frame: &[u8]) -> Guest {
    guest.copy_low(at, header).copy_low(at + HEADER, frame)
}

/// Sends a frame as the `number`-th of the queue.
pub fn send(guest: Guest, number: u16, header: &[u8], frame: &[u8], len: u32) -> Guest {
    let at = BUFFERS + u32::from(number) * 0x400;
    place(guest, at, header, frame).request(tx(), number, 0, &[(u64::from(at), HEADER + len, 0)])
}

/// Offers a buffer to receive into, as the `number`-th of the queue.
pub fn offer(guest: Guest, number: u16, at: u32, len: u32) -> Guest {
    let index = number - 1;
    let descriptor = Descriptor { address: u64::from(at), len, flags: WRITE, next: 0 };
    guest.descriptor(rx().descriptors, u32::from(index), descriptor).offer(rx(), number, index).notify(rx())
}

fn bytes(ended: &Ended, after: &str) -> Vec<u8> {
    ended.expect_clean(EndReason::Reset);
    let text = ended.output.strip_prefix(after).unwrap_or_else(|| panic!("{:?}", ended.output));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn what_the_guest_sends_is_on_the_tap() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let frame = experiment(PEER, MAC, 0x5a, 60);
    // The second in two parts, of which the first ends within the Ethernet header.
    let second = experiment(PEER, MAC, 0xa5, 60);
    let guest = send(driver(0), 1, &[], &frame, 60);
    let guest = place(guest, BUFFERS, &[], &second);
    let parts = [(u64::from(BUFFERS), HEADER + 9, 0), (u64::from(BUFFERS) + u64::from(HEADER) + 9, 51, 0)];
    let ended = setup(&guest.request(tx(), 2, 2, &parts).reset(), &tap).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(wire.receive_experiment(), frame);
    assert_eq!(wire.receive_experiment(), second);
}

#[test]
fn who_sends_much_at_once_may_go_on() {
    let tap = TestTap::new();
    let wire = tap.wire();
    // The rest of it is memory that was never written.
    let large = experiment(PEER, MAC, 0, 20_000);
    let next = experiment(PEER, MAC, 0xa5, 60);
    let guest = send(driver(0), 1, &[], &large[..14], 20_000).wait_for16(tx().used_index(), 1);
    let at = BUFFERS + 0x8000;
    let guest = place(guest, at, &[], &next).request(tx(), 2, 2, &[(u64::from(at), HEADER + 60, 0)]);
    setup(&guest.reset(), &tap).run().expect_clean(EndReason::Reset);
    assert_eq!(wire.receive_experiment(), large);
    assert_eq!(wire.receive_experiment(), next);
}

#[test]
fn what_the_host_sends_reaches_the_guest() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let guest = offer(offer(driver(0), 1, BUFFERS, 1526), 2, BUFFERS + 0x800, 1526).print("R");
    let guest = guest.wait_for16(rx().used_index(), 2);
    let guest = guest.print_hex(BUFFERS, HEADER + 60).print_hex(rx().used_len(0), 4);
    let guest = guest.print_hex(BUFFERS + 0x800, HEADER + 60).print_hex(rx().used_len(1), 4).reset();
    let mut vmm = start(&guest, &tap);
    vmm.wait_for("R");
    let [first, second] = [1, 2].map(|fill| experiment(MAC, PEER, fill, 60));
    wire.send(&first);
    wire.send(&second);
    let found = bytes(&vmm.wait(), "R");
    // One buffer each.
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let expected = |frame: &[u8]| [&header[..], frame, &[72, 0, 0, 0]].concat();
    assert_eq!(found, [expected(&first), expected(&second)].concat());
}

#[test]
fn a_large_frame_is_spread_over_mergeable_buffers() {
    let tap = TestTap::new();
    let wire = tap.wire();
    // Two buffers are there when the frame comes, the third later.
    let guest = offer(offer(driver(MRG_RXBUF), 1, BUFFERS, 64), 2, BUFFERS + 64, 64).print("R");
    let guest = guest.echo_until(b'x').print_hex(rx().used_index(), 2);
    let guest = offer(guest, 3, BUFFERS + 128, 64).wait_for16(rx().used_index(), 3);
    let guest = guest.print_hex(BUFFERS, HEADER + 150);
    let guest = (0..3).fold(guest, |guest, slot| guest.print_hex(rx().used_len(slot), 4)).reset();
    let mut vmm = start(&guest, &tap);
    vmm.wait_for("R");
    let frame = experiment(MAC, PEER, 7, 150);
    wire.send(&frame);
    vmm.type_in("x");
    let found = bytes(&vmm.wait(), "Rx");
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0];
    let lengths = [64, 0, 0, 0, 64, 0, 0, 0, 34, 0, 0, 0];
    assert_eq!(found, [&[0, 0][..], &header, &frame, &lengths].concat());
}

#[test]
fn a_large_frame_after_many_small_ones_is_spread_too() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let small_buffer = |number: u16| BUFFERS + 128 * u32::from(number - 1);
    let guest = (1..=5).fold(driver(MRG_RXBUF), |guest, number| offer(guest, number, small_buffer(number), 128));
    // With the last, any frame has room: all are read straight into the buffers.
    let guest = offer(guest, 6, BUFFERS + 0x1000, 70_000).print("R").wait_for16(rx().used_index(), 4).print("S");
    let guest = guest.wait_for16(rx().used_index(), 6).print_hex(small_buffer(4), 12 + 60);
    let guest = guest.print_hex(small_buffer(5), 128).print_hex(BUFFERS + 0x1000, 12 + 1000 - 128);
    let guest = guest.print_hex(rx().used_len(4), 4).print_hex(rx().used_len(5), 4).reset();
    let mut vmm = start(&guest, &tap);
    vmm.wait_for("R");
    let small = experiment(MAC, PEER, 7, 60);
    (0..4).for_each(|_| wire.send(&small));
    vmm.wait_for("S");
    let mut large = experiment(MAC, PEER, 0, 1000);
    large.iter_mut().skip(14).zip((1..=251).cycle()).for_each(|(byte, fill)| *byte = fill);
    wire.send(&large);
    let header = |buffers| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers, 0];
    let expected = [&header(1)[..], &small, &header(2), &large, &[128, 0, 0, 0], &884u32.to_le_bytes()].concat();
    assert_eq!(bytes(&vmm.wait(), "RS"), expected);
}

#[test]
fn a_frame_that_no_buffer_holds_is_lost_and_the_next_is_not() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let guest = offer(driver(0), 1, BUFFERS, HEADER + 100).print("R").wait_for16(rx().used_index(), 1);
    let guest = guest.print_hex(BUFFERS + HEADER, 100).print_hex(rx().used_len(0), 4).reset();
    let mut vmm = start(&guest, &tap);
    vmm.wait_for("R");
    wire.send(&experiment(MAC, PEER, 1, 101));
    let fits = experiment(MAC, PEER, 2, 100);
    wire.send(&fits);
    assert_eq!(bytes(&vmm.wait(), "R"), [&fits[..], &[112, 0, 0, 0]].concat());
}

#[test]
fn a_frame_from_another_address_is_dropped() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let spoofed = experiment(PEER, [0x06, 0, 0xac, 0x10, 0, 3], 1, 60);
    let own = experiment(PEER, MAC, 2, 60);
    let guest = send(driver(0), 1, &[], &spoofed, 60);
    setup(&send(guest, 2, &[], &own, 60).reset(), &tap).run().expect_clean(EndReason::Reset);
    assert_eq!(wire.receive_experiment(), own);
}

#[test]
fn a_card_without_a_configured_address_is_given_one_and_keeps_to_it() {
    const MAC_FEATURE: u32 = 1 << 5;
    let tap = TestTap::new();
    let wire = tap.wire();
    let spoofed = experiment(PEER, MAC, 1, 60);
    let own = experiment(PEER, MAC, 2, 60);
    // The second frame's source is what the card says in its configuration space.
    let at = BUFFERS + 0x800;
    let guest = place(send(driver(MAC_FEATURE), 1, &[], &spoofed, 60), at, &[], &own);
    let guest = (0..6)
        .fold(guest, |guest, byte| guest.load8(FIRST + 0x100 + byte).edi(at + HEADER + 6 + byte).raw(&[0x88, 0x07]));
    let guest = guest.request(tx(), 2, 0, &[(u64::from(at), HEADER + 60, 0)]);
    let guest = guest.print("R").print_hex(at + HEADER + 6, 6).reset();
    let run = || {
        let mut setup = setup(&guest, &tap);
        setup.config.network_interfaces[0].guest_mac = None;
        let mac = bytes(&setup.run(), "R");
        assert!(mac[0] & 3 == 2, "not a locally administered address of one card: {mac:x?}");
        assert_eq!(wire.receive_experiment(), [&PEER[..], &mac, &own[12..]].concat());
        mac
    };
    assert_ne!(run(), run(), "two VMs with the same address");
}

#[test]
fn a_frame_too_short_or_too_large_is_dropped() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let own = experiment(PEER, MAC, 2, 60);
    let guest = send(driver(0), 1, &[], &own, 13);
    let guest = send(guest, 2, &[], &own, 65_536 + 15);
    let guest = send(guest, 3, &[], &[], 0).request(tx(), 4, 0, &[(u64::from(BUFFERS), 5, 0)]);
    setup(&send(guest, 5, &[], &own, 60).reset(), &tap).run().expect_clean(EndReason::Reset);
    assert_eq!(wire.receive_experiment(), own);
}

#[test]
fn offloads_of_frames_to_send_need_an_agreement() {
    let tap = TestTap::new();
    let wire = tap.wire_with_header();
    let segment = tcp_segment(PEER, MAC, 2000);
    let small = experiment(PEER, MAC, 1, 60);
    let is_small = |frame: &[u8]| frame.get(22..24) == Some(&crate::tap::EXPERIMENT);
    for (features, whole) in [(CSUM | HOST_TSO4, true), (CSUM, false), (HOST_TSO4, false), (0, false)] {
        let guest = send(driver(features), 1, &segment.header, &segment.frame, segment.len);
        let guest = send(guest, 2, &[], &small, 60).reset();
        setup(&guest, &tap).run().expect_clean(EndReason::Reset);
        let first = wire.receive(|frame| is_small(frame) || frame.get(22..24) == Some(&[8, 0]));
        assert_eq!(first.len(), if whole { 10 + 54 + 2000 } else { 70 }, "{features:#x}");
        if whole {
            assert_eq!(first[..2], [1, 1], "checksum and segmentation are still to be done");
            wire.receive(is_small);
        }
    }
}

#[test]
fn offloads_of_received_frames_need_an_agreement() {
    let tap = TestTap::new();
    let wire = tap.wire_with_header();
    let segment = tcp_segment(MAC, PEER, 2000);
    let mut frame = [&segment.header[..10], &segment.frame].concat();
    frame.resize(10 + usize::try_from(segment.len).unwrap(), 0);
    for (features, flags, len) in [
        (GUEST_CSUM | GUEST_TSO4 | MRG_RXBUF, [1, 1], 2054),
        (GUEST_CSUM | MRG_RXBUF, [1, 0], 1054),
        (GUEST_TSO4 | MRG_RXBUF, [0, 0], 1054),
        (0, [0, 0], 1054),
    ] {
        // The card takes notice of the agreement before it serves a queue.
        let guest = send(driver(features), 1, &[], &experiment(PEER, MAC, 1, 60), 60);
        let guest = offer(guest, 1, BUFFERS, 70_000).print("R").wait_for16(rx().used_index(), 1);
        let guest = guest.print_hex(BUFFERS, 2).print_hex(rx().used_len(0), 4).reset();
        let mut vmm = start(&guest, &tap);
        vmm.wait_for("R");
        wire.send(&frame);
        let found = bytes(&vmm.wait(), "R");
        let len = HEADER + len;
        assert_eq!(found, [&flags[..], &len.to_le_bytes()].concat(), "{features:#x}");
    }
}

#[test]
fn chains_of_the_wrong_direction_stop_the_device() {
    let tap = TestTap::new();
    let wrong = |queue: Queue, flags: u16, len: u32| {
        let descriptor = Descriptor { address: u64::from(BUFFERS), len, flags, next: 0 };
        let guest = driver(0).descriptor(queue.descriptors, 0, descriptor).offer(queue, 1, 0).notify(queue);
        let guest = guest.wait_for32(FIRST + STATUS, DRIVER_OK | NEEDS_RESET).print("stopped");
        // A reset, and it works again.
        let guest = send(guest.virtio_start(FIRST, 0, &[rx(), tx()]), 1, &[], &experiment(PEER, MAC, 9, 60), 60);
        let wire = tap.wire();
        let ended = setup(&guest.reset(), &tap).run();
        ended.expect_warnings(EndReason::Reset, &["broke the rules"]);
        assert_eq!(ended.output, "stopped");
        assert_eq!(wire.receive_experiment()[14], 9);
    };
    wrong(tx(), WRITE, 100);
    wrong(rx(), 0, 1526);
    wrong(rx(), WRITE, 11);
}

/// Two frames at once, then one in `refill_ms` milliseconds.
fn two_frames(refill_ms: u64) -> RateLimiterConfig {
    let ops = TokenBucketConfig { size: 2, one_time_burst: None, refill_time: refill_ms };
    RateLimiterConfig { bandwidth: None, ops: Some(ops) }
}

const HOUR: u64 = 3_600_000;

#[test]
fn a_limited_card_sends_no_more_than_it_may() {
    let tap = TestTap::new();
    let offer = |guest: Guest, number: u16| {
        let at = BUFFERS + u32::from(number) * 0x400;
        let guest = place(guest, at, &[], &experiment(PEER, MAC, u8::try_from(number).unwrap(), 60));
        let index = number - 1;
        let descriptor = Descriptor { address: u64::from(at), len: HEADER + 60, flags: 0, next: 0 };
        guest.descriptor(tx().descriptors, u32::from(index), descriptor).offer(tx(), number, index).notify(tx())
    };
    let guest = (1..=3).fold(driver(0), offer);
    let held_back = guest.clone().wait_for16(tx().used_index(), 2).print("R").echo_until(b'x');
    let mut setup_held = setup(&held_back.print_hex(tx().used_index(), 2).reset(), &tap);
    setup_held.config.network_interfaces[0].tx_rate_limiter = Some(two_frames(HOUR));
    let mut vmm = setup_held.start();
    vmm.wait_for("R");
    vmm.type_in("x");
    assert_eq!(bytes(&vmm.wait(), "Rx"), [2, 0]);

    let wire = tap.wire();
    let mut setup = setup(&guest.wait_for16(tx().used_index(), 3).reset(), &tap);
    setup.config.network_interfaces[0].tx_rate_limiter = Some(two_frames(50));
    setup.run().expect_clean(EndReason::Reset);
    assert_eq!([(); 3].map(|()| wire.receive_experiment()[14]), [1, 2, 3]);
}

#[test]
fn a_limited_card_receives_no_more_than_it_may() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let guest =
        (0..3u16).fold(driver(0), |guest, n| offer(guest, n + 1, BUFFERS + u32::from(n) * 0x800, 1526)).print("R");
    let run = |guest: &Guest, refill_ms| {
        let mut setup = setup(guest, &tap);
        setup.config.network_interfaces[0].rx_rate_limiter = Some(two_frames(refill_ms));
        let mut vmm = setup.start();
        vmm.wait_for("R");
        (1..=3).for_each(|fill| wire.send(&experiment(MAC, PEER, fill, 60)));
        vmm
    };
    let held_back = guest.clone().wait_for16(rx().used_index(), 2).print("2").echo_until(b'x');
    let mut vmm = run(&held_back.print_hex(rx().used_index(), 2).reset(), HOUR);
    vmm.wait_for("2");
    vmm.type_in("x");
    assert_eq!(bytes(&vmm.wait(), "R2x"), [2, 0]);

    let all = guest.wait_for16(rx().used_index(), 3);
    let all = (0..3).fold(all, |guest, n| guest.print_hex(BUFFERS + n * 0x800 + HEADER + 14, 1));
    assert_eq!(bytes(&run(&all.reset(), 50).wait(), "R"), [1, 2, 3]);
}

#[test]
fn a_device_that_is_reset_forgets_the_buffers_that_it_held() {
    let tap = TestTap::new();
    let wire = tap.wire();
    // A frame has come to the first driver's buffers when it resets the device and starts anew with others.
    let first = offer(offer(driver(MRG_RXBUF), 1, BUFFERS, 2048), 2, BUFFERS + 0x800, 2048).print("1");
    let first = first.wait_for16(rx().used_index(), 1);
    let second = first.virtio_start(FIRST, MRG_RXBUF, &[rx(), tx()]).print("2");
    let second = offer(second, 1, BUFFERS + 0x1000, 2048).wait_for16(rx().used_index(), 1);
    let guest = second.print_hex(BUFFERS + 0x800 + HEADER, 15).print_hex(BUFFERS + 0x1000 + HEADER, 60).reset();
    let mut vmm = start(&guest, &tap);
    vmm.wait_for("1");
    wire.send(&experiment(MAC, PEER, 1, 60));
    vmm.wait_for("2");
    let frame = experiment(MAC, PEER, 2, 60);
    wire.send(&frame);
    assert_eq!(bytes(&vmm.wait(), "12"), [&[0; 15][..], &frame].concat());
}

/// Runs the VMM on the interface `name`, which is refused; gives what it says.
fn refusal(name: &str, before: &[&str]) -> String {
    let mut setup = Setup::new(&Guest::new().reset());
    setup.config.network_interfaces.push(NetworkInterface::new("eth0", name));
    let vmm = setup.command();
    let mut command = match before {
        [] => std::process::Command::new(vmm.get_program()),
        [program, args @ ..] => {
            let mut command = std::process::Command::new(program);
            command.args(args).arg(vmm.get_program());
            command
        }
    };
    let (code, errors) = refused(command.args(vmm.get_args()));
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("network interface eth0"), "{errors}");
    errors
}

#[test]
fn without_a_usable_tap_it_says_what_to_do() {
    let missing = format!("pct{}none", std::process::id());
    assert!(refusal(&missing, &[]).contains(&format!("ip tuntap add dev {missing} mode tap")));
    // It was not made on the way.
    assert!(!std::path::Path::new("/sys/class/net").join(&missing).exists());
    assert!(refusal("lo", &[]).contains("'lo' is not a tap"));
    let foreign = TestTap::with_options(&["user", "12345"]);
    let without_rights = ["setpriv", "--bounding-set", "-net_admin"];
    assert!(refusal(&foreign.name, &without_rights).contains("ip tuntap add dev"), "not allowed");
    // With the right to configure networks it may, and a second VM may not meanwhile.
    let mut first = start(&Guest::new().print("R").hang(), &foreign);
    first.wait_for("R");
    assert!(refusal(&foreign.name, &[]).contains("in use by another program"));
}
