//! By what a measured program is accepted that reference values do not list: rules that a policy states, each with its
//! reason.
//!
//! A rule is about content: a digest, a signature, a text. A name alone says little, because whoever makes a file
//! chooses it; so the one rule that accepts any content needs a place in the file system, never covers what reference
//! values list, and its reason is shown with every verdict that rests on it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_with::{hex::Hex, serde_as};
use thiserror::Error;

use super::name_pattern::NamePattern;
use crate::ima::Keyring;
use crate::key::Bank;
use crate::work;

/// Longest reason, in characters.
const MAX_REASON: usize = 300;

/// Most rules of one policy.
const MAX_RULES: usize = 1024;

/// What a policy accepts of measured programs beside what the reference values list. By default nothing.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields, try_from = "Unchecked")]
pub struct ProgramRules {
    keyrings: BTreeMap<String, Keyring>,
    rules: Vec<ProgramRule>,
    // Left out if empty: policies that were written before it keep their digest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    violations: Vec<ViolationRule>,
    #[serde(skip)]
    index: Index,
    #[serde(skip)]
    of_violations: Index,
}

/// Rules by what their patterns begin with, so that a name asks only those that begin as it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Index {
    /// The places of the rules, sorted by the beginnings of their patterns.
    sorted: Vec<usize>,
    /// For each of these the place, here, of the last one before it whose beginning is one of its own beginning.
    shorter: Vec<Option<usize>>,
    /// The digests that rules accept, each with its rule's place.
    digests: BTreeSet<(usize, Bank, Vec<u8>)>,
}

/// Names, and the content that is accepted under them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ProgramRule {
    /// The names that it is about.
    pub names: NamePattern,
    /// The content that it accepts.
    pub accept: AcceptedContent,
    /// Why, for whoever reads a verdict.
    pub reason: String,
}

/// Names under which violations are accepted: files that were open for writing while the kernel measured them, or
/// that were measured and then opened for writing.
///
/// A violation is the weakest entry of a list. It has no digest of the file, and no digest covers its name: the kernel
/// extends PCR 10 with ones whatever the file is. So the name is only what the host says, and a verdict that rests on
/// such a rule does not vouch for what ran since boot.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ViolationRule {
    /// The names that it is about: a path without wildcards, or everything beneath a directory. A name that reference
    /// values list is accepted only if the rule names exactly this path.
    pub names: NamePattern,
    /// Why, for whoever reads a verdict.
    pub reason: String,
}

/// The content that a rule accepts.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AcceptedContent {
    /// Content with one of these digests. SHA-1 is refused.
    Digests(#[serde_as(as = "BTreeMap<_, Vec<Hex>>")] BTreeMap<Bank, Vec<Vec<u8>>>),
    /// The content of some program that the reference values list, under whatever name: a copy, as in a memfd.
    Listed,
    /// A file that a key of this keyring signed.
    SignedBy(String),
    /// One of these texts, of entries that hold what was measured (template ima-buf): a kernel's version, a command line.
    Text(Vec<String>),
    /// Any content: data that nothing runs. Only at a place in the file system, and never for a listed name.
    Any,
}

