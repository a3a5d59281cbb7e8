//! Hosts of the lab, booted: slow, so each boot answers many questions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::lab::LabError;
use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program, Variant};
use portcullis_firmware_fixtures::lab::machine::Disk;
use portcullis_firmware_fixtures::lab::record;
use portcullis_firmware_fixtures::lab::rootfs::HostFile;

const SHORT: Duration = Duration::from_secs(20);

fn spec() -> ImageSpec {
    let tools = Program { path: "/usr/bin/tpm2".to_owned(), source: "/usr/bin/tpm2".into() };
    let trust = BTreeMap::from([("ca.pem".to_owned(), b"a certificate\n".to_vec())]);
    ImageSpec { programs: vec![tools], trust, ..ImageSpec::default() }
}

fn boot(spec: HostSpec) -> Host {
    let (name, start) = (spec.name.clone(), Instant::now());
    let host = Host::boot(spec).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{name} is up after {:.1} s", start.elapsed().as_secs_f64());
    host
}

fn text(host: &mut Host, command: &str) -> String {
    host.must_run(command, SHORT).unwrap_or_else(|error| panic!("{error}"))
}

fn fails(host: &mut Host, command: &str) -> bool {
    host.run(command, SHORT).unwrap_or_else(|error| panic!("{error}")).status != 0
}

fn event_log(host: &mut Host) -> Vec<u8> {
    host.read_file("/sys/kernel/security/tpm0/binary_bios_measurements").unwrap()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn reset_count(host: &mut Host) -> u32 {
    let clock = text(host, "/usr/bin/tpm2 readclock -T device:/dev/tpmrm0");
    let line = clock.lines().find(|line| line.contains("reset_count")).expect(&clock);
    line.split(':').nth(1).unwrap().trim().parse().unwrap()
}

/// The PCRs that a wrapped key is bound to.
fn static_pcrs(host: &mut Host) -> String {
    text(host, "/usr/bin/tpm2 pcrread -T device:/dev/tpmrm0 sha256:0,1,2,3,4,5,6,7,8,9,14")
}

#[test]
fn lab_a_good_host_closes_the_ways_around_measurement() {
    let image = Image::build(&spec()).unwrap();
    let mut host = boot(HostSpec::new("good", &image));

    assert!(text(&mut host, "dmesg").contains("Secure boot enabled"));
    assert!(text(&mut host, "cat /sys/kernel/security/lockdown").contains("[integrity]"));
    assert_eq!(text(&mut host, "hostname"), "good");
    assert!(!fails(&mut host, "test -c /dev/kvm && test -c /dev/tpmrm0"));
    // kexec is off for good
    assert_eq!(text(&mut host, "cat /proc/sys/kernel/kexec_load_disabled"), "1");
    assert!(fails(&mut host, "echo 0 >/proc/sys/kernel/kexec_load_disabled"));
    // the policy is there for good, and it measures what runs from tmpfs too
    assert!(fails(&mut host, "test -e /sys/kernel/security/ima/policy"));
    text(&mut host, "mkdir /tmp/stranger; cp /bin/busybox /tmp/stranger/; /tmp/stranger/busybox true");
    let list = text(&mut host, "cat /sys/kernel/security/ima/ascii_runtime_measurements");
    assert!(list.lines().any(|line| line.trim_end().ends_with(" /tmp/stranger/busybox")), "{list}");
    // all that it lists, but for the stranger, is in the manifest
    for line in list.lines().map(str::trim_end) {
        let mut fields = line.rsplit(' ');
        let (path, digest) = (fields.next().unwrap(), fields.next().unwrap());
        let digest = digest.strip_prefix("sha256:").expect(line);
        if path != "boot_aggregate" && path != "/tmp/stranger/busybox" {
            assert!(image.manifest.executables.get(path).is_some_and(|known| known.contains(digest)), "{line}");
        }
    }
    // what the host trusts is where it belongs and cannot be written
    assert_eq!(host.read_file("/run/portcullis/trust/ca.pem").unwrap(), b"a certificate\n");
    assert!(fails(&mut host, "echo other >/run/portcullis/trust/ca.pem"));
    // the log says what the manifest says
    let log = event_log(&mut host);
    for event in &image.manifest.grub_events {
        assert!(contains(&log, event.text.as_bytes()), "{} is not in the log", event.text);
        assert!(contains(&log, &hex::decode(&event.digests.sha256).unwrap()), "{}: other digest", event.text);
    }
    for program in [&image.manifest.shim, &image.manifest.grub, &image.manifest.kernel] {
        let digest = hex::decode(&program.authenticode.sha256).unwrap();
        assert!(contains(&log, &digest), "{} is not in the log", program.path);
    }
}

#[test]
fn lab_a_reboot_is_a_reset_of_the_tpm_and_keeps_the_disk() {
    let image = Image::build(&spec()).unwrap();
    let mut host = boot(HostSpec::new("again", &image));
    let first = (reset_count(&mut host), static_pcrs(&mut host));
    let contents: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3_000_000).collect();
    host.write_file("/root/kept", &contents).unwrap();
    host.reboot().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((reset_count(&mut host), static_pcrs(&mut host)), (first.0 + 1, first.1.clone()));
    assert!(host.read_file("/root/kept").unwrap() == contents);

    let tpm = host.power_off().unwrap_or_else(|error| panic!("{error}"));
    let mut host = boot(HostSpec { tpm: Some(tpm), ..HostSpec::new("again", &image) });
    assert_eq!((reset_count(&mut host), static_pcrs(&mut host)), (first.0 + 2, first.1.clone()));

    host.reset().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((reset_count(&mut host), static_pcrs(&mut host)), (first.0 + 3, first.1));
}

