//! Snapshots of what has changed.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::client::Vmm;
use crate::guest::Guest;

/// Where the guest counts.
const COUNTER: u32 = 0x8000;
const PAGE: u64 = 4096;

/// A guest that counts for ever.
fn counting() -> Guest {
    // inc dword [COUNTER]; jmp back
    Guest::new().print("ready").raw(&[0xff, 0x04, 0x25]).raw(&COUNTER.to_le_bytes()).raw(&[0xeb, 0xf7])
}

/// A VM with 4 MiB that counts, and a folder for its snapshots.
fn running(machine: &Value) -> (Vmm, tempfile::TempDir) {
    let mut vmm = Vmm::new();
    vmm.boot_source(&counting());
    vmm.must("PATCH", "/machine-config", machine);
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    (vmm, tempfile::tempdir().unwrap())
}

/// Pauses the VM, if it runs, and writes a snapshot; the memory's file.
fn snapshot(vmm: &Vmm, dir: &Path, kind: &str, memory: &str) -> PathBuf {
    let memory = dir.join(memory);
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let create = json!({"snapshot_path": dir.join("state"), "mem_file_path": memory, "snapshot_type": kind});
    vmm.must("PUT", "/snapshot/create", &create);
    memory
}

/// Lets the VM go on until it has counted.
fn go_on(vmm: &Vmm) {
    vmm.must("PATCH", "/vm", &json!({"state": "Resumed"}));
    std::thread::sleep(std::time::Duration::from_millis(20));
}

fn counter(memory: &Path) -> u32 {
    let mut bytes = [0; 4];
    File::open(memory).unwrap().read_exact_at(&mut bytes, COUNTER.into()).unwrap();
    u32::from_le_bytes(bytes)
}

fn pages(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().blocks() * 512 / PAGE
}

fn assert_same(one: &Path, other: &Path) {
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "{} {}", one.display(), other.display());
}

/// Copies what is in `difference`, and not its holes, into `base`: what Firecracker's tools do.
fn merge(difference: &Path, base: &Path) {
    let (from, to) = (File::open(difference).unwrap(), File::options().write(true).open(base).unwrap());
    let len = i64::try_from(from.metadata().unwrap().len()).unwrap();
    let mut at = 0;
    while at < len {
        // SAFETY: calls without pointers on an open file.
        let begin = unsafe { libc::lseek(from.as_raw_fd(), at, libc::SEEK_DATA) };
        if begin < 0 {
            return;
        }
        // SAFETY: as above.
        let end = unsafe { libc::lseek(from.as_raw_fd(), begin, libc::SEEK_HOLE) };
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        let offset = u64::try_from(begin).unwrap();
        from.read_exact_at(&mut bytes, offset).unwrap();
        to.write_all_at(&bytes, offset).unwrap();
        at = end;
    }
}

#[test]
fn differences_lead_from_one_snapshot_to_the_next() {
    let (vmm, dir) = running(&json!({"track_dirty_pages": true}));
    let base = snapshot(&vmm, dir.path(), "Full", "base");
    let (first, whole) = (counter(&base), pages(&base));
    go_on(&vmm);
    // Into the file of the one before: it can be loaded as it is.
    snapshot(&vmm, dir.path(), "Diff", "base");
    assert_ne!(counter(&base), first);
    assert_same(&base, &snapshot(&vmm, dir.path(), "Full", "full"));
    // Into a file of its own: what has changed only.
    go_on(&vmm);
    let difference = snapshot(&vmm, dir.path(), "Diff", "difference");
    assert!((1..whole).contains(&pages(&difference)), "{} of {whole}", pages(&difference));
    merge(&difference, &base);
    assert_same(&base, &snapshot(&vmm, dir.path(), "Full", "full"));
    // Nothing has changed since: nothing is in it.
    assert_eq!(pages(&snapshot(&vmm, dir.path(), "Diff", "nothing")), 0);

    // A VM that was loaded has the file that it came from to compare with.
    let loaded = Vmm::new();
    let load = json!({"snapshot_path": dir.path().join("state"), "resume_vm": true, "track_dirty_pages": true,
        "mem_backend": {"backend_type": "File", "backend_path": base}});
    loaded.must("PUT", "/snapshot/load", &load);
    assert_eq!(loaded.get("/machine-config").1["track_dirty_pages"], true);
    go_on(&loaded);
    let difference = snapshot(&loaded, dir.path(), "Diff", "loaded");
    assert!((1..whole).contains(&pages(&difference)), "{} of {whole}", pages(&difference));
    let copy = dir.path().join("copy");
    std::fs::copy(&base, &copy).unwrap();
    merge(&difference, &copy);
    assert_ne!(counter(&copy), counter(&base));
    assert_same(&copy, &snapshot(&loaded, dir.path(), "Full", "full"));
}

#[test]
fn without_tracking_a_difference_to_a_snapshot_is_all_of_the_memory() {
    let (vmm, dir) = running(&json!({"track_dirty_pages": false}));
    // To the start: zeros, which are left out.
    let begin = snapshot(&vmm, dir.path(), "Diff", "begin");
    assert_same(&begin, &snapshot(&vmm, dir.path(), "Full", "full"));
    assert!(pages(&begin) < 100);
    go_on(&vmm);
    let difference = snapshot(&vmm, dir.path(), "Diff", "difference");
    assert_eq!(pages(&difference), (4 << 20) / PAGE);
    assert_same(&difference, &snapshot(&vmm, dir.path(), "Full", "full"));
}
