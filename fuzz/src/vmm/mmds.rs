//! The metadata service: the guest's requests, its frames, and the patches of the document.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_vmm::mmds::{
    DEFAULT_ADDRESS, Mmds, MmdsConfig, Network, Outcome, SharedMmds, is_for, lock, merge, outcome,
};
use serde_json::{Value, json};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr};

use super::Target;
use super::input::Input;

/// Requests of a guest, one after the other. Where `@@` stands in them, the last session's token is meant.
pub const MMDS_HTTP: Target =
    Target { name: "mmds_http", body: http, max_len: MAX_REQUEST + 512, seeds: |_| http_seeds() };

/// A document and patches of it, each a line.
pub const MERGE_PATCH: Target = Target { name: "merge_patch", body: merge_patch, max_len: 1024, seeds: |_| patches() };

/// A guest with a TCP of its own, some of whose frames are lost, doubled, changed, or are none.
pub const MMDS_NETWORK: Target =
    Target { name: "mmds_network", body: network, max_len: 1024, seeds: |_| network_seeds() };

/// Most bytes of a request, its body included.
const MAX_REQUEST: usize = 8192;
/// Most bytes of the document.
const LIMIT: usize = 512;
/// Largest frame of the service's.
const MTU: usize = 1514;

fn service(version: &str, limit: usize) -> (Mmds, MmdsConfig) {
    let mut mmds = Mmds::new(limit);
    let document = json!({"id": "i-1", "a": {"b": {"c": "d"}, "n": 7, "list": [1, "x"]}, "": "nameless"});
    mmds.put(document).expect("a small document");
    let config = json!({"version": version, "network_interfaces": ["eth0"]});
    let config: MmdsConfig = serde_json::from_value(config).expect("a configuration");
    mmds.configure(&config);
    (mmds, config)
}

fn http(bytes: &[u8]) -> bool {
    let Some((flags, text)) = bytes.split_first() else { return false };
    let (mut mmds, _) = service(if flags & 1 == 0 { "V1" } else { "V2" }, LIMIT);
    let now = Instant::now();
    let open = flags & 1 == 0;
    let (mut rest, mut token, mut fine) = (text.to_vec(), String::new(), false);
    loop {
        if let Some(at) = rest.windows(2).position(|two| two == b"@@") {
            rest.splice(at..at + 2, token.bytes());
        }
        match outcome(&mut mmds, &rest, now) {
            Outcome::Partial => {
                assert!(rest.len() < MAX_REQUEST, "a request that is too long is waited for");
                return fine;
            }
            Outcome::Answer { used, response, close } => {
                let (status, body) = judge(&response, close);
                assert!(used > 0 && used <= rest.len());
                // As long as it was not whole, it was waited for.
                if status != 400 && status != 413 && status != 431 {
                    assert_eq!(outcome(&mut mmds, &rest[..used - 1], now), Outcome::Partial);
                }
                fine |= status == 200;
                let begins = rest.trim_ascii_start().starts_with(b"PUT");
                assert!(status != 200 || open || begins || !token.is_empty(), "metadata was given without a session");
                if status == 200 && begins {
                    token = body;
                }
                rest.drain(..used);
                if close || rest.is_empty() {
                    return fine;
                }
            }
        }
    }
}

/// Panics unless this is a response as HTTP has them. Gives its status and body.
fn judge(response: &[u8], close: bool) -> (u16, String) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(response) else { panic!("it has no head") };
    let header = |name: &str| {
        let mut found = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let value = found.next().map(|header| std::str::from_utf8(header.value).expect("text"));
        assert!(found.next().is_none(), "{name} stands there twice");
        value
    };
    assert_eq!(header("Content-Length"), Some((response.len() - head).to_string().as_str()));
    assert_eq!(header("Connection"), Some(if close { "close" } else { "keep-alive" }));
    let status = parsed.code.expect("a status");
    assert!([200, 400, 401, 404, 405, 413, 431, 501].contains(&status), "{status}");
    (status, String::from_utf8(response[head..].to_vec()).expect("a body is text"))
}

fn http_seeds() -> Vec<Vec<u8>> {
    let begin = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    let texts = [
        "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\nGET /a/b/c HTTP/1.0\r\n\r\n".to_owned(),
        "GET http://169.254.169.254//a HTTP/1.1\r\nAccept: text/plain, application/json;q=1\r\n\r\n".to_owned(),
        format!("{begin}GET /id HTTP/1.1\r\nX-metadata-token: @@\r\nConnection: close\r\n\r\n"),
        format!("{begin}GET /a/n HTTP/1.1\r\nX-aws-ec2-metadata-token: @@\r\nContent-Length: 2\r\n\r\nxx"),
        "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 0\r\nX-Forwarded-For: a\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
    ];
    // Without an end, of the most bytes and of fewer.
    let long = [MAX_REQUEST - 1, MAX_REQUEST].map(|len| format!("{:x<len$}", "GET / HTTP/1.1\r\nA: "));
    texts.iter().chain(&long).flat_map(|text| [0, 1].map(|flags| [&[flags], text.as_bytes()].concat())).collect()
}

