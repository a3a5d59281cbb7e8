//! Rules on the kernel's command line, argument by argument.
//!
//! Where arguments end on a line, and which lines no rule is applied to, is for `arguments`. In how programs read one argument
//! they differ too, and a rule takes the strictest reading:
//!
//! - The kernel and systemd take `-` and `_` in a name for the same, early boot code and shells do not. What is required must
//!   be there in the rule's own spelling; the values of all spellings must be right, and all spellings are forbidden.
//! - In the initrd systemd reads `rd.NAME` as `NAME`. Forbidding `NAME` forbids `rd.NAME`, and where `NAME` is required,
//!   `rd.NAME` must have an accepted value too. What is allowed is allowed as it is written, and not otherwise.
//! - Of an argument that is there several times some take the first and some the last: each must be as required.
//! - `$`, backquotes, `;` and `#` mean nothing to any of them: a shell does not evaluate what a variable expands to.
//!
//! No rule knows synonyms: `init`, `rdinit`, `systemd.unit`, `single`, `1` and `rd.break` are different arguments. A list of
//! what is allowed catches what a list of what is forbidden forgets. Nor does a rule see arguments that are not on the line:
//! those built into the kernel, and those that `bootconfig` takes from the end of the initrd. Kernel and initrd are measured.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::arguments::{Argument, arguments};
use crate::appraise::MAX_REASONS;
use crate::reason::{Reason, ReasonCode};
use crate::work;

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
        let plain = |text: &str| arguments(text).is_ok() && !text.contains(' ');
        if name.is_empty() || name.contains('=') || !plain(&name) {
            return Err(format!("{name:?} cannot be the name of an argument"));
        }
        if let Some(value) = values.iter().flatten().find(|value| !plain(&format!("{name}={value}"))) {
            return Err(format!("{name}: no argument that a rule accepts can have the value {value:?}"));
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

impl CommandLineRules {
    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.require.is_empty() && self.forbid.is_empty() && self.allow.is_none()
    }

    /// The first reasons against a command line. The line begins with the kernel's arguments, not with its path.
    pub fn check(&self, line: &str) -> Vec<Reason> {
        self.prepare().judge(line).unwrap_or_else(|ambiguous| vec![ambiguous])
    }

    /// Prepares the rules for many lines: a log can have thousands of them, and a policy any number of rules.
    pub(in crate::appraise) fn prepare(&self) -> PreparedRules<'_> {
        let require = self.require.iter().map(|rule| (rule, folded(&rule.name), Values::of([rule])));
        PreparedRules {
            require: require.collect(),
            required: self.require.iter().map(|rule| rule.name.as_str()).collect(),
            forbid: by_name(&self.forbid, folded),
            allow: self.allow.as_ref().map(|allow| by_name(allow, Cow::Borrowed)),
        }
    }
}

/// The rules of a policy, arranged by name.
pub(in crate::appraise) struct PreparedRules<'r> {
    /// Each with its folded name.
    require: Vec<(&'r ArgumentRule, Cow<'r, str>, Values<'r>)>,
    required: HashSet<&'r str>,
    /// By folded name.
    forbid: HashMap<Cow<'r, str>, Values<'r>>,
    allow: Option<HashMap<Cow<'r, str>, Values<'r>>>,
}

