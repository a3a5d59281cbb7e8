//! The metadata service, asked by guests that know TCP by heart.

use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::{Ended, Setup, Vmm, refused};
use crate::net::{HEADER, MAC, PEER, driver, offer, rx, send, setup};
use crate::tap::{TestTap, experiment};
use crate::virtio::BUFFERS;

const SERVICE: [u8; 4] = [169, 254, 169, 254];
const ADDRESS: [u8; 4] = [172, 16, 0, 2];
/// Where received frames lie: 1 KiB each.
const RECEIVED: u32 = BUFFERS + 0x8000;
/// Headers of Ethernet, IPv4 and TCP.
const HEADERS: u32 = 54;

/// Who has the service's address?
fn arp() -> Vec<u8> {
    [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &ADDRESS, &[0; 6], &SERVICE].concat()
}

/// A segment to the service, from port 1000.
fn tcp(sequence: u32, flags: u8, text: &str) -> Vec<u8> {
    let len = u16::try_from(40 + text.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
    packet.extend([ADDRESS, SERVICE].concat());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([1000u16.to_be_bytes(), 80u16.to_be_bytes()].concat());
    packet.extend([sequence.to_be_bytes(), [0; 4]].concat());
    // A window of 8 KiB; the checksum is left to the card.
    packet.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    [&[0x06, 0x01, 0x23, 0x45, 0x67, 0x01][..], &MAC, &[8, 0], &packet, text.as_bytes()].concat()
}

fn send_whole(guest: Guest, number: u16, frame: &[u8]) -> Guest {
    send(guest, number, &[], frame, u32::try_from(frame.len()).unwrap())
}

/// A guest that asks for the service's hardware address, connects, and sends `request`. It prints the answer to its
/// first question, and `len` bytes of what comes last, which is the frame `frames`.
fn asking(request: &str, frames: u16, len: u32) -> Guest {
    let guest = (1..=frames).fold(driver(0), |guest, n| offer(guest, n, RECEIVED + u32::from(n) * 0x800, 1526));
    let guest = send_whole(guest, 1, &arp()).wait_for16(rx().used_index(), 1);
    let guest = send_whole(guest, 2, &tcp(1, 2, "")).wait_for16(rx().used_index(), 2);
    // What is acknowledged is the service's number, and one: from the second frame into the third's place.
    let number = RECEIVED + 2 * 0x800 + HEADER + 38;
    let third = tcp(2, 0x18, request);
    let place = BUFFERS + 3 * 0x400 + HEADER + 42;
    let guest = guest.copy_low(place - 42, &third);
    // mov eax, [rdi]; bswap eax; inc eax; bswap eax; mov edi, place; mov [rdi], eax
    let guest = guest.edi(number).raw(&[0x8b, 0x07, 0x0f, 0xc8, 0xff, 0xc0, 0x0f, 0xc8]).edi(place).raw(&[0x89, 0x07]);
    let bytes = HEADER + u32::try_from(third.len()).unwrap();
    let guest = guest.request(crate::net::tx(), 3, 0, &[(u64::from(place - 42 - HEADER), bytes, 0)]);
    let guest = guest.wait_for16(rx().used_index(), frames);
    let guest = guest.print_hex(RECEIVED + 0x800 + HEADER, 42);
    guest.print_hex(RECEIVED + u32::from(frames) * 0x800 + HEADER + HEADERS, len)
}

fn with_service(guest: &Guest, tap: &TestTap, version: &str) -> Setup {
    let mut setup = setup(guest, tap);
    let config = format!(r#"{{"version": "{version}", "network_interfaces": ["eth0"]}}"#);
    setup.config.mmds_config = Some(serde_json::from_str(&config).unwrap());
    setup
}

/// Runs a VM with this metadata.
fn run(setup: Setup, metadata: &str) -> Ended {
    let path = setup.dir.path().join("metadata.json");
    std::fs::write(&path, metadata).unwrap();
    let mut command = setup.command();
    command.arg("--metadata").arg(path);
    Vmm::start(command, setup.dir).wait()
}

/// The two parts of what a guest printed: the ARP answer and the text.
fn printed(ended: &Ended) -> (Vec<u8>, String) {
    ended.expect_clean(EndReason::Reset);
    let text = &ended.output;
    let mut bytes: Vec<u8> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
    let rest = bytes.split_off(42);
    (bytes, String::from_utf8(rest).unwrap())
}

const METADATA: &str = r#"{"latest": {"meta-data": {"instance-id": "i-0123"}}}"#;
const REQUEST: &str = "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";

#[test]
fn a_guest_reads_its_metadata_and_none_of_it_is_on_the_tap() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let answer =
        "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\ni-0123";
    let guest = asking(REQUEST, 4, u32::try_from(answer.len()).unwrap());
    // At last a frame for the tap.
    let last = experiment(PEER, MAC, 4, 60);
    let guest = send_whole(guest, 4, &last).reset();
    let (arp, text) = printed(&run(with_service(&guest, &tap, "V1"), METADATA));
    let service = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
    let expected = [&MAC[..], &service, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &service, &SERVICE, &MAC, &ADDRESS].concat();
    assert_eq!(arp, expected);
    assert_eq!(text, answer);
    assert_eq!(wire.receive(|_| true), last, "the first frame on the tap");
}

#[test]
fn version_2_gives_nothing_without_a_session() {
    let tap = TestTap::new();
    let guest = asking(REQUEST, 4, 12).reset();
    let (_, text) = printed(&run(with_service(&guest, &tap, "V2"), METADATA));
    assert_eq!(text, "HTTP/1.1 401");
    // To begin one, the VMM needs random numbers, confined as it is.
    let request = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let guest = asking(request, 4, 12).reset();
    let (_, text) = printed(&run(with_service(&guest, &tap, "V2"), METADATA));
    assert_eq!(text, "HTTP/1.1 200");
}

#[test]
fn without_the_service_its_frames_are_on_the_tap() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let guest = send_whole(driver(0), 1, &arp());
    let guest = send_whole(guest, 2, &tcp(1, 2, "")).reset();
    setup(&guest, &tap).run().expect_clean(EndReason::Reset);
    assert_eq!([(); 2].map(|()| wire.receive(|_| true)), [arp(), tcp(1, 2, "")]);
}

