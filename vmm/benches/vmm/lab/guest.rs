//! The guests: Debian's kernel with an initramfs of one busybox, or of more than that for loads.

use std::path::Path;

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::cpio::{Archive, Entry};
use portcullis_firmware_fixtures::lab::{kmod, rootfs};

use super::load;

/// What a guest says first.
pub const SIGN: &str = "guest: init";

/// What it says when it heard something.
pub const ANSWER: &str = "guest: heard";

/// `then`, from the kernel's command line, says what the guest does once it is up, and `kind` which loads it puts on its
/// devices.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
echo 'guest: init'
/bin/busybox mount -t proc proc /proc
case $then in
listen) while read -r line; do echo \"guest: heard $line\"; done ;;
load) . /load ;;
esac
/bin/busybox reboot -f
";

/// An initramfs that is as small as can be.
pub fn small(files: &BootFiles) -> Vec<u8> {
    archive(files).to_bytes()
}

/// One with drivers and this program, which puts loads on a disk and a network card.
pub fn loaded(files: &BootFiles) -> Vec<u8> {
    let mut archive = archive(files);
    let mut script = vec!["mount -t sysfs sys /sys".to_owned(), "ip link set lo up".to_owned()];
    let modules =
        kmod::closure(&files.modules(), &["virtio_mmio", "virtio_blk", "virtio_net"]).expect("Debian's modules");
    for module in modules {
        script.push(format!("insmod /{}.ko", module.name));
        archive.put(&format!("/{}.ko", module.name), Entry::File(0o644, module.contents));
    }
    script.push(format!("ip address add {}/24 dev eth0 && ip link set eth0 up", load::GUEST));
    script.push(format!("/measure {} $kind\n", load::WORD));
    archive.put("/sys", Entry::Directory);
    archive.put("/load", Entry::File(0o755, script.join("\n").into_bytes()));
    let me = std::env::current_exe().expect("this program");
    for file in rootfs::with_libraries("/measure", Path::new(&me)).expect("this program's libraries") {
        archive.put(&file.path, Entry::File(file.mode, file.contents));
    }
    archive.to_bytes()
}

fn archive(files: &BootFiles) -> Archive {
    let mut archive = Archive::new();
    archive.put("/dev/console", Entry::Character(5, 1));
    archive.put("/proc", Entry::Directory);
    archive.put("/bin/busybox", Entry::File(0o755, std::fs::read(files.busybox()).expect("busybox")));
    archive.put("/init", Entry::File(0o755, INIT.as_bytes().to_vec()));
    archive
}
