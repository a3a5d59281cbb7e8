//! A network card of a running VM, on a tap of this machine.

use serde_json::{Value, json};

use crate::client::Vmm;
use crate::guest::Guest;
use crate::tap::{TestTap, experiment};
use crate::virtio::{BUFFERS, Descriptor, FIRST, Queue};

const MAC: [u8; 6] = [0x06, 0, 0xac, 0x10, 0, 2];
const PEER: [u8; 6] = [0x06, 0, 0xac, 0x10, 0, 1];
/// Bytes before each frame in the queue, and of a frame.
const HEADER: u32 = 12;
const FRAME: u32 = 60;

/// A guest that sends three frames at once, and says when two and when three of them are gone.
fn sender() -> Guest {
    let [rx, tx] = [0, 1].map(|index| Queue::at(FIRST, index, 8));
    let guest = (1..=3u16).fold(Guest::new().virtio_start(FIRST, 0, &[rx, tx]), |guest, number| {
        let (at, index) = (BUFFERS + u32::from(number) * 0x400, number - 1);
        let descriptor = Descriptor { address: u64::from(at), len: HEADER + FRAME, flags: 0, next: 0 };
        let frame = experiment(PEER, MAC, u8::try_from(number).unwrap(), FRAME as usize);
        let guest = guest.copy_low(at + HEADER, &frame).descriptor(tx.descriptors, u32::from(index), descriptor);
        guest.offer(tx, number, index).notify(tx)
    });
    guest.wait_for16(tx.used_index(), 2).print("two").wait_for16(tx.used_index(), 3).print("three").hang()
}

/// So many frames at once, and in an hour as many again; 0 is no limit.
fn frames(size: u64) -> Value {
    json!({"ops": {"size": size, "refill_time": 3_600_000}})
}

#[test]
fn the_limits_of_a_running_card_are_changed_and_wrong_changes_refused() {
    let tap = TestTap::new();
    let wire = tap.wire();
    let mut vmm = Vmm::new();
    vmm.boot_source(&sender());
    let card = json!({"iface_id": "eth0", "host_dev_name": tap.name, "guest_mac": "06:00:ac:10:00:02",
        "tx_rate_limiter": frames(2)});
    vmm.must("PUT", "/network-interfaces/eth0", &card);
    let free = json!({"iface_id": "eth0", "tx_rate_limiter": frames(0)});
    vmm.refused("PATCH", "/network-interfaces/eth0", Some(&free), "before starting");
    vmm.act("InstanceStart");
    vmm.wait_for("two");

    // What is refused changes nothing: the third frame stays where it is.
    let change = |iface_id: &str, limiter: Value| json!({"iface_id": iface_id, "tx_rate_limiter": limiter});
    let too_long = json!({"ops": {"size": 0, "refill_time": u64::MAX}});
    for (path, body, word) in [
        ("eth1", change("eth1", frames(0)), "eth1"),
        ("eth0", change("eth1", frames(0)), "eth1"),
        ("eth0", change("eth0", too_long), "refill_time"),
        ("eth0", change("eth0", json!({"ops": {"size": 0}})), "refill_time"),
        ("eth0", change("eth0", json!({"ops": {"size": -1, "refill_time": 1}})), "-1"),
        ("eth0", change("eth0", json!({"frames": 0})), "frames"),
        ("eth0", json!({"iface_id": "eth0", "host_dev_name": "other", "tx_rate_limiter": frames(0)}), "host_dev_name"),
    ] {
        vmm.refused("PATCH", &format!("/network-interfaces/{path}"), Some(&body), word);
    }
    let limit = |vmm: &Vmm| vmm.get("/vm/config").1["network-interfaces"][0]["tx_rate_limiter"]["ops"]["size"].clone();
    assert_eq!(limit(&vmm), 2);
    assert!(!vmm.read("output").contains("three"));
    // A limit in the other direction, or in other words, is no limit in this one.
    let other = json!({"iface_id": "eth0", "rx_rate_limiter": frames(5),
        "tx_rate_limiter": {"bandwidth": {"size": 1_000_000, "refill_time": 1000}}});
    vmm.must("PATCH", "/network-interfaces/eth0", &other);
    assert_eq!(limit(&vmm), 2);
    assert!(!vmm.read("output").contains("three"));

    vmm.must("PATCH", "/network-interfaces/eth0", &free);
    vmm.wait_for("three");
    assert_eq!([(); 3].map(|()| wire.receive_experiment()[14]), [1, 2, 3]);
    assert_eq!(limit(&vmm), 0);
    // A card keeps its limits while the VM is paused, and takes others.
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    vmm.must("PATCH", "/network-interfaces/eth0", &change("eth0", frames(7)));
    assert_eq!(limit(&vmm), 7);
}
