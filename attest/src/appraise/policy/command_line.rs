//! Rules on the kernel's command line, argument by argument.
//!
//! Arguments are what the kernel makes of the line (`next_arg` in its lib/cmdline.c): split at white space outside double
//! quotes, the name before the first `=`, `-` and `_` alike in names. Programs that read the line again may split it
//! another way, so a line on which they could differ is refused whole.

use serde::{Deserialize, Serialize};

use crate::reason::{Reason, ReasonCode};

/// What the kernel reads of a command line on the architectures that it is used on; it cuts what is longer.
const KERNEL_MAX: usize = 2047;

/// What the arguments of a kernel must be, must not be, and may be.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields)]
pub struct CommandLineRules {
    /// Arguments that must be there. Where one is there several times, each must be as the rule says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<ArgumentRule>,
    /// Arguments that must not be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forbid: Vec<ArgumentRule>,
    /// The only arguments that may be there, beside those that must be. Without this list all may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<ArgumentRule>>,
}

/// Which arguments are meant.
///
/// Written as text, `quiet` means the argument with whatever value or without one, `lockdown=integrity` that value;
/// as a table, `{ name = "lockdown", values = ["integrity", "confidentiality"] }` means one of the values, and an empty
/// list the argument without a value.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(try_from = "RuleText", into = "RuleText")]
pub struct ArgumentRule {
    name: String,
    values: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RuleText {
    Text(String),
    Table(RuleTable),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    name: String,
    values: Vec<String>,
}

impl TryFrom<RuleText> for ArgumentRule {
    type Error = String;

    fn try_from(text: RuleText) -> Result<Self, String> {
        let (name, values) = match text {
            RuleText::Table(table) => (table.name, Some(table.values)),
            RuleText::Text(text) => match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(vec![value.to_owned()])),
                None => (text, None),
            },
        };
        let plain = |text: &str| text.chars().all(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\'' | '\\'));
        if name.is_empty() || name.contains(['=', ' ']) || !plain(&name) {
            return Err(format!("{name:?} is no argument's name"));
        }
        if let Some(value) = values.iter().flatten().find(|value| !plain(value)) {
            return Err(format!("{name}: no argument can have the value {value:?} here"));
        }
        Ok(Self { name, values })
    }
}

impl From<ArgumentRule> for RuleText {
    fn from(rule: ArgumentRule) -> Self {
        match rule.values {
            None => Self::Text(rule.name),
            Some(values) => match values.as_slice() {
                [value] => Self::Text(format!("{}={value}", rule.name)),
                _ => Self::Table(RuleTable { name: rule.name, values }),
            },
        }
    }
}

impl std::fmt::Display for ArgumentRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.values.as_deref() {
            None => f.write_str(&self.name),
            Some([]) => write!(f, "{} without a value", self.name),
            Some(values) => write!(f, "{}={}", self.name, values.join("|")),
        }
    }
}

impl ArgumentRule {
    fn names(&self, argument: &Argument) -> bool {
        let same = |c: char| if c == '-' { '_' } else { c };
        self.name.chars().map(same).eq(argument.name.chars().map(same))
    }

    fn matches(&self, argument: &Argument) -> bool {
        self.names(argument)
            && match (&self.values, &argument.value) {
                (None, _) => true,
                (Some(values), Some(value)) => values.contains(value),
                (Some(values), None) => values.is_empty(),
            }
    }
}

/// One argument, as the kernel reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its value, without the quotes around it; `None` for an argument without `=`.
    pub value: Option<String>,
    /// Whether it stands behind `--`: the kernel hands it to the first program, which other programs do not do.
    pub for_init: bool,
}

impl std::fmt::Display for Argument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The arguments of a command line, or in words why they cannot be told for certain.
///
/// # Errors
/// If the kernel would cut the line, or it holds something that its readers understand differently.
pub fn arguments(line: &str) -> Result<Vec<Argument>, &'static str> {
    if line.len() > KERNEL_MAX {
        return Err("longer than the kernel reads");
    }
    // The kernel takes the byte a0 for a blank, also inside a character; systemd takes single quotes and backslashes for
    // more than they are to the kernel.
    if !line.chars().all(|c| matches!(c, ' '..='~' | '\t' | '\n')) || line.contains(['\'', '\\']) {
        return Err("characters that the kernel and other programs read differently");
    }
    if !line.matches('"').count().is_multiple_of(2) {
        return Err("a quote that does not end");
    }
    let mut found = Vec::new();
    let mut for_init = false;
    let mut in_quotes = false;
    let is_end = |c: char| {
        in_quotes ^= c == '"';
        c.is_ascii_whitespace() && !in_quotes
    };
    for word in line.split(is_end).filter(|word| !word.is_empty()) {
        let mut argument = argument(word);
        argument.for_init = for_init;
        for_init |= argument.name == "--" && argument.value.is_none();
        found.push(argument);
    }
    Ok(found)
}

