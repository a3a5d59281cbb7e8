//! The small virtio devices: the source of entropy, and the balloon, which may throw away what its guest gives, and
//! nothing else.

use std::ops::Range;

use portcullis_vmm::devices::balloon::{Balloon, BalloonConfig};
use portcullis_vmm::devices::entropy::{Entropy, EntropyConfig};
use portcullis_vmm::virtio::{Slot, VirtioDevice};

use super::Target;
use super::guest::{self, Host};
use super::input::Input;
use super::program::{Part, Program};

/// A source of entropy and its driver.
pub const ENTROPY: Target = Target { name: "entropy", body: entropy, max_len: 512, seeds: |_| entropy_seeds() };

/// A balloon, its driver, and commands of the API.
pub const BALLOON: Target = Target { name: "balloon", body: balloon, max_len: 512, seeds: |_| balloon_seeds() };

/// Random bytes of one request, at most.
const MAX_FILLED: u64 = 0x1_0000;
/// MiB that the balloon is told its guest has.
const MIB: u64 = 4;
const PAGE: u64 = 4096;

struct Source;

fn entropy(bytes: &[u8]) -> bool {
    guest::run(Source, &mut Input::new(bytes))
}

impl Host for Source {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Entropy::new(&EntropyConfig::default()).expect("a timer"))
    }

    fn act(&mut self, slot: &Slot, _input: &mut Input<'_>) {
        assert_eq!(slot.metrics().len(), 1);
    }

    fn most(&self) -> u64 {
        MAX_FILLED
    }
}

fn entropy_seeds() -> Vec<Vec<u8>> {
    let ask = || Program::new().offer(0, &[Part::write(0x7fe0, 64), Part::write(0x9000, 500)]).notify(0).serve();
    let program =
        |features| [Program::new().start(features, 2), ask(), ask(), Program::new().save_and_restore(), ask()];
    let seeds = [0, u32::MAX].map(|features| program(features).map(Program::bytes).concat());
    // More than is given at once.
    let large = [Part::write(0x4000, 0x9000), Part::write(0x4000, 0x9000)];
    seeds.into_iter().chain([Program::new().start(0, 2).offer(0, &large).notify(0).serve().bytes()]).collect()
}

struct Wish(BalloonConfig);

fn balloon(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let config = BalloonConfig {
        amount_mib: 1,
        deflate_on_oom: flags & 1 != 0,
        stats_polling_interval_s: u16::from(flags & 2),
        free_page_reporting: flags & 4 != 0,
        free_page_hinting: false,
    };
    guest::run(Wish(config), &mut input)
}

impl Host for Wish {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Balloon::new(&self.0, MIB).expect("a balloon"))
    }

    fn act(&mut self, slot: &Slot, input: &mut Input<'_>) {
        let (what, value) = (input.u8() % 3, input.u16());
        slot.control(|device, _| {
            let balloon: &mut Balloon = device.as_any().downcast_mut().expect("a balloon");
            let statistics = self.0.stats_polling_interval_s > 0;
            match what {
                0 => assert_eq!(balloon.set_target(u32::from(value)).is_ok(), u64::from(value) <= MIB),
                1 => assert_eq!(balloon.set_polling(value).is_ok(), statistics == (value > 0)),
                _ => assert_eq!(balloon.statistics().is_ok(), statistics),
            }
            ((), what == 0)
        });
    }

    fn takes(&self, index: usize, readable: &[u8]) -> Vec<Range<u64>> {
        let page = |number: &[u8; 4]| {
            let start = u64::from(u32::from_le_bytes(*number)) * PAGE;
            start..start + PAGE
        };
        if index == 0 { readable.as_chunks().0.iter().map(page).collect() } else { Vec::new() }
    }
}

fn balloon_seeds() -> Vec<Vec<u8>> {
    let pages = [8u32, 9, 0x100, 0x101].map(u32::to_le_bytes).concat();
    let statistics =
        [&1u16.to_le_bytes()[..], &77u64.to_le_bytes(), &4u16.to_le_bytes(), &99u64.to_le_bytes()].concat();
    let turn = |program: Program, queue| program.notify(queue).serve().serve();
    let all = |flags: u8, features| {
        let program = Program::new().start(features, 3).poke(0x6800, &pages).poke(0x6900, &statistics);
        let program = turn(program.poke(0x8000, &[7; 60]).offer(0, &[Part::read(0x6800, 16)]), 0);
        let program = turn(program.offer(1, &[Part::read(0x6800, 16)]), 1);
        let program = turn(program.offer(2, &[Part::read(0x6900, 20)]), 2).act(&[0, 2, 0]).act(&[2, 0, 0]);
        // Pages that are given in part stay as they are.
        let program = program.poke(0xa000, &[7; 60]).poke(0xc000, &[7; 60]);
        let program = turn(program.offer(3, &[Part::write(0xa03c, 0x2000)]), 3).save_and_restore();
        [vec![flags], turn(program.offer(0, &[Part::read(0x6800, 16)]), 0).act(&[1, 5, 0]).bytes()].concat()
    };
    // The first chain gives the page away that the second lies in, behind a table that was not agreed on.
    let own = Program::new().start(0, 3).offer(0, &[Part::read(0x6800, 4)]).bytes();
    let own = [&[0], own.as_slice(), &[2, 0x80, 0, 0, 0, 0], &Program::new().notify(0).serve().bytes()].concat();
    // A driver that begins anew has its buffer for statistics back.
    let anew = || turn(Program::new().start(u32::MAX, 3).offer(2, &[Part::read(0x6900, 20)]), 2).bytes();
    let anew = [vec![2], anew(), anew()].concat();
    (0..8).flat_map(|flags| [0, u32::MAX].map(|features| all(flags, features))).chain([own, anew]).collect()
}
