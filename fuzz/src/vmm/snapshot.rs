//! The file of a snapshot's state. What it says of vCPUs is KVM's to judge; what it says of devices, the
//! targets of the devices try.

use portcullis_vmm::config::{EntropyConfig, VmConfig};
use portcullis_vmm::devices::entropy::Entropy;
use portcullis_vmm::devices::{acpi_power, i8042, ioapic, serial};
use portcullis_vmm::snapshot::{KvmClock, MAX_FILE, SnapshotLoad, State, encode, parse};
use portcullis_vmm::vcpu::VcpuState;
use portcullis_vmm::virtio::{Slot, SlotState};
use sha2::{Digest, Sha256};
use vmm_sys_util::eventfd::EventFd;

use super::Target;
use super::config::configurations;
use super::{allow, memory};

/// A flag, and a state, under a head whose length and checksum fit; or a whole file.
pub const SNAPSHOT: Target = Target { name: "snapshot", body: snapshot, max_len: 16384, seeds: |_| seeds() };

/// Bytes before the state.
const HEAD: usize = 52;

fn snapshot(bytes: &[u8]) -> bool {
    let Some((flags, rest)) = bytes.split_first() else { return false };
    let file = if flags & 1 == 0 { with_head(rest) } else { rest.to_vec() };
    // For a list, serde reserves what is announced, up to 1 MiB: of vCPUs, and within one of its registers.
    allow(2 << 20);
    let Ok(state) = parse(&file) else { return false };
    // Numbers can be written in more ways than one: what counts is what they say.
    let written = encode(&state).expect("it is no longer than it was");
    let again = parse(&written).expect("what was written can be read");
    assert_eq!(encode(&again).as_ref(), Ok(&written));
    assert!(written.len() as u64 <= MAX_FILE);
    damaged(&file);
    if let Ok(config) = state.config(&load()) {
        config.check().expect("a configuration that was checked");
        assert_eq!(state.vcpus.len(), usize::from(config.machine_config.vcpu_count));
    }
    true
}

/// Panics if a file that was accepted is accepted as another one too.
fn damaged(file: &[u8]) {
    let (state, sum) = (&file[HEAD..], 20);
    assert!(file == with_head(state), "its checksum does not match");
    assert!(parse(&with_head(&[state, &[0]].concat())).is_err(), "something follows the state");
    assert!(parse(&[file, &[0]].concat()).is_err(), "something follows the file");
    let mut other = file.to_vec();
    other[sum] ^= 1;
    assert!(parse(&other).is_err(), "its checksum does not match");
}

fn load() -> SnapshotLoad {
    serde_json::from_str(r#"{"snapshot_path": "s", "mem_file_path": "m"}"#).expect("a request")
}

/// A whole file of this state, as the table of the format says.
fn with_head(state: &[u8]) -> Vec<u8> {
    let begin = [&b"PCLSNAP\0"[..], &3u32.to_le_bytes(), &(state.len() as u64).to_le_bytes()].concat();
    let mut sum = Sha256::new();
    sum.update(&begin);
    sum.update(state);
    [begin.as_slice(), &sum.finalize(), state].concat()
}

/// A device's state, as it is after power-on.
fn device() -> SlotState {
    let line = EventFd::new(libc::EFD_NONBLOCK).expect("an event counter");
    let device = Box::new(Entropy::new(&EntropyConfig::default()).expect("a timer"));
    Slot::new(device, memory::reserve(), line).expect("a slot").save()
}

fn seeds() -> Vec<Vec<u8>> {
    let state = |config: String, vcpus: usize| State {
        vmm: "0.1.0".to_owned(),
        config,
        mem_mib: 128,
        vcpus: (0..vcpus).map(|_| VcpuState::default()).collect(),
        clock: KvmClock::default(),
        ioapic: ioapic::State::default(),
        devices: vec![device()],
        serial: serial::State::default(),
        keyboard: i8042::Controller::default(),
        power: acpi_power::State::default(),
    };
    let whole = String::from_utf8(configurations().swap_remove(0)).expect("text");
    let small = VmConfig::new("vmlinux").to_json().expect("it can be written");
    let mut seeds = Vec::new();
    for (config, vcpus) in [(small.clone(), 0), (small, 1), (whole, 2)] {
        let file = encode(&state(config, vcpus)).expect("it can be written");
        assert_eq!(with_head(&file[HEAD..]), file, "the table of the format");
        seeds.push([&[0], &file[HEAD..]].concat());
        seeds.push([&[1], file.as_slice()].concat());
    }
    seeds
}
