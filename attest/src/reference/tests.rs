use super::*;
use crate::eventlog::EventLog;
use crate::eventlog::log_builder::LogBuilder;

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
    let events: Vec<_> = log.events().iter().filter(|event| event.pcr == u32::from(pcr)).collect();
    align(values.slots(pcr), &events, Bank::Sha256)
        .iter()
        .map(|difference| match difference {
            Difference::Unexpected(event) => format!("+{}", event.grub_text().unwrap_or("?")),
            Difference::Missing(slot) => format!("-{}", slot.expected(Bank::Sha256)),
            Difference::OtherValue(slot, event) => {
                format!("{} -> {}", slot.expected(Bank::Sha256), event.grub_text().unwrap_or("?"))
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
