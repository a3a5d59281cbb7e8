use super::*;
use crate::eventlog::log_builder::{LogBuilder, variable};
use crate::eventlog::{EventLog, Guid};
use crate::ima::ImaList;
use crate::ima::list_builder::ListBuilder;

const BANKS: [Bank; 2] = [Bank::Sha256, Bank::Sha384];

fn values(log: &LogBuilder) -> ReferenceValues {
    let bytes = log.bytes();
    let log = EventLog::parse(&bytes).unwrap();
    let mut builder = ReferenceBuilder::new("good", "recorded from the test's own log");
    builder.recorded(&log, &BANKS, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]);
    builder.ima("/usr/bin/agent", &[1; 32]).ima("/usr/bin/agent", &[2; 32]);
    builder.build().unwrap()
}

/// The differences of one PCR, as short words.
fn differences(values: &ReferenceValues, log: &LogBuilder, pcr: u8) -> Vec<String> {
    let bytes = log.bytes();
    let log = EventLog::parse(&bytes).unwrap();
    let of_pcr = log.events().iter().filter(|event| event.pcr == u32::from(pcr));
    let events: Vec<_> = of_pcr.map(|event| Measured::new(event, event.coverage(Bank::Sha256))).collect();
    let judge = Judge { bank: Bank::Sha256, command_line: &|line| line == "quiet" };
    align(values.expected(pcr), &events, &judge, &Effort::to_record())
        .iter()
        .filter_map(|step| match step {
            Step::Accepted(..) | Step::Absent(_) => None,
            Step::Unexpected(measured) => Some(format!("+{}", measured.event.grub_text().unwrap_or("?"))),
            Step::Missing(slot) => Some(format!("-{}", slot.expected(Bank::Sha256))),
            Step::OtherValue(slot, measured) => {
                Some(format!("{} -> {}", slot.expected(Bank::Sha256), measured.event.grub_text().unwrap_or("?")))
            }
        })
        .collect()
}

#[test]
fn a_recorded_boot_is_its_own_reference_and_comes_back_from_its_file() {
    let log = LogBuilder::good_boot(&BANKS);
    let values = values(&log);
    for pcr in 0..24 {
        assert_eq!(differences(&values, &log, pcr), Vec::<String>::new(), "PCR {pcr}");
    }
    let text = values.to_toml().unwrap();
    assert!(text.contains("what = \"kernel command line\""), "{text}");
    assert!(text.contains("text = [\"/vmlinuz console=ttyS0 quiet\"]"), "{text}");
    assert_eq!(ReferenceValues::from_toml(&text).unwrap(), values);
    assert_eq!(values.ima(b"/usr/bin/agent").unwrap().len(), 2);
    assert_eq!(values.ima(b"/usr/bin/other"), None);
}

#[test]
fn a_difference_is_named_where_it_is() {
    let good = LogBuilder::good_boot(&BANKS);
    let values = values(&good);
    let at = good.position(b"kernel_cmdline");

    let mut other = good.clone();
    let text = "/vmlinuz console=ttyS0 quiet init=/bin/sh";
    let data = format!("kernel_cmdline: {text}\0");
    other.events[at] = other.encode(8, EventType::IPL, data.as_bytes(), |bank| bank.hash(text.as_bytes()));
    assert_eq!(differences(&values, &other, 8), [format!("/vmlinuz console=ttyS0 quiet -> {text}")]);

    let mut more = good.clone();
    more.events.insert(at, LogBuilder::new(&BANKS).grub("grub_cmd", "insmod evil").events[0].clone());
    assert_eq!(differences(&values, &more, 8), ["+insmod evil"]);

    let mut fewer = good.clone();
    fewer.events.remove(at);
    assert_eq!(differences(&values, &fewer, 8), ["-/vmlinuz console=ttyS0 quiet"]);

    let mut swapped = good.clone();
    let first = good.position(b"grub_cmd: search");
    swapped.events.swap(first, first + 1);
    assert!(!differences(&values, &swapped, 8).is_empty());

    // The same digest under another type is another event.
    let mut retyped = good.clone();
    retyped.events[at][4] = 5;
    assert_eq!(differences(&values, &retyped, 8).len(), 2);
}

