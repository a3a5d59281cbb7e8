//! A network card, whose tap is one end of a pair of sockets that keep frames apart.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use portcullis_vmm::devices::net::{MacAddress, Net, NetworkInterface, NetworkInterfaceUpdate, Tap};
use portcullis_vmm::mmds::{DEFAULT_LIMIT, Mmds, MmdsConfig, SharedMmds};
use portcullis_vmm::rate_limiter::{RateLimiterConfig, TokenBucketConfig};
use portcullis_vmm::virtio::{Slot, VirtioDevice};

use super::Target;
use super::guest::{self, Host};
use super::input::Input;
use super::program::{Part, Program};

/// A card, its driver, and frames on the tap.
pub const NET: Target = Target { name: "net", body: net, max_len: 1024, seeds: |_| seeds() };

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Bytes of a frame's header, and with Ethernet's.
const HEADER: usize = 12;
const SHORTEST: usize = HEADER + 14;
const LARGEST: usize = SHORTEST + 0x1_0000;

struct Card {
    config: NetworkInterface,
    metadata: Option<(MmdsConfig, SharedMmds)>,
    /// The other end of the tap.
    wire: File,
}

fn net(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    guest::run(Card::new(flags), &mut input)
}

fn limits(ops: u64) -> RateLimiterConfig {
    // So long that nothing comes in again while a program runs.
    let ops = TokenBucketConfig { size: ops, one_time_burst: None, refill_time: 1 << 40 };
    RateLimiterConfig { ops: Some(ops), bandwidth: None }
}

fn pair() -> (File, File) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (one, other) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).expect("a pair of sockets");
    let file = |socket: OwnedFd| File::from(socket);
    (file(one), file(other))
}

impl Card {
    fn new(flags: u8) -> Self {
        let metadata = (flags & 4 != 0).then(|| {
            let mut mmds = Mmds::new(DEFAULT_LIMIT);
            mmds.put(serde_json::json!({"id": "i-1"})).expect("a small document");
            let config = serde_json::from_value(serde_json::json!({"network_interfaces": ["eth0"]}));
            (config.expect("a configuration"), mmds.into_shared())
        });
        let config = NetworkInterface {
            // One that is made up would be another one each time.
            guest_mac: Some(MacAddress::new(MAC)),
            mtu: (flags & 2 != 0).then_some(9000),
            rx_rate_limiter: (flags & 8 != 0).then(|| limits(3)),
            tx_rate_limiter: (flags & 16 != 0).then(|| limits(3)),
            ..NetworkInterface::new("eth0", "tap0")
        };
        Self { config, metadata, wire: pair().0 }
    }

    /// Takes what the card has sent.
    fn take(&mut self) {
        let mut frame = vec![0; LARGEST + 1];
        while let Ok(len) = self.wire.read(&mut frame) {
            if len == 0 {
                return;
            }
            assert!((SHORTEST..=LARGEST).contains(&len), "a frame of {len} bytes was sent");
            assert_eq!(frame[HEADER + 6..SHORTEST - 2], MAC, "a frame was sent from another address");
        }
    }
}

impl Host for Card {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let (tap, wire) = pair();
        self.wire = wire;
        let metadata = self.metadata.as_ref().map(|(config, mmds)| (config, mmds));
        Box::new(Net::on(Tap::from(tap), &self.config, metadata).expect("a card"))
    }

    fn act(&mut self, slot: &Slot, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => {
                let len = input.below(0..128);
                // A wire that is full loses frames.
                let _ = self.wire.write(&[&[0; HEADER], input.bytes(len)].concat());
            }
            1 => drop(self.wire.write(&vec![0x55; usize::from(input.u16())])),
            2 => self.take(),
            _ => {
                let limits = (input.u8() & 1 != 0).then(|| limits(u64::from(input.u8())));
                let update = NetworkInterfaceUpdate {
                    iface_id: "eth0".to_owned(),
                    rx_rate_limiter: limits,
                    tx_rate_limiter: limits,
                };
                slot.control(|device, _| {
                    let net: &mut Net = device.as_any().downcast_mut().expect("a card");
                    (net.update(&update), false)
                });
            }
        }
    }

    fn check(&mut self) {
        self.take();
    }
}

/// Frames in both directions, into buffers of one kind and the other, and a question for the metadata service.
fn seeds() -> Vec<Vec<u8>> {
    let arp =
        [&[0xff; 6], &MAC[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &[172, 16, 0, 2], &[0; 6], &[169, 254, 169, 254]]
            .concat();
    let frame = [&[0xff; 6], &MAC[..], &[0x88, 0xb5], &[7; 46]].concat();
    let send = |frame: &[u8]| {
        let len = u16::try_from(HEADER + frame.len()).expect("a small frame");
        let program = Program::new().poke(0x6000, &[&[0; HEADER], frame].concat());
        program.offer(1, &[Part::read(0x6000, 12), Part::read(0x600c, len - 12)]).notify(1).serve().serve()
    };
    let buffers = |len: u16| {
        let buffer = |number: u16| [Part::write(0x8000 + 0x800 * number, len)];
        (0..4).fold(Program::new(), |program, number| program.offer(0, &buffer(number))).notify(0).serve()
    };
    let arrive = || Program::new().act(&[&[0, 60], frame.as_slice()].concat()).act(&[1, 0xdc, 5]).serve().serve();
    // The largest frame there is, and one byte more.
    let huge = |len: u16| {
        let parts = [Part::read(0x6000, 58), Part::read(0, 0xf000), Part::read(0, len)];
        let program = Program::new().start(0, 4).poke(0x6000, &[&[0; HEADER], &frame[..46]].concat());
        [vec![1], program.offer(1, &parts).notify(1).serve().bytes()].concat()
    };
    let most = u16::try_from(LARGEST - 0xf000 - 58).expect("a small rest");
    let mut seeds = vec![huge(most), huge(most + 1)];
    for flags in 0..32 {
        for (features, room) in [(0u32, 1600), (u32::MAX, 1600), (1 << 15, 200)] {
            let parts = [
                Program::new().start(features, 4),
                buffers(room),
                send(&frame),
                send(&arp),
                arrive(),
                Program::new().save_and_restore(),
                arrive(),
                send(&frame),
            ];
            seeds.push([vec![flags], parts.map(Program::bytes).concat()].concat());
        }
    }
    seeds
}
