//! The guests: Debian's kernel with an initramfs of one busybox.

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::cpio::{Archive, Entry};

/// What a guest says first.
pub const SIGN: &str = "guest: init";

/// What it says when it heard something.
pub const ANSWER: &str = "guest: heard";

/// `then`, from the kernel's command line, says what the guest does once it is up.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
echo 'guest: init'
/bin/busybox mount -t proc proc /proc
case $then in
listen) while read -r line; do echo \"guest: heard $line\"; done ;;
esac
/bin/busybox reboot -f
";

/// An initramfs that is as small as can be.
pub fn small(files: &BootFiles) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.put("/dev/console", Entry::Character(5, 1));
    archive.put("/proc", Entry::Directory);
    archive.put("/bin/busybox", Entry::File(0o755, std::fs::read(files.busybox()).expect("busybox")));
    archive.put("/init", Entry::File(0o755, INIT.as_bytes().to_vec()));
    archive.to_bytes()
}
