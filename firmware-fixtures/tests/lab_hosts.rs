//! Hosts of the lab, booted.

use std::time::Duration;

use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec};

const SHORT: Duration = Duration::from_secs(20);

#[test]
fn a_secure_boot_host_starts_measured() {
    let image = Image::build(&ImageSpec::default()).unwrap();
    let start = std::time::Instant::now();
    let mut host = Host::boot(HostSpec::new("one", &image)).unwrap();
    eprintln!("up after {:.1} s", start.elapsed().as_secs_f64());
    for command in [
        "uname -a; cat /proc/cmdline /sys/kernel/security/lockdown",
        "dmesg | grep -iE 'secure ?boot|ima|tpm|lockdown|kvm'",
        "cat /sys/kernel/security/ima/ascii_runtime_measurements",
        "ls -l /dev/kvm /dev/tpm* /run/portcullis; lsmod; mount; cat /proc/sys/kernel/kexec_load_disabled; ls -l /sys/kernel/security/*",
    ] {
        let output = host.run(command, SHORT).unwrap();
        eprintln!("== {command} ({})\n{}\n{}", output.status, output.text(), output.error_text());
    }
    let log = host.read_file("/sys/kernel/security/tpm0/binary_bios_measurements").unwrap();
    std::fs::write("/tmp/ft/sb.log", &log).unwrap();
    eprintln!("{}", host.console());
    panic!("look");
}
