use proptest::prelude::*;
use serde_json::json;
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::*;
use crate::mmds::{DEFAULT_ADDRESS, DEFAULT_LIMIT, Mmds};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

fn service() -> Network {
    let mmds = Mmds::new(DEFAULT_LIMIT).into_shared();
    mmds.lock().unwrap().put(json!({"id": "i-1", "long": "x".repeat(50_000)})).unwrap();
    let config: MmdsConfig = serde_json::from_value(json!({"network_interfaces": ["eth0"]})).unwrap();
    Network::new(mmds, &config).unwrap()
}

/// A guest with a TCP of its own, on the service's link.
struct Guest {
    frames: Frames,
    interface: Interface,
    sockets: SocketSet<'static>,
    service: Network,
    now: Instant,
}

impl Guest {
    /// `prefix`: 0 puts the service on the guest's own network; otherwise it is behind a gateway.
    fn new(prefix: u8) -> Self {
        let mut frames = Frames::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        let mut interface = Interface::new(config, &mut frames, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::Ipv4(Ipv4Cidr::new(GUEST, prefix))).unwrap());
        let service = service();
        let now = service.began;
        Self { frames, interface, sockets: SocketSet::new(Vec::new()), service, now }
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(4096), buffer(16_384));
        let to = IpEndpoint::new(IpAddress::Ipv4(DEFAULT_ADDRESS), PORT);
        socket.connect(self.interface.context(), to, port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets frames pass both ways, for some milliseconds.
    fn run(&mut self) {
        for _ in 0..50 {
            self.now += Duration::from_millis(1);
            let time = self.service.time(self.now);
            self.interface.poll(time, &mut self.frames, &mut self.sockets);
            for frame in self.frames.outgoing.drain(..) {
                if self.service.takes(&frame) {
                    self.service.receive(frame, self.now);
                }
            }
            self.service.poll(self.now);
            while let Some(frame) = self.service.next_frame(self.now) {
                assert!(frame.len() <= MTU);
                self.frames.incoming.push_back(frame);
            }
        }
    }

    fn ask(&mut self, handle: SocketHandle, request: &str) -> String {
        self.run();
        self.socket(handle).send_slice(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        for _ in 0..200 {
            self.run();
            let socket = self.socket(handle);
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            }
        }
        String::from_utf8(answer).unwrap()
    }
}

const REQUEST: &str = "GET /id HTTP/1.1\r\n\r\n";

#[test]
fn a_guest_on_the_same_network_is_answered() {
    let mut guest = Guest::new(0);
    let socket = guest.connect(1000);
    for _ in 0..3 {
        let answer = guest.ask(socket, REQUEST);
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\ni-1"), "{answer}");
    }
    assert_eq!(guest.service.metrics.connections_created.total(), 1);
    // The guest closes, and nothing is left.
    guest.socket(socket).close();
    guest.run();
    assert_eq!((guest.service.connections.len(), guest.service.metrics.connections_destroyed.total()), (0, 1));
}

#[test]
fn a_guest_that_sends_by_its_gateway_is_answered() {
    let mut guest = Guest::new(24);
    let gateway = Ipv4Addr::new(172, 16, 0, 1);
    guest.interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
    // What the gateway would say.
    let arp = [&GUEST_MAC[..], &[2, 0, 0, 0, 0, 9], &ARP, &[0, 1, 8, 0, 6, 4, 0, 2], &[2, 0, 0, 0, 0, 9]].concat();
    guest.frames.incoming.push_back([&arp[..], &gateway.octets(), &GUEST_MAC, &GUEST.octets()].concat());
    let socket = guest.connect(1000);
    assert!(guest.ask(socket, REQUEST).ends_with("i-1"));
}

