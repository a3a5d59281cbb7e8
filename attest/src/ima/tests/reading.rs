//! How entries are read, of each template and in both forms of a list.

use super::*;

#[test]
fn malformed_entries_are_refused_with_their_number() {
    let good = small();
    let with = |entry: Vec<u8>| [good.bytes(), entry].concat();
    let raw = |template: &str, data: &[u8]| {
        let mut list = ListBuilder::default();
        list.raw(10, &[1; 20], template, data).bytes()
    };
    let digest = template_data("sha256", &[1; 32], b"/x", &[]);
    assert!(matches!(ImaList::parse(&with(raw("ima-new", &digest))), Err(ImaError::Template { entry: 7, .. })));
    assert!(matches!(ImaList::parse(&with(raw("ima-sig", &digest))), Err(ImaError::Field { entry: 7, .. })));
    for (algorithm, name, more) in [
        ("sha256", &b"/x\0/y"[..], &[][..]),
        ("SHA256", b"/x", &[]),
        ("", b"/x", &[]),
        ("sha256", b"/x", &[&b"more"[..]]),
    ] {
        let data = template_data(algorithm, &[1; 32], name, more);
        assert!(matches!(ImaList::parse(&with(raw("ima-ng", &data))), Err(ImaError::Field { entry: 7, .. })));
    }
    let mut endless = good.bytes();
    endless.extend([10, 0, 0, 0]);
    assert!(matches!(ImaList::parse(&endless), Err(ImaError::Truncated { entry: 7, .. })));
    assert!(ImaList::parse(b"10 00 ima-ng sha256:00 /x\n").is_err());
    assert!(ImaList::parse(b"").unwrap().is_empty());
}

#[test]
fn n70_a_newline_in_a_name_does_not_make_two_entries_of_one_line() {
    let mut list = ListBuilder::default();
    list.entry("ima-ng", Bank::Sha256, &[1; 32], b"/tmp/x\n10 aaaa ima-ng sha256:bb /usr/bin/good", &[]);
    let binary = list.bytes();
    let list = ImaList::parse(&binary).unwrap();
    let entry = list.entries().next().unwrap();
    let line = format!(
        "10 {} ima-ng sha256:{} {}\n",
        hex::encode(entry.template_digest),
        hex::encode(entry.digest().digest),
        entry.name_lossy()
    );
    assert!(ImaList::parse(line.as_bytes()).is_err());
}

/// An entry of any template, its fields as they are.
fn raw(template: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for field in fields {
        data.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
        data.extend(*field);
    }
    let mut list = ListBuilder::default();
    list.raw(10, &Bank::Sha1.hash(&data), template, &data).bytes()
}

#[test]
fn templates_are_known_by_name_or_by_their_fields() {
    let digest = [&b"sha256:\0"[..], &[1; 32]].concat();
    let verity = [&b"verity:sha256:\0"[..], &[1; 32]].concat();
    let (sha1, name) = ([2; 20], &b"/x\0"[..]);
    for (template, fields, verity) in [
        ("ima-ng", vec![&digest[..], name], false),
        ("d-ng|n-ng", vec![&digest, name], false),
        ("ima-ngv2", vec![&verity, name], true),
        ("ima-sigv2", vec![&verity, name, b"sig"], true),
        ("d|n", vec![&sha1, name], false),
        ("ima-modsig", vec![&digest, name, b"", b"", b""], false),
        (
            "evm-sig",
            vec![&digest, name, b"evm", b"security.ima", &[4, 0, 0, 0], b"data", &[0; 4], &[0; 4], &[0xed, 0x81]],
            false,
        ),
    ] {
        let bytes = raw(template, &fields);
        let list = ImaList::parse(&bytes).unwrap_or_else(|error| panic!("{template}: {error}"));
        let entry = list.entries().next().unwrap();
        assert_eq!((entry.name(), entry.template.name()), (&b"/x"[..], template));
        assert_eq!((entry.digest().digest[0] > 0, entry.digest().verity), (true, verity), "{template}");
        assert!(entry.template_digest_holds());
        // One field more, one field less.
        assert!(ImaList::parse(&raw(template, &[&fields[..], &[b""]].concat())).is_err(), "{template}");
        assert!(ImaList::parse(&raw(template, &fields[1..])).is_err(), "{template}");
    }
    // What was measured, and under which name, must be said once.
    for template in [
        "",
        "d-ng",
        "n-ng|sig",
        "d-ng|d-ng|n-ng",
        "d-ng|d|n-ng",
        "d-ng|n-ng|n",
        "d-ng|n-ng|sig|sig",
        "d-ng|n-ng|new",
        "n-ng|d-ng|sig",
        "|",
    ] {
        let bytes = raw(template, &[&digest, name]);
        assert!(matches!(ImaList::parse(&bytes), Err(ImaError::Template { entry: 1, .. })), "{template}");
    }
}

