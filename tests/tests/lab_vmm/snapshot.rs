//! Snapshots of a stock guest that is at work: what goes on, what is made anew, and what an unfinished one is worth.
//!
//! The VM `origin` is kept in the files of [`KEPT`] while it writes to its disk, sends a file and has a socket open. The
//! checks restore it, each into a VM of its own with a copy of the disk as it was.

use std::fs;

use portcullis_firmware_fixtures::lab::boot_files::{self, BootFiles};
use portcullis_vmm::config::{DriveConfig, VmConfig};
use serde_json::{Value, json};

use crate::harness::{Check, Lab, all};
use crate::stock_guest::{self, CARD, GUEST, HOST, MEM_MIB};

const ORIGIN: &str = "origin";
/// State, memory and disk of `origin`.
const KEPT: &str = "/run/kept";
/// How far the host's clock is put forward between snapshot and restore, in seconds.
const LATER: u64 = 3600;

/// Writes a new number all over one of 32 pieces of the disk, reads it back past the cache, counts, and so on.
const WRITER: &str = "n=0
while [ ! -e /run/stop ]; do
n=$((n+1))
yes $n | head -c 65536 >/run/piece
dd if=/run/piece of=/dev/vda bs=64k seek=$((n%32)) conv=notrunc oflag=direct status=none || echo write $n >>/run/wrong
dd if=/dev/vda bs=64k skip=$((n%32)) count=1 iflag=direct status=none | cmp - /run/piece >>/run/wrong 2>&1
echo $n >/run/new; mv /run/new /run/count
done
touch /run/stopped";

/// Looks whether the last 32 numbers are where they belong.
const VERIFIER: &str = "n=$(cat /run/count)
for i in $(seq $((n-31)) $n); do
yes $i | head -c 65536 >/run/piece
dd if=/dev/vda bs=64k skip=$((i%32)) count=1 iflag=direct status=none | cmp - /run/piece || exit 1
done
test ! -s /run/wrong";

fn config() -> VmConfig {
    let drive = DriveConfig { drive_id: "data".to_owned(), path_on_host: "disk".into(), ..DriveConfig::default() };
    stock_guest::config("tap0").with_drive(drive)
}

/// Ends a VM and takes away what it left.
fn discard(lab: &mut Lab, name: &str) {
    lab.run(&format!("kill -9 $(cat /run/vm/{name}/pid)"));
    lab.wait_until(name, &format!("test ! -e /run/vm/{name} || test -e /run/vm/{name}/code"));
    lab.must(&format!("rm -rf /run/vm/{name}"));
}

fn create(state: &str, memory: &str) -> Value {
    json!({ "snapshot_path": state, "mem_file_path": memory })
}

fn load(dir: &str) -> Value {
    let backend = json!({ "backend_type": "File", "backend_path": format!("{dir}/memory") });
    json!({ "snapshot_path": format!("{dir}/state"), "mem_backend": backend, "resume_vm": true })
}

/// A request to load the files of `dir` with something more in it.
fn load_with(dir: &str, name: &str, value: Value) -> Value {
    let mut request = load(dir);
    request[name] = value;
    request
}

/// Restores the VM of [`KEPT`].
fn restore(lab: &mut Lab, name: &str, request: &Value) {
    discard(lab, name);
    lab.must(&format!("mkdir /run/vm/{name}; cp {KEPT}/disk /run/vm/{name}/disk"));
    lab.start_empty(name);
    lab.change(name, "PUT", "/snapshot/load", request);
}

fn number(lab: &mut Lab, name: &str, command: &str) -> u64 {
    let text = lab.guest(name, command);
    text.split(['.', ' ']).next().unwrap_or_default().parse().expect(command)
}

/// Waits until the writer has counted on.
fn expect_writing(lab: &mut Lab, name: &str) {
    let count = number(lab, name, "cat /run/count");
    lab.wait_in_guest(name, &format!("test $(cat /run/count) -gt {}", count + 3));
}

/// Stops the writer and looks at all that it wrote.
fn expect_good_disk(lab: &mut Lab, name: &str) {
    lab.guest(name, "touch /run/stop");
    lab.wait_in_guest(name, "test -e /run/stopped");
    lab.guest(name, VERIFIER);
}

