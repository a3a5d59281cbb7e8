//! Measures contenders in turns, so that whatever else the machine does hits all of them alike.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::time::{ClockId, clock_gettime};

/// Whose processor time a contender takes.
#[derive(Clone, Copy)]
pub enum Cost {
    /// This thread's.
    Thread,
    #[expect(dead_code, reason = "for programs beside ours")]
    /// That of the programs it starts and waits for, from their first instruction to their end.
    Children,
}

/// One thing that is measured.
pub struct Contender<'a> {
    pub name: &'static str,
    cost: Cost,
    /// Does it this many times in one turn, so that a turn is long against the clock's own cost.
    repetitions: u32,
    work: Box<dyn FnMut() + 'a>,
    /// What one repetition cost in each round.
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
    pub fn new(name: &'static str, repetitions: u32, work: impl FnMut() + 'a) -> Self {
        Self { name, cost: Cost::Thread, repetitions, work: Box::new(work), costs: Vec::new() }
    }

    #[expect(dead_code, reason = "for programs beside ours")]
    /// A contender that is another program.
    pub fn program(name: &'static str, work: impl FnMut() + 'a) -> Self {
        Self { cost: Cost::Children, ..Self::new(name, 1, work) }
    }

    fn turn(&mut self) {
        let before = self.cost.so_far();
        for _ in 0..self.repetitions {
            (self.work)();
        }
        self.costs.push((self.cost.so_far() - before) / self.repetitions);
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

impl Cost {
    fn so_far(self) -> Duration {
        match self {
            Self::Thread => clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into(),
            Self::Children => {
                let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("Linux counts this");
                let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
                Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
            }
        }
    }
}

impl Summary {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |tenths: usize| values[(values.len() - 1) * tenths / 10];
        Self { median: at(5), low: at(1), high: at(9) }
    }
}

/// Lets every contender have one turn in each round. Who is first changes from round to round; the first round only warms
/// up and does not count.
pub fn run(contenders: &mut [Contender<'_>], rounds: usize) {
    for round in 0..=rounds {
        for turn in 0..contenders.len() {
            let place = (round + turn) % contenders.len();
            contenders[place].turn();
        }
        if round == 0 {
            contenders.iter_mut().for_each(|contender| contender.costs.clear());
        }
    }
}