/// Why rules cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProgramRulesError {
    /// More rules than are read.
    #[error("{0} rules are more than the {MAX_RULES} that are read")]
    TooMany(usize),
    /// A rule that cannot be meant.
    #[error("rule {number} for {names:?}: {problem}")]
    Rule {
        /// Its place, from 1.
        number: usize,
        /// Its pattern.
        names: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A rule for violations that cannot be meant.
    #[error("rule {number} for violations of {names:?}: {problem}")]
    Violation {
        /// Its place, from 1.
        number: usize,
        /// Its pattern.
        names: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Rules as they are read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    #[serde(default)]
    keyrings: BTreeMap<String, Keyring>,
    #[serde(default)]
    rules: Vec<ProgramRule>,
    #[serde(default)]
    violations: Vec<ViolationRule>,
}

impl TryFrom<Unchecked> for ProgramRules {
    type Error = ProgramRulesError;

    fn try_from(read: Unchecked) -> Result<Self, ProgramRulesError> {
        Self::new(read.keyrings, read.rules, read.violations)
    }
}

impl ProgramRules {
    /// Rules, the keyrings that they name, and rules for violations.
    ///
    /// # Errors
    /// A rule that cannot be meant: without a reason, with content that nothing can have, or with any content or any
    /// violation anywhere.
    pub fn new(
        keyrings: BTreeMap<String, Keyring>,
        rules: Vec<ProgramRule>,
        violations: Vec<ViolationRule>,
    ) -> Result<Self, ProgramRulesError> {
        let count = rules.len().saturating_add(violations.len());
        if count > MAX_RULES {
            return Err(ProgramRulesError::TooMany(count));
        }
        for (rule, number) in rules.iter().zip(1_usize..) {
            if let Some(problem) = problem_of(rule, &keyrings) {
                return Err(ProgramRulesError::Rule { number, names: rule.names.to_string(), problem });
            }
        }
        for (rule, number) in violations.iter().zip(1_usize..) {
            let problem = problem_of_reason(&rule.reason).or_else(|| problem_of_violation(&rule.names));
            if let Some(problem) = problem {
                return Err(ProgramRulesError::Violation { number, names: rule.names.to_string(), problem });
            }
        }
        let (index, of_violations) = (Index::of(&rules), Index::by_names(violations.iter().map(|rule| &rule.names)));
        Ok(Self { keyrings, rules, violations, index, of_violations })
    }

    /// The rules whose patterns a name is of, in the order in which they are asked, each with its place.
    pub(super) fn about(&self, name: &[u8]) -> impl Iterator<Item = (usize, &ProgramRule)> {
        let places = self.index.beginning_as(name, |place| Some(&self.rules.get(place)?.names)).into_iter();
        let rules = places.filter_map(|place| Some((place, self.rules.get(place)?)));
        rules.filter(move |(_, rule)| rule.names.matches(name))
    }

    /// The rules for violations whose patterns a name is of, in the order in which they are asked.
    pub(super) fn about_violation(&self, name: &[u8]) -> impl Iterator<Item = &ViolationRule> {
        let places = self.of_violations.beginning_as(name, |place| Some(&self.violations.get(place)?.names));
        let rules = places.into_iter().filter_map(|place| self.violations.get(place));
        rules.filter(move |rule| rule.names.matches(name))
    }

    /// Whether the rule at this place accepts a digest.
    pub(super) fn accept_digest(&self, place: usize, bank: Bank, digest: &[u8]) -> bool {
        self.index.digests.contains(&(place, bank, digest.to_vec()))
    }

    /// The rules, in the order in which they are asked.
    pub fn rules(&self) -> &[ProgramRule] {
        &self.rules
    }

    /// The rules for violations, in the order in which they are asked.
    pub fn violations(&self) -> &[ViolationRule] {
        &self.violations
    }

    /// Whether a rule with this reason accepts content that nobody knows. A violation says nothing of the content.
    pub(super) fn accept_any_content(&self, reason: &str) -> bool {
        self.rules.iter().any(|rule| rule.reason == reason && matches!(rule.accept, AcceptedContent::Any))
            || self.violations.iter().any(|rule| rule.reason == reason)
    }

    /// The keyring of this name.
    pub fn keyring(&self, name: &str) -> Option<&Keyring> {
        self.keyrings.get(name)
    }
}

fn problem_of_reason(reason: &str) -> Option<&'static str> {
    let reason = reason.trim();
    let wrong = reason.is_empty() || reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control);
    wrong.then_some("it needs a reason, on one line of at most 300 characters")
}

fn problem_of_violation(names: &NamePattern) -> Option<&'static str> {
    (!names.names_a_place()).then_some(
        "violations are accepted only beneath a directory that the pattern names, such as /var/log/journal/**",
    )
}

impl Index {
    fn of(rules: &[ProgramRule]) -> Self {
        let digests = rules.iter().enumerate().flat_map(|(place, rule)| match &rule.accept {
            AcceptedContent::Digests(digests) => digests
                .iter()
                .flat_map(|(bank, digests)| digests.iter().map(move |digest| (place, *bank, digest.clone())))
                .collect(),
            _ => Vec::new(),
        });
        Self { digests: digests.collect(), ..Self::by_names(rules.iter().map(|rule| &rule.names)) }
    }

    fn by_names<'n>(names: impl Iterator<Item = &'n NamePattern>) -> Self {
        let names: Vec<_> = names.map(|names| names.literal().as_bytes()).collect();
        let literal = |place: &usize| names.get(*place).copied().unwrap_or_default();
        let mut sorted: Vec<usize> = (0..names.len()).collect();
        sorted.sort_by(|one, other| literal(one).cmp(literal(other)));
        let mut shorter = Vec::with_capacity(sorted.len());
        // Those whose beginnings the next one's may begin with, the longest last.
        let mut open: Vec<(usize, &[u8])> = Vec::new();
        for (place, rule) in sorted.iter().enumerate() {
            let literal = literal(rule);
            while open.pop_if(|(_, before)| !literal.starts_with(before)).is_some() {}
            shorter.push(open.last().map(|(place, _)| *place));
            open.push((place, literal));
        }
        Self { sorted, shorter, digests: BTreeSet::new() }
    }

    /// The places of the rules whose patterns begin as the name does, in order.
    fn beginning_as<'n>(&self, name: &[u8], names: impl Fn(usize) -> Option<&'n NamePattern>) -> Vec<usize> {
        let literal = |rule: &usize| names(*rule).map_or("", NamePattern::literal).as_bytes();
        // Of what begins as the name does, the longest is the last that is not behind the name, or begins that one.
        let mut at = self.sorted.partition_point(|rule| literal(rule) <= name).checked_sub(1);
        let mut found = Vec::new();
        while let Some(place) = at {
            work::steps(1);
            let rule = self.sorted.get(place).filter(|rule| name.starts_with(literal(rule)));
            found.extend(rule);
            at = self.shorter.get(place).copied().flatten();
        }
        found.sort_unstable();
        found
    }
}