/// Keeps `origin` in the middle of all its work, and ends it. Done once.
fn keep(lab: &mut Lab) {
    if lab.run(&format!("test -e {KEPT}/complete")).status == 0 {
        return;
    }
    discard(lab, ORIGIN);
    lab.must(&format!("rm -rf {KEPT}; mkdir {KEPT} /run/vm/{ORIGIN}; truncate -s 2M /run/vm/{ORIGIN}/disk"));
    lab.start_with_api(ORIGIN, &config());
    lab.wait_for(ORIGIN, "guest: init");
    lab.guest(ORIGIN, &format!("cat >/run/writer <<'END'\n{WRITER}\nEND"));
    lab.guest_background(ORIGIN, "sh /run/writer");
    lab.guest_background(ORIGIN, "socat -t 50 VSOCK-LISTEN:5000,fork SYSTEM:cat");
    lab.background(&format!("cd /run/vm/{ORIGIN}; socat -u SYSTEM:\"sleep 600\" UNIX-LISTEN:vsock_7000"));
    lab.wait_until(ORIGIN, &format!("test -S /run/vm/{ORIGIN}/vsock_7000"));
    lab.guest_background(ORIGIN, "socat -u VSOCK-CONNECT:2:7000 CREATE:/run/heard; touch /run/socket-ended");
    lab.wait_in_guest(ORIGIN, "test -e /run/heard");
    send_slowly(lab);
    lab.wait_in_guest(ORIGIN, "test $(cat /run/count) -gt 40");
    lab.guest(ORIGIN, "test ! -e /run/socket-ended; cat /proc/uptime >/run/uptime");
    let count = lab.guest(ORIGIN, "cat /run/count");
    let uptime = lab.guest(ORIGIN, "cat /run/uptime");
    lab.pause(ORIGIN);
    lab.must(&format!(
        "test $(stat -c %s /run/back) -lt 8388608; echo {count} >{KEPT}/count; echo {uptime} >{KEPT}/uptime"
    ));
    lab.change(ORIGIN, "PUT", "/snapshot/create", &create(&format!("{KEPT}/state"), &format!("{KEPT}/memory")));
    lab.must(&format!("cp /run/vm/{ORIGIN}/disk {KEPT}/disk; md5sum {KEPT}/memory >{KEPT}/sum; touch {KEPT}/complete"));
    discard(lab, ORIGIN);
}

/// Sends a file to the host at a rate that takes two minutes.
fn send_slowly(lab: &mut Lab) {
    let bucket = json!({ "bandwidth": { "size": 65_536, "refill_time": 1000 } });
    limit(lab, ORIGIN, &bucket);
    lab.must("rm -f /run/back*");
    lab.background("socat -u TCP4-LISTEN:6001,reuseaddr CREATE:/run/back; touch /run/back.done");
    lab.guest(ORIGIN, "head -c 8388608 /dev/urandom >/run/bulk");
    lab.guest_background(ORIGIN, &format!("socat -u FILE:/run/bulk TCP4:{HOST}:6001,retry=100,interval=0.1"));
    lab.wait_until(ORIGIN, "test $(stat -c %s /run/back) -gt 100000");
}

fn limit(lab: &mut Lab, name: &str, bucket: &Value) {
    let update = json!({ "iface_id": CARD, "tx_rate_limiter": bucket });
    lab.change(name, "PATCH", &format!("/network-interfaces/{CARD}"), &update);
}

fn what_was_under_way_goes_on(lab: &mut Lab) {
    keep(lab);
    restore(lab, "second", &load(KEPT));
    let count = number(lab, "second", "cat /run/count");
    let kept: u64 = lab.must(&format!("cat {KEPT}/count")).parse().unwrap();
    // The writer had a moment between the question and the pause.
    assert!(count >= kept, "the counter was {kept}, and is {count}");
    expect_writing(lab, "second");
    expect_good_disk(lab, "second");
    // The same connection, whose other end has seen nothing but a pause.
    limit(lab, "second", &json!({ "bandwidth": { "size": 0, "refill_time": 0 } }));
    lab.wait_until("second", "test -e /run/back.done");
    let sent = lab.guest("second", "sha256sum </run/bulk");
    assert_eq!(lab.must("sha256sum </run/back"), sent);
    let text = lab.must(&format!("ping -c 3 {GUEST}"));
    assert!(text.contains("3 packets received"), "{text}");
}