#[test]
fn lab_the_recorder_sees_what_a_host_sees_of_the_firmware() {
    let image = Image::build(&spec()).unwrap();
    let host_spec = HostSpec::new("seen", &image);
    let recording = record::firmware_boot(&host_spec.machine()).unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(recording.manifest.initrd, image.manifest.initrd);
    assert!(contains(&recording.event_log, &hex::decode(&recording.manifest.initrd.sha256).unwrap()));
    // The firmware's own events come first and do not depend on what is on the disks.
    let end = b"Calling EFI Application from Boot Option";
    let firmware = |log: &[u8]| log[..log.windows(end.len()).position(|window| window == end).unwrap()].to_vec();
    let mut host = boot(host_spec);
    assert!(firmware(&event_log(&mut host)) == firmware(&recording.event_log));
}

#[test]
fn lab_two_hosts_at_once_differ_by_the_one_named_thing() {
    let good = Image::build(&spec()).unwrap();
    let tampered = Image::build(&spec().with(Variant::Cmdline("mitigations=off".to_owned()))).unwrap();
    assert_eq!(good.manifest.initrd, tampered.manifest.initrd);
    assert_eq!(good.root, tampered.root);
    let logs: Vec<(Vec<u8>, Vec<u8>)> = std::thread::scope(|scope| {
        let hosts = [("good", &good), ("tampered", &tampered)].map(|(name, image)| {
            scope.spawn(move || {
                let mut host = boot(HostSpec::new(name, image));
                (event_log(&mut host), host.tpm().ek_certificate_der().unwrap())
            })
        });
        hosts.map(|host| host.join().unwrap()).into()
    });
    assert!(!contains(&logs[0].0, b"mitigations=off"));
    assert!(contains(&logs[1].0, b"kernel_cmdline: /vmlinuz console=ttyS0 loglevel=5 mitigations=off"));
    assert_ne!(logs[0].1, logs[1].1);
}

