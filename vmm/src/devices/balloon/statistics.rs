//! What the guest says about its memory (virtio 1.2, section 5.5.6.3), by Firecracker's names.

use serde::Serialize;

/// Bytes of one statistic: a number that says which, and its value.
const ENTRY: usize = 10;
/// Most bytes that are looked at. Linux sends 16 statistics.
pub const MAX_BYTES: usize = 64 * ENTRY;
/// Pages of a MiB.
pub const PAGES_PER_MIB: u32 = 256;

/// What the guest last said. What it did not say is not there.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStatistics {
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes that nobody uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes that can be had without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes of files that can be had again at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages that were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that were not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Times that programs were killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Times that an allocation had to wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Bytes looked at in the background for what could be freed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Bytes looked at by those who wanted memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Bytes freed in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Bytes freed by those who wanted memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

/// The answer to `GET /balloon/statistics`.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct BalloonStatistics {
    /// Pages that the balloon should have.
    pub target_pages: u32,
    /// Pages that it has, as the guest says.
    pub actual_pages: u32,
    /// MiB that it should have.
    pub target_mib: u32,
    /// MiB that it has.
    pub actual_mib: u32,
    /// What the guest says beside.
    #[serde(flatten)]
    pub guest: GuestStatistics,
}

impl GuestStatistics {
    /// Takes what the guest sent over; gives how many entries mean nothing here.
    pub fn update(&mut self, bytes: &[u8]) -> usize {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        let unknown = entries.iter().filter(|entry| !self.set(entry)).count();
        unknown + usize::from(!rest.is_empty())
    }

    fn set(&mut self, entry: &[u8; ENTRY]) -> bool {
        let [t0, t1, value @ ..] = *entry;
        let place = match u16::from_le_bytes([t0, t1]) {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return false,
        };
        *place = Some(u64::from_le_bytes(value));
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn each_statistic_goes_by_firecrackers_name() {
        let mut statistics = GuestStatistics::default();
        let bytes: Vec<u8> = (0..16).flat_map(|tag| entry(tag, 100 + u64::from(tag))).collect();
        assert_eq!(statistics.update(&bytes), 0);
        let names = "swap_in swap_out major_faults minor_faults free_memory total_memory available_memory disk_caches \
                     hugetlb_allocations hugetlb_failures oom_kill alloc_stall async_scan direct_scan async_reclaim \
                     direct_reclaim";
        let all =
            BalloonStatistics { target_pages: 512, actual_pages: 256, target_mib: 2, actual_mib: 1, guest: statistics };
        let json = serde_json::to_value(all).unwrap();
        for (name, value) in names.split_whitespace().zip(100u64..) {
            assert_eq!(json[name], value, "{name}");
        }
        assert_eq!(json["target_pages"], 512);
        assert_eq!(json.as_object().unwrap().len(), 20);
    }

    #[test]
    fn what_was_not_said_is_left_out_and_what_means_nothing_is_counted() {
        let mut statistics = GuestStatistics::default();
        let bytes = [entry(4, 77), entry(16, 1), entry(0xffff, 1), vec![1, 2, 3]].concat();
        assert_eq!(statistics.update(&bytes), 3);
        assert_eq!(serde_json::to_string(&statistics).unwrap(), r#"{"free_memory":77}"#);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..MAX_BYTES)) {
            let mut statistics = GuestStatistics::default();
            prop_assert!(statistics.update(&bytes) <= bytes.len().div_ceil(ENTRY));
        }
    }
}
