//! A card of the guest on a tap of the host: real sockets through it.

use portcullis_vmm::log::EndReason;
use serde_json::json;

use crate::harness::{Check, Lab};
use crate::stock_guest::{self, BULK_MIB, CARD, GUEST, HOST, VM, sha256};

/// Longest frame of an Ethernet with the usual MTU, without its checksum.
const LONGEST_FRAME: u64 = 1514;
/// The group of the card's metrics.
const METRICS: &str = "net_net0";
/// Where the metadata service is.
const SERVICE: &str = "169.254.169.254";

/// Bits of the virtio network card's features (virtio 1.2, section 5.1.3).
const OFFLOADS: [(usize, &str); 6] = [
    (0, "checksums of what is sent"),
    (1, "checksums of what is received"),
    (7, "TCP segments received"),
    (8, "TCP segments received over IPv6"),
    (11, "TCP segments sent"),
    (12, "TCP segments sent over IPv6"),
];

pub const CHECKS: [Check; 10] = [
    ("network: ping goes both ways", ping_goes_both_ways),
    ("network: offloads are agreed on", offloads_are_agreed_on),
    ("network: TCP carries a file both ways in large segments", tcp_carries_a_file_both_ways_in_large_segments),
    ("network: TCP over IPv6 too", tcp_over_ipv6_too),
    ("network: datagrams of several frames and their answers", datagrams_of_several_frames_and_their_answers),
    ("network: limits hold frames back and lose none", limits_hold_frames_back_and_lose_none),
    ("network: the metadata service asks for a session", the_metadata_service_asks_for_a_session),
    ("network: a pause in the middle of a transfer", a_pause_in_the_middle_of_a_transfer),
    ("network: a tap has one VM, and none after kill -9", a_tap_has_one_vm_and_none_after_kill_9),
    ("network: a reset with traffic in flight", a_reset_with_traffic_in_flight),
];

fn ping_goes_both_ways(lab: &mut Lab) {
    stock_guest::ensure(lab);
    let text = lab.guest(VM, &format!("ping -c 3 {HOST}"));
    assert!(text.contains("3 packets received"), "{text}");
    let text = lab.must(&format!("ping -c 3 {GUEST}"));
    assert!(text.contains("3 packets received"), "{text}");
}

fn offloads_are_agreed_on(lab: &mut Lab) {
    stock_guest::ensure(lab);
    let features = lab.guest(VM, "cat /sys/class/net/eth0/device/features");
    for (bit, what) in OFFLOADS {
        assert_eq!(features.as_bytes().get(bit), Some(&b'1'), "{what}: {features}");
    }
}

/// Bytes and frames that the card has carried in one direction, `rx` or `tx`.
fn carried(lab: &mut Lab, way: &str) -> (u64, u64) {
    let mut count = |what: &str| lab.counted(VM, METRICS, &format!("{way}_{what}_count"));
    (count("bytes"), count("packets"))
}

/// Sends the file from host to guest and asserts that it arrives whole. `version` is that of the Internet Protocol.
fn fetch(lab: &mut Lab, version: u8, host: &str) {
    lab.background(&format!("socat -u FILE:/run/bulk TCP{version}-LISTEN:6000,reuseaddr"));
    let connect = format!("TCP{version}:{host}:6000,retry=100,interval=0.1");
    let arrived = lab.guest(VM, &format!("socat -u {connect} CREATE:/run/bulk && sha256sum /run/bulk"));
    assert_eq!(sha256(&arrived), sha256(&lab.must("sha256sum /run/bulk")));
}

/// Waits on the host for a connection, whose bytes go to `/run/back`.
fn await_bulk(lab: &mut Lab, version: u8) {
    lab.must("rm -f /run/back /run/back.done");
    lab.background(&format!("socat -u TCP{version}-LISTEN:6001,reuseaddr CREATE:/run/back; touch /run/back.done"));
}

/// The guest's end of [`await_bulk`].
fn send_bulk(version: u8, host: &str) -> String {
    format!("socat -u FILE:/run/bulk TCP{version}:{host}:6001,retry=100,interval=0.1")
}

fn expect_bulk(lab: &mut Lab) {
    lab.wait_until(VM, "test -e /run/back.done");
    lab.must("cmp /run/bulk /run/back");
}

