//! Against the real cryptsetup. Whether device-mapper is there differs from machine to machine: what is asserted holds
//! on both kinds; the whole way with a mapping is tested in the lab.

use super::*;
use sha2::{Digest, Sha256};
use std::io::Write;

const KEY: [u8; 32] = [7; 32];
const ORDER: &str = "00112233445566778899aabbccddeeff";

struct Place {
    dir: tempfile::TempDir,
    volumes: Volumes,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Volumes {
        cryptsetup: "/usr/sbin/cryptsetup".into(),
        images: dir.path().join("images"),
        mounts: dir.path().join("mounts"),
    };
    std::fs::create_dir(&volumes.images).unwrap();
    std::fs::create_dir(&volumes.mounts).unwrap();
    Place { dir, volumes }
}

impl Place {
    fn format(&self, name: &str, extra: &[&str]) -> PathBuf {
        let path = self.volumes.images.join(name);
        std::fs::File::create(&path).unwrap().set_len(24 << 20).unwrap();
        let mut command = child::command(&self.volumes.cryptsetup);
        command.args(["luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2"]);
        command.args(["--pbkdf-force-iterations", "1000", "--key-file", "-"]).args(extra).arg(&path);
        let done = child::run(command, &KEY, CRYPTSETUP_LIMIT).unwrap();
        assert_eq!(done.code, Some(0), "{}", done.complaint);
        path
    }

    fn nothing_is_left(&self) {
        assert_eq!(std::fs::read_dir(&self.volumes.mounts).unwrap().count(), 0, "a mount point was left");
        assert!(!Path::new("/dev/mapper").join(format!("{MAPPING_PREFIX}{ORDER}")).exists(), "a mapping was left");
    }
}

#[test]
fn the_right_key_fits_and_a_wrong_one_does_not() {
    let place = place();
    let image = place.format("acme.data.luks", &[]);
    place.volumes.check_key(&image, &KEY).unwrap();
    let error = place.volumes.check_key(&image, &[8; 32]).unwrap_err();
    assert!(matches!(error, VolumeError::WrongKey { .. }), "{error}");
}

#[test]
fn a_wrong_key_is_told_from_a_missing_kernel_module_and_leaves_nothing() {
    let place = place();
    place.format("acme.data.luks", &[]);
    let error = place.volumes.open(ORDER, "acme", "data", &[8; 32]).unwrap_err().error;
    assert!(matches!(error, VolumeError::WrongKey { .. }), "{error}");
    place.nothing_is_left();
}

#[test]
fn a_volume_without_a_file_system_leaves_nothing() {
    let place = place();
    place.format("acme.data.luks", &[]);
    let error = place.volumes.open(ORDER, "acme", "data", &KEY).unwrap_err().error;
    assert!(matches!(error, VolumeError::Mapping { .. } | VolumeError::FileSystem { .. }), "{error}");
    place.nothing_is_left();
}

/// Rewrites both copies of the header as an attacker with the disk can: the checksum is no secret.
fn rewrite_header(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut image = std::fs::read(path).unwrap();
    for start in [0_usize, 0x4000] {
        let header = &mut image[start..start + 0x4000];
        while let Some(at) = header.windows(from.len()).position(|part| part == from.as_bytes()) {
            header[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        header[448..512].fill(0);
        let checksum = Sha256::digest(&*header);
        header[448..480].copy_from_slice(&checksum);
    }
    std::fs::write(path, image).unwrap();
}

#[test]
fn a_null_cipher_is_refused_before_the_key_is_used() {
    let place = place();
    let image = place.format("acme.data.luks", &[]);
    place.volumes.image("acme", "data").unwrap();
    rewrite_header(&image, "\"aes-xts-plain64\",\"sector", "\"cipher_null-ecb\",\"sector");
    let error = place.volumes.open(ORDER, "acme", "data", &KEY).unwrap_err().error;
    assert!(matches!(&error, VolumeError::Header { text, .. } if text.contains("cipher_null")), "{error}");
    place.nothing_is_left();
}

#[test]
fn damaged_and_missing_images_are_named() {
    let place = place();
    let path = place.format("acme.data.luks", &[]);
    // Both copies of the header.
    for offset in [0_u64, 0x4000] {
        use std::io::{Seek, SeekFrom};
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&[0; 4096]).unwrap();
    }
    let error = place.volumes.open(ORDER, "acme", "data", &KEY).unwrap_err().error;
    assert!(matches!(error, VolumeError::Header { .. }), "{error}");
    let error = place.volumes.open(ORDER, "acme", "other", &KEY).unwrap_err().error;
    assert!(error.to_string().contains("acme.other.luks"), "{error}");
    std::os::unix::fs::symlink(&path, place.volumes.images.join("acme.link.luks")).unwrap();
    let error = place.volumes.open(ORDER, "acme", "link", &KEY).unwrap_err().error;
    assert!(matches!(error, VolumeError::Image { .. }), "{error}");
    place.nothing_is_left();
}

#[test]
fn names_cannot_leave_the_directories() {
    let place = place();
    for (order, tenant, volume) in [("../x", "a", "b"), (ORDER, "../a", "b"), (ORDER, "a", "b/../c"), (ORDER, "", "b")]
    {
        let error = place.volumes.open(order, tenant, volume, &KEY).unwrap_err().error;
        assert!(matches!(error, VolumeError::Name { .. }), "{error}");
    }
    place.nothing_is_left();
    assert!(place.dir.path().exists());
}

#[test]
fn a_missing_cryptsetup_is_named() {
    let mut place = place();
    place.format("acme.data.luks", &[]);
    place.volumes.cryptsetup = "/nonexistent/cryptsetup".into();
    let error = place.volumes.open(ORDER, "acme", "data", &KEY).unwrap_err().error;
    assert!(error.to_string().contains("/nonexistent/cryptsetup"), "{error}");
}

/// A loop device over an image, and what is mounted from it; both go when this is dropped.
struct Loop<'a>(String, &'a Path);

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.1, MntFlags::MNT_DETACH);
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_file_system_cannot_ask_for_a_panic_of_the_host() {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts a file system and so needs root");
    let dir = tempfile::tempdir().unwrap();
    let (image, root) = (dir.path().join("image"), dir.path().join("root"));
    std::fs::create_dir(&root).unwrap();
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let tool = |program: &str, arguments: &[&str]| {
        let done = std::process::Command::new(program).args(arguments).arg(&image).output().unwrap();
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    tool("/usr/sbin/mkfs.ext4", &["-q", "-F", "-e", "panic"]);
    tool("/usr/sbin/tune2fs", &["-E", "mount_opts=warn_on_error"]);
    let device = tool("/usr/sbin/losetup", &["--read-only", "--show", "--find"]);
    let mounted = Loop(device, &root);
    mount_read_only(Path::new(&mounted.0), &root).unwrap();
    let name = mounted.0.trim_start_matches("/dev/");
    let options = std::fs::read_to_string(format!("/proc/fs/ext4/{name}/options")).unwrap();
    let has = |wanted: &str| options.lines().any(|option| option == wanted);
    assert!(has("errors=remount-ro") && has("nowarn_on_error") && has("norecovery"), "{options}");
}