#[test]
fn an_optional_slot_may_be_empty_and_takes_nothing_else() {
    let mut builder = ReferenceBuilder::new("x", "");
    builder.slot(Slot::grub_command("a").optional()).slot(Slot::grub_command("a")).slot(Slot::grub_command("b"));
    let values = builder.build().unwrap();
    let run = |commands: &[&str]| {
        let mut log = LogBuilder::new(&BANKS);
        for command in commands {
            log.grub("grub_cmd", command);
        }
        differences(&values, &log, 8)
    };
    assert!(run(&["a", "b"]).is_empty());
    assert!(run(&["a", "a", "b"]).is_empty());
    assert_eq!(run(&["a", "a", "a", "b"]).len(), 1);
    assert_eq!(run(&["b"]), ["-a"]);
}

#[test]
fn a_boot_that_has_nothing_in_common_is_named_without_endless_work() {
    let mut builder = ReferenceBuilder::new("x", "");
    let mut log = LogBuilder::new(&[Bank::Sha256]);
    for number in 0..MAX_SLOTS {
        builder.slot(Slot::grub_command(&format!("good {number}")));
        log.grub("grub_cmd", &format!("evil {number}"));
    }
    let differences = differences(&builder.build().unwrap(), &log, 8);
    assert_eq!(differences.len(), 2 * MAX_SLOTS);
}

#[test]
fn files_that_could_not_be_meant_are_refused() {
    let good = "schema = \"portcullis/reference/1\"\nname = \"lab\"\n";
    let event = "[[event]]\npcr = 8\ntype = \"EV_IPL\"\nwhat = \"kernel command line\"\n";
    assert!(ReferenceValues::from_toml(&format!("{good}{event}text = [\"quiet\"]\n")).is_ok());
    let digest = "ab".repeat(32);
    let upper = "AB".repeat(32);
    for wrong in [
        String::new(),
        "schema = \"portcullis/reference/2\"\nname = \"lab\"\n".to_owned(),
        "schema = \"portcullis/reference/1\"\nname = \"La b\"\n".to_owned(),
        format!("{good}more = 1\n"),
        format!("{good}{event}"),
        format!("{good}{event}text = [\"quiet\"]\nmore = 1\n"),
        format!("{good}{event}sha256 = [\"{upper}\"]\n"),
        format!("{good}{event}sha256 = [\"ab\"]\n"),
        format!("{good}{event}sha1 = [\"{}\"]\n", "ab".repeat(20)),
        format!("{good}{}text = [\"quiet\"]\n", event.replace("= 8", "= 24")),
        format!("{good}{}text = [\"quiet\"]\n", event.replace("EV_IPL", "EV_NEVER")),
        format!("{good}{}text = [\"quiet\"]\n", event.replace("EV_IPL", "0x0000000d")),
        format!("{good}{}text = [\"quiet\"]\n", event.replace("kernel command line", " ")),
        format!("{good}[[ima]]\npath = \"/x\"\nsha256 = []\n"),
        format!("{good}[[ima]]\npath = \"/x\\n\"\nsha256 = [\"{digest}\"]\n"),
        format!(
            "{good}[[ima]]\npath = \"/x\"\nsha256 = [\"{digest}\"]\n[[ima]]\npath = \"/x\"\nsha256 = [\"{digest}\"]\n"
        ),
    ] {
        assert!(ReferenceValues::from_toml(&wrong).is_err(), "{wrong}");
    }
}

/// Values of one boot after the other, each of these GRUB commands.
fn merged(boots: &[&[&str]]) -> ReferenceValues {
    let mut builder = ReferenceBuilder::new("merged", "");
    for commands in boots {
        let bytes = grub_log(commands).bytes();
        builder.boot(&EventLog::parse(&bytes).unwrap(), &BANKS, &[8, 9]);
    }
    builder.build().unwrap()
}

fn grub_log(commands: &[&str]) -> LogBuilder {
    let mut log = LogBuilder::new(&BANKS);
    for command in commands {
        log.grub("grub_cmd", command);
    }
    log
}

#[test]
fn several_boots_are_more_accepted_values_of_the_same_slots() {
    let boots: [&[&str]; 3] = [&["a", "linux 6.1", "c"], &["a", "linux 6.12", "c"], &["a", "extra", "linux 6.1", "c"]];
    let values = merged(&boots);
    let slots: Vec<_> = values.slots(8).map(|slot| (slot.texts.join("|"), slot.optional)).collect();
    let slot = |text: &str, optional| (text.to_owned(), optional);
    assert_eq!(slots, [slot("a", false), slot("extra", true), slot("linux 6.1|linux 6.12", false), slot("c", false)]);
    for boot in boots {
        assert_eq!(differences(&values, &grub_log(boot), 8), [""; 0], "{boot:?}");
    }
    // A mixture of good boots is good; anything else is not.
    assert_eq!(differences(&values, &grub_log(&["a", "extra", "linux 6.12", "c"]), 8), [""; 0]);
    assert_eq!(differences(&values, &grub_log(&["a", "extra", "c"]), 8).len(), 1);
    assert_eq!(differences(&values, &grub_log(&["a", "other", "linux 6.1", "c"]), 8).len(), 1);
    // The order in which boots are given changes what is optional, not what is accepted.
    let shorter = merged(&[&["a", "b"], &["a"]]);
    assert!(shorter.slots(8).nth(1).unwrap().optional);
    assert_eq!(differences(&shorter, &grub_log(&["a"]), 8), [""; 0]);
    assert_eq!(differences(&shorter, &grub_log(&["b"]), 8), ["-a"]);
}

