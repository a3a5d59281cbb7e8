use kvm_bindings::kvm_cpuid_entry2;
use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::entropy::{Entropy, EntropyConfig};
use crate::memory;
use crate::snapshot::tests::state;
use crate::vcpu::VcpuState;
use crate::virtio::Slot;

fn file() -> Vec<u8> {
    encode(&state()).unwrap()
}

/// Puts the right checksum over whatever the file says.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = (bytes.len() - HEAD) as u64;
    bytes[12..20].copy_from_slice(&len.to_le_bytes());
    let sum = Head::sum(VERSION, &bytes[HEAD..]);
    bytes[20..HEAD].copy_from_slice(&sum);
    bytes
}

/// The error of a file that must not be accepted.
fn refused(bytes: &[u8]) -> FormatError {
    parse(bytes).err().expect("it was accepted")
}

#[test]
fn what_is_written_is_read_back() {
    let bytes = file();
    assert_eq!(encode(&parse(&bytes).unwrap()).unwrap(), bytes);
    assert_eq!(describe(&bytes[..HEAD]), Ok(VERSION));
}

#[test]
fn every_way_to_be_no_snapshot_has_its_error() {
    let bytes = file();
    let len = bytes.len() as u64;
    assert_eq!(refused(b""), FormatError::NotASnapshot);
    assert_eq!(refused(b"PCLSNAQ\0and more"), FormatError::NotASnapshot);
    assert_eq!(refused(&bytes[..30]), FormatError::Truncated { expected: HEAD as u64, found: 30 });
    assert_eq!(refused(&bytes[..bytes.len() - 1]), FormatError::Truncated { expected: len, found: len - 1 });
    assert_eq!(refused(&[bytes.as_slice(), b"x"].concat()), FormatError::TooLong { expected: len, found: len + 1 });
    assert_eq!(refused(&vec![0; usize::try_from(MAX_FILE).unwrap() + 1]), FormatError::TooBig);
    let mut other = bytes.clone();
    other[8] = u8::try_from(VERSION + 1).unwrap();
    assert_eq!(refused(&other), FormatError::Version(VERSION + 1));
    assert_eq!(describe(&other), Ok(VERSION + 1));
    // With the right checksum, but a state that is none, or that is followed by something.
    assert!(matches!(refused(&seal(bytes[..bytes.len() - 1].to_vec())), FormatError::State(_)));
    assert!(matches!(refused(&seal([bytes.as_slice(), b"x"].concat())), FormatError::State(_)));
    assert!(parse(&seal(bytes)).is_ok());
}

#[test]
fn a_small_file_does_not_stand_for_much_memory() {
    let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let device =
        Slot::new(Box::new(Entropy::new(&EntropyConfig::default()).unwrap()), memory::reserve(2).unwrap(), line)
            .unwrap()
            .save();
    let with = |vcpus: usize, devices: usize, cpuid: usize| {
        let mut state = state();
        state.devices = vec![device.clone(); devices];
        state.vcpus = (0..vcpus).map(|_| VcpuState::default()).collect();
        state.vcpus[0].cpuid = vec![kvm_cpuid_entry2::default(); cpuid];
        parse(&encode(&state).unwrap())
            .map(|state| (state.vcpus.len(), state.devices.len(), state.vcpus[0].cpuid.len()))
    };
    assert_eq!(with(32, 16, 256), Ok((32, 16, 256)));
    for (vcpus, devices, cpuid) in [(33, 16, 256), (32, 17, 256), (32, 16, 257)] {
        assert!(matches!(with(vcpus, devices, cpuid), Err(FormatError::State(_))));
    }
}

#[test]
fn a_length_that_overflows_is_refused() {
    let mut bytes = file();
    bytes[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(refused(&bytes), FormatError::Truncated { .. }));
}

proptest! {
    #[test]
    fn every_flipped_bit_is_found(at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = file();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let error = refused(&bytes);
        match at {
            0..8 => prop_assert_eq!(error, FormatError::NotASnapshot),
            8..12 => prop_assert_ne!(describe(&bytes), Ok(VERSION)),
            12..20 => {
                let cut = matches!(error, FormatError::Truncated { .. } | FormatError::TooLong { .. });
                prop_assert!(cut);
            }
            _ => prop_assert_eq!(error, FormatError::Checksum),
        }
    }

    #[test]
    fn every_shorter_file_is_refused(len in any::<prop::sample::Index>()) {
        let bytes = file();
        prop_assert!(parse(&bytes[..len.index(bytes.len())]).is_err());
    }

    #[test]
    fn any_bytes_under_a_right_checksum_are_read_without_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let head = file()[..HEAD].to_vec();
        let _ = parse(&seal([head, payload].concat()));
    }
}
