//! What the guest's `CPUID` answers.
//!
//! The table is what this host's KVM supports, with the topology of this VM put in, and what a tenant must not reach
//! taken out (nested virtualisation, performance counters).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: cores of one package are threads of old software.
const AMD_CMP_LEGACY: u32 = 1 << 1;
const AMD_SVM: u32 = 1 << 2;
/// Performance counter extensions of AMD.
const AMD_PERFCTR: u32 = (1 << 23) | (1 << 24) | (1 << 28);

const TOPOLOGY_LEVEL_THREAD: u32 = 1 << 8;
const TOPOLOGY_LEVEL_CORE: u32 = 2 << 8;

/// The VM's topology: one package, and cores of one thread or two. APIC ids are the vCPUs' numbers: with two threads a
/// core, the lowest bit is the thread's.
#[derive(Clone, Copy)]
struct Topology {
    vcpu: u32,
    vcpus: u32,
    /// Threads of a core.
    threads: u32,
}

impl Topology {
    /// Bits of the APIC id that number the vCPU in its package.
    fn package_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// Those of them that number the thread in its core.
    fn thread_bits(self) -> u32 {
        self.threads.trailing_zeros()
    }

    /// The number of cores less one.
    fn last_core(self) -> u32 {
        (self.vcpus >> self.thread_bits()).saturating_sub(1)
    }

    /// The number of vCPUs less one that share a cache of this level.
    fn sharers(self, level: u32) -> u32 {
        let sharers = if level >= 3 { self.vcpus } else { self.threads };
        sharers.saturating_sub(1)
    }
}

/// Adapts the table that KVM supports to vCPU `vcpu` of `vcpus`. With `smt` and more than one, two of them are a core.
pub fn for_vcpu(
    supported: &CpuId,
    vcpu: u8,
    vcpus: u8,
    smt: bool,
    tsc_deadline: bool,
) -> Result<CpuId, super::VcpuError> {
    let threads = if smt && vcpus > 1 { 2 } else { 1 };
    let topology = Topology { vcpu: u32::from(vcpu), vcpus: u32::from(vcpus), threads };
    let amd = is_amd(supported.as_slice());
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // The extended topology is made anew: KVM hands out the host's.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026))
        .copied()
        .collect();
    for entry in &mut entries {
        adapt(entry, topology, amd, tsc_deadline);
    }
    let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    if highest >= 0xb {
        entries.extend(extended_topology(topology));
    }
    CpuId::from_entries(&entries).map_err(|_| super::VcpuError::Cpuid)
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let vendor = entries.iter().find(|entry| entry.function == 0).map(|e| [e.ebx, e.edx, e.ecx]);
    let is = |name: &[u8; 12]| {
        let words = name.chunks_exact(4).filter_map(|word| word.try_into().ok().map(u32::from_le_bytes));
        vendor.is_some_and(|vendor| words.eq(vendor))
    };
    is(b"AuthenticAMD") || is(b"HygonGenuine")
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, amd: bool, tsc_deadline: bool) {
    let Topology { vcpu, vcpus, threads } = topology;
    let cache_level = (entry.eax >> 5) & 7;
    match entry.function {
        0x1 => {
            // Initial APIC id, number of logical processors; the cache line size in between stays.
            entry.ebx = (entry.ebx & 0xffff) | (vcpus << 16) | (vcpu << 24);
            entry.ecx = (entry.ecx | ECX_HYPERVISOR) & !ECX_VMX;
            set(&mut entry.ecx, ECX_TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, EDX_HTT, vcpus > 1);
        }
        // Intel's caches: the last level is shared by all cores, the others belong to one.
        0x4 if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | (topology.sharers(cache_level) << 14) | (topology.last_core() << 26);
        }
        // Performance counters, and nested virtualisation.
        0xa | 0x8000_000a | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !(AMD_SVM | AMD_PERFCTR);
            set(&mut entry.ecx, AMD_CMP_LEGACY, amd && vcpus > 1);
        }
        // Number of threads of all cores, and how many bits of the APIC id number them.
        0x8000_0008 if amd => entry.ecx = (topology.package_bits() << 12) | (vcpus - 1),
        // AMD's caches, as Intel's leaf 4.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | (topology.sharers(cache_level) << 14);
        }
        // Extended APIC id, core id and threads of a core less one, node 0 of one.
        0x8000_001e => {
            let core = vcpu >> topology.thread_bits();
            (entry.eax, entry.ebx, entry.ecx) = (vcpu, ((threads - 1) << 8) | core, 0);
        }
        _ => {}
    }
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

