use super::*;

fn parse(text: &str) -> Result<VmConfig, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    std::fs::write(&path, text).unwrap();
    VmConfig::from_file(&path)
}

const MINIMAL: &str = r#"{"boot-source": {"kernel_image_path": "/k"}}"#;

#[test]
fn what_is_written_is_read_back() {
    let config = VmConfig::new("/k").with_initrd("/i").with_boot_args("console=ttyS0").with_vcpus(2).with_mem_mib(256);
    assert_eq!(parse(&config.to_json().unwrap()).unwrap(), config);
}

#[test]
fn firecrackers_defaults_hold() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!((config.machine_config.vcpu_count, config.machine_config.mem_size_mib), (1, 128));
    // No serial console, and an end where others reboot. An empty command line is another thing than none.
    assert_eq!(config.cmdline(), DEFAULT_CMDLINE);
    assert!(DEFAULT_CMDLINE.starts_with("reboot=k panic=1 nomodule 8250.nr_uarts=0 "));
    assert_eq!(config.with_boot_args("").cmdline(), "");
    let root = DriveConfig { is_root_device: true, ..DriveConfig::new("d", "/d") };
    assert_eq!(VmConfig::new("/k").with_drive(root).cmdline(), format!("{DEFAULT_CMDLINE} root=/dev/vda rw"));
}

#[test]
fn firecrackers_whole_example_is_read_when_it_asks_for_nothing_more() {
    let config = parse(
        r#"{"boot-source": {"kernel_image_path": "vmlinux.bin", "boot_args": "console=ttyS0", "initrd_path": null},
            "drives": [], "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false,
            "track_dirty_pages": false, "huge_pages": "None"}, "cpu-config": null, "balloon": null,
            "network-interfaces": [], "vsock": null, "logger": null, "metrics": null, "mmds-config": null,
            "entropy": null, "pmem": [], "memory-hotplug": null}"#,
    )
    .unwrap();
    assert_eq!(config.machine_config.vcpu_count, 2);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    match parse(r#"{"boot-source": {"kernel_image_path": "/k"}, "pmem": [{}]}"#) {
        Err(ConfigError::NotSupported(found)) => assert_eq!(found, "pmem"),
        other => panic!("{other:?}"),
    }
    let text = r#"{"boot-source": {"kernel_image_path": "/k"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}}"#;
    let error = parse(text).unwrap_err();
    assert!(matches!(error, ConfigError::NotSupported("machine-config.cpu_template")), "{error}");
    assert!(error.to_string().contains("as cpu-config"), "{error}");
}