impl PreparedRules<'_> {
    /// The first reasons against a command line; an error if the rules cannot be applied to it.
    pub fn judge(&self, line: &str) -> Result<Vec<Reason>, Reason> {
        let reason = |text: String| Reason::new(ReasonCode::PolicyCommandLine).event("kernel command line").text(text);
        let arguments = arguments(line).map_err(|why| {
            reason(format!("The policy's rules cannot be applied to the kernel's command line: it has {why}."))
                .found(line)
        })?;
        work::steps(arguments.len());
        // Once it is denied, nobody reads more than that many reasons.
        let mut reasons = self.missing(line, &arguments);
        for argument in &arguments {
            if reasons.len() >= MAX_REASONS {
                break;
            }
            if names_of(argument).any(|name| has(&self.forbid, &name, argument)) {
                let text = "The kernel's command line has what the policy forbids.".to_owned();
                reasons.push(reason(text).found(argument.to_string()));
            } else if !self.is_known(argument) {
                let text = "The kernel's command line has an argument that the policy does not know.".to_owned();
                reasons.push(reason(text).found(argument.to_string()));
            }
        }
        Ok(reasons)
    }

    /// Required arguments that are missing, or have another value.
    fn missing(&self, line: &str, arguments: &[Argument]) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if self.require.is_empty() {
            return reasons;
        }
        let reason = |text: &str| Reason::new(ReasonCode::PolicyCommandLine).event("kernel command line").text(text);
        let spelled: HashSet<&str> = arguments.iter().map(|argument| argument.name.as_str()).collect();
        let mut alike: HashMap<Cow<'_, str>, Vec<&Argument>> = HashMap::new();
        for argument in arguments {
            for name in names_of(argument) {
                alike.entry(name).or_default().push(argument);
            }
        }
        for (rule, name, accepted) in &self.require {
            work::steps(1);
            if !spelled.contains(rule.name.as_str()) {
                let text = "The kernel's command line lacks what the policy requires.";
                reasons.push(reason(text).expected(rule.to_string()).found(line));
            }
            let other = alike.get(name).into_iter().flatten().filter(|argument| !accepted.has(argument));
            reasons.extend(other.take(MAX_REASONS).map(|argument| {
                reason("The kernel's command line has another value than the policy requires.")
                    .expected(rule.to_string())
                    .found(argument.to_string())
            }));
            if reasons.len() >= MAX_REASONS {
                break;
            }
        }
        reasons
    }

    /// Whether the policy allows an argument. The values of required ones are judged by [`PreparedRules::missing`].
    fn is_known(&self, argument: &Argument) -> bool {
        let Some(allow) = &self.allow else { return true };
        self.required.contains(argument.name.as_str()) || has(allow, &argument.name, argument)
    }

    /// Whether these rules alone accept the arguments of a kernel that no reference value lists: only if they say what is
    /// allowed.
    pub fn accepts(&self, line: &str) -> bool {
        self.allow.is_some() && self.judge(line).is_ok_and(|reasons| reasons.is_empty())
    }
}

fn has(rules: &HashMap<Cow<'_, str>, Values<'_>>, name: &str, argument: &Argument) -> bool {
    rules.get(name).is_some_and(|values| values.has(argument))
}

/// A name as the kernel and systemd compare it.
fn folded(name: &str) -> Cow<'_, str> {
    if name.contains('-') { Cow::Owned(name.replace('-', "_")) } else { Cow::Borrowed(name) }
}

/// The names that some reader takes an argument to have, folded.
fn names_of(argument: &Argument) -> impl Iterator<Item = Cow<'_, str>> {
    let in_the_initrd = argument.name.strip_prefix("rd.").map(folded);
    std::iter::once(folded(&argument.name)).chain(in_the_initrd)
}

/// The values that rules of one name mean. Looked up, not searched: a line has up to a thousand arguments, and a policy any
/// number of rules.
#[derive(Default)]
struct Values<'r> {
    any: bool,
    none: bool,
    of: HashSet<&'r str>,
}

impl<'r> Values<'r> {
    fn of(rules: impl IntoIterator<Item = &'r ArgumentRule>) -> Self {
        let mut values = Self::default();
        rules.into_iter().for_each(|rule| values.add(rule));
        values
    }

    fn add(&mut self, rule: &'r ArgumentRule) {
        let Some(values) = &rule.values else {
            self.any = true;
            return;
        };
        work::steps(values.len());
        self.none |= values.is_empty();
        self.of.extend(values.iter().map(String::as_str));
    }

    fn has(&self, argument: &Argument) -> bool {
        work::steps(1);
        self.any || argument.value.as_deref().map_or(self.none, |value| self.of.contains(value))
    }
}