/// The template's name is covered by nothing: under another order of fields an attribute's value, which root chooses,
/// would be the digest, and the measured digest something that nobody looks at.
#[test]
fn n66_fields_are_not_what_another_template_says() {
    let digest = |byte: u8| [&b"sha256:\0"[..], &[byte; 32]].concat();
    let (measured, chosen) = (digest(1), digest(2));
    let fields: [&[u8]; 9] =
        [&measured, b"/x\0", b"", b"security.selinux\0", &[40, 0, 0, 0], &chosen, &[0; 4], &[0; 4], &[0xed, 0x81]];
    let genuine = raw("evm-sig", &fields);
    assert_eq!(ImaList::parse(&genuine).unwrap().entries().next().unwrap().digest().digest, [1; 32]);
    let relabelled = raw("buf|n-ng|sig|evmsig|modsig|d-ng|iuid|igid|imode", &fields);
    assert!(matches!(ImaList::parse(&relabelled), Err(ImaError::Template { entry: 1, .. })));
}

#[test]
fn ascii_lists_show_numbers_names_and_nothing_where_nothing_is() {
    let digest = [&b"sha256:\0"[..], &[1; 32]].concat();
    let hex = "01".repeat(32);
    let line = |template: &str, fields: &[&[u8]], text: &str| {
        let binary = raw(template, fields);
        let binary = ImaList::parse(&binary).unwrap();
        let entry = binary.entries().next().unwrap();
        let line = format!("10 {} {template} {text}\n", hex::encode(entry.template_digest));
        let ascii = ImaList::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
        let shown = ascii.entries().next().unwrap();
        assert_eq!(shown.template_data(), entry.template_data(), "{line}");
    };
    let evm: [&[u8]; 9] =
        [&digest, b"/x\0", b"evm", b"security.ima", &[4, 0, 0, 0], b"data", &[0xe8, 3, 0, 0], &[0; 4], &[0xed, 0x81]];
    let text = format!("sha256:{hex} /x 65766d security.ima 04000000 64617461 1000 0 33261");
    line("evm-sig", &evm, &text);
    line("ima-modsig", &[&digest, b"/x y\0", b"", b"", b""], &format!("sha256:{hex} /x y   "));
    line("ima-sig", &[&digest, b"/x\0", b""], &format!("sha256:{hex} /x "));
    // As editors leave it that strip spaces from the ends of lines.
    line("ima-sig", &[&digest, b"/x\0", b""], &format!("sha256:{hex} /x"));
    line("d|n", &[&[1; 20], b"/x\0"], &format!("{} /x", "01".repeat(20)));
    for wrong in [
        format!("10 {} ima-ng sha256:{hex}", "01".repeat(20)),
        format!("10 {} ima-ng {hex} /x", "01".repeat(20)),
        format!("10 {} ima-ng sha256:{} /x", "01".repeat(20), "0A".repeat(32)),
        format!("10 {} ima-ng sha256:{hex} /x", "01".repeat(19)),
        format!("+10 {} ima-ng sha256:{hex} /x", "01".repeat(20)),
        format!("10 {} ima-ng sha256:{hex} /x\n10 {} ima-ng sha256:{hex} /x", "01".repeat(20), "01".repeat(32)),
        text.replace("33261", "65536"),
        text.replace(" 1000 ", " -1 "),
    ] {
        let wrong = if wrong.starts_with("sha256") { format!("10 {} evm-sig {wrong}", "01".repeat(20)) } else { wrong };
        assert!(ImaList::parse_ascii(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn lists_that_are_only_large_end_in_an_error() {
    assert_eq!(ImaList::parse(&vec![0; MAX_BYTES + 1]).unwrap_err(), ImaError::TooLarge(MAX_BYTES + 1));
    for bytes in
        [vec![0; 1 << 22], vec![0xff; 1 << 22], vec![b'1'; 1 << 22], b"1 ".repeat(1 << 21), vec![b'\n'; 1 << 22]]
    {
        assert!(ImaList::parse_binary(&bytes).is_err());
        assert!(ImaList::parse_ascii(&bytes).is_err());
        assert!(after(&bytes, u64::MAX).is_err());
    }
    // Sizes of 4 GiB that nothing backs.
    let mut huge = raw("ima-ng", &[b"sha256:\0", b"/x\0"]);
    let at = 4 + 20 + 4 + 6;
    huge[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = ImaList::parse(&huge).unwrap_err();
    assert!(matches!(error, ImaError::Truncated { entry: 1, needed: 0xffff_ffff, .. }), "{error:?}");
}

/// Names of the oldest template are padded to 256 bytes, of which one is the terminator.
#[test]
fn n66_a_name_of_the_oldest_template_fits_its_place() {
    let list = |length: usize| {
        let sizes = [3_u32, u32::try_from(length).unwrap()].map(u32::to_le_bytes);
        let bytes =
            [&10_u32.to_le_bytes()[..], &[7; 20], &sizes[0], b"ima", &[8; 20], &sizes[1], &vec![b'a'; length]].concat();
        ImaList::parse_binary(&bytes).map(|list| list.len())
    };
    assert_eq!(list(255), Ok(1));
    assert!(matches!(list(256), Err(ImaError::Field { entry: 1, .. })));
}