fn problem_of(rule: &ProgramRule, keyrings: &BTreeMap<String, Keyring>) -> Option<&'static str> {
    if let Some(problem) = problem_of_reason(&rule.reason) {
        return Some(problem);
    }
    match &rule.accept {
        AcceptedContent::Digests(digests) if digests.values().all(Vec::is_empty) => Some("it accepts no digest"),
        AcceptedContent::Digests(digests) if digests.contains_key(&Bank::Sha1) => {
            Some("SHA-1 proves nothing: collisions can be made")
        }
        AcceptedContent::Digests(digests)
            if digests
                .iter()
                .any(|(bank, digests)| digests.iter().any(|digest| digest.len() != bank.digest_size())) =>
        {
            Some("it has a digest of another length than its algorithm's")
        }
        AcceptedContent::SignedBy(keyring) if !keyrings.contains_key(keyring) => Some("there is no such keyring"),
        AcceptedContent::Text(texts) if texts.is_empty() => Some("it accepts no text"),
        AcceptedContent::Any if !rule.names.names_a_place() => {
            Some("any content is accepted only beneath a directory that the pattern names, such as /var/log/**")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ProgramRules, toml::de::Error> {
        toml::from_str(text)
    }

    fn rule(names: &str, accept: &str, reason: &str) -> String {
        format!("[[rules]]\nnames = \"{names}\"\naccept = {accept}\nreason = \"{reason}\"\n")
    }

    #[test]
    fn rules_come_back_from_their_file() {
        let digest = "ab".repeat(32);
        let text = [
            rule("memfd:**", "\"listed\"", "runc runs a copy of itself"),
            rule("/init", &format!("{{ digests = {{ sha256 = [\"{digest}\"] }} }}"), "the initramfs of image 7"),
            rule("kernel_version", "{ text = [\"6.1.0\"] }", "the kernel says its version"),
            rule("/var/lib/**", "\"any\"", "data of services, mounted noexec"),
            rule("/srv/**", "\"any\"", &"a".repeat(MAX_REASON)),
        ]
        .concat();
        let rules = read(&text).unwrap();
        assert_eq!(rules.rules().len(), 5);
        assert_eq!(read(&toml::to_string(&rules).unwrap()).unwrap(), rules);
        // Without rules for violations the text, and with it the policy's digest, is what it was before there were any.
        assert!(!toml::to_string(&rules).unwrap().contains("violations"));
        let with = read(&[text, violation("/var/log/journal/**", "journald writes it")].concat()).unwrap();
        assert_eq!(with.violations().len(), 1);
        assert_eq!(read(&toml::to_string(&with).unwrap()).unwrap(), with);
        assert_ne!(with, rules);
    }

    fn violation(names: &str, reason: &str) -> String {
        format!("[[violations]]\nnames = \"{names}\"\nreason = \"{reason}\"\n")
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        let sha1 = format!("{{ digests = {{ sha1 = [\"{}\"] }} }}", "ab".repeat(20));
        for wrong in [
            rule("memfd:**", "\"listed\"", ""),
            rule("memfd:**", "\"listed\"", " "),
            rule("memfd:**", "\"listed\"", &"a".repeat(MAX_REASON + 1)),
            rule("memfd:**", "\"listed\"", "one line\\nand another"),
            rule("memfd:**", "\"listed\"", "one of very many").repeat(MAX_RULES + 1),
            rule("memfd:**", "\"any\"", "its name says so"),
            rule("/**", "\"any\"", "everything"),
            rule("**", "\"any\"", "everything"),
            rule("/x", "{ digests = {} }", "none"),
            rule("/x", "{ digests = { sha256 = [] } }", "none"),
            rule("/x", "{ digests = { sha256 = [\"abcd\"] } }", "short"),
            rule("/x", &sha1, "weak"),
            rule("/x", "{ signed-by = \"distro\" }", "no such keyring"),
            rule("/x", "{ text = [] }", "none"),
            rule("/x", "\"all\"", "unknown"),
            violation("/var/log/journal/**", ""),
            violation("/var/log/journal/**", &"a".repeat(301)),
            violation("/**", "everything"),
            violation("**", "everything"),
            violation("/v*", "nearly everything"),
            violation("memfd:x", "its name says so"),
            violation("/var/log/x\"\naccept = \"any", "there is no content to accept"),
            violation("/var/log/x", "as often").repeat(MAX_RULES + 1),
            "more = 1\n".to_owned(),
        ] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}
