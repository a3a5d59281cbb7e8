//! Patterns of measured names: `*` stands for anything but `/`, `**` for anything at all.

use std::fmt;
use std::str::FromStr;

use serde_with::{DeserializeFromStr, SerializeDisplay};
use thiserror::Error;

use crate::work;

/// Longest pattern, in characters and wildcards; one bit of a word stands for each when a name is matched.
const MAX_ELEMENTS: usize = 120;

/// A pattern of names.
#[derive(Clone, Debug, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub struct NamePattern {
    text: String,
    /// How much stands before the first wildcard, in bytes.
    literal: usize,
    wildcards: Wildcards,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NamePatternError {
    /// Nothing, or more than is matched.
    #[error("the pattern {0:?} has not 1 to {MAX_ELEMENTS} bytes")]
    Length(String),
    /// No name that is accepted has control characters.
    #[error("the pattern {0:?} has a control character in it")]
    Control(String),
    /// No name that is accepted goes around its directory.
    #[error("the pattern {0:?} has a part `.` or `..`")]
    Dots(String),
    /// Wildcards that say nothing together.
    #[error("the pattern {0:?} has three `*` in a row")]
    Stars(String),
}

impl NamePattern {
    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is a path, of which everything up to a directory below the root is fixed: `/var/lib/**`, not `/**`.
    pub(super) fn names_a_place(&self) -> bool {
        let whole = self.literal == self.text.len();
        self.literal().strip_prefix('/').is_some_and(|path| match path.split_once('/') {
            Some((directory, _)) => !directory.is_empty(),
            None => whole && !path.is_empty(),
        })
    }

    /// Whether it has no wildcard: one name is of this pattern, the pattern's own text.
    pub(super) const fn is_literal(&self) -> bool {
        self.literal == self.text.len()
    }

    /// What stands before the first wildcard: names of this pattern begin with it.
    pub(super) fn literal(&self) -> &str {
        self.text.get(..self.literal).unwrap_or_default()
    }

    /// Whether a name is of this pattern.
    pub fn matches(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.literal().as_bytes()).is_some_and(|rest| self.wildcards.matches(rest))
    }
}

/// What stands from the first wildcard on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wildcards {
    /// What stands behind the last wildcard.
    tail: Vec<u8>,
    /// The places of each byte before the tail, as one bit each, by the byte's class.
    bytes: Vec<u128>,
    /// The class of each byte; class 0 is that of bytes that stand nowhere.
    classes: Vec<u8>,
    /// The places of `*`.
    parts: u128,
    /// The places of `**`.
    anything: u128,
    /// How many places there are before the tail.
    places: u32,
}

/// One element of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    Byte(u8),
    /// `*`
    Part,
    /// `**`
    Anything,
}

fn elements(pattern: &[u8]) -> impl Iterator<Item = Element> + '_ {
    let mut bytes = pattern.iter().copied().peekable();
    std::iter::from_fn(move || match bytes.next()? {
        b'*' => Some(if bytes.next_if_eq(&b'*').is_some() { Element::Anything } else { Element::Part }),
        byte => Some(Element::Byte(byte)),
    })
}

impl Wildcards {
    fn of(pattern: &[u8]) -> Self {
        let middle = pattern.iter().rposition(|byte| *byte == b'*').map_or(0, |last| last.saturating_add(1));
        let (middle, tail) = pattern.split_at_checked(middle).unwrap_or((&[], pattern));
        let mut new = Self { tail: tail.to_vec(), bytes: vec![0], classes: vec![0; 256], ..Self::default() };
        for element in elements(middle) {
            // There are fewer than 128.
            let bit = 1_u128.checked_shl(new.places).unwrap_or(0);
            match element {
                Element::Part => new.parts |= bit,
                Element::Anything => new.anything |= bit,
                Element::Byte(byte) => new.add(byte, bit),
            }
            new.places = new.places.saturating_add(1);
        }
        new
    }

    fn add(&mut self, byte: u8, bit: u128) {
        let next = u8::try_from(self.bytes.len()).unwrap_or(0);
        let Some(class) = self.classes.get_mut(usize::from(byte)) else { return };
        if *class == 0 {
            *class = next;
            self.bytes.push(0);
        }
        if let Some(places) = self.bytes.get_mut(usize::from(*class)) {
            *places |= bit;
        }
    }

    fn matches(&self, name: &[u8]) -> bool {
        let Some(name) = name.strip_suffix(self.tail.as_slice()) else { return false };
        match (self.places, self.anything) {
            (0, _) => name.is_empty(),
            // Nearly all patterns have one wildcard.
            (1, 0) => !name.contains(&b'/'),
            (1, _) => true,
            _ => self.walk(name),
        }
    }

