//! Measures contenders in turns, so that whatever else the machine does hits all of them alike.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::time::{ClockId, clock_gettime};

/// One thing that is measured.
pub struct Contender<'a> {
    pub name: &'static str,
    /// Has one turn, and says what doing it once cost.
    turn: Box<dyn FnMut() -> Duration + 'a>,
    /// What it cost in each round.
    costs: Vec<Duration>,
}

/// The middle of many measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub median: f64,
    /// A tenth of all measurements is below.
    pub low: f64,
    /// A tenth of all measurements is above.
    pub high: f64,
}

impl<'a> Contender<'a> {
    /// Work of this thread, done so many times in one turn that a turn is long against the clock's own cost.
    pub fn new(name: &'static str, repetitions: u32, mut work: impl FnMut() + 'a) -> Self {
        Self::told(name, move || {
            let before = of_this_thread();
            for _ in 0..repetitions {
                work();
            }
            of_this_thread().saturating_sub(before) / repetitions
        })
    }

    /// Work of programs that are started and waited for, from their first instruction to their last.
    pub fn program(name: &'static str, mut work: impl FnMut() + 'a) -> Self {
        Self::told(name, move || {
            let before = of_children();
            work();
            of_children().saturating_sub(before)
        })
    }

    /// Work of which somebody else says what it cost.
    pub fn told(name: &'static str, turn: impl FnMut() -> Duration + 'a) -> Self {
        Self { name, turn: Box::new(turn), costs: Vec::new() }
    }

    /// Microseconds of one repetition.
    pub fn micros(&self) -> Summary {
        Summary::of(self.costs.iter().map(|cost| cost.as_secs_f64() * 1e6).collect())
    }

    /// How many microseconds more than the other one it cost, round by round.
    pub fn difference(&self, other: &Contender<'_>) -> Summary {
        let pairs = self.costs.iter().zip(&other.costs);
        Summary::of(pairs.map(|(mine, others)| (mine.as_secs_f64() - others.as_secs_f64()) * 1e6).collect())
    }

    /// How many times as much as the other one it cost, round by round.
    pub fn ratio(&self, other: &Contender<'_>) -> Summary {
        let pairs = self.costs.iter().zip(&other.costs);
        Summary::of(pairs.map(|(mine, others)| mine.as_secs_f64() / others.as_secs_f64()).collect())
    }
}

fn of_this_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

fn of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("Linux counts this");
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

impl Summary {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |tenths: usize| values[(values.len() - 1) * tenths / 10];
        Self { median: at(5), low: at(1), high: at(9) }
    }
}

/// Lets every contender have one turn in each round. The order is another in each, so that nobody always comes behind the
/// same one and finds the machine as that has left it; the first round only warms up and does not count.
pub fn run(contenders: &mut [Contender<'_>], rounds: usize) {
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    // A linear congruential generator (Knuth's MMIX): any mixture will do, and the same each time.
    let mut state = 1u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits") % bound
    };
    for round in 0..=rounds {
        for place in (1..order.len()).rev() {
            order.swap(place, below(place + 1));
        }
        for place in order.iter().copied() {
            let cost = (contenders[place].turn)();
            contenders[place].costs.push(cost);
        }
        if round == 0 {
            for contender in contenders.iter_mut() {
                contender.costs.clear();
            }
        }
    }
}