#[test]
fn a_guest_that_only_sends_asks_in_vain_and_harms_nobody() {
    let tap = TestTap::new();
    let wire = tap.wire();
    // No receiving queue at all.
    let guest = Guest::new().virtio_start(crate::virtio::FIRST, 0, &[crate::net::tx()]);
    let guest = (1..=60).fold(guest, |guest, n| {
        let at = BUFFERS;
        let guest = if n == 1 { guest.copy_low(at + HEADER, &arp()) } else { guest };
        guest.request(crate::net::tx(), n, 0, &[(u64::from(at), HEADER + 42, 0)])
    });
    let last = experiment(PEER, MAC, 4, 60);
    let guest = send_whole(guest, 61, &last).reset();
    run(with_service(&guest, &tap, "V1"), METADATA).expect_clean(EndReason::Reset);
    assert_eq!(wire.receive(|_| true), last);
}

#[test]
fn a_card_that_was_given_an_address_asks_the_service_from_no_other() {
    let tap = TestTap::new();
    for (configured, answers) in [(true, "0100"), (false, "0000")] {
        let guest = send_whole(offer(driver(0), 1, RECEIVED, 1526), 1, &arp()).print("R").echo_until(b'x');
        let mut setup = with_service(&guest.print_hex(rx().used_index(), 2).reset(), &tap, "V1");
        if !configured {
            setup.config.network_interfaces[0].guest_mac = None;
        }
        let path = setup.dir.path().join("metadata.json");
        std::fs::write(&path, METADATA).unwrap();
        let mut command = setup.command();
        command.arg("--metadata").arg(path);
        let mut vmm = Vmm::start(command, setup.dir);
        vmm.wait_for("R");
        vmm.type_in("x");
        let ended = vmm.wait();
        ended.expect_clean(EndReason::Reset);
        assert_eq!(ended.output, format!("Rx{answers}"));
    }
}

#[test]
fn metadata_that_cannot_be_taken_is_refused_by_name() {
    let refusal = |metadata: &str, args: &[&str]| {
        let setup = Setup::new(&Guest::new().reset());
        let path = setup.dir.path().join("metadata.json");
        std::fs::write(&path, metadata).unwrap();
        let (code, errors) = refused(setup.command().arg("--metadata").arg(path).args(args));
        assert_eq!(code, 2, "{errors}");
        errors
    };
    assert!(refusal("{", &[]).contains("metadata.json is not valid"));
    assert!(refusal(METADATA, &["--mmds-size-limit", "10"]).contains("the limit is 10"));
    let mut setup = Setup::new(&Guest::new().reset());
    setup.config.mmds_config = Some(serde_json::from_str(r#"{"network_interfaces": ["eth0"]}"#).unwrap());
    let (code, errors) = refused(&mut setup.command());
    assert!(code == 2 && errors.contains("mmds-config.network_interfaces"), "{errors}");
}
