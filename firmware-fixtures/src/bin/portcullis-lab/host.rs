//! `portcullis-lab host`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nix::sys::signal::SigSet;
use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program, Variant};
use portcullis_firmware_fixtures::lab::machine::{Disk, Firmware};

use crate::Failure;
use crate::console::{self, Left};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The host's name.
    #[arg(long, default_value = "by-hand")]
    name: String,
    /// Whether the firmware has Microsoft's keys and checks signatures.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    secure_boot: Switch,
    /// Let QEMU load kernel and initrd itself (no Secure Boot, no shim, no GRUB): starts faster.
    #[arg(long, conflicts_with = "secure_boot")]
    direct: bool,
    /// One named difference: cmdline=TEXT, initrd=/PATH:FILE, program=/PATH:FILE or secure-boot=off. May be repeated.
    #[arg(long, value_parser = variant)]
    variant: Vec<Variant>,
    /// A file for /portcullis/trust of the measured initrd (the verifier's CA, order keys). May be repeated.
    #[arg(long, value_name = "FILE")]
    trust: Vec<PathBuf>,
    /// A raw image as a further disk, read-only. May be repeated.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// The loopback port here that the host reaches as 10.0.2.100:7000. It reaches nothing else.
    #[arg(long)]
    verifier_port: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn variant(text: &str) -> Result<Variant, String> {
    let (kind, value) = text.split_once('=').ok_or("expected KIND=VALUE")?;
    let replacement = || -> Result<(String, Vec<u8>), String> {
        let (path, file) = value.split_once(':').ok_or("expected /PATH:FILE")?;
        let contents = std::fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
        Ok((path.to_owned(), contents))
    };
    match kind {
        "cmdline" => Ok(Variant::Cmdline(value.to_owned())),
        "initrd" => replacement().map(|(path, contents)| Variant::Initrd { path, contents }),
        "program" => replacement().map(|(path, contents)| Variant::Program { path, contents }),
        "secure-boot" if value == "off" => Ok(Variant::SecureBootOff),
        _ => Err("the kinds are cmdline=TEXT, initrd=/PATH:FILE, program=/PATH:FILE, secure-boot=off".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments, signals: &SigSet) -> Result<(), Failure> {
    let say = |text: &str| eprintln!("lab: {text}");
    let mut spec = ImageSpec { variants: arguments.variant.clone(), ..ImageSpec::default() };
    if arguments.secure_boot == Switch::Off {
        spec.variants.push(Variant::SecureBootOff);
    }
    for file in &arguments.trust {
        let name = file.file_name().and_then(|name| name.to_str()).ok_or("a trust file needs a name")?;
        let contents = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        spec.trust.insert(name.to_owned(), contents);
    }
    spec.programs = our_programs();
    for program in &spec.programs {
        say(&format!("takes {} along as {}", program.source.display(), program.path));
    }
    say("building the image (boot disk, measured initrd, root file system)");
    let image = Image::build(&spec)?;
    say(&format!("command line  {}", image.manifest.kernel_command_line));
    say(&format!("initrd        sha256:{}", image.manifest.initrd.sha256));

    let mut host = HostSpec::new(&arguments.name, &image);
    host.memory_mib = arguments.memory;
    host.verifier_port = arguments.verifier_port;
    host.disks = arguments.disk.iter().map(|image| Disk { image: image.clone(), read_only: true }).collect();
    if arguments.direct {
        host.firmware = Firmware::Direct;
    }
    say(&format!("manufacturing a TPM and starting {} ({:?})", arguments.name, host.firmware));
    let host = Host::start(host)?;
    say("console below, from the firmware on (a shell after 15 to 30 s); Ctrl-C ends it");
    match console::attach(&host.console_socket(), signals)? {
        Left::Signal => drop(host),
        Left::Ended => say("the host turned itself off"),
    }
    say("the host is off and its files are gone");
    Ok(())
}

/// Portcullis's own programs, when they were built beside this one.
fn our_programs() -> Vec<Program> {
    let Some(dir) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)) else {
        return Vec::new();
    };
    ["portcullis-agent", "portcullis-vmm"]
        .into_iter()
        .map(|name| Program { path: format!("/usr/bin/{name}"), source: dir.join(name) })
        .filter(|program| program.source.is_file())
        .collect()
}