#[test]
fn an_update_is_one_more_edition_with_one_more_value() {
    let first = values(&LogBuilder::good_boot(&BANKS));
    let mut updated = LogBuilder::good_boot(&BANKS);
    let at = updated.position(b"\x09\0\0\0/vmlinuz\0");
    let mut kernel = LogBuilder::new(&BANKS);
    kernel.measure(9, EventType::IPL, b"/vmlinuz\0", b"the next kernel");
    updated.events[at] = kernel.events.remove(0);

    let mut builder = ReferenceBuilder::from_values(&first);
    let bytes = updated.bytes();
    let pcrs: Vec<u8> = first.pcrs().collect();
    builder.boot(&EventLog::parse(&bytes).unwrap(), &BANKS, &pcrs);
    let second = builder.build().unwrap();
    assert_eq!((first.version(), second.version(), second.name()), (0, 1, "good"));
    let hex = |bank: Bank| format!("{bank}:{}", hex::encode(bank.hash(b"the next kernel")));
    let changed = changes(&first, &second);
    assert!(changed.iter().all(|change| change.change == ChangeKind::Added && change.pcr == Some(9)), "{changed:?}");
    let values: Vec<_> = changed.iter().map(|change| change.value.clone()).collect();
    assert_eq!(values, [hex(Bank::Sha256), hex(Bank::Sha384)]);
    let removed = changes(&second, &first);
    assert!(removed.len() == 2 && removed.iter().all(|change| change.change == ChangeKind::Removed), "{removed:?}");
    assert_eq!(changes(&first, &first), []);
    for log in [LogBuilder::good_boot(&BANKS), updated] {
        for pcr in 0..24 {
            assert_eq!(differences(&second, &log, pcr), [""; 0], "PCR {pcr}");
        }
    }
}

#[test]
fn programs_of_a_recorded_list_are_listed_and_others_named() {
    let mut list = ListBuilder::default();
    list.entry("ima-sig", Bank::Sha256, &[1; 32], b"boot_aggregate", &[b""]);
    list.file("/usr/bin/agent", b"agent").file("/memfd:runc (deleted)", b"runc").violation("/var/log/wtmp");
    list.entry("ima-sig", Bank::Sha1, &[1; 20], b"/usr/bin/old", &[b""]);
    let bytes = list.bytes();
    let mut builder = ReferenceBuilder::new("x", "");
    let not_taken = builder.programs(ImaList::parse_binary(&bytes).unwrap().entries());
    let names: Vec<_> = not_taken.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["/var/log/wtmp", "/usr/bin/old"]);
    let values = builder.build().unwrap();
    assert_eq!(values.ima_len(), 2);
    assert!(values.ima(b"/memfd:runc (deleted)").unwrap().contains(&Bank::Sha256.hash(b"runc")));
}