/// The rules by name.
fn by_name<'r>(rules: &'r [ArgumentRule], name: impl Fn(&'r str) -> Cow<'r, str>) -> HashMap<Cow<'r, str>, Values<'r>> {
    let mut found: HashMap<Cow<'r, str>, Values<'r>> = HashMap::with_capacity(rules.len());
    for rule in rules {
        work::steps(1);
        found.entry(name(&rule.name)).or_default().add(rule);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::arguments::AmbiguousLine;
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
    fn arguments_are_the_words_of_the_line() {
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(split("  quiet ro  a=b "), [pair("quiet", None), pair("ro", None), pair("a", Some("b"))]);
        assert_eq!(split("a=b=c"), [pair("a", Some("b=c"))]);
        assert_eq!(split("a="), [pair("a", Some(""))]);
        assert_eq!(split("---"), [pair("---", None)]);
        assert_eq!(split(""), []);
        assert_eq!(arguments(&"a".repeat(2047)).unwrap().len(), 1);
        assert_eq!(arguments(&"a".repeat(2048)), Err(AmbiguousLine::TooLong(2048)));
    }

    /// Lines as Debian, Ubuntu, Fedora, CoreOS, ChromeOS and Arch give them to their kernels.
    const GENUINE: [&str; 9] = [
        "BOOT_IMAGE=/boot/vmlinuz-6.1.0-18-amd64 root=UUID=0a1b2c3d-0000-1111-2222-333344445555 ro quiet",
        "root=/dev/mapper/ubuntu--vg-ubuntu--lv ro ima_appraise=fix ima_policy=tcb --- quiet",
        "root=UUID=10acc826-d074-4915-aed7-10d7f09f7852 ro rootflags=subvol=root rd.luks.uuid=luks-10acc826 rhgb quiet",
        "mitigations=auto,nosmt ignition.platform.id=gcp ostree=/ostree/boot.1/fedora-coreos/28f8e018/0 root=UUID=1-2 rw",
        "init=/usr/lib/systemd/systemd boot=local rootwait ro noresume loglevel=7 cros_efi dm_verity.error_behavior=3 i915.modeset=1",
        "root=PARTUUID=bf817bdf-6a3a-4221-8edb-2c1ca7 ro console=ttyS0,115200n8 memmap=64K$0x18690000 net.ifnames=0",
        "cryptdevice=UUID=a:root root=/dev/mapper/root rw l1tf=off module.sig_enforce=1 lsm=landlock,lockdown,yama",
        "imgurl=http://192.168.1.1:80/install/netboot/x.cpio.gz ip=10.0.0.2::10.0.0.1:255.255.255.0:host:eth0:none",
        "console=ttyS0 earlyprintk=serial rdinit=/init nohz_full=1-3 isolcpus=managed_irq,1-3 ~x #y ;z `w",
    ];

    #[test]
    fn n88_a_line_that_its_readers_split_differently_passes_no_rule() {
        let forbid = rules("forbid = [\"init\"]");
        let require = rules("require = [\"lockdown=integrity\"]");
        let allow = rules("allow = [\"root\", \"quiet\", \"lockdown\", \"dyndbg\", \"a\", \"x\", \"init\"]");
        for (line, why) in [
            ("\"root=/dev/sda1 init=/bin/sh x\"", AmbiguousLine::DoubleQuote),
            ("quiet \"init=/bin/sh\" lockdown=integrity", AmbiguousLine::DoubleQuote),
            ("lockdown=\"integrity\"", AmbiguousLine::DoubleQuote),
            ("systemd\".debug_shell\"", AmbiguousLine::DoubleQuote),
            ("in\"\"it=/bin/sh", AmbiguousLine::DoubleQuote),
            ("a=\"b", AmbiguousLine::DoubleQuote),
            ("a='lockdown=integrity init=/bin/sh'", AmbiguousLine::SingleQuote),
            ("in\\it=/bin/sh lockdown=integrity", AmbiguousLine::Backslash),
            ("a\\ b", AmbiguousLine::Backslash),
            ("quiet\tinit=/bin/sh", AmbiguousLine::Control(9)),
            ("quiet\ninit=/bin/sh", AmbiguousLine::Control(10)),
            ("quiet\u{b}init=/bin/sh", AmbiguousLine::Control(11)),
            ("quiet\u{c}init=/bin/sh", AmbiguousLine::Control(12)),
            ("quiet\rinit=/bin/sh", AmbiguousLine::Control(13)),
            ("quiet\0init=/bin/sh", AmbiguousLine::Control(0)),
            ("quiet\u{7f}", AmbiguousLine::Control(0x7f)),
            ("quiet\u{a0}init=/bin/sh", AmbiguousLine::NotAscii(0xa0)),
            ("gr\u{fc}n", AmbiguousLine::NotAscii(0xfc)),
            ("a=\u{2003}b", AmbiguousLine::NotAscii(0x2003)),
            ("a=*", AmbiguousLine::Wildcard('*')),
            ("ini?=/bin/sh", AmbiguousLine::Wildcard('?')),
            ("[i]nit=/bin/sh", AmbiguousLine::Wildcard('[')),
            ("lockdown=integrity -- init=/bin/sh", AmbiguousLine::DoubleDash),
            ("=init=/bin/sh", AmbiguousLine::NoName),
        ] {
            assert_eq!(arguments(line), Err(why), "{line:?}");
            for rules in [&forbid, &require, &allow, &CommandLineRules::default()] {
                let reasons = rules.check(line);
                assert_eq!(reasons.len(), 1, "{line:?}");
                assert!(reasons[0].text.contains(&why.to_string()), "{line:?}: {}", reasons[0].text);
                assert!(!rules.prepare().accepts(line), "{line:?}");
            }
        }
        for line in GENUINE {
            arguments(line).unwrap_or_else(|why| panic!("{line}: {why}"));
            assert_eq!(found(&rules("forbid = [\"systemd.debug_shell\"]"), line), [""; 0]);
        }
    }

    #[test]
    fn what_is_required_must_be_there_each_time_with_an_accepted_value() {
        let rules = rules(
            "require = [\"ro\", \"ima_policy=tcb\", { name = \"lockdown\", values = [\"integrity\", \"confidentiality\"] }]",
        );
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown=integrity splash"), [""; 0]);
        assert_eq!(found(&rules, "ro ima_policy=tcb ima-policy=tcb lockdown=confidentiality"), [""; 0]);
        assert_eq!(rules.check("ro lockdown=none").len(), 2);
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown=integrity lockdown=none"), ["lockdown=none"]);
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown"), ["lockdown"]);
        // Early boot code and shells read only this spelling, the kernel and systemd any.
        assert_eq!(rules.check("ro ima-policy=tcb lockdown=integrity").len(), 1);
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown=integrity ima-policy=none"), ["ima-policy=none"]);
        // In the initrd systemd reads it without the prefix.
        assert_eq!(found(&rules, "ro ima_policy=tcb lockdown=integrity rd.lockdown=none"), ["rd.lockdown=none"]);
        assert_eq!(rules.check("ro ima_policy=tcb rd.lockdown=integrity").len(), 1);
        // Inside another argument's value it is none.
        assert_eq!(rules.check("ro ima_policy=tcb a=x,lockdown=integrity").len(), 1);
    }

    #[test]
    fn what_is_forbidden_is_found_however_it_is_written() {
        let rules =
            rules("forbid = [\"init\", \"ima-appraise=off\", \"debug_shell\", { name = \"single\", values = [] }]");
        assert_eq!(found(&rules, "quiet xinit=1 initcall_debug ima_appraise=enforce single=2 xrd.init"), [""; 0]);
        for line in [
            "init=/bin/sh",
            "init",
            "quiet init=/bin/sh",
            "--- init=/bin/sh",
            "rd.init=/bin/sh",
            "debug-shell",
            "rd.debug-shell",
        ] {
            assert_eq!(rules.check(line).len(), 1, "{line}");
        }
        assert_eq!(found(&rules, "ima_appraise=off single"), ["ima_appraise=off", "single"]);
    }

    #[test]
    fn with_a_list_of_what_is_allowed_nothing_else_is() {
        let rules = rules("require = [\"lockdown=integrity\"]\nallow = [\"console=ttyS0\", \"root\", \"quiet\"]");
        assert_eq!(found(&rules, "root=/dev/sda1 quiet console=ttyS0 lockdown=integrity"), [""; 0]);
        assert_eq!(found(&rules, "lockdown=integrity console=tty0 nokaslr"), ["console=tty0", "nokaslr"]);
        assert_eq!(found(&rules, "lockdown=integrity rd.quiet qu-iet"), ["rd.quiet", "qu-iet"]);
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