#[test]
fn a_long_answer_comes_whole_and_the_connection_closes_if_asked() {
    let mut guest = Guest::new(0);
    let socket = guest.connect(1000);
    let answer = guest.ask(socket, "GET /long HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(answer.ends_with(&format!("\r\n\r\n{}", "x".repeat(50_000))), "{} bytes", answer.len());
    assert!(!guest.socket(socket).may_recv());
    guest.socket(socket).close();
    guest.run();
    assert!(guest.service.connections.is_empty());
}

#[test]
fn a_request_in_pieces_is_answered_and_a_broken_one_ends_the_connection() {
    let mut guest = Guest::new(0);
    let socket = guest.connect(1000);
    let (start, end) = REQUEST.split_at(7);
    assert_eq!(guest.ask(socket, start), "");
    assert!(guest.ask(socket, end).ends_with("i-1"));
    assert!(guest.ask(socket, "\r\n\r\nGET\0").starts_with("HTTP/1.1 400"));
    assert!(!guest.socket(socket).may_recv());
}

#[test]
fn connections_are_bounded_and_silent_ones_end() {
    let mut guest = Guest::new(0);
    let ports = 1000..1000 + u16::try_from(MAX_CONNECTIONS).unwrap();
    let sockets: Vec<_> = ports.map(|port| guest.connect(port)).collect();
    guest.run();
    assert_eq!(guest.service.connections.len(), MAX_CONNECTIONS);
    let one_more = guest.connect(2000);
    guest.run();
    assert_eq!(guest.socket(one_more).state(), State::Closed, "refused");
    assert!(guest.ask(sockets[3], REQUEST).ends_with("i-1"), "the others go on");

    guest.now += MAX_SILENCE;
    guest.run();
    assert_eq!(guest.service.connections.len(), 0);
    assert!(sockets.iter().all(|socket| !guest.sockets.get::<Socket<'_>>(*socket).may_send()), "the guest is told");
    let again = guest.connect(3000);
    assert!(guest.ask(again, REQUEST).ends_with("i-1"));
}

#[test]
fn a_guest_that_takes_nothing_costs_no_more_than_that() {
    let mut guest = Guest::new(0);
    let ask =
        [&[0xff; 6][..], &GUEST_MAC, &ARP, &[0, 1, 8, 0, 6, 4, 0, 1], &GUEST_MAC, &GUEST.octets(), &[0; 6]].concat();
    let ask = [&ask[..], &DEFAULT_ADDRESS.octets()].concat();
    for _ in 0..1000 {
        guest.service.receive(ask.clone(), guest.now);
    }
    assert_eq!(guest.service.frames.outgoing.len(), MAX_FRAMES);
    assert!(guest.service.frames.incoming.len() <= MAX_FRAMES);
    assert!(guest.service.metrics.rx_accepted_err.total() > 900);
    assert_eq!(guest.service.wait(guest.now), None, "only the guest can go on");
    // It takes them, and all is well again.
    while let Some(frame) = guest.service.next_frame(guest.now) {
        assert_eq!(frame[6..12], MAC);
    }
    let socket = guest.connect(1000);
    assert!(guest.ask(socket, REQUEST).ends_with("i-1"));
    guest.service.receive(vec![0; LARGEST_FRAME + 1], guest.now);
    assert!(guest.service.frames.incoming.is_empty());
}

#[test]
fn a_driver_that_begins_anew_finds_nothing_of_the_old() {
    let mut guest = Guest::new(0);
    let socket = guest.connect(1000);
    guest.run();
    guest.service.clear();
    assert!(guest.service.connections.is_empty() && !guest.service.has_frames());
    assert_eq!(guest.service.wait(guest.now), None);
    // The old connection is unknown.
    assert_eq!(guest.ask(socket, REQUEST), "");
    assert_eq!(guest.socket(socket).state(), State::Closed);
}

#[test]
fn only_frames_for_the_service_are_taken() {
    let frame = |kind: [u8; 2], at: std::ops::Range<usize>| {
        let mut frame = [&[0; 12][..], &kind, &[0; 28]].concat();
        frame[at].copy_from_slice(&DEFAULT_ADDRESS.octets());
        frame
    };
    assert!(is_for(&frame(IPV4, IPV4_TARGET), DEFAULT_ADDRESS) && is_for(&frame(ARP, ARP_TARGET), DEFAULT_ADDRESS));
    for other in [frame(IPV4, IPV4_SOURCE), frame(ARP, IPV4_TARGET), frame([0x86, 0xdd], IPV4_TARGET)] {
        assert!(!is_for(&other, DEFAULT_ADDRESS));
    }
    assert!(!is_for(&frame(IPV4, IPV4_TARGET)[..33], DEFAULT_ADDRESS));
    assert!(!is_for(&frame(IPV4, IPV4_TARGET), Ipv4Addr::new(169, 254, 169, 253)));
}

/// Frames that come near to what the service understands.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), len);
    let kind = prop_oneof![Just(IPV4), Just(ARP), any::<[u8; 2]>()];
    let protocol = prop_oneof![Just(6u8), Just(1), Just(17), any::<u8>()];
    let first = prop_oneof![4 => Just(0x45u8), 1 => any::<u8>()];
    (kind, first, protocol, any::<[u8; 4]>(), bytes(0..120), any::<bool>()).prop_map(
        |(kind, first, protocol, from, rest, sum)| {
            let len = u16::try_from(20 + rest.len()).unwrap().to_be_bytes();
            let mut packet = vec![first, 0, len[0], len[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
            packet.extend(from);
            packet.extend(DEFAULT_ADDRESS.octets());
            if sum {
                let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
                let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            [&[0; 6][..], &GUEST_MAC, &kind, &packet, &rest].concat()
        },
    )
}

proptest! {
    #[test]
    fn any_frames_are_taken_and_bounds_hold(
        frames in proptest::collection::vec((frame(), any::<bool>(), 0u64..40_000), 0..60),
    ) {
        let mut service = service();
        let mut now = service.began;
        for (frame, takes, millis) in frames {
            now += Duration::from_millis(millis);
            service.receive(frame, now);
            service.poll(now);
            prop_assert!(service.frames.outgoing.len() <= MAX_FRAMES && service.connections.len() <= MAX_CONNECTIONS);
            prop_assert!(service.wait(now).is_none_or(|wait| wait >= SHORTEST_WAIT));
            while takes && service.next_frame(now).is_some() {}
        }
    }
}
