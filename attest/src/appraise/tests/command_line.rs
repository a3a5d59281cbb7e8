//! Command lines round the policy's rules: N51, N88 and N94.

use super::host::Host;
use super::policy::{demand, host_with, replace};
use crate::eventlog::EventLog;
use crate::eventlog::log_builder::LogBuilder;
use crate::key::Bank;
use crate::reason::ReasonCode as Code;
use crate::reference::{Pattern, ReferenceBuilder, ReferenceValues, Slot};

const FORBID: &str = "[command_line]\nforbid = [\"init\"]";

/// Reference values that list all of a host's boot but one text of GRUB's, which they accept by a pattern that it fits.
fn by_pattern(host: &Host, text: &str, pattern: &str) -> ReferenceValues {
    let bytes = host.log.bytes();
    let log = EventLog::parse(&bytes).unwrap();
    let mut builder = ReferenceBuilder::new("good", "");
    let mut recorded = ReferenceBuilder::new("good", "");
    recorded.recorded(&log, &[Bank::Sha256], &crate::appraise::STATIC_PCRS);
    let recorded = recorded.build().unwrap();
    let mut found = 0;
    for pcr in recorded.pcrs() {
        for slot in recorded.slots(pcr) {
            let mut slot: Slot = slot.clone();
            let digest = Bank::Sha256.hash(text.as_bytes());
            if slot.texts.iter().any(|known| known == text)
                || slot.digests.get(&Bank::Sha256).is_some_and(|known| known.contains(&digest))
            {
                found += 1;
                slot.texts.clear();
                slot.digests.clear();
                slot.patterns = vec![Pattern::new(pattern).unwrap()];
                "it differs from boot to boot".clone_into(&mut slot.reason);
            }
            builder.slot(slot);
        }
    }
    assert_eq!(found, 1, "{text}");
    builder.build().unwrap()
}

/// A host whose GRUB measured `text` where the good one measures its command line.
fn with_line(prefix: &str, text: &str) -> Host {
    let mut host = host_with(|log| replace(log, b"kernel_cmdline", |log| _ = log.grub(prefix, text)));
    host.policy.ima = false;
    host
}

#[test]
fn n88_a_quoted_line_passes_by_its_value_alone_and_the_verdict_says_so() {
    for arguments in [
        "\"root=/dev/sda1 init=/bin/sh x\" number=7",
        "lockdown=\"integrity\" number=7",
        "systemd\".debug_shell\" number=7",
        "a='b' number=7",
        "a\\ b number=7",
        "quiet -- number=7",
        "a=[b] number=7",
        "a\u{a0}init=/bin/sh number=7",
    ] {
        let line = format!("/vmlinuz {arguments}");
        let pattern = line.replace('7', "{number}");
        let mut host = with_line("kernel_cmdline", &line);
        let listed = host.references.clone();
        let fits = by_pattern(&host, &line, &pattern);
        for rules in [
            "[command_line]\nforbid = [\"init\"]",
            "[command_line]\nrequire = [\"number=7\"]",
            "[command_line]\nallow = [\"number\", \"root\", \"lockdown\"]",
        ] {
            demand(&mut host, rules);
            host.policy.ima = false;
            // By a pattern of the reference values the line is not known, and the rules cannot be applied.
            host.references = vec![fits.clone()];
            assert_eq!(host.codes(), [Code::PolicyCommandLine], "{arguments}: {rules}");
            assert!(host.denied()[0].text.contains("cannot be applied"), "{}", host.denied()[0].text);
            // Exactly this line is listed: somebody looked at it.
            host.references.clone_from(&listed);
            let good = host.appraise().unwrap_or_else(|reasons| panic!("{arguments}: {reasons:?}"));
            let by_rule: Vec<_> = good.by_rule().iter().map(|rule| (rule.what.as_str(), rule.rule.as_str())).collect();
            assert_eq!(by_rule, [("kernel command line", "listed")]);
        }
        // Without rules the pattern is enough.
        demand(&mut host, "");
        host.policy.ima = false;
        host.references = vec![fits];
        host.appraise().unwrap_or_else(|reasons| panic!("{arguments}: {reasons:?}"));
    }
    // The twin: a line without quotes is judged by the rules, listed or not.
    let line = "/vmlinuz root=/dev/sda1 number=7";
    let mut host = with_line("kernel_cmdline", line);
    host.references = vec![by_pattern(&host, line, "/vmlinuz root=/dev/sda{number} number=7")];
    for (rules, trusted) in [
        ("forbid = [\"init\"]", true),
        ("require = [\"number=7\"]", true),
        ("allow = [\"number\", \"root\"]", true),
        ("forbid = [\"root\"]", false),
        ("require = [\"number=8\"]", false),
        ("allow = [\"number\"]", false),
    ] {
        demand(&mut host, &format!("[command_line]\n{rules}"));
        host.policy.ima = false;
        assert_eq!(host.appraise().is_ok(), trusted, "{rules}");
    }
}