    /// Walks over the name once, with one bit for each place that may be reached so far: a name takes as many steps as it
    /// has bytes, whatever the pattern is.
    fn walk(&self, name: &[u8]) -> bool {
        work::steps(name.len());
        let wildcards = self.parts | self.anything;
        // A wildcard may stand for nothing: whoever stands before it stands behind it too. Never two stand together.
        let beyond_wildcards = |reached: u128| reached | ((reached & wildcards) << 1);
        let mut reached = beyond_wildcards(1);
        for byte in name {
            let stay = if *byte == b'/' { self.anything } else { wildcards };
            let class = self.classes.get(usize::from(*byte)).copied().unwrap_or(0);
            let wanted = self.bytes.get(usize::from(class)).copied().unwrap_or(0);
            reached = beyond_wildcards((reached & stay) | ((reached & wanted) << 1));
            if reached == 0 {
                return false;
            }
        }
        1_u128.checked_shl(self.places).is_some_and(|end| reached & end != 0)
    }
}

impl FromStr for NamePattern {
    type Err = NamePatternError;

    fn from_str(text: &str) -> Result<Self, NamePatternError> {
        let shown = || text.chars().take(MAX_ELEMENTS).collect();
        if text.is_empty() || text.len() > MAX_ELEMENTS {
            return Err(NamePatternError::Length(shown()));
        }
        if text.chars().any(char::is_control) {
            return Err(NamePatternError::Control(shown()));
        }
        if text.split('/').any(|part| part == "." || part == "..") {
            return Err(NamePatternError::Dots(shown()));
        }
        if text.contains("***") {
            return Err(NamePatternError::Stars(shown()));
        }
        let literal = text.find('*').unwrap_or(text.len());
        let wildcards = Wildcards::of(text.as_bytes().get(literal..).unwrap_or_default());
        Ok(Self { text: text.to_owned(), literal, wildcards })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn wildcards_stand_for_what_they_say() {
        for (text, name, matched) in [
            ("/var/log/**", "/var/log/a/b", true),
            ("/var/log/**", "/var/log/", true),
            ("/var/log/**", "/var/lo", false),
            ("/var/log/**", "/var/logs/a", false),
            ("/var/*/x", "/var/a/x", true),
            ("/var/*/x", "/var/a/b/x", false),
            ("/var/**/x", "/var/a/b/x", true),
            ("memfd:*", "memfd:runc", true),
            ("memfd:*", "memfd:runc:/proc/self/exe", false),
            ("memfd:**", "memfd:runc:/proc/self/exe", true),
            ("/usr/lib/*.so*", "/usr/lib/a.so.so.1", true),
            ("/usr/lib/*.so*", "/usr/lib/a.sp", false),
            ("/usr/bin/a", "/usr/bin/a", true),
            ("/usr/bin/a", "/usr/bin/ab", false),
            ("**", "", true),
        ] {
            assert_eq!(pattern(text).matches(name.as_bytes()), matched, "{text} {name}");
        }
    }

    #[test]
    fn patterns_that_cannot_be_meant_are_refused() {
        for text in ["", "/a/../b", "/a/./b", "/a\n", "/a***", &"a".repeat(MAX_ELEMENTS + 1)] {
            assert!(NamePattern::from_str(text).is_err(), "{text:?}");
        }
        for (text, place) in [
            ("/var/log/**", true),
            ("/var/*", true),
            ("/init", true),
            ("/**", false),
            ("/va*", false),
            ("//**", false),
            ("**", false),
            ("memfd:**", false),
            ("var/log/**", false),
        ] {
            assert_eq!(pattern(text).names_a_place(), place, "{text}");
        }
    }

    /// What the pattern means, said in the plainest way: too slow for hostile names, right for short ones.
    fn slow(pattern: &[Element], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((Element::Byte(wanted), rest)), found) => {
                found.is_some_and(|(byte, name)| byte == wanted && slow(rest, name))
            }
            (Some((wildcard, rest)), found) => {
                slow(rest, name)
                    || found.is_some_and(|(byte, name)| {
                        (*wildcard == Element::Anything || *byte != b'/') && slow(pattern, name)
                    })
            }
        }
    }

    proptest! {
        #[test]
        fn names_match_as_the_plain_meaning_says(text in "[ab/*]{1,9}", name in "[ab/]{0,9}") {
            let Ok(pattern) = text.parse::<NamePattern>() else { return Ok(()) };
            let elements: Vec<_> = elements(text.as_bytes()).collect();
            prop_assert_eq!(pattern.matches(name.as_bytes()), slow(&elements, name.as_bytes()));
        }
    }
}
