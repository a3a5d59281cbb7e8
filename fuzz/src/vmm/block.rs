//! A disk: what is not the guest's of its file stays as it is, and all of it where the disk is read only.

use portcullis_vmm::devices::block::{Block, CacheType, Disk, DriveConfig};
use portcullis_vmm::rate_limiter::{RateLimiterConfig, TokenBucketConfig};
use portcullis_vmm::virtio::{Slot, VirtioDevice};

use super::Target;
use super::files::MemoryFile;
use super::guest::{self, Host};
use super::input::Input;
use super::program::{Part, Program};

/// A disk and its driver.
pub const BLOCK: Target = Target { name: "block", body: block, max_len: 1024, seeds: |_| seeds() };

const SECTOR: usize = 512;
/// Bytes in the file before the guest's first.
const HEAD: usize = 2 * SECTOR;
/// Sectors of the guest.
const SECTORS: usize = 24;
/// Bytes behind its last.
const TAIL: usize = 300;
const FILL: u8 = 0xA5;

struct Drive {
    config: DriveConfig,
    file: MemoryFile,
    /// As the file was before the guest.
    genuine: Vec<u8>,
    /// Bytes of the file when the device last looked.
    seen: usize,
}

fn block(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    guest::run(Drive::new(flags), &mut input)
}

fn limits(ops: u64, bytes: u64) -> RateLimiterConfig {
    // So long that nothing comes in again while a program runs.
    let bucket = |size| TokenBucketConfig { size, one_time_burst: None, refill_time: 1 << 40 };
    RateLimiterConfig { ops: Some(bucket(ops)), bandwidth: Some(bucket(bytes)) }
}

fn content() -> Vec<u8> {
    vec![FILL; HEAD + SECTORS * SECTOR + TAIL]
}

impl Drive {
    fn new(flags: u8) -> Self {
        let (is_read_only, genuine) = (flags & 1 != 0, content());
        let file = MemoryFile::new(&genuine);
        let config = DriveConfig {
            is_read_only,
            cache_type: if flags & 2 == 0 { CacheType::Unsafe } else { CacheType::Writeback },
            rate_limiter: (flags & 4 != 0).then(|| limits(4, 4096)),
            offset: HEAD as u64,
            ..DriveConfig::new("rootfs", file.path())
        };
        Self { config, file, seen: genuine.len(), genuine }
    }
}

impl Host for Drive {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        // A snapshot is of a disk of this size.
        self.file.set_len(self.seen as u64);
        self.genuine = self.file.content();
        Box::new(Block::open(&self.config).expect("the file is there"))
    }

    fn act(&mut self, slot: &Slot, input: &mut Input<'_>) {
        let action = input.u8() % 4;
        match action {
            // Somebody cuts the file under the device, or lengthens it.
            0 => {
                self.file.set_len((HEAD + input.below(0..2 * SECTORS) * SECTOR) as u64);
                self.genuine = self.file.content();
            }
            1 => {
                let limits = limits(u64::from(input.u8()), u64::from(input.u16()));
                control(slot, |block| block.limit(&limits));
            }
            2 => {
                let new = MemoryFile::new(&content()[..HEAD + SECTOR * input.below(0..SECTORS)]);
                let config = DriveConfig { path_on_host: new.path(), ..self.config.clone() };
                let disk = Disk::open(&config).expect("the file is there");
                control(slot, |block| block.replace(disk).expect("nobody else has it"));
                (self.genuine, self.file, self.config) = (new.content(), new, config);
                self.seen = self.genuine.len();
            }
            _ => {
                // The same file, which may have another size by now.
                let disk = Disk::open(&self.config).expect("the file is there");
                control(slot, |block| block.replace(disk).expect("it is its own"));
                self.genuine = self.file.content();
                self.seen = self.genuine.len();
            }
        }
    }

    fn check(&mut self) {
        let now = self.file.content();
        if self.config.is_read_only {
            assert!(now == self.genuine, "a disk that is read only was written");
        }
        // What the guest was given, even where somebody has cut it off meanwhile.
        let end = HEAD + (self.seen - HEAD) / SECTOR * SECTOR;
        assert!(now.len() <= end.max(self.genuine.len()), "the file was lengthened");
        let behind = |bytes: &[u8]| bytes.get(end..).unwrap_or_default().to_vec();
        assert!(now[..HEAD] == self.genuine[..HEAD], "what is before the guest's first sector was written");
        assert!(behind(&now) == behind(&self.genuine), "what is behind the guest's last sector was written");
    }
}

fn control<T>(slot: &Slot, work: impl FnOnce(&mut Block) -> T) -> T {
    slot.control(|device, _| (work(device.as_any().downcast_mut().expect("a disk")), true))
}

/// A request, with its data.
fn request(kind: u32, sector: u64, data: Option<Part>) -> Program {
    let header = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
    let parts: Vec<_> = [Some(Part::read(0x6000, 16)), data, Some(Part::write(0x6020, 1))].into_iter().collect();
    let program = Program::new().poke(0x6000, &header);
    program.offer(0, &parts.into_iter().flatten().collect::<Vec<_>>()).notify(0).serve().serve()
}

/// Requests that go one sector too far, and a file that was cut under a driver that asks for it again and again.
fn edges() -> Vec<Vec<u8>> {
    let last = SECTORS as u64 - 1;
    let range = [last.to_le_bytes(), 2u64.to_le_bytes()].concat();
    let ranged = |kind| [Program::new().poke(0x6100, &range), request(kind, 0, Some(Part::read(0x6100, 16)))];
    let whole = |program: Program| [vec![0], Program::new().start(0x0fff_ffff, 8).bytes(), program.bytes()].concat();
    let mut seeds = vec![
        whole(request(1, last, Some(Part::read(0x7f00, 1024)))),
        whole(request(0, last, Some(Part::write(0x9000, 1024)))),
    ];
    seeds.extend([11, 13].map(|kind| [whole(Program::new()), ranged(kind).map(Program::bytes).concat()].concat()));
    let again = [Part::read(0x6000, 16), Part::write(0x9000, 512), Part::write(0x6020, 1)];
    let cut = Program::new().act(&[0, 0]).poke(0x6000, &[0; 16]);
    seeds.push(whole((0..40).fold(cut, |program, _| program.offer(0, &again)).notify(0).serve()));
    seeds
}

/// A request of each kind.
fn seeds() -> Vec<Vec<u8>> {
    let zeroes = [3u64.to_le_bytes(), (2u64 | 1 << 32).to_le_bytes()].concat();
    let discard = [3u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
    let all = [
        request(1, 3, Some(Part::read(0x7f00, 1024))),
        request(0, 3, Some(Part::write(0x9000, 1024))),
        request(4, 0, None),
        request(8, 0, Some(Part::write(0x9000, 20))),
        Program::new().poke(0x6100, &discard),
        request(11, 0, Some(Part::read(0x6100, 16))),
        Program::new().poke(0x6100, &zeroes),
        request(13, 0, Some(Part::read(0x6100, 16))),
    ]
    .map(Program::bytes)
    .concat();
    let mut seeds = edges();
    for flags in 0..8 {
        for features in [0x0fff_ffff, u32::MAX] {
            let start = Program::new().start(features, 4).bytes();
            let whole = [&[flags], start.as_slice(), &all].concat();
            let restored = Program::new().save_and_restore().act(&[2, 10]).act(&[3]).act(&[1, 3, 0, 2]).bytes();
            seeds.push(whole.clone());
            seeds.push([whole.as_slice(), &restored, &all].concat());
        }
    }
    seeds
}