/// Gives the guest the file, if a check before has not.
fn ensure_bulk(lab: &mut Lab) {
    stock_guest::ensure(lab);
    if lab.in_guest(VM, "test -e /run/bulk").status != 0 {
        fetch(lab, 4, HOST);
    }
}

fn expect_large_frames(way: &str, before: (u64, u64), after: (u64, u64)) {
    let (bytes, frames) = (after.0 - before.0, after.1 - before.1);
    assert!(bytes > BULK_MIB << 20, "{way}: {bytes} bytes");
    assert!(frames * LONGEST_FRAME < bytes, "{way}: {bytes} bytes in {frames} frames: nothing was left to the other");
}

fn tcp_carries_a_file_both_ways_in_large_segments(lab: &mut Lab) {
    stock_guest::ensure(lab);
    let before = carried(lab, "rx");
    fetch(lab, 4, HOST);
    let after = carried(lab, "rx");
    expect_large_frames("received", before, after);

    let before = carried(lab, "tx");
    await_bulk(lab, 4);
    lab.guest(VM, &send_bulk(4, HOST));
    expect_bulk(lab);
    let after = carried(lab, "tx");
    expect_large_frames("sent", before, after);
    for counter in ["tx_fails", "rx_fails", "tx_malformed_frames", "tap_write_fails", "tap_read_fails"] {
        assert_eq!(lab.counted(VM, METRICS, counter), 0, "{counter}");
    }
}

fn tcp_over_ipv6_too(lab: &mut Lab) {
    ensure_bulk(lab);
    // Without the search for doubles, which takes its time.
    let address = |card: &str, number: u8| {
        format!("echo 0 >/proc/sys/net/ipv6/conf/{card}/accept_dad; ip address replace fd00:77::{number}/64 dev {card}")
    };
    lab.must(&address("tap0", 1));
    lab.guest(VM, &address("eth0", 2));
    let before = carried(lab, "tx");
    await_bulk(lab, 6);
    lab.guest(VM, &send_bulk(6, "[fd00:77::1]"));
    expect_bulk(lab);
    let after = carried(lab, "tx");
    expect_large_frames("sent", before, after);
}

fn datagrams_of_several_frames_and_their_answers(lab: &mut Lab) {
    ensure_bulk(lab);
    lab.must("head -c 8000 /run/bulk >/run/datagram");
    lab.background("socat -b 9000 UDP4-RECVFROM:6002,reuseaddr SYSTEM:cat; touch /run/datagram.done");
    lab.wait_until(VM, "netstat -uln | grep -q :6002");
    // The server answers one datagram with the same, and the guest's program ends when it has all of it. One write is one
    // datagram.
    let back = lab.guest(
        VM,
        &format!(
            "head -c 8000 /run/bulk >/run/datagram; rm -f /run/answer; \
             socat -b 9000 -t 50 UDP4:{HOST}:6002 SYSTEM:\"dd if=/run/datagram bs=8000 2>/dev/null; head -c 8000 >/run/answer\"; \
             cmp /run/datagram /run/answer; sha256sum /run/answer"
        ),
    );
    assert_eq!(sha256(&back), sha256(&lab.must("sha256sum /run/datagram")));
}

fn limit(lab: &mut Lab, way: &str, size: u64, refill_ms: u64) {
    let bucket = json!({ "bandwidth": { "size": size, "refill_time": refill_ms } });
    let update = json!({ "iface_id": CARD, format!("{way}_rate_limiter"): bucket });
    lab.change(VM, "PATCH", &format!("/network-interfaces/{CARD}"), &update);
}

fn limits_hold_frames_back_and_lose_none(lab: &mut Lab) {
    ensure_bulk(lab);
    for way in ["rx", "tx"] {
        let transfer = |lab: &mut Lab| {
            let throttled = format!("{way}_rate_limiter_throttled");
            let before = lab.counted(VM, METRICS, &throttled);
            if way == "rx" {
                fetch(lab, 4, HOST);
            } else {
                await_bulk(lab, 4);
                lab.guest(VM, &send_bulk(4, HOST));
                expect_bulk(lab);
            }
            lab.counted(VM, METRICS, &throttled) - before
        };
        // Of much less than what one segment may have: a busy machine sends little in all, but a few segments at a time.
        limit(lab, way, 4000, 4);
        let limited = transfer(lab);
        limit(lab, way, 0, 0);
        let free = transfer(lab);
        // How often depends on how fast the machine is.
        assert!(limited > 0 && free == 0, "{way}: held back {limited} times with a limit, {free} without");
    }
}

