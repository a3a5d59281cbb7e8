//! The steps of Firecracker's page "Getting started with Firecracker", with its words: the program's name and arguments,
//! `curl`, and the order of requests. Kernel and root file system are tiny ones instead of those that the page downloads.

use std::process::{Command, Stdio};

use crate::client::{LIMIT, program};
use crate::guest::Guest;
use crate::tap::TestTap;

/// The page's second terminal. `$DIR` and `$TAP_DEV` are this test's.
const STEPS: &str = r#"
set -eu
cd "$DIR"
API_SOCKET="$DIR/firecracker.socket"
LOGFILE="./firecracker.log"
put() {
    curl --fail-with-body -sS -X PUT --unix-socket "${API_SOCKET}" --data "$2" "http://localhost/$1"
}
put logger "{
    \"log_path\": \"${LOGFILE}\",
    \"level\": \"Debug\",
    \"show_level\": true,
    \"show_log_origin\": true
}"
KERNEL="./$(ls vmlinux* | tail -1)"
put boot-source "{
    \"kernel_image_path\": \"${KERNEL}\",
    \"boot_args\": \"console=ttyS0 reboot=k panic=1\"
}"
ROOTFS="./$(ls *.ext4 | tail -1)"
put drives/rootfs "{
    \"drive_id\": \"rootfs\",
    \"path_on_host\": \"${ROOTFS}\",
    \"is_root_device\": true,
    \"is_read_only\": false
}"
FC_MAC="06:00:AC:10:00:02"
put network-interfaces/net1 "{
    \"iface_id\": \"net1\",
    \"guest_mac\": \"$FC_MAC\",
    \"host_dev_name\": \"$TAP_DEV\"
}"
put actions "{
    \"action_type\": \"InstanceStart\"
}"
"#;

#[test]
fn the_page_on_getting_started_works() {
    let (dir, tap) = (tempfile::tempdir().unwrap(), TestTap::new());
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("vmlinux-1"), Guest::new().print("Ubuntu login:").reset().elf()).unwrap();
    std::fs::write(at("ubuntu.ext4"), vec![0; 1 << 20]).unwrap();
    std::os::unix::fs::symlink(std::path::absolute(program().get_program()).unwrap(), at("firecracker")).unwrap();
    // The first terminal.
    let mut firecracker = Command::new(at("firecracker"));
    firecracker.arg("--api-sock").arg(at("firecracker.socket")).arg("--enable-pci").current_dir(dir.path());
    let firecracker = firecracker.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let limit = std::time::Instant::now() + LIMIT;
    while !at("firecracker.socket").exists() && std::time::Instant::now() < limit {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let mut terminal = Command::new("sh");
    terminal.args(["-c", STEPS]).env("DIR", dir.path()).env("TAP_DEV", &tap.name);
    let steps = terminal.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&steps.stdout), String::from_utf8_lossy(&steps.stderr));
    assert!(steps.status.success(), "{said} (this test needs curl)");
    // "Issuing a reboot command inside the guest will gracefully shutdown Firecracker."
    let output = firecracker.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("Ubuntu login:"), "{output:?}");
    let log = std::fs::read_to_string(at("firecracker.log")).unwrap();
    assert!(log.contains(r#""reason":"reset""#), "{log}");
}