/// RFC 7396, section 2, written a second time.
fn merged(target: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut result = target.as_object().cloned().unwrap_or_default();
    for (name, value) in patch {
        if value.is_null() {
            result.remove(name);
        } else {
            let old = result.get(name).cloned().unwrap_or_default();
            result.insert(name.clone(), merged(&old, value));
        }
    }
    Value::Object(result)
}

fn merge_patch(bytes: &[u8]) -> bool {
    let mut mmds = Mmds::new(LIMIT);
    let mut fine = false;
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return false };
        let before = mmds.get();
        let expected = if number == 0 { value.clone() } else { merged(&before, &value) };
        let fits = expected.to_string().len() <= LIMIT;
        let result = if number == 0 { mmds.put(value.clone()) } else { mmds.patch(value.clone()) };
        // What was refused has changed nothing.
        assert_eq!(mmds.get(), if fits && result.is_ok() { expected.clone() } else { before.clone() });
        let there = number == 0 || fine;
        assert_eq!(result.is_ok(), fits && there, "{result:?}");
        fine |= result.is_ok();
        let mut twice = expected.clone();
        merge(&mut twice, value.clone());
        assert!(number == 0 || twice == expected, "a patch makes the same of what it has made");
    }
    fine
}

fn patches() -> Vec<Vec<u8>> {
    let lines = [
        "{\"a\":{\"b\":1,\"c\":[1]}}\n{\"a\":{\"b\":null,\"d\":{\"e\":null}}}\n{\"a\":7}\n{\"a\":{\"x\":null}}",
        "{}\n{\"a\":{\"b\":{\"c\":null}}}\n[1]\n{\"a\":\"text\"}",
        "\"text\"\n{\"a\":null}",
    ];
    // As much as there may be, and one byte more.
    let long = [LIMIT - 2, LIMIT - 1].map(|len| format!("{{}}\n\"{}\"", "x".repeat(len)));
    lines.map(str::to_owned).into_iter().chain(long).map(String::into_bytes).collect()
}