#[test]
fn a_rule_accepts_content_that_its_digest_covers_and_nothing_by_name() {
    let mut builder = ReferenceBuilder::new("x", "");
    let order = |content: &[u8], measured: &[u8]| {
        let mut log = LogBuilder::new(&BANKS);
        log.measure(1, EventType::EFI_VARIABLE_BOOT, &variable(Guid::GLOBAL, "BootOrder", content), measured);
        log
    };
    let mut slot = Slot::new(1, EventType::EFI_VARIABLE_BOOT, "boot order");
    slot.rule = Some(Rule::BootOrder);
    builder.slot(slot.clone());
    assert!(builder.build().is_err(), "a rule without a reason");
    slot.reason = "the order of disks differs".to_owned();
    let mut builder = ReferenceBuilder::new("x", "");
    let mut search = Slot::new(8, EventType::IPL, "GRUB command");
    search.patterns = vec![Pattern::new("search --fs-uuid {uuid}").unwrap()];
    search.reason = "each disk has its own".to_owned();
    let mut line = Slot::new(8, EventType::IPL, "kernel command line");
    line.rule = Some(Rule::CommandLine);
    line.reason = "roots differ".to_owned();
    let values = builder.slot(slot).slot(search).slot(line).build().unwrap();
    assert_eq!(ReferenceValues::from_toml(&values.to_toml().unwrap()).unwrap(), values);

    let options = |count: u16| (0..count).flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for content in [&[0, 0, 1, 0][..], &[7, 0], &options(128)] {
        assert_eq!(differences(&values, &order(content, content), 1), [""; 0]);
    }
    for content in [&[][..], &[0], &[0, 0, 1], &[1, 0, 1, 0], &[0; 1024], &options(129)] {
        assert_eq!(differences(&values, &order(content, content), 1).len(), 1, "{content:?}");
    }
    assert_eq!(differences(&values, &order(&[0, 0], b"something else"), 1).len(), 1);
    let named = |name: &str| {
        let mut log = LogBuilder::new(&BANKS);
        log.measure(1, EventType::EFI_VARIABLE_BOOT, &variable(Guid::GLOBAL, name, &[7, 0]), &[7, 0]);
        differences(&values, &log, 1).len()
    };
    assert_eq!((named("BootOrder"), named("BootNext") > 0), (0, true));

    let boot = |command: &str, line: &str| {
        let mut log = grub_log(&[command]);
        log.grub("kernel_cmdline", line);
        differences(&values, &log, 8)
    };
    assert_eq!(boot("search --fs-uuid 1A2B-3C4D", "/vmlinuz quiet"), [""; 0]);
    assert_eq!(boot("search --fs-uuid 1A2B-3C4D", "/vmlinuz init=/bin/sh").len(), 1);
    assert_eq!(boot("search --fs-uuid /evil", "/vmlinuz quiet").len(), 1);
    // What GRUB takes for a path the kernel may take for arguments, which the policy's rules would not see.
    assert_eq!(boot("search --fs-uuid 1A2B-3C4D", "(hd0,gpt2)/boot/vmlinuz-6.1+deb quiet"), [""; 0]);
    for line in
        ["/vmlinuz\tinit=/bin/sh quiet", "\"/a b\" quiet", "/a\\\"b quiet", "/a'b quiet", "insmod quiet", "quiet"]
    {
        assert_eq!(boot("search --fs-uuid 1A2B-3C4D", line).len(), 1, "{line}");
    }
    // The text is right, the digest is of another.
    let mut log = grub_log(&[]);
    log.measure(8, EventType::IPL, b"grub_cmd: search --fs-uuid 1A2B-3C4D\0", b"insmod evil");
    log.grub("kernel_cmdline", "/vmlinuz quiet");
    assert_eq!(differences(&values, &log, 8).len(), 1);
}

#[test]
fn optional_slots_that_accept_the_same_cost_no_endless_work() {
    let mut builder = ReferenceBuilder::new("x", "");
    let mut log = LogBuilder::new(&BANKS);
    for _ in 0..500 {
        builder.slot(Slot::grub_command("a").optional());
        log.grub("grub_cmd", "a");
    }
    log.grub("grub_cmd", "evil");
    assert_eq!(differences(&builder.build().unwrap(), &log, 8), ["+evil"]);
}

/// What a file cannot say, whoever builds values from elsewhere can.
#[test]
fn values_that_prove_nothing_are_not_built() {
    let built = |slots: &[Slot]| {
        let mut builder = ReferenceBuilder::new("x", "");
        for slot in slots {
            builder.slot(slot.clone());
        }
        builder.build().is_ok()
    };
    let digest = |bank, size: usize| [Slot::digest(9, EventType::IPL, "kernel", bank, &vec![1; size])];
    assert!(built(&digest(Bank::Sha256, 32)) && built(&digest(Bank::Sha384, 48)));
    assert!(!built(&digest(Bank::Sha1, 20)));
    assert!(!built(&digest(Bank::Sha256, 48)) && !built(&digest(Bank::Sha384, 32)));
    let commands = |count| vec![Slot::grub_command("echo"); count];
    assert!(built(&commands(MAX_SLOTS)) && !built(&commands(MAX_SLOTS + 1)));
    let for_reason = |reason: &str| {
        let mut slot = Slot::new(1, EventType::EFI_VARIABLE_BOOT, "boot order");
        (slot.rule, slot.reason) = (Some(Rule::BootOrder), reason.to_owned());
        built(&[slot])
    };
    assert!(for_reason("disks differ") && for_reason(&"a".repeat(300)));
    assert!(!for_reason(" ") && !for_reason(&"a".repeat(301)) && !for_reason("one line\nand another"));
}