/// The rule of the reference values, which leaves a line to the policy, accepts none that is split differently.
#[test]
fn n88_no_rule_of_the_reference_values_accepts_a_quoted_line() {
    let slot = |host: &Host| {
        let values = host.reference();
        let text = values.to_toml().unwrap();
        let listed = "text = [\"/vmlinuz console=ttyS0 quiet\"]";
        assert!(text.contains(listed), "{text}");
        let text = text.replace(listed, "rule = \"command-line\"\nreason = \"the policy says\"");
        ReferenceValues::from_toml(&text).unwrap()
    };
    let rules = "[command_line]\nallow = [\"console\", \"quiet\", \"a\"]";
    let good = Host::good();
    let values = slot(&good);
    for (line, trusted) in [
        ("/vmlinuz console=ttyS0 quiet", true),
        ("/vmlinuz console=ttyS1 a=b quiet", true),
        ("/vmlinuz init=/bin/sh", false),
        ("/vmlinuz \"quiet init=/bin/sh\"", false),
        ("/vmlinuz console=\"ttyS0\" quiet", false),
        ("/vmlinuz quiet\tconsole=ttyS0", false),
    ] {
        let mut host = with_line("kernel_cmdline", line);
        host.references = vec![values.clone()];
        demand(&mut host, rules);
        host.policy.ima = false;
        assert_eq!(host.appraise().is_ok(), trusted, "{line}");
    }
}

/// A true command line under another label, or a command under a command line's. The labels are measured nowhere.
#[test]
fn n51_a_command_line_is_not_hidden_behind_another_label() {
    let with = |log: fn(&mut LogBuilder)| {
        let mut host = host_with(|good| {
            replace(good, b"kernel_cmdline", |other| _ = other.grub("kernel_cmdline", "/vmlinuz quiet"));
            log(good);
        });
        host.appraise().unwrap();
        demand(&mut host, FORBID);
        host
    };
    with(|_| ()).appraise().unwrap();
    for hidden in [
        (|log| _ = log.grub("grub_cmd", "/vmlinuz init=/bin/sh")) as fn(&mut LogBuilder),
        |log| _ = log.grub("module_cmdline", "(hd0)/vmlinuz init=/bin/sh"),
        |log| _ = log.grub("kernel_cmdline", "/vmlinuz init=/bin/sh"),
    ] {
        assert_eq!(with(hidden).codes(), [Code::PolicyCommandLine]);
    }
    // What no rule can be applied to: the verdict shows it, and it passes only because it is listed.
    for unclear in [
        // The kernel sees an argument in what GRUB takes for a path.
        (|log| _ = log.grub("kernel_cmdline", "/vmlinuz\tinit=/bin/sh 7")) as fn(&mut LogBuilder),
        |log| _ = log.grub("kernel_cmdline", "/a\\\"b quiet \"c 7"),
        |log| _ = log.grub("grub_cmd", "\"/a b\" init=/bin/sh 7"),
        // A command, so that the true line could go without this label.
        |log| _ = log.grub("kernel_cmdline", "insmod quiet 7"),
    ] {
        let mut host = with(unclear);
        assert_eq!(host.appraise().unwrap().by_rule().len(), 1);
        let mut other = LogBuilder::new(&super::host::BANKS);
        unclear(&mut other);
        let log = other.bytes();
        let log = EventLog::parse(&log).unwrap();
        let text = log.events()[0].grub_text().unwrap();
        host.references = vec![by_pattern(&host, text, &text.replace('7', "{number}"))];
        host.policy.ima = false;
        assert_eq!(host.codes(), [Code::PolicyCommandLine], "{text}");
    }
}

