//! A writer for the kernel's initramfs format (cpio "newc"). The same entries give the same bytes: inode numbers count
//! up, times are zero, everything belongs to root.

use std::collections::BTreeMap;

/// What stands at a path of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory, mode 0755.
    Directory,
    /// A file with its mode (permission bits) and contents.
    File(u32, Vec<u8>),
    /// A symbolic link and where it points.
    Symlink(String),
    /// A character device: major and minor number, mode 0600.
    Character(u32, u32),
}

/// An archive in the making. Paths are absolute; directories above an entry are made as needed.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `entry` at `path` (absolute), in place of what was there.
    pub fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The entries by path, without the leading slash.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The archive's bytes, padded to 512 as other writers do.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, entry)) in (1_u32..).zip(&self.entries) {
            let (mode, data, device): (u32, &[u8], (u32, u32)) = match entry {
                Entry::Directory => (0o040_755, &[], (0, 0)),
                Entry::File(mode, data) => (0o100_000 | (mode & 0o7777), data, (0, 0)),
                Entry::Symlink(target) => (0o120_777, target.as_bytes(), (0, 0)),
                Entry::Character(major, minor) => (0o020_600, &[], (*major, *minor)),
            };
            record(&mut out, inode, mode, path, data, device);
        }
        record(&mut out, 0, 0, "TRAILER!!!", &[], (0, 0));
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

fn record(out: &mut Vec<u8>, inode: u32, mode: u32, path: &str, data: &[u8], device: (u32, u32)) {
    let links = 1;
    // The format's sizes are 32 bits wide; an initrd that large would not fit the host's memory either.
    let size = u32::try_from(data.len()).expect("a file of 4 GiB in an initrd");
    let name_size = u32::try_from(path.len() + 1).expect("a path of 4 GiB");
    out.extend_from_slice(b"070701");
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_what_was_written_and_the_bytes_do_not_depend_on_the_order() {
        let mut one = Archive::new();
        one.put("/etc/deep/file", Entry::File(0o640, b"contents".to_vec()));
        one.put("/bin/sh", Entry::Symlink("busybox".to_owned()));
        let mut other = Archive::new();
        other.put("/bin/sh", Entry::Symlink("busybox".to_owned()));
        other.put("/etc/deep/file", Entry::File(0o640, b"contents".to_vec()));
        assert_eq!(one.to_bytes(), other.to_bytes());

        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.cpio");
        std::fs::write(&archive, one.to_bytes()).unwrap();
        let input = std::fs::File::open(&archive).unwrap();
        let busybox = super::super::boot_files::BootFiles::fetch().unwrap().busybox();
        let output = std::process::Command::new(busybox)
            .args(["cpio", "-i", "-d"])
            .current_dir(dir.path())
            .stdin(input)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read(dir.path().join("etc/deep/file")).unwrap(), b"contents");
        assert_eq!(std::fs::read_link(dir.path().join("bin/sh")).unwrap(), std::path::Path::new("busybox"));
    }
}