#[test]
fn a_cpu_template_is_in_the_configuration_or_in_a_file_of_its_own() {
    let with =
        |part: &str| parse(&format!(r#"{{"boot-source": {{"kernel_image_path": "/k"}}, "cpu-config": {part}}}"#));
    let template = r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}]}"#;
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = dir.path().join(format!("{}.json", text.len()));
        std::fs::write(&path, text).unwrap();
        serde_json::to_string(&path).unwrap()
    };
    let inside = with(template).unwrap();
    assert_eq!(inside.cpu_config().unwrap().msrs(), [0x10a]);
    assert_eq!(with(&file(template)).unwrap(), inside);
    assert_eq!(with("null").unwrap().cpu_config(), None);
    // What is written has the template, and names no file.
    assert_eq!(parse(&inside.to_json().unwrap()).unwrap(), inside);
    for (part, named) in [
        (file(r#"{"msr_modifiers": [{"addr": "0x10", "bitmap": "0b1"}]}"#), "0x10 (the time-stamp counter"),
        (file(r#"{"colour": 1}"#), "13.json is not valid: unknown field `colour`"),
        (file("nonsense"), "8.json"),
        ("\"/nonexistent\"".to_owned(), "/nonexistent"),
        ("\"/dev/zero\"".to_owned(), "/dev/zero"),
        ("[]".to_owned(), "object"),
        ("17".to_owned(), "object"),
    ] {
        let error = with(&part).unwrap_err().to_string();
        assert!(error.contains(named), "{part}: {error}");
    }
    // Only a configuration file may name one: a snapshot's configuration is not read from one.
    let mut unread = VmConfig::new("/k");
    unread.cpu_config = Some(CpuConfigOrPath::Path("/t".into()));
    let error = unread.check().unwrap_err().to_string();
    assert!(error.contains("cpu-config") && error.contains("/t"), "{error}");
}

#[test]
fn huge_pages_are_asked_for_as_firecracker_has_it() {
    let with = |machine: &str, more: &str| {
        parse(&format!(
            r#"{{"boot-source": {{"kernel_image_path": "/k"}}, "machine-config": {{"vcpu_count": 1, {machine}}}{more}}}"#
        ))
    };
    let pages = |machine| with(machine, "").unwrap().machine_config.huge_pages;
    assert_eq!(pages(r#""mem_size_mib": 64, "huge_pages": "2M""#), HugePages::TwoMib);
    assert_eq!(pages(r#""mem_size_mib": 65, "huge_pages": null"#), HugePages::None);
    for (machine, more, named) in [
        (r#""mem_size_mib": 65, "huge_pages": "2M""#, "", "mem_size_mib"),
        (r#""mem_size_mib": 64, "huge_pages": "1G""#, "", "1G"),
        (r#""mem_size_mib": 64, "huge_pages": "Transparent""#, "", "transparent_hugepage/enabled"),
        (
            r#""mem_size_mib": 64, "huge_pages": "2M""#,
            r#", "balloon": {"amount_mib": 0, "deflate_on_oom": false}"#,
            "balloon",
        ),
    ] {
        let error = with(machine, more).unwrap_err().to_string();
        assert!(error.contains(named), "{machine}: {error}");
    }
}

#[test]
fn unknown_duplicate_and_misplaced_fields_are_refused() {
    for text in [
        r#"{"boot-source": {"kernel_image_path": "/k"}, "drive": []}"#,
        r#"{"boot-source": {"kernel_image_path": "/k", "kernel_image": "/k2"}}"#,
        r#"{"boot-source": {"kernel_image_path": "/k"}, "boot-source": {"kernel_image_path": "/k2"}}"#,
        r#"{"boot-source": {"kernel_image_path": "/k"}, "machine-config": {"vcpu_count": "1", "mem_size_mib": 1}}"#,
        r#"{"machine-config": {"vcpu_count": 1, "mem_size_mib": 64}}"#,
        r#"{"boot-source": {"kernel_image_path": "/k"}} x"#,
        "",
        "[]",
    ] {
        assert!(matches!(parse(text), Err(ConfigError::Json { .. })), "{text}");
    }
}

#[test]
fn a_list_is_no_object() {
    // Lists of values in the order of the fields are what serde would take as well.
    for part in [
        r#""entropy": []"#,
        r#""entropy": {"rate_limiter": []}"#,
        r#""entropy": {"rate_limiter": {"ops": [1, null, 1]}}"#,
        r#""machine-config": [1, 128]"#,
        r#""drives": [["d", "/d"]]"#,
        r#""drives": [{"drive_id": "d", "path_on_host": "/d", "is_root_device": false, "rate_limiter": []}]"#,
        r#""network-interfaces": [["eth0", "tap0"]]"#,
        r#""network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "tx_rate_limiter": []}]"#,
        r#""vsock": [3, "/v"]"#,
        r#""balloon": [1, false]"#,
        r#""logger": []"#,
        r#""metrics": ["/m"]"#,
        r#""serial": []"#,
        r#""serial": {"rate_limiter": [1, null, 1]}"#,
        r#""mmds-config": [["eth0"]]"#,
    ] {
        let text = format!(r#"{{"boot-source": {{"kernel_image_path": "/k"}}, {part}}}"#);
        match parse(&text) {
            Err(ConfigError::Json { source, .. }) => assert!(source.to_string().contains("object"), "{part}: {source}"),
            other => panic!("{part}: {other:?}"),
        }
    }
    assert!(matches!(parse(r#"{"boot-source": ["/k"]}"#), Err(ConfigError::Json { .. })));
    assert!(matches!(parse(r#"[["/k"]]"#), Err(ConfigError::Json { .. })));
}

#[test]
fn two_threads_a_core_need_an_even_number_of_vcpus() {
    let smt = |vcpus: u8| {
        parse(&format!(
            r#"{{"boot-source": {{"kernel_image_path": "/k"}},
                 "machine-config": {{"vcpu_count": {vcpus}, "mem_size_mib": 64, "smt": true}}}}"#
        ))
    };
    for good in [1, 2, 4, 32] {
        assert!(smt(good).unwrap().machine_config.smt, "{good}");
    }
    for bad in [3, 31] {
        let error = smt(bad).unwrap_err().to_string();
        assert!(error.contains("machine-config.vcpu_count") && error.contains("smt"), "{error}");
    }
}

#[test]
fn sizes_are_bounded() {
    for (vcpus, mem) in [(0, 64), (33, 64), (255, 64), (1, 0), (1, 1), (1, MAX_MEM_MIB + 1), (1, u64::MAX)] {
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "/k"}},
                 "machine-config": {{"vcpu_count": {vcpus}, "mem_size_mib": {mem}}}}}"#
        );
        assert!(matches!(parse(&text), Err(ConfigError::OutOfRange { .. })), "{vcpus} {mem}");
    }
    let edge = VmConfig::new("/k").with_vcpus(MAX_VCPUS).with_mem_mib(MAX_MEM_MIB);
    assert!(edge.check().is_ok());
}

#[test]
fn the_command_line_is_bounded_and_printable() {
    assert!(VmConfig::new("/k").with_boot_args("x".repeat(MAX_CMDLINE)).check().is_ok());
    for bad in ["x".repeat(MAX_CMDLINE + 1), "a\0b".to_owned(), "a\nb".to_owned(), "\u{1b}[2J".to_owned()] {
        assert!(matches!(VmConfig::new("/k").with_boot_args(bad).check(), Err(ConfigError::OutOfRange { .. })));
    }
}

#[test]
fn a_root_device_is_named_on_the_command_line() {
    let drive = DriveConfig { is_root_device: true, is_read_only: true, ..DriveConfig::new("rootfs", "/d") };
    let line = |args: &str| VmConfig::new("/k").with_boot_args(args).with_drive(drive.clone()).cmdline();
    assert_eq!(line(""), "root=/dev/vda ro");
    assert_eq!(line("quiet"), "quiet root=/dev/vda ro");
    assert_eq!(line("quiet -- a=b"), "quiet root=/dev/vda ro -- a=b");
    let other = VmConfig::new("/k").with_boot_args("quiet").with_drive(DriveConfig::new("data", "/d"));
    assert_eq!(other.cmdline(), "quiet");
    let long = VmConfig::new("/k").with_boot_args("x".repeat(MAX_CMDLINE - 10));
    assert!(long.check().is_ok() && long.with_drive(drive).check().is_err());
}

#[test]
fn unreadable_and_oversized_files_are_named() {
    let missing = Path::new("/nonexistent/vm.json");
    assert!(VmConfig::from_file(missing).unwrap_err().to_string().contains("/nonexistent/vm.json"));
    assert!(matches!(VmConfig::from_file(Path::new("/")), Err(ConfigError::Read { .. })));
    assert!(matches!(VmConfig::from_file(Path::new("/dev/zero")), Err(ConfigError::TooLong { .. })));
}
