//! What is looked at of a frame that the guest sends.

use super::features::Features;
use super::mac::MacAddress;

/// Bytes before each frame, in queues and on the tap: `virtio_net_hdr_v1` (virtio 1.2, section 5.1.6).
pub(super) const HEADER: usize = 12;
/// [`HEADER`], as a size of guest memory.
pub(super) const HEADER_BYTES: u64 = HEADER as u64;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Largest frame with its header: a packet of 64 KiB.
pub(super) const LARGEST: usize = HEADER + ETHERNET + 0x1_0000;
/// Bytes of a frame's start that the VMM copies before it looks at them: headers up to those of ARP, and of IPv4 up
/// to its addresses. What goes out is the copy; the guest cannot change it after the look.
pub(super) const HEAD: usize = HEADER + ETHERNET + 28;
/// Where the header says how many buffers a received frame fills.
pub(super) const BUFFER_COUNT: u64 = 10;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes out.
    Send,
    /// It is no frame, or asks for what was not agreed on.
    Malformed,
    /// It does not come from the card's own address.
    Spoofed,
}

/// Judges a frame of `len` bytes, its header included, by its first bytes: [`HEAD`] of them, or all if it has fewer.
pub(super) fn judge(head: &[u8], len: usize, features: Features, mac: MacAddress) -> Verdict {
    let [flags, segmentation, ..] = *head else {
        return Verdict::Malformed;
    };
    if !(HEADER + ETHERNET..=LARGEST).contains(&len) || !features.allow(flags, segmentation) {
        return Verdict::Malformed;
    }
    if head.get(HEADER + 6..HEADER + 12) == Some(&mac.bytes()[..]) { Verdict::Send } else { Verdict::Spoofed }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 7]);

    fn frame(source: [u8; 6]) -> Vec<u8> {
        [&[0; HEADER][..], &[0xff; 6], &source, &[0x88, 0xb5], &[0; 28]].concat()
    }

    #[test]
    fn only_the_cards_own_address_is_let_out() {
        let judge = |source| judge(&frame(source), HEAD, Features(0), MAC);
        assert_eq!(judge(MAC.bytes()), Verdict::Send);
        assert_eq!(judge([2, 0, 0, 0, 0, 8]), Verdict::Spoofed);
        assert_eq!(judge([3, 0, 0, 0, 0, 7]), Verdict::Spoofed);
    }

    #[test]
    fn lengths_have_bounds() {
        let judge = |len| judge(&frame(MAC.bytes()), len, Features(0), MAC);
        let found = [0, HEADER + ETHERNET - 1, HEADER + ETHERNET, LARGEST, LARGEST + 1].map(judge);
        let (bad, good) = (Verdict::Malformed, Verdict::Send);
        assert_eq!(found, [bad, bad, good, good, bad]);
    }

    proptest! {
        #[test]
        fn whatever_is_sent_comes_from_the_card(
            head in proptest::collection::vec(any::<u8>(), 0..HEAD), bits: u64, own: bool,
        ) {
            let mut head = head;
            if own && let Some(source) = head.get_mut(HEADER + 6..HEADER + 12) {
                source.copy_from_slice(&MAC.bytes());
            }
            if judge(&head, head.len(), Features(bits), MAC) == Verdict::Send {
                prop_assert_eq!(&head[HEADER + 6..HEADER + 12], &MAC.bytes()[..]);
                prop_assert!(head.len() >= HEADER + ETHERNET && head[0] <= 1);
            }
        }
    }
}
