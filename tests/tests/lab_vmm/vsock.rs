//! Sockets between guest and host, by Firecracker's unix sockets: `CONNECT port` towards the guest, `vsock_PORT` from it.

use crate::harness::{Check, Lab};
use crate::stock_guest::{self, VM, sha256};

/// Address of the host (virtio 1.2, section 5.10.4).
const HOST: u32 = 2;
/// Connections that are open at once.
const MANY: usize = 16;

pub const CHECKS: [Check; 6] = [
    ("vsock: the host's bytes arrive, and the half that is left carries the answer", the_host_connects),
    ("vsock: the guest's bytes arrive, and the half that is left carries the answer", the_guest_connects),
    ("vsock: a file goes both ways at once", a_file_goes_both_ways_at_once),
    ("vsock: a port where nobody listens refuses", a_port_where_nobody_listens_refuses),
    ("vsock: many connections are open at once", many_connections_are_open_at_once),
    ("vsock: a socket that is there already is not taken", a_socket_that_is_there_already_is_not_taken),
];

/// The guest, with the file and with servers on ports 5000 (checksums) and 5001 (echo).
fn ensure(lab: &mut Lab) {
    stock_guest::ensure(lab);
    if lab.in_guest(VM, "test -e /run/servers").status == 0 {
        return;
    }
    lab.guest_background(VM, "socat -t 50 VSOCK-LISTEN:5000,fork SYSTEM:sha256sum");
    lab.guest_background(VM, "socat -t 50 VSOCK-LISTEN:5001,fork,backlog=64 SYSTEM:cat");
    lab.background(&format!("cd /run/vm/{VM}; socat -t 50 UNIX-LISTEN:vsock_7000,fork SYSTEM:sha256sum"));
    lab.background(&format!("cd /run/vm/{VM}; socat -t 50 UNIX-LISTEN:vsock_7001,fork SYSTEM:cat"));
    lab.wait_until(VM, &format!("test -S /run/vm/{VM}/vsock_7000 && test -S /run/vm/{VM}/vsock_7001"));
    // The guest's servers listen a moment after they were started.
    for port in [5000, 5001] {
        let connect = connect(port, "true");
        lab.wait_until(VM, &format!("{connect} | grep -q OK"));
    }
    lab.guest(VM, "touch /run/servers");
}

/// A connection to a port of the guest, into which the host's command writes.
fn connect(port: u32, command: &str) -> String {
    format!("(echo CONNECT {port}; {command}) | socat -t 50 - UNIX-CONNECT:/run/vm/{VM}/vsock")
}

fn the_host_connects(lab: &mut Lab) {
    ensure(lab);
    // The checksum comes only when the end of the file has come.
    let answer = lab.must(&connect(5000, "cat /run/bulk"));
    let (ok, sum) = answer.split_once('\n').unwrap_or_default();
    assert!(ok.strip_prefix("OK ").is_some_and(|port| port.parse::<u32>().is_ok()), "{answer}");
    assert_eq!(sha256(sum), sha256(&lab.must("sha256sum /run/bulk")));
}

fn the_guest_connects(lab: &mut Lab) {
    ensure(lab);
    lab.guest(VM, "head -c 8388608 /dev/urandom >/run/own");
    let own = lab.guest(VM, "sha256sum /run/own");
    let answer = lab.guest(VM, &format!("socat -t 50 - VSOCK-CONNECT:{HOST}:7000 </run/own"));
    assert_eq!(sha256(&answer), sha256(&own));
}

fn a_file_goes_both_ways_at_once(lab: &mut Lab) {
    ensure(lab);
    let back = lab.must(&format!("{} | tail -c 8388608 | sha256sum", connect(5001, "cat /run/bulk")));
    assert_eq!(sha256(&back), sha256(&lab.must("sha256sum /run/bulk")));
    lab.guest(VM, "test -e /run/own || head -c 8388608 /dev/urandom >/run/own");
    lab.guest(VM, &format!("socat -t 50 - VSOCK-CONNECT:{HOST}:7001 </run/own >/run/echo; cmp /run/own /run/echo"));
    assert_eq!(lab.counted(VM, "vsock", "tx_write_fails"), 0);
}

fn a_port_where_nobody_listens_refuses(lab: &mut Lab) {
    ensure(lab);
    assert_eq!(lab.run(&connect(5999, "true")).text(), "");
    assert!(lab.must(&connect(5000, "true")).starts_with("OK "));
    let refused = lab.in_guest(VM, &format!("socat -u /dev/null VSOCK-CONNECT:{HOST}:7999"));
    assert!(refused.status != 0 && refused.text.contains("Connection reset by peer"), "{refused:?}");
    lab.guest(VM, &format!("socat -u /dev/null VSOCK-CONNECT:{HOST}:7000"));
}

fn many_connections_are_open_at_once(lab: &mut Lab) {
    ensure(lab);
    // Nobody gets past the gate before somebody opens it for writing.
    lab.must("rm -rf /run/many; mkdir -p /run/many/heard /run/many/done; mkfifo /run/many/gate");
    for number in 0..MANY {
        let connect = connect(5001, &format!("echo this is {number}; cat /run/many/gate"));
        lab.background(&format!("{connect} >/run/many/heard/{number}; touch /run/many/done/{number}"));
        // One after the other: a guest has two seconds to take a connection, which is little on an emulated machine.
        lab.wait_until(VM, &format!("grep -q this /run/many/heard/{number}"));
    }
    assert_eq!(lab.must("ls /run/many/done"), "");
    let heard = lab.must("cd /run/many/heard; grep this * | sort -n");
    let expected: Vec<String> = (0..MANY).map(|number| format!("{number}:this is {number}")).collect();
    assert_eq!(heard.lines().collect::<Vec<_>>(), expected);
    lab.must(": >/run/many/gate");
    lab.wait_until(VM, &format!("test $(ls /run/many/done | wc -l) = {MANY}"));
}

fn a_socket_that_is_there_already_is_not_taken(lab: &mut Lab) {
    ensure(lab);
    let mut config = stock_guest::config("tap0");
    config.network_interfaces.clear();
    config.vsock.as_mut().unwrap().uds_path = format!("/run/vm/{VM}/vsock").into();
    lab.must("rm -rf /run/vm/second");
    let second = lab.boot("second", &config);
    assert_eq!(second.code, 2, "{second:?}");
    assert!(second.errors.contains("vsock exists already; remove it"), "{second:?}");
    assert!(lab.must(&connect(5000, "true")).starts_with("OK "), "the first has lost its socket");
}