#[test]
fn lab_a_host_reaches_the_verifier_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let other_port = elsewhere.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut word = [0; 5];
            connection.read_exact(&mut word).unwrap();
            connection.write_all(&[b"you said ", &word[..]].concat()).unwrap();
        }
    });
    let image = Image::build(&spec()).unwrap();
    let mut host = boot(HostSpec { verifier_port: Some(port), ..HostSpec::new("caller", &image) });
    for word in ["hello", "again"] {
        let answer = text(&mut host, &format!("echo {word} | nc -w 5 10.0.2.100 7000"));
        assert_eq!(answer, format!("you said {word}"));
    }
    for target in [
        format!("10.0.2.2 {other_port}"),
        format!("10.0.2.2 {port}"),
        "10.0.2.3 53".to_owned(),
        "10.0.2.100 22".to_owned(),
    ] {
        assert!(fails(&mut host, &format!("echo | nc -w 3 {target}")), "{target} was reached");
    }
    assert!(fails(&mut host, "nc -w 3 1.1.1.1 80 </dev/null"));
}

#[test]
fn lab_a_host_has_its_own_files_and_disks() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    std::fs::write(&shared, [b"shared".as_slice(), &[0; 4090]].concat()).unwrap();
    let image = Image::build(&spec()).unwrap();
    let mut host_spec = HostSpec::new("own", &image);
    host_spec.files.push(HostFile::data("/etc/portcullis/agent.toml", "host = \"own\"\n"));
    host_spec.files.push(HostFile::program("/etc/portcullis/start", "#!/bin/sh\necho started >/run/started\n"));
    host_spec.disks.push(Disk { image: shared, read_only: true });
    let mut host = boot(host_spec);
    assert_eq!(text(&mut host, "cat /etc/portcullis/agent.toml"), "host = \"own\"");
    assert_eq!(text(&mut host, "head -c 6 /dev/vdc"), "shared");
    assert!(fails(&mut host, "echo other >/dev/vdc"));
    assert_eq!(
        text(&mut host, "for i in 1 2 3 4 5; do [ -e /run/started ] || sleep 1; done; cat /run/started"),
        "started"
    );
    // A command that does not end is ended, and the host goes on answering.
    assert_ne!(host.run("sleep 1000", Duration::from_secs(2)).unwrap().status, 0);
    assert_eq!(text(&mut host, "echo still here"), "still here");

    let (pid, host_dir) = (host.pid(), host.dir().to_owned());
    drop(host);
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
    assert!(!host_dir.exists());
}

#[test]
fn lab_an_initrd_that_cannot_close_the_ways_does_not_start_the_host() {
    let policy = Variant::Initrd { path: "/etc/ima-policy".to_owned(), contents: b"measure func=NONSENSE\n".to_vec() };
    let image = Image::build(&spec().with(policy)).unwrap();
    match Host::boot(HostSpec::new("broken", &image)) {
        Err(LabError::Ended { problem, console, .. }) => {
            assert!(problem.contains("FATAL"), "{problem}");
            assert!(!console.contains("host: up"), "{console}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the host started"),
    }
}

#[test]
fn lab_ctrl_c_ends_a_host_by_hand_and_leaves_nothing() {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_portcullis-lab"))
        .args(["host", "--name", "by-hand"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The firmware's first sign of life on the console.
    let mut byte = [0];
    lab.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", lab.id())).unwrap()
        + &children_of_threads(lab.id());
    let children: BTreeSet<&str> = children.split_whitespace().collect();
    assert!(children.len() >= 2, "QEMU and swtpm should run: {children:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.id().cast_signed()), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    let status = lab.wait().unwrap();
    assert!(status.success(), "{status}");
    for child in children {
        assert!(!Path::new("/proc").join(child).exists(), "{child} still runs");
    }
    let base = portcullis_firmware_fixtures::workdir::scratch_base().unwrap();
    let prefix = format!("{}-", lab.id());
    let left: Vec<_> = std::fs::read_dir(base)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn children_of_threads(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()).collect()
}