fn the_metadata_service_asks_for_a_session(lab: &mut Lab) {
    stock_guest::ensure(lab);
    lab.change(VM, "PUT", "/mmds", &json!({ "latest": { "meta-data": { "tenant": "a tenant's name" } } }));
    lab.guest(VM, &format!("ip route replace {SERVICE} dev eth0"));
    let url = format!("http://{SERVICE}/latest/meta-data/tenant");
    let without = lab.in_guest(VM, &format!("wget -q -O - {url}"));
    assert_ne!(without.status, 0, "{without:?}");
    assert!(without.text.contains("401"), "{without:?}");
    let ask = "PUT /latest/api/token HTTP/1.1\\r\\nX-metadata-token-ttl-seconds: 60\\r\\n\\r\\n";
    let answer = lab.guest(VM, &format!("printf '{ask}' | socat -t 20 - TCP:{SERVICE}:80 | tr -d '\\r'"));
    let token = answer.split_once("\n\n").map(|(_, token)| token.trim()).unwrap_or_default();
    assert!(answer.starts_with("HTTP/1.1 200") && token.len() > 20, "{answer}");
    let text = lab.guest(VM, &format!("wget -q -O - --header 'X-metadata-token: {token}' {url}"));
    assert_eq!(text, "a tenant's name");
    let wrong = lab.in_guest(VM, &format!("wget -q -O - --header 'X-metadata-token: {token}x' {url}"));
    assert_ne!(wrong.status, 0, "{wrong:?}");
}

fn a_pause_in_the_middle_of_a_transfer(lab: &mut Lab) {
    ensure_bulk(lab);
    // Two minutes for the whole, if it is left alone.
    limit(lab, "tx", 65_536, 1000);
    await_bulk(lab, 4);
    lab.guest_background(VM, &send_bulk(4, HOST));
    lab.wait_until(VM, "test $(stat -c %s /run/back) -gt 100000");
    lab.pause(VM);
    let before = carried(lab, "tx");
    lab.must("ping -c 2 -W 1 192.168.77.2 >/dev/null; test ! -e /run/back.done");
    assert_eq!(carried(lab, "tx"), before, "a paused VM sends");
    lab.resume(VM);
    limit(lab, "tx", 0, 0);
    expect_bulk(lab);
}

fn a_tap_has_one_vm_and_none_after_kill_9(lab: &mut Lab) {
    stock_guest::ensure(lab);
    lab.start("other", &stock_guest::config("tap0"));
    let other = lab.ended("other");
    assert_eq!(other.code, 3, "{other:?}");
    assert!(other.errors.contains("the tap 'tap0' is in use"), "{other:?}");
    lab.guest_background(VM, &format!("ping -A {HOST} >/dev/null"));
    lab.background(&format!("timeout 50 ping -A {GUEST}"));
    lab.signal(VM, "KILL");
    lab.wait_until(VM, &format!("test -e /run/vm/{VM}/code"));
    // What it has sent meanwhile comes all at once, and would fill the socket on which the guest waits for its answer.
    lab.must("killall ping");
    // A VM that takes the same tap at once.
    ping_goes_both_ways(lab);
}

fn a_reset_with_traffic_in_flight(lab: &mut Lab) {
    stock_guest::ensure(lab);
    lab.background(&format!("timeout 50 ping -A {GUEST}"));
    lab.background("socat -u /dev/zero TCP4-LISTEN:6003,reuseaddr");
    lab.guest_background(VM, &format!("socat -u TCP:{HOST}:6003,retry=100,interval=0.1 CREATE:/dev/null"));
    let before = carried(lab, "rx").0;
    while carried(lab, "rx").0 < before + (1 << 20) {}
    // At once, in the middle of whatever is under way. Linux 6.1.192 would not always come to an orderly end: its
    // `virtio_dev_shutdown` breaks the queues, and `virtnet_poll` then waits for ever for what the card has given back.
    lab.must(&format!("echo '0 {}' >/run/vm/{VM}/in", hex::encode("echo b >/proc/sysrq-trigger")));
    lab.ended(VM).expect_clean(EndReason::Reset);
    // Nobody holds it: it can be taken away.
    lab.must("tunctl -d tap0");
}