fn sockets_to_the_host_end_and_new_ones_work(lab: &mut Lab) {
    keep(lab);
    restore(lab, "second", &load(KEPT));
    lab.wait_in_guest("second", "test -e /run/socket-ended");
    let echo = "(echo CONNECT 5000; echo still here) | socat -t 50 - UNIX-CONNECT:/run/vm/second/vsock";
    let answer = lab.must(echo);
    assert!(answer.starts_with("OK ") && answer.ends_with("\nstill here"), "{answer}");
    lab.background("cd /run/vm/second; socat UNIX-LISTEN:vsock_7001 SYSTEM:rev");
    lab.wait_until("second", "test -S /run/vm/second/vsock_7001");
    assert_eq!(lab.guest("second", "echo new | socat -t 50 - VSOCK-CONNECT:2:7001"), "wen");
}

fn the_same_files_give_two_guests_that_differ(lab: &mut Lab) {
    keep(lab);
    lab.must(
        "ip link show tap1 >/dev/null 2>&1 || { tunctl -t tap1; ip address add 192.168.78.1/24 dev tap1; \
              ip link set tap1 up; }",
    );
    restore(lab, "second", &load(KEPT));
    let other_tap = json!([{ "iface_id": CARD, "host_dev_name": "tap1" }]);
    restore(lab, "third", &load_with(KEPT, "network_overrides", other_tap));
    let mut random = Vec::new();
    for (name, address, host) in [("second", GUEST, HOST), ("third", "192.168.78.2", "192.168.78.1")] {
        // More than the driver keeps in store, which is the same in both.
        random.push(lab.guest(name, "head -c 4096 /dev/hwrng | sha256sum"));
        lab.guest(name, &format!("ip address replace {address}/24 dev eth0; ping -c 2 {host}"));
        expect_writing(lab, name);
    }
    assert_ne!(random[0], random[1]);
    for name in ["second", "third"] {
        expect_good_disk(lab, name);
        discard(lab, name);
    }
    // Neither has written into the files that both came from.
    assert_eq!(lab.must(&format!("md5sum {KEPT}/memory")), lab.must(&format!("cat {KEPT}/sum")));
}

/// What the guest's clocks say: seconds since its boot, and of the calendar less the host's.
fn clocks(lab: &mut Lab, name: &str) -> (u64, u64) {
    let up = number(lab, name, "cat /proc/uptime");
    let host: u64 = lab.must("date +%s").parse().unwrap();
    (up, host.abs_diff(number(lab, name, "date +%s")))
}

fn clocks_go_on_or_jump_as_asked(lab: &mut Lab) {
    keep(lab);
    let kept = lab.must(&format!("cut -d. -f1 {KEPT}/uptime")).parse::<u64>().unwrap();
    lab.must(&format!("date -s @$(($(date +%s) + {LATER}))"));
    restore(lab, "second", &load(KEPT));
    let (up, behind) = clocks(lab, "second");
    assert!(up >= kept && up < kept + LATER, "up for {kept} s before, {up} s after");
    assert!(behind >= LATER, "the guest's calendar is only {behind} s behind");
    restore(lab, "second", &load_with(KEPT, "clock_realtime", json!(true)));
    let (up, behind) = clocks(lab, "second");
    assert!(up >= kept + LATER, "up for {kept} s before, {up} s after");
    assert!(behind < LATER / 2, "the guest's calendar is {behind} s beside the host's");
    expect_writing(lab, "second");
    expect_good_disk(lab, "second");
}

fn a_full_disk_leaves_no_snapshot_and_a_good_guest(lab: &mut Lab) {
    keep(lab);
    restore(lab, "second", &load(KEPT));
    lab.must("mkdir -p /run/small; mountpoint -q /run/small || mount -t tmpfs -o size=16m small /run/small");
    let request = create("/run/small/state", "/run/small/memory");
    let fault = lab.refused("second", "PUT", "/snapshot/create", &request);
    assert!(fault.contains("paused"), "{fault}");
    lab.pause("second");
    let fault = lab.refused("second", "PUT", "/snapshot/create", &request);
    assert!(fault.contains("memory") && fault.contains("No space left"), "{fault}");
    assert_eq!(lab.must("ls -A /run/small"), "");
    expect_refused_and_then_loaded(lab, "/run/small", "No such file");
    lab.resume("second");
    expect_writing(lab, "second");
    expect_good_disk(lab, "second");
}

/// Asserts that the files of `dir` are no snapshot, for this reason, and that who was asked to load them takes a good one
/// afterwards.
fn expect_refused_and_then_loaded(lab: &mut Lab, dir: &str, why: &str) {
    discard(lab, "loader");
    lab.must(&format!("mkdir /run/vm/loader; cp {KEPT}/disk /run/vm/loader/disk"));
    lab.start_empty("loader");
    let other_tap = json!([{ "iface_id": CARD, "host_dev_name": "tap1" }]);
    let fault = lab.refused("loader", "PUT", "/snapshot/load", &load_with(dir, "network_overrides", other_tap.clone()));
    assert!(fault.contains(why), "{fault}");
    lab.must("ip link show tap1 >/dev/null 2>&1 || tunctl -t tap1");
    lab.change("loader", "PUT", "/snapshot/load", &load_with(KEPT, "network_overrides", other_tap));
    expect_writing(lab, "loader");
    discard(lab, "loader");
}

