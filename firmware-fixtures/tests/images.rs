//! Images, built and not booted: a variant changes what it names and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use portcullis_firmware_fixtures::lab::LabError;
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program, Variant};
use portcullis_firmware_fixtures::lab::machine::Firmware;
use portcullis_firmware_fixtures::lab::manifest::{Digests, Manifest};
use portcullis_firmware_fixtures::lab::rootfs::HostFile;

fn spec() -> ImageSpec {
    ImageSpec { trust: BTreeMap::from([("ca.pem".to_owned(), b"CA\n".to_vec())]), ..ImageSpec::default() }
}

fn build(spec: &ImageSpec) -> Image {
    Image::build(spec).unwrap_or_else(|error| panic!("{error}"))
}

/// The names of the manifest's top-level parts in which two images differ.
fn differences(one: &Manifest, other: &Manifest) -> BTreeSet<String> {
    let [one, other] = [one, other].map(|manifest| serde_json::to_value(manifest).unwrap());
    let parts = one.as_object().unwrap();
    parts.keys().filter(|part| one[part.as_str()] != other[part.as_str()]).cloned().collect()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_same_inputs_give_the_same_image() {
    let (one, other) = (build(&spec()), build(&spec()));
    assert_eq!((&one.esp, &one.root, &one.manifest), (&other.esp, &other.root, &other.manifest));
    // Not because the digest was kept: the file has it.
    assert_eq!(Digests::of(&std::fs::read(&one.initrd).unwrap()), one.manifest.initrd);
}

#[test]
fn a_variant_changes_what_it_names() {
    let good = build(&spec());
    let command_line = build(&spec().with(Variant::Cmdline("debug".to_owned())));
    assert_eq!(
        differences(&good.manifest, &command_line.manifest),
        names(&["grub_cfg", "grub_events", "kernel_command_line"])
    );
    let initrd = Variant::Initrd { path: "/portcullis/trust/ca.pem".to_owned(), contents: b"another CA\n".to_vec() };
    let initrd = build(&spec().with(initrd));
    assert_eq!(differences(&good.manifest, &initrd.manifest), names(&["grub_events", "initrd"]));
    let contents = b"#!/bin/sh\necho stranger\n".to_vec();
    let program = build(&spec().with(Variant::Program { path: "/usr/bin/stranger".to_owned(), contents }));
    assert_eq!(differences(&good.manifest, &program.manifest), names(&["executables"]));
    assert_eq!((&good.esp, good.root == program.root), (&program.esp, false));
    let off = build(&spec().with(Variant::SecureBootOff));
    assert_eq!((good.firmware, off.firmware), (Firmware::SecureBoot, Firmware::SecureBootOff));
    assert_eq!((good.esp, good.root, good.manifest), (off.esp, off.root, off.manifest));
}

#[test]
fn trust_is_part_of_the_measured_initrd() {
    let mut other = spec();
    other.trust.insert("order-keys.json".to_owned(), b"{}\n".to_vec());
    assert_ne!(build(&spec()).manifest.initrd, build(&other).manifest.initrd);
}

#[test]
fn a_program_comes_with_what_it_is_linked_with() {
    let mut with_program = spec();
    with_program.programs.push(Program { path: "/usr/bin/tpm2".to_owned(), source: "/usr/bin/tpm2".into() });
    with_program.files.push(HostFile::data("/etc/some.conf", "setting\n"));
    let image = build(&with_program);
    let executables = &image.manifest.executables;
    for path in ["/usr/bin/tpm2", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"] {
        assert!(executables.contains_key(path), "{path} is not in {:?}", executables.keys());
    }
    // Loaded by name at run time, for /dev/tpmrm0.
    assert!(executables.contains_key("/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0"));
    assert!(!executables.contains_key("/etc/some.conf"));

    let show = |request: &str| {
        let output = Command::new("/usr/sbin/debugfs").args(["-R", request]).arg(&image.root).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(show("cat /etc/some.conf"), "setting\n");
    let about = show("stat /usr/bin/tpm2");
    assert!(about.contains("Mode:  0755") && about.contains("User:     0   Group:     0"), "{about}");
}

#[test]
fn what_cannot_be_built_is_said() {
    let quoted = spec().with(Variant::Cmdline("init='/bin/sh'".to_owned()));
    assert!(matches!(Image::build(&quoted), Err(LabError::BadSpec(_))));
    let mut outside = spec();
    outside.trust.insert("../etc/ima-policy".to_owned(), Vec::new());
    assert!(matches!(Image::build(&outside), Err(LabError::BadSpec(_))));
    let mut missing = spec();
    missing.programs.push(Program { path: "/bin/none".to_owned(), source: "/nonexistent/program".into() });
    let error = Image::build(&missing).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/program"), "{error}");
    let mut module = spec();
    module.modules.push("no-such-module".to_owned());
    let error = Image::build(&module).unwrap_err().to_string();
    assert!(error.contains("no_such_module"), "{error}");
}