/// Leaf 0xb: the thread level, the core level, and the empty one that ends the list.
fn extended_topology(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind,
        edx: topology.vcpu,
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, TOPOLOGY_LEVEL_THREAD, topology.thread_bits(), topology.threads),
        level(1, TOPOLOGY_LEVEL_CORE, topology.package_bits(), topology.vcpus),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..kvm_cpuid_entry2::default() }
    }

    fn host() -> CpuId {
        let words = |name: &[u8; 12], at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        let vendor = b"AuthenticAMD";
        CpuId::from_entries(&[
            kvm_cpuid_entry2 {
                eax: 0xd,
                ebx: words(vendor, 0),
                edx: words(vendor, 4),
                ecx: words(vendor, 8),
                ..entry(0, 0)
            },
            kvm_cpuid_entry2 { ebx: 0x0510_0800, ecx: ECX_VMX, ..entry(1, 0) },
            kvm_cpuid_entry2 { eax: 0x0730_0402, ..entry(0xa, 0) },
            kvm_cpuid_entry2 { edx: 99, ..entry(0xb, 0) },
            kvm_cpuid_entry2 { edx: 99, ..entry(0xb, 1) },
            kvm_cpuid_entry2 { eax: 0x4000_0001, ebx: 0x4b4d_564b, ..entry(0x4000_0000, 0) },
            kvm_cpuid_entry2 { ecx: u32::MAX, ..entry(0x8000_0001, 0) },
            kvm_cpuid_entry2 { ecx: 0x3007, ..entry(0x8000_0008, 0) },
            kvm_cpuid_entry2 { eax: 1, ..entry(0x8000_000a, 0) },
            // Caches of a core and of all cores, as AMD and as Intel say it.
            kvm_cpuid_entry2 { eax: 0x0000_0121, ..entry(0x8000_001d, 0) },
            kvm_cpuid_entry2 { eax: 0x0001_c163, ..entry(0x8000_001d, 3) },
            kvm_cpuid_entry2 { eax: 0x0000_0121, ..entry(4, 0) },
            kvm_cpuid_entry2 { eax: 0x0001_c163, ..entry(4, 3) },
            kvm_cpuid_entry2 { eax: 77, ..entry(0x8000_001e, 0) },
        ])
        .unwrap()
    }

    #[test]
    fn topology_is_the_vms() {
        let table = for_vcpu(&host(), 2, 6, false, true).unwrap();
        let find =
            |function, index| *table.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).unwrap();
        let leaf1 = find(1, 0);
        assert_eq!((leaf1.ebx >> 24, (leaf1.ebx >> 16) & 0xff, leaf1.ebx & 0xffff), (2, 6, 0x0800));
        assert_ne!(leaf1.edx & EDX_HTT, 0);
        assert_ne!(leaf1.ecx & ECX_TSC_DEADLINE, 0);
        assert_ne!(leaf1.ecx & ECX_HYPERVISOR, 0);
        assert_eq!((find(0xb, 0).edx, find(0xb, 1).edx, find(0xb, 1).ebx, find(0xb, 1).eax), (2, 2, 6, 3));
        assert_eq!(find(0xb, 2).ecx, 2);
        assert_eq!(find(0x8000_0008, 0).ecx, 0x3005);
        assert_eq!(find(0x8000_001e, 0).eax, 2);
        assert_eq!(table.as_slice().iter().filter(|e| e.function == 0xb).count(), 3);
    }

    #[test]
    fn with_smt_two_vcpus_are_a_core() {
        // vCPU, vCPUs, smt; then the threads of a core, its number, and bits of the package.
        for (vcpu, vcpus, smt, threads, core, bits) in [
            (5, 6, true, 2, 2, 3),
            (4, 6, true, 2, 2, 3),
            (5, 6, false, 1, 5, 3),
            (0, 1, true, 1, 0, 0),
            (1, 2, true, 2, 0, 1),
        ] {
            let table = for_vcpu(&host(), vcpu, vcpus, smt, true).unwrap();
            let find = |function, index| {
                *table.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
            };
            let (vcpu, vcpus) = (u32::from(vcpu), u32::from(vcpus));
            let (thread, package) = (find(0xb, 0), find(0xb, 1));
            assert_eq!((thread.ebx, package.ebx, thread.edx, package.edx), (threads, vcpus, vcpu, vcpu));
            // What is left of the APIC id is the core's number, and the package's, which is 0.
            assert_eq!((vcpu >> thread.eax, package.eax, vcpu >> package.eax), (core, bits, 0));
            assert_eq!((find(1, 0).ebx >> 16) & 0xff, vcpus);
            assert_eq!(
                (find(1, 0).edx & EDX_HTT != 0, find(0x8000_0001, 0).ecx & AMD_CMP_LEGACY != 0),
                (vcpus > 1, vcpus > 1)
            );
            assert_eq!(find(0x8000_0008, 0).ecx, (bits << 12) | (vcpus - 1));
            assert_eq!((find(0x8000_001e, 0).eax, find(0x8000_001e, 0).ebx), (vcpu, ((threads - 1) << 8) | core));
            for caches in [4, 0x8000_001d] {
                let sharers = |index| ((find(caches, index).eax >> 14) & 0xfff) + 1;
                assert_eq!((sharers(0), sharers(3)), (threads, vcpus), "{caches:#x}");
            }
            assert_eq!((find(4, 0).eax >> 26) + 1, vcpus / threads);
        }
    }

    #[test]
    fn nesting_and_counters_are_out_and_the_hypervisor_leaf_stays() {
        let table = for_vcpu(&host(), 0, 1, false, false).unwrap();
        let find = |function| *table.as_slice().iter().find(|e| e.function == function).unwrap();
        assert_eq!(find(1).ecx & (ECX_VMX | ECX_TSC_DEADLINE), 0);
        assert_eq!(find(1).edx & EDX_HTT, 0);
        assert_eq!(find(0x8000_0001).ecx & (AMD_SVM | AMD_PERFCTR | AMD_CMP_LEGACY), 0);
        assert_eq!((find(0xa).eax, find(0x8000_000a).eax), (0, 0));
        assert_eq!(find(0x4000_0000).ebx, 0x4b4d_564b);
    }
}
