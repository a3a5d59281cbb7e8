//! The numbers and bitmaps of templates, which are text.

use std::fmt;
use std::ops::{BitAnd, BitOr, Not, Shl};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What a register holds.
pub trait Word:
    Copy
    + Eq
    + From<bool>
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + Not<Output = Self>
    + Shl<u32, Output = Self>
    + fmt::Debug
{
    /// How many bits it has.
    const BITS: u32;
}

impl Word for u32 {
    const BITS: u32 = Self::BITS;
}

impl Word for u64 {
    const BITS: u32 = Self::BITS;
}

/// Which bits of a register become what: `0b` and a digit for each bit, the highest first. `0` clears, `1` sets, `x` leaves
/// a bit as it is, `_` stands for nothing. Bits for which there is no digit, the highest ones, are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmap<W> {
    /// The bits that become 0 or 1.
    fixed: W,
    /// Those that become 1.
    ones: W,
}

impl<W: Word> Bitmap<W> {
    /// The value of a register that was `value`.
    pub fn apply(self, value: W) -> W {
        (value & !self.fixed) | self.ones
    }

    /// The bits that are set.
    pub fn ones(self) -> W {
        self.ones
    }

    /// The bits that are cleared.
    pub fn zeros(self) -> W {
        self.fixed & !self.ones
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (mut fixed, mut ones, mut digits) = (W::from(false), W::from(false), 0);
        for digit in text.strip_prefix("0b").unwrap_or(text).chars().filter(|c| *c != '_') {
            if !matches!(digit, '0' | '1' | 'x') {
                return Err(format!("{digit:?} is none of 0, 1, x and _"));
            }
            digits += 1;
            if digits > W::BITS {
                return Err(format!("it has more than {} bits", W::BITS));
            }
            fixed = (fixed << 1) | W::from(digit != 'x');
            ones = (ones << 1) | W::from(digit == '1');
        }
        if digits == 0 { Err("it has no bits".to_owned()) } else { Ok(Self { fixed, ones }) }
    }
}

impl<W: Word> fmt::Display for Bitmap<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |word: W, bit: u32| word & (W::from(true) << bit) != W::from(false);
        let digit = |bit| match (has(self.fixed, bit), has(self.ones, bit)) {
            (false, _) => 'x',
            (true, one) => char::from(b'0' + u8::from(one)),
        };
        write!(f, "0b{}", (0..W::BITS).rev().map(digit).collect::<String>())
    }
}

impl<W: Word> Serialize for Bitmap<W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, W: Word> Deserialize<'de> for Bitmap<W> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|defect| D::Error::custom(format_args!("the bitmap {}: {defect}", quoted(&text))))
    }
}

/// The number of a leaf or register: text, `0x` and hexadecimal digits or `0b` and binary ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let binary = text.strip_prefix("0b").and_then(|digits| digits_only(digits, 2));
        let number = binary.or_else(|| text.strip_prefix("0x").and_then(|digits| digits_only(digits, 16)));
        let wrong = || format!("{} is no number of 32 bits that begins with 0x or 0b", quoted(&text));
        number.map(Self).ok_or_else(|| D::Error::custom(wrong()))
    }
}

/// A number without a sign.
pub(super) fn digits_only(digits: &str, radix: u32) -> Option<u32> {
    let all = digits.chars().all(|c| c.is_digit(radix));
    all.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

/// What was given, for an error.
pub(super) fn quoted(text: &str) -> String {
    let mut chars = text.chars();
    let begin: String = chars.by_ref().take(80).collect();
    format!("{begin:?}{}", if chars.next().is_some() { "…" } else { "" })
}