/// One word. Quotes around all of it, or around the value, are not part of what they hold.
fn argument(word: &str) -> Argument {
    let word = match word.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => word,
    };
    // A word that begins with `=` has no name before it.
    let equals = word.char_indices().skip(1).find(|(_, c)| *c == '=').map(|(at, _)| at);
    let Some((name, value)) = equals.and_then(|at| Some((word.get(..at)?, word.get(at.checked_add(1)?..)?))) else {
        return Argument { name: word.to_owned(), value: None, for_init: false };
    };
    let value = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => value,
    };
    Argument { name: name.to_owned(), value: Some(value.to_owned()), for_init: false }
}

impl CommandLineRules {
    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.require.is_empty() && self.forbid.is_empty() && self.allow.is_none()
    }

    /// Everything that is wrong with a command line, which begins with the kernel's arguments and not with its path.
    pub fn check(&self, line: &str) -> Vec<Reason> {
        let reason = |text: String| Reason::new(ReasonCode::PolicyCommandLine).event("kernel command line").text(text);
        let arguments = match arguments(line) {
            Ok(arguments) => arguments,
            Err(problem) => return vec![reason(format!("The kernel's command line has {problem}.")).found(line)],
        };
        let mut reasons = Vec::new();
        for rule in &self.require {
            let mut named = arguments.iter().filter(|argument| !argument.for_init && rule.names(argument)).peekable();
            if named.peek().is_none() {
                let text = "The kernel's command line lacks what the policy requires.".to_owned();
                reasons.push(reason(text).expected(rule.to_string()).found(line));
            }
            let other = named.filter(|argument| !rule.matches(argument));
            reasons.extend(other.map(|argument| {
                reason("The kernel's command line has another value than the policy requires.".to_owned())
                    .expected(rule.to_string())
                    .found(argument.to_string())
            }));
        }
        for argument in &arguments {
            if self.forbid.iter().any(|rule| rule.matches(argument)) {
                let text = "The kernel's command line has what the policy forbids.".to_owned();
                reasons.push(reason(text).found(argument.to_string()));
            } else if !self.allows(argument) {
                let text = "The kernel's command line has an argument that the policy does not know.".to_owned();
                reasons.push(reason(text).found(argument.to_string()));
            }
        }
        reasons
    }

    /// Whether the arguments of a kernel that no reference value lists are accepted by these rules alone: only if they
    /// say what is allowed.
    pub(crate) fn accepts(&self, line: &str) -> bool {
        self.allow.is_some() && self.check(line).is_empty()
    }

    fn allows(&self, argument: &Argument) -> bool {
        let Some(allow) = &self.allow else { return true };
        // What must be there is judged above, value by value; but only the kernel's own arguments are.
        let required = !argument.for_init && self.require.iter().any(|rule| rule.names(argument));
        required || allow.iter().any(|rule| rule.matches(argument))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> CommandLineRules {
        toml::from_str(text).unwrap()
    }

    fn split(line: &str) -> Vec<(String, Option<String>)> {
        arguments(line).unwrap().into_iter().map(|argument| (argument.name, argument.value)).collect()
    }

    /// What was found wrong, without the sentences.
    fn found(rules: &CommandLineRules, line: &str) -> Vec<String> {
        rules.check(line).into_iter().map(|reason| reason.found.unwrap()).collect()
    }

    #[test]
    fn arguments_are_what_the_kernel_makes_of_the_line() {
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(split("  quiet\tro  a=b "), [pair("quiet", None), pair("ro", None), pair("a", Some("b"))]);
        assert_eq!(split("a=\"b c\" d"), [pair("a", Some("b c")), pair("d", None)]);
        assert_eq!(split("\"a=b c\" d"), [pair("a", Some("b c")), pair("d", None)]);
        assert_eq!(split("\"init=/bin/sh\""), [pair("init", Some("/bin/sh"))]);
        assert_eq!(split("a=b=c"), [pair("a", Some("b=c"))]);
        assert_eq!(split("a="), [pair("a", Some(""))]);
        assert_eq!(split("=a=b"), [pair("=a", Some("b"))]);
        assert_eq!(split("a\" \"b"), [pair("a\" \"b", None)]);
        assert_eq!(split("dyndbg=\"file a +p; file b +p\""), [pair("dyndbg", Some("file a +p; file b +p"))]);
        assert_eq!(split(""), []);
        for line in ["a='b c'", "a\\ b", "gr\u{fc}n", "a\u{a0}b", "a=\"b", "a\0b", &"a".repeat(2048)] {
            assert!(arguments(line).is_err(), "{line:?}");
        }
        assert_eq!(arguments(&"a".repeat(2047)).unwrap().len(), 1);
    }

    #[test]
    fn what_is_required_must_be_there_each_time_with_an_accepted_value() {
        let rules = rules(
            "require = [\"ro\", \"ima_policy=tcb\", { name = \"lockdown\", values = [\"integrity\", \"confidentiality\"] }]",
        );
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown=integrity splash"), [""; 0]);
        assert_eq!(found(&rules, "ro ima-policy=tcb lockdown=confidentiality"), [""; 0]);
        assert_eq!(rules.check("ro lockdown=none").len(), 2);
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown=integrity lockdown=none"), ["lockdown=none"]);
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown"), ["lockdown"]);
        // Behind `--` the kernel does not look.
        assert_eq!(rules.check("ro ima_policy=tcb -- lockdown=integrity").len(), 1);
        // Inside another argument's value it is none.
        assert_eq!(rules.check("ro ima_policy=tcb a=\"x lockdown=integrity\"").len(), 1);
    }

    #[test]
    fn what_is_forbidden_is_found_however_it_is_written() {
        let rules = rules("forbid = [\"init\", \"ima-appraise=off\", { name = \"single\", values = [] }]");
        assert_eq!(found(&rules, "quiet xinit=1 initcall_debug ima_appraise=enforce single=2"), [""; 0]);
        for line in ["init=/bin/sh", "\"init=/bin/sh\"", "init", "quiet\tinit=\"/bin/sh\"", "-- init=/bin/sh"] {
            assert_eq!(rules.check(line).len(), 1, "{line}");
        }
        assert_eq!(found(&rules, "ima_appraise=off single"), ["ima_appraise=off", "single"]);
    }

    #[test]
    fn with_a_list_of_what_is_allowed_nothing_else_is() {
        let rules = rules("require = [\"lockdown=integrity\"]\nallow = [\"console=ttyS0\", \"root\", \"quiet\"]");
        assert_eq!(found(&rules, "root=/dev/sda1 quiet console=ttyS0 lockdown=integrity"), [""; 0]);
        assert_eq!(found(&rules, "lockdown=integrity console=tty0 nokaslr"), ["console=tty0", "nokaslr"]);
        assert_eq!(found(&rules, "lockdown=integrity -- lockdown=integrity"), ["--", "lockdown=integrity"]);
        // An empty list is a list.
        assert_eq!(found(&self::rules("allow = []"), "quiet"), ["quiet"]);
        assert!(self::rules("").is_empty() && !self::rules("allow = []").is_empty());
    }

    #[test]
    fn rules_come_back_from_their_file_and_others_are_refused() {
        for text in [
            "require = [\"a\", \"b=c\", \"d=\"]\n",
            "[[allow]]\nname = \"a\"\nvalues = [\"b\", \"c\"]\n",
            "forbid = []",
        ] {
            let read = rules(text);
            assert_eq!(rules(&toml::to_string(&read).unwrap()), read);
        }
        for text in [
            "require = [\"\"]",
            "require = [\"a b\"]",
            "require = [\"=b\"]",
            "require = [\"a='b'\"]",
            "require = [{ name = \"a=b\", values = [] }]",
            "require = [{ name = \"a\" }]",
            "require = [{ name = \"a\", values = [], more = 1 }]",
            "need = []",
        ] {
            assert!(toml::from_str::<CommandLineRules>(text).is_err(), "{text}");
        }
    }
}
