//! The arguments of a kernel's command line, where all that read it agree on them.
//!
//! A command line has many readers, and they do not agree on where its arguments end:
//!
//! | reader | splits at | quoting | ends at |
//! |---|---|---|---|
//! | kernel: `next_arg` in lib/cmdline.c | space, `\t \n \v \f \r`, byte a0 | `"` anywhere in a word | `--` |
//! | early boot code: `cmdline_find_option` in arch/x86/boot and its like | every byte up to space | none | the end |
//! | systemd: `extract_first_word` in `proc_cmdline_parse` | space, `\t \n \r` | `"`, `'` and `\` | the end |
//! | shells in initrds: `for x in $(cat /proc/cmdline)` (initramfs-tools), `getarg` (dracut) | space, `\t \n`; file names replace words with `*`, `?`, `[` | none | the end |
//!
//! `"root=/dev/sda1 init=/bin/sh x"` is one argument to the kernel, and has an `init=` for a shell. So a line on which two of
//! them could differ ([`AmbiguousLine`]) passes no rule at all, not even an empty one. What is left is printable ASCII
//! without quotes, backslashes and wildcards, split at spaces: all readers split that alike.

use thiserror::Error;

/// What the kernel reads of a command line on the architectures that it is used on; it cuts what is longer.
const KERNEL_MAX: usize = 2047;

/// One argument, as all readers of the line read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its value; `None` for an argument without `=`.
    pub value: Option<String>,
}

impl std::fmt::Display for Argument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Why the arguments of a command line cannot be told for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AmbiguousLine {
    /// The kernel cuts it.
    #[error("{0} bytes, of which the kernel reads {KERNEL_MAX} at most")]
    TooLong(usize),
    /// `"`.
    #[error("a double quote: the kernel, early boot code, systemd and shells split quoted text differently")]
    DoubleQuote,
    /// `'`.
    #[error("a single quote: systemd joins what it quotes, the kernel and shells do not")]
    SingleQuote,
    /// `\`.
    #[error("a backslash: systemd takes it away, the kernel and shells do not")]
    Backslash,
    /// A tab, a newline, or anything else below the space, and DEL.
    #[error("the control character {0:#04x}: not all programs split at it")]
    Control(u32),
    /// Anything outside ASCII.
    #[error("the character {0:#06x}: the kernel takes bytes of it for blanks or quotes, other programs do not")]
    NotAscii(u32),
    /// `*`, `?` or `[`.
    #[error("the wildcard {0:?}: shells put names of files in its place")]
    Wildcard(char),
    /// The word `--`.
    #[error("the word --: the kernel stops reading there, other programs do not")]
    DoubleDash,
    /// A word that begins with `=`.
    #[error("a word that begins with =: programs do not agree on its name")]
    NoName,
}

/// The arguments of a command line.
///
/// # Errors
/// If the kernel would cut the line, or its readers could split it differently.
pub fn arguments(line: &str) -> Result<Vec<Argument>, AmbiguousLine> {
    if line.len() > KERNEL_MAX {
        return Err(AmbiguousLine::TooLong(line.len()));
    }
    for c in line.chars() {
        match c {
            '"' => return Err(AmbiguousLine::DoubleQuote),
            '\'' => return Err(AmbiguousLine::SingleQuote),
            '\\' => return Err(AmbiguousLine::Backslash),
            '*' | '?' | '[' => return Err(AmbiguousLine::Wildcard(c)),
            ' '..='~' => {}
            '\0'..='\x1f' | '\x7f' => return Err(AmbiguousLine::Control(c.into())),
            _ => return Err(AmbiguousLine::NotAscii(c.into())),
        }
    }
    line.split(' ').filter(|word| !word.is_empty()).map(argument).collect()
}

fn argument(word: &str) -> Result<Argument, AmbiguousLine> {
    match word.split_once('=') {
        _ if word == "--" => Err(AmbiguousLine::DoubleDash),
        Some(("", _)) => Err(AmbiguousLine::NoName),
        Some((name, value)) => Ok(Argument { name: name.to_owned(), value: Some(value.to_owned()) }),
        None => Ok(Argument { name: word.to_owned(), value: None }),
    }
}
