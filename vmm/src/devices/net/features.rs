//! What card and driver can agree on (virtio 1.2, section 5.1.3), and what follows for the tap and for frames.

use libc::{TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
};

/// What the card offers whatever its configuration.
const ALWAYS: [u32; 10] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
];

/// Feature bits, of the device's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features(pub(super) u64);

impl Features {
    /// What a card offers.
    pub(super) fn offered(has_mtu: bool) -> Self {
        let of = |feature: u32, there: bool| u64::from(there) << feature;
        let always = ALWAYS.into_iter().fold(0, |bits, feature| bits | of(feature, true));
        Self(always | of(VIRTIO_NET_F_MTU, has_mtu))
    }

    fn has(self, feature: u32) -> bool {
        self.0 & (1 << feature) != 0
    }

    /// Whether a frame may be spread over several buffers of the driver's.
    pub(super) fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Whether the driver takes packets that are larger than the link's, of up to 64 KiB.
    pub(super) fn large_receive(self) -> bool {
        self.tap_offload() & !TUN_F_CSUM != 0
    }

    /// What the tap may leave undone in frames that the guest receives: the flags of `TUNSETOFFLOAD`.
    pub(super) fn tap_offload(self) -> u32 {
        // Segments need checksums, so all others hang on this one (section 5.1.3.1).
        if !self.has(VIRTIO_NET_F_GUEST_CSUM) {
            return 0;
        }
        let pairs = [
            (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO),
        ];
        pairs.into_iter().filter(|(feature, _)| self.has(*feature)).fold(TUN_F_CSUM, |flags, (_, flag)| flags | flag)
    }

    /// Whether a driver with these features may ask in a frame's header (section 5.1.6) for what it asks for: flags
    /// and kind of segmentation.
    pub(super) fn allow(self, flags: u8, segmentation: u8) -> bool {
        if u32::from(flags) & !VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            return false;
        }
        let checksum = flags != 0;
        if checksum && !self.has(VIRTIO_NET_F_CSUM) {
            return false;
        }
        let feature = match u32::from(segmentation) {
            VIRTIO_NET_HDR_GSO_NONE => return true,
            VIRTIO_NET_HDR_GSO_TCPV4 => VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_HDR_GSO_TCPV6 => VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_HDR_GSO_UDP => VIRTIO_NET_F_HOST_UFO,
            _ => return false,
        };
        checksum && self.has(feature)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn features(list: &[u32]) -> Features {
        Features(list.iter().fold(0, |bits, feature| bits | 1 << feature))
    }

    #[test]
    fn the_tap_leaves_undone_what_the_driver_takes() {
        let csum = VIRTIO_NET_F_GUEST_CSUM;
        assert_eq!(features(&[]).tap_offload(), 0);
        assert_eq!(features(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_UFO]).tap_offload(), 0, "without checksums");
        assert_eq!(features(&[csum]).tap_offload(), TUN_F_CSUM);
        assert_eq!(features(&[csum, VIRTIO_NET_F_GUEST_TSO4]).tap_offload(), TUN_F_CSUM | TUN_F_TSO4);
        assert_eq!(features(&[csum, VIRTIO_NET_F_GUEST_TSO6]).tap_offload(), TUN_F_CSUM | TUN_F_TSO6);
        assert_eq!(features(&[csum, VIRTIO_NET_F_GUEST_UFO]).tap_offload(), TUN_F_CSUM | TUN_F_UFO);
        // What the driver does to frames that it sends does not concern what it receives.
        assert_eq!(features(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4]).tap_offload(), 0);
        assert!(!features(&[csum]).large_receive() && features(&[csum, VIRTIO_NET_F_GUEST_TSO6]).large_receive());
    }

    #[test]
    fn an_address_is_always_offered_and_an_mtu_where_there_is_one() {
        assert!(Features::offered(false).has(VIRTIO_NET_F_MAC) && Features::offered(true).has(VIRTIO_NET_F_MAC));
        assert!(!Features::offered(false).has(VIRTIO_NET_F_MTU) && Features::offered(true).has(VIRTIO_NET_F_MTU));
    }

    #[test]
    fn a_frame_asks_only_for_what_was_agreed() {
        let none = features(&[]);
        assert!(none.allow(0, 0) && !none.allow(1, 0) && !none.allow(0, 1) && !none.allow(1, 1));
        let csum = features(&[VIRTIO_NET_F_CSUM]);
        assert!(csum.allow(1, 0) && !csum.allow(1, 1) && !csum.allow(2, 0) && !csum.allow(3, 0));
        let tso4 = features(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4]);
        assert!(tso4.allow(1, 1) && !tso4.allow(1, 4) && !tso4.allow(1, 3));
        assert!(!tso4.allow(0, 1), "segments without checksums");
        let all = Features::offered(true);
        assert!(all.allow(1, 3) && all.allow(1, 4));
        assert!(!all.allow(1, 0x81) && !all.allow(1, 5), "congestion marks and UDP segments are not offered");
    }

    proptest! {
        #[test]
        fn the_kernels_rule_for_flags_holds(bits: u64) {
            // TUNSETOFFLOAD refuses segmentation without checksums.
            let flags = Features(bits).tap_offload();
            prop_assert!(flags == 0 || flags & TUN_F_CSUM != 0);
        }
    }
}
