//! Patterns of measured names: `*` stands for anything but `/`, `**` for anything at all.

use std::fmt;
use std::str::FromStr;

use serde_with::{DeserializeFromStr, SerializeDisplay};
use thiserror::Error;

/// Longest pattern, in characters and wildcards; one bit of a word stands for each when a name is matched.
const MAX_ELEMENTS: usize = 120;

/// A pattern of names.
#[derive(Clone, Debug, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub struct NamePattern {
    text: String,
    /// What stands before the first wildcard.
    literal: usize,
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
        let literal = self.text.get(..self.literal).unwrap_or_default();
        let whole = self.literal == self.text.len();
        literal.strip_prefix('/').is_some_and(|path| match path.split_once('/') {
            Some((directory, _)) => !directory.is_empty(),
            None => whole && !path.is_empty(),
        })
    }

    /// Whether it has no wildcard: one name is of this pattern, the pattern's own text.
    pub(super) const fn is_literal(&self) -> bool {
        self.literal == self.text.len()
    }

    /// Whether a name is of this pattern.
    pub fn matches(&self, name: &[u8]) -> bool {
        let (literal, rest) = self.text.as_bytes().split_at_checked(self.literal).unwrap_or_default();
        name.strip_prefix(literal).is_some_and(|name| matches(rest, name))
    }
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

/// Walks over the name once, with one bit for each place of the pattern that may be reached so far: no name takes more
/// than its length times the pattern's.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // A wildcard may stand for nothing: whoever stands before it stands behind it too.
    let beyond_wildcards = |mut reached: u128| {
        for (element, place) in elements(pattern).zip(0_u32..) {
            if reached & (1 << place) != 0 && !matches!(element, Element::Byte(_)) {
                reached |= 2 << place;
            }
        }
        reached
    };
    let mut reached = beyond_wildcards(1);
    for byte in name {
        let mut next = 0;
        for (element, place) in elements(pattern).zip(0_u32..) {
            if reached & (1 << place) == 0 {
                continue;
            }
            match element {
                Element::Byte(wanted) if wanted == *byte => next |= 2 << place,
                Element::Part if *byte != b'/' => next |= 1 << place,
                Element::Anything => next |= 1 << place,
                Element::Byte(_) | Element::Part => {}
            }
        }
        reached = beyond_wildcards(next);
        if reached == 0 {
            return false;
        }
    }
    reached & (1_u128 << elements(pattern).count()) != 0
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
        Ok(Self { text: text.to_owned(), literal: text.find('*').unwrap_or(text.len()) })
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
        fn names_match_as_the_plain_meaning_says(text in "[ab/*]{1,7}", name in "[ab/]{0,7}") {
            let Ok(pattern) = text.parse::<NamePattern>() else { return Ok(()) };
            let elements: Vec<_> = elements(text.as_bytes()).collect();
            prop_assert_eq!(pattern.matches(name.as_bytes()), slow(&elements, name.as_bytes()));
        }
    }
}