/// GRUB's kernel by blocks of a disk, by a device, or on a network drive under the name of a command.
#[test]
fn n94_a_kernel_is_seen_whatever_its_name_and_its_label() {
    for (command, line) in [
        ("linux 2048+20000 init=/bin/sh", "2048+20000 init=/bin/sh"),
        ("linux +1,10+5 init=/bin/sh", "+1,10+5 init=/bin/sh"),
        ("linux 0x800+0x10 init=/bin/sh", "0x800+0x10 init=/bin/sh"),
        ("linux (hd0)+1 init=/bin/sh", "(hd0)+1 init=/bin/sh"),
        ("linux (hd0,gpt2)/vmlinuz init=/bin/sh", "(hd0,gpt2)/vmlinuz init=/bin/sh"),
        // With `set root=tftp,10.0.0.1`.
        ("linux echo init=/bin/sh", "echo init=/bin/sh"),
        ("! linuxefi vmlinuz init=/bin/sh", "vmlinuz init=/bin/sh"),
        ("linux echo a b init=/bin/sh", "echo \"a b\" init=/bin/sh"),
    ] {
        let (command, line) = (&format!("{command} n=7"), &format!("{line} n=7"));
        for prefix in ["grub_cmd", "module_cmdline", "kernel_cmdline"] {
            let mut host = host_with(|log| {
                log.grub("grub_cmd", command);
                log.grub(prefix, line);
            });
            demand(&mut host, FORBID);
            match host.appraise() {
                Ok(good) => assert_eq!(good.by_rule().len(), 1, "{prefix}: {line}"),
                Err(reasons) => assert_eq!(super::host::codes(&reasons), [Code::PolicyCommandLine], "{prefix}: {line}"),
            }
            // Unless it is listed, it is refused.
            host.references = vec![by_pattern(&host, line, &line.replace('7', "{number}"))];
            host.policy.ima = false;
            assert_eq!(host.codes(), [Code::PolicyCommandLine], "{prefix}: {line}");
        }
    }
    // The twins: GRUB's own commands are none, and do not make a boot unclear.
    let mut host = host_with(|log| {
        for command in
            ["linux", "echo init=/bin/sh", "[ -f (hd0)/init ]", "a=2048+20000 init", "! linux", ". /grub.cfg init=1"]
        {
            log.grub("grub_cmd", command);
        }
        log.grub("grub_cmd", "chainloader /EFI/shell.efi");
    });
    demand(&mut host, FORBID);
    assert!(host.appraise().unwrap().by_rule().is_empty());
}

/// A kernel that GRUB has the firmware start gets its command line as load options, which are in the command alone.
#[test]
fn n94_load_options_of_a_chain_loaded_kernel_are_a_command_line() {
    for (command, trusted) in [
        ("chainloader /vmlinuz.efi quiet", true),
        ("chainloader /vmlinuz.efi init=/bin/sh", false),
        ("! chainloader (hd0)/vmlinuz.efi quiet init=/bin/sh", false),
        ("chainloader 2048+20000 init=/bin/sh", false),
    ] {
        let mut host = host_with(|log| _ = log.grub("grub_cmd", command));
        demand(&mut host, FORBID);
        assert_eq!(host.appraise().is_ok(), trusted, "{command}");
    }
}