/// The guest's end of the link.
#[derive(Default)]
struct Link {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Arriving(Vec<u8>);

impl RxToken for Arriving {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Leaving<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Arriving;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arriving, Leaving<'_>)> {
        Some((Arriving(self.incoming.pop_front()?), Leaving(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ethernet, MTU);
        capabilities
    }
}

struct Guest {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<SocketHandle>,
    service: Network,
    mmds: SharedMmds,
    /// Connections that the service holds.
    held: u64,
    began: Instant,
    now: Instant,
    answered: usize,
}

/// Connections of the guest, at most; more than the service has.
const MAX_CONNECTIONS: usize = 20;
/// Connections of the service, at most: those that it answers, and the one that is being made.
const MAX_HELD: u64 = 16 + 1;
/// Longer than the service bears silence.
const LONG: Duration = Duration::from_secs(31);

fn network(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let mut guest = Guest::new(input.u8() & 1 == 0);
    for _ in 0..128 {
        if input.is_empty() {
            break;
        }
        guest.step(&mut input);
    }
    guest.fall_silent();
    guest.answered > 0
}

impl Guest {
    fn new(first: bool) -> Self {
        let (mmds, config) = service(if first { "V1" } else { "V2" }, LIMIT);
        let mmds = mmds.into_shared();
        let service = Network::new(Arc::clone(&mmds), &config).expect("a service");
        let mut link = Link::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 1])));
        let mut interface = Interface::new(config, &mut link, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|all| {
            let own = Ipv4Cidr::new(Ipv4Addr::new(172, 16, 0, 2), 0);
            all.push(IpCidr::Ipv4(own)).expect("room for one");
        });
        let (sockets, began) = (SocketSet::new(Vec::new()), Instant::now());
        let connections = Vec::new();
        Self { link, interface, sockets, connections, service, mmds, held: 0, began, now: began, answered: 0 }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => self.connect(input),
            1 | 2 => {
                let len = input.below(0..128);
                let bytes = input.bytes(len);
                if let Some(socket) = self.socket(input) {
                    let _ = socket.send_slice(bytes);
                }
            }
            3 => {
                if let Some(socket) = self.socket(input) {
                    socket.close();
                }
            }
            4 => {
                self.now += Duration::from_millis(u64::from(input.u16()));
                self.service.poll(self.now);
                let _ = self.service.wait(self.now);
            }
            5 => {
                let len = input.below(0..128);
                self.hand_over(input.bytes(len).to_vec());
            }
            _ => self.exchange(input),
        }
        self.count();
    }

    /// Counts the connections that the service holds.
    fn count(&mut self) {
        let metrics = lock(&self.mmds).metrics();
        let new = |name: &str| metrics[name].as_u64().expect("a counter");
        self.held += new("connections_created");
        self.held = self.held.checked_sub(new("connections_destroyed")).expect("what has ended had begun");
        assert!(self.held <= MAX_HELD, "the service holds {} connections", self.held);
    }

    /// Whatever came before, it ends: when the guest has said nothing for long, nothing waits.
    fn fall_silent(&mut self) {
        for _ in 0..4 {
            self.now += LONG;
            self.service.poll(self.now);
            while self.service.next_frame(self.now).is_some() {}
            self.count();
        }
        assert_eq!(self.held, 0, "connections that nobody uses are held");
        assert_eq!(self.service.wait(self.now), None, "something is still waited for");
    }

    fn socket(&mut self, input: &mut Input<'_>) -> Option<&mut Socket<'static>> {
        let number = usize::from(input.u8()).checked_rem(self.connections.len())?;
        Some(self.sockets.get_mut(self.connections[number]))
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        if self.connections.len() < MAX_CONNECTIONS {
            let buffer = || SocketBuffer::new(vec![0; 2048]);
            let mut socket = Socket::new(buffer(), buffer());
            let to = IpEndpoint::new(IpAddress::Ipv4(DEFAULT_ADDRESS), 80);
            let port = 1 + u16::from(input.u8());
            if socket.connect(self.interface.context(), to, port).is_ok() {
                self.connections.push(self.sockets.add(socket));
            }
        }
    }

    fn hand_over(&mut self, frame: Vec<u8>) {
        assert_eq!(self.service.takes(&frame), is_for(&frame, DEFAULT_ADDRESS));
        if self.service.takes(&frame) {
            self.service.receive(frame, self.now);
        }
    }

    /// Frames pass, or what the input makes of them.
    fn exchange(&mut self, input: &mut Input<'_>) {
        let damage = input.u8();
        for turn in 0..8 {
            self.now += Duration::from_millis(1);
            let micros = i64::try_from((self.now - self.began).as_micros()).expect("some minutes");
            let time = smoltcp::time::Instant::from_micros(micros);
            self.interface.poll(time, &mut self.link, &mut self.sockets);
            for mut frame in std::mem::take(&mut self.link.outgoing) {
                if damage & 7 == turn {
                    match damage >> 3 & 7 {
                        0 => {}
                        1 => continue,
                        2 => self.hand_over(frame.clone()),
                        3 => frame.truncate(usize::from(input.u8())),
                        4 => frame.extend(input.bytes(8)),
                        _ => {
                            let at = usize::from(input.u8()) % frame.len();
                            frame[at] = input.u8();
                        }
                    }
                }
                self.hand_over(frame);
            }
            self.service.poll(self.now);
            while let Some(frame) = self.service.next_frame(self.now) {
                assert!((14..=MTU).contains(&frame.len()), "a frame of {} bytes", frame.len());
                self.link.incoming.push_back(frame);
            }
            for handle in &self.connections {
                let socket: &mut Socket<'_> = self.sockets.get_mut(*handle);
                if socket.can_recv() {
                    let answer = socket.recv(|bytes| (bytes.len(), bytes.starts_with(b"HTTP/1.")));
                    self.answered += usize::from(answer.unwrap_or(false));
                }
            }
        }
    }
}

fn network_seeds() -> Vec<Vec<u8>> {
    let send = |text: &str| {
        let len = u8::try_from(text.len()).expect("a short request");
        [&[1, len], text.as_bytes(), &[0]].concat()
    };
    let request = send("GET /id HTTP/1.1\r\n\r\n");
    let mut seeds = Vec::new();
    for damage in [0u8, 7, 0x0f, 0x12, 0x1a, 0x22, 0x2a] {
        let pass = [6, damage];
        let begin = [&[0, 0, 9][..], &pass, &pass, &request, &pass].concat();
        let end = [&request[..], &[7, 0], &[4, 0xff, 0], &[3, 0], &pass, &[4, 0xff, 0xff]].concat();
        seeds.push([begin, end].concat());
    }
    // More connections than there may be.
    let connect = (0u8..).take(MAX_CONNECTIONS).flat_map(|port| [0, port]);
    seeds.push([0].into_iter().chain(connect).chain([6, 0, 6, 0]).collect());
    let arp = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 172, 16, 0, 2],
        &[0, 0, 0, 0, 0, 0, 169, 254, 169, 254],
    ];
    seeds.push([&[1, 5, 42][..], &arp.concat(), &[6, 0]].concat());
    seeds
}