fn kill_9_in_the_middle_leaves_no_snapshot(lab: &mut Lab) {
    keep(lab);
    // Over the state of a good snapshot, which must not meet half of the new memory; onto a disk, which takes its time.
    // The memory's file is there too: a new one has no name in the middle, and one could not wait for it.
    lab.must(&format!("rm -rf /root/cut; mkdir /root/cut; cp {KEPT}/state /root/cut; touch /root/cut/memory"));
    restore(lab, "second", &load(KEPT));
    lab.pause("second");
    let mut request = create("/root/cut/state", "/root/cut/memory");
    request["sync_snapshot_files"] = json!(true);
    let text = request.to_string();
    let head = format!("PUT /snapshot/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", text.len());
    lab.host.write_file("/run/cut", format!("{head}{text}").as_bytes()).unwrap();
    lab.must(
        "socat -t 50 - UNIX-CONNECT:/run/vm/second/api </run/cut >/run/cut.answer & \
         until test -s /root/cut/memory && test $(stat -c %b /root/cut/memory) -gt 1000; do :; done; \
         kill -9 $(cat /run/vm/second/pid); wait",
    );
    assert_eq!(lab.must("cat /run/cut.answer; cat /root/cut/state | wc -c"), "0", "it was not in the middle");
    assert_ne!(lab.must("cat /root/cut/memory | head -c 100000 | wc -c"), "0");
    expect_refused_and_then_loaded(lab, "/root/cut", "no snapshot");
    lab.must("rm -r /root/cut");
}

/// Debian's generic kernel has the driver of the VM generation ID, which the cloud kernel lacks.
fn random_numbers_of_restored_guests_part(lab: &mut Lab) {
    let config = VmConfig::new("/mnt/generic").with_initrd("/mnt/plain-initrd").with_mem_mib(MEM_MIB);
    discard(lab, "generic");
    lab.start_with_api("generic", &config.with_boot_args("console=ttyS0 quiet panic=-1 reboot=k"));
    lab.wait_for("generic", "guest: init");
    let forks = "dmesg | grep -c 'crng reseeded due to virtual machine fork' || true";
    lab.wait_in_guest("generic", "dmesg | grep -q 'crng init done'");
    lab.pause("generic");
    lab.must("rm -rf /run/generic; mkdir /run/generic");
    lab.change("generic", "PUT", "/snapshot/create", &create("/run/generic/state", "/run/generic/memory"));
    lab.resume("generic");
    assert_eq!(lab.guest("generic", forks), "0");
    let mut seen = Vec::new();
    for name in ["left", "right"] {
        discard(lab, name);
        lab.start_empty(name);
        lab.change(name, "PUT", "/snapshot/load", &load("/run/generic"));
        lab.wait_in_guest(name, &format!("test $({forks}) = 1"));
        seen.push(lab.guest(name, "head -c 32 /dev/urandom | sha256sum"));
    }
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn lab_vmm_keeps_stock_linux_in_snapshots() {
    let checks: [Check; 7] = [
        ("what was under way goes on", what_was_under_way_goes_on),
        ("sockets to the host end, and new ones work", sockets_to_the_host_end_and_new_ones_work),
        ("the same files give two guests that differ", the_same_files_give_two_guests_that_differ),
        ("clocks go on, or jump, as asked", clocks_go_on_or_jump_as_asked),
        ("a full disk leaves no snapshot and a good guest", a_full_disk_leaves_no_snapshot_and_a_good_guest),
        ("kill -9 in the middle leaves no snapshot", kill_9_in_the_middle_leaves_no_snapshot),
        ("random numbers of restored guests part", random_numbers_of_restored_guests_part),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (generic, initrd) = (dir.path().join("generic"), dir.path().join("plain-initrd"));
    fs::copy(boot_files::generic_kernel().unwrap(), &generic).unwrap();
    fs::write(&initrd, stock_guest::initrd(&BootFiles::fetch().unwrap(), &[])).unwrap();
    all(&mut stock_guest::lab(&[&generic, &initrd]), &checks);
}
