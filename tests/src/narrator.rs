//! Tells a person what is going on while it goes on.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints each step with the time since the start; on a terminal a spinner shows what is being waited for.
pub struct Narrator {
    start: Instant,
    spinner: Option<ProgressBar>,
    /// Lines come from several hosts' threads; one at a time is printed whole.
    out: Mutex<()>,
    colour: bool,
}

/// How a line is to be read.
#[derive(Clone, Copy)]
pub enum Tone {
    /// Something happens.
    Plain,
    /// Something came out as it should.
    Good,
    /// Something was refused, as it should be.
    Refused,
    /// Something went wrong.
    Bad,
}

impl Default for Narrator {
    fn default() -> Self {
        Self::new()
    }
}

impl Narrator {
    /// Starts the clock.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let spinner = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { start: Instant::now(), spinner, out: Mutex::new(()), colour: terminal }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// What is being waited for now.
    pub fn waiting(&self, what: &str) {
        match &self.spinner {
            Some(bar) => bar.set_message(what.to_owned()),
            None => self.line("", Tone::Plain, what),
        }
    }

    /// One line: who, and what happened.
    pub fn line(&self, who: &str, tone: Tone, what: &str) {
        let (mark, on, off) = match (tone, self.colour) {
            (Tone::Plain, _) => ("·", "", ""),
            (Tone::Good, false) => ("✓", "", ""),
            (Tone::Refused, false) => ("✗", "", ""),
            (Tone::Bad, false) => ("!", "", ""),
            (Tone::Good, true) => ("✓", "\x1b[32m", "\x1b[0m"),
            (Tone::Refused, true) => ("✗", "\x1b[33m", "\x1b[0m"),
            (Tone::Bad, true) => ("!", "\x1b[31m", "\x1b[0m"),
        };
        let text = format!("{:>6.1} s  {who:<9} {on}{mark} {what}{off}", self.seconds());
        let _one_at_a_time = self.out.lock();
        match &self.spinner {
            Some(bar) => bar.println(text),
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }

    /// A heading between the acts.
    pub fn act(&self, title: &str) {
        let _one_at_a_time = self.out.lock();
        match &self.spinner {
            Some(bar) => bar.println(format!("\n\x1b[1m{title}\x1b[0m")),
            None => {
                let _ = writeln!(std::io::stderr(), "\n{title}");
            }
        }
    }

    /// Takes the spinner away before the closing words.
    pub fn finish(&self) {
        if let Some(bar) = &self.spinner {
            bar.finish_and_clear();
        }
    }
}
