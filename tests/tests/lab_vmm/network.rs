//! A card of the guest on a tap of the host: real sockets through it.

use portcullis_vmm::config::{NetworkInterface, VmConfig};

use crate::harness::{Check, Lab, all};
use crate::stock_guest;

/// The VM that most checks share.
const VM: &str = "net";
/// The host's address on the tap, and the guest's.
const HOST: &str = "192.168.77.1";
const GUEST: &str = "192.168.77.2";
/// Longest frame of an Ethernet with the usual MTU, without its checksum.
const LONGEST_FRAME: u64 = 1514;
/// The file that is sent back and forth, in MiB.
const BULK_MIB: u64 = 8;

/// Bits of the virtio network card's features (virtio 1.2, section 5.1.3).
const OFFLOADS: [(usize, &str); 6] = [
    (0, "checksums of what is sent"),
    (1, "checksums of what is received"),
    (7, "TCP segments received"),
    (8, "TCP segments received over IPv6"),
    (11, "TCP segments sent"),
    (12, "TCP segments sent over IPv6"),
];

fn config() -> VmConfig {
    let mut config = stock_guest::config();
    let mut card = NetworkInterface::new("net0", "tap0");
    card.guest_mac = Some("06:00:c0:a8:4d:02".parse().unwrap());
    config.network_interfaces = vec![card];
    config
}

/// The guest, with its network up.
fn guest(lab: &mut Lab) {
    lab.ensure(VM, &config());
    lab.guest(VM, &format!("ip address replace {GUEST}/24 dev eth0; ip link set eth0 up"));
}

fn sha256(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

fn ping_goes_both_ways(lab: &mut Lab) {
    guest(lab);
    let text = lab.guest(VM, &format!("ping -c 3 {HOST}"));
    assert!(text.contains("3 packets received"), "{text}");
    let text = lab.must(&format!("ping -c 3 {GUEST}"));
    assert!(text.contains("3 packets received"), "{text}");
}

fn offloads_are_agreed_on(lab: &mut Lab) {
    guest(lab);
    let features = lab.guest(VM, "cat /sys/class/net/eth0/device/features");
    for (bit, what) in OFFLOADS {
        assert_eq!(features.as_bytes().get(bit), Some(&b'1'), "{what}: {features}");
    }
}

/// Sends the file in one direction, and asserts that it arrives whole and in segments larger than a frame.
fn bulk(lab: &mut Lab, to_guest: bool) {
    let sum = lab.must("sha256sum /run/bulk");
    let way = if to_guest { "rx" } else { "tx" };
    let counters = ["bytes_count", "packets_count"].map(|counter| format!("{way}_{counter}"));
    let before = counters.each_ref().map(|counter| lab.counted(VM, "net_net0", counter));
    let from_host = "TCP-LISTEN:6000,reuseaddr";
    let connect = format!("TCP:{HOST}:6000,retry=100,interval=0.1");
    let arrived = if to_guest {
        lab.must(&format!("setsid socat -u FILE:/run/bulk {from_host} >/run/socat 2>&1 </dev/null &"));
        lab.guest(VM, &format!("socat -u {connect} CREATE:/run/bulk && sha256sum /run/bulk"))
    } else {
        let server = format!("socat -u {from_host} CREATE:/run/back >/run/socat 2>&1; touch /run/back.done");
        lab.must(&format!("rm -f /run/back*; setsid sh -c '{server}' </dev/null >/dev/null 2>&1 &"));
        lab.guest(VM, &format!("socat -u FILE:/run/bulk {connect}"));
        lab.wait_until(VM, "test -e /run/back.done");
        lab.must("sha256sum /run/back")
    };
    assert_eq!(sha256(&arrived), sha256(&sum), "{}", lab.run("cat /run/socat").text());
    let after = counters.each_ref().map(|counter| lab.counted(VM, "net_net0", counter));
    let (bytes, frames) = (after[0] - before[0], after[1] - before[1]);
    assert!(bytes > BULK_MIB << 20, "{bytes} bytes");
    eprintln!("{way}: {bytes} bytes in {frames} frames");
    assert!(frames * LONGEST_FRAME < bytes, "{bytes} bytes in {frames} frames: no segmentation was left to the host");
}

fn tcp_carries_a_file_both_ways_in_large_segments(lab: &mut Lab) {
    guest(lab);
    lab.must(&format!("head -c {} /dev/urandom >/run/bulk", BULK_MIB << 20));
    bulk(lab, true);
    bulk(lab, false);
}

#[test]
fn lab_vmm_has_a_network() {
    let checks: [Check; 3] = [
        ("ping goes both ways", ping_goes_both_ways),
        ("offloads are agreed on", offloads_are_agreed_on),
        ("TCP carries a file both ways in large segments", tcp_carries_a_file_both_ways_in_large_segments),
    ];
    let mut lab = stock_guest::lab();
    lab.must(&format!("tunctl -t tap0 && ip address add {HOST}/24 dev tap0 && ip link set tap0 up"));
    all(&mut lab, &checks);
}
