//! Images: what a host boots. Described by an [`ImageSpec`]; a [`Variant`] changes one named thing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256, Sha384};

use super::boot_files::BootFiles;
use super::machine::Firmware;
use super::manifest::{BootProgram, Digests, GrubEvent, Manifest};
use super::rootfs::{HostFile, Tree};
use super::{LabError, cpio, esp, initrd, io_error, kmod, pe, read};
use crate::workdir;

/// The command line of a host's kernel. The root disk is the initrd's business.
pub const COMMAND_LINE: &str = "console=ttyS0 loglevel=5";

/// A program of this machine that goes onto the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Absolute path on the host.
    pub path: String,
    /// The file on this machine; debug information is left out of the copy, libraries it needs come with it.
    pub source: PathBuf,
}

/// One named thing in which a host differs from the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variant {
    /// The kernel's command line has this at its end.
    Cmdline(String),
    /// The initrd has these contents at this path.
    Initrd {
        /// Absolute path in the initrd.
        path: String,
        /// The other contents.
        contents: Vec<u8>,
    },
    /// The root file system has these contents at this path.
    Program {
        /// Absolute path on the host.
        path: String,
        /// The other contents.
        contents: Vec<u8>,
    },
    /// The firmware has no Secure Boot keys.
    SecureBootOff,
}

/// What an image is made of.
#[derive(Debug, Clone, Default)]
pub struct ImageSpec {
    /// Files of `/portcullis/trust` in the measured initrd, by name; on the host in `/run/portcullis/trust`.
    pub trust: BTreeMap<String, Vec<u8>>,
    /// Programs of this machine that go onto the root file system.
    pub programs: Vec<Program>,
    /// Other files of the root file system.
    pub files: Vec<HostFile>,
    /// Kernel modules to load on the host beside [`super::rootfs::MODULES`].
    pub modules: Vec<String>,
    /// Free space of the root file system in MiB; 128 when 0.
    pub free_mib: u64,
    /// What differs from a good host.
    pub variants: Vec<Variant>,
}

impl ImageSpec {
    /// The same with one more difference.
    #[must_use]
    pub fn with(&self, variant: Variant) -> Self {
        let mut spec = self.clone();
        spec.variants.push(variant);
        spec
    }

    /// The kernel's command line.
    pub fn command_line(&self) -> String {
        let extra = self.variants.iter().filter_map(|variant| match variant {
            Variant::Cmdline(extra) => Some(extra.as_str()),
            _ => None,
        });
        std::iter::once(COMMAND_LINE).chain(extra).collect::<Vec<_>>().join(" ")
    }
}

/// A built image. Its files lie in the lab's cache and are never written by a host.
#[derive(Debug, Clone)]
pub struct Image {
    /// The boot disk.
    pub esp: PathBuf,
    /// The root file system.
    pub root: PathBuf,
    /// The kernel, for a firmware that [is given it](Firmware::is_given_the_kernel).
    pub kernel: PathBuf,
    /// The initrd, for the same.
    pub initrd: PathBuf,
    /// The kernel's command line, without GRUB's path before it.
    pub command_line: String,
    /// Which firmware the image's variants ask for.
    pub firmware: Firmware,
    /// What was put on it.
    pub manifest: Manifest,
    /// The root file system's contents.
    pub tree: Tree,
}

impl Image {
    /// Builds the image. Parts that were built before of the same inputs are taken from the cache.
    ///
    /// # Errors
    /// When something the image is made of is missing, or a program of the build fails.
    pub fn build(spec: &ImageSpec) -> Result<Self, LabError> {
        let files = BootFiles::fetch()?;
        let cache = image_cache()?;
        let tree = tree(spec, &files)?;
        let root = tree.image(&cache, if spec.free_mib == 0 { 128 } else { spec.free_mib })?;

        let mut replaced = BTreeMap::new();
        for variant in &spec.variants {
            if let Variant::Initrd { path, contents } = variant {
                replaced.insert(path.clone(), contents.clone());
            }
        }
        let archive = initrd::archive(&files, &spec.trust, &replaced)?;
        let boot = BootDisk::make(&files, &archive, &spec.command_line(), &cache)?;
        let manifest = boot.manifest(&files, &archive, &tree)?;
        let off = spec.variants.contains(&Variant::SecureBootOff);
        Ok(Self {
            esp: boot.esp,
            root,
            kernel: files.kernel(),
            initrd: boot.initrd,
            command_line: spec.command_line(),
            firmware: if off { Firmware::SecureBootOff } else { Firmware::SecureBoot },
            manifest,
            tree,
        })
    }
}

/// Where built images are kept.
pub(super) fn image_cache() -> Result<PathBuf, LabError> {
    let dir = workdir::cache_dir().map_err(io_error("cannot make the lab's cache directory"))?.join("images");
    std::fs::create_dir_all(&dir).map_err(io_error(format!("cannot make {}", dir.display())))?;
    Ok(dir)
}

fn tree(spec: &ImageSpec, files: &BootFiles) -> Result<Tree, LabError> {
    let mut tree = Tree::base(files, &spec.modules)?;
    for program in &spec.programs {
        tree.program(&program.path, &program.source)?;
    }
    for file in &spec.files {
        tree.put(file.clone());
    }
    for variant in &spec.variants {
        if let Variant::Program { path, contents } = variant {
            tree.put(HostFile::program(path, contents.clone()));
        }
    }
    Ok(tree)
}

/// A boot disk and what it was made of.
pub(super) struct BootDisk {
    pub(super) esp: PathBuf,
    pub(super) initrd: PathBuf,
    initrd_bytes: Vec<u8>,
    grub_cfg: String,
    commands: Vec<String>,
}

impl BootDisk {
    pub(super) fn make(
        files: &BootFiles,
        archive: &cpio::Archive,
        command_line: &str,
        cache: &Path,
    ) -> Result<Self, LabError> {
        if command_line.contains(|c: char| c.is_control() || "\"'\\$;{}".contains(c)) {
            return Err(LabError::BadSpec(format!(
                "command line {command_line:?}: GRUB would not pass quotes, braces, $, ; or \\ as they stand"
            )));
        }
        let initrd_bytes = archive.to_bytes();
        let initrd = cache.join(format!("initrd-{}.cpio", &Digests::of(&initrd_bytes).sha256[..24]));
        if !workdir::has(&initrd) {
            workdir::prune(cache, "initrd-");
            let new = tempfile::NamedTempFile::new_in(cache).map_err(io_error("cannot make the initrd"))?;
            super::write(new.path(), &initrd_bytes)?;
            new.persist(&initrd)
                .map_err(|error| LabError::Io { what: "cannot keep the initrd".to_owned(), source: error.error })?;
        }
        let commands = esp::grub_commands(command_line);
        let grub_cfg = commands.join("\n") + "\n";
        let (shim, grub, kernel) = (read(&files.shim())?, read(&files.grub())?, read(&files.kernel())?);
        let contents: [(&str, &[u8]); 5] = [
            ("/EFI/BOOT/BOOTX64.EFI", &shim),
            ("/EFI/BOOT/grubx64.efi", &grub),
            ("/EFI/debian/grub.cfg", grub_cfg.as_bytes()),
            ("/vmlinuz", &kernel),
            ("/initrd", &initrd_bytes),
        ];
        let esp = esp::image(cache, &contents)?;
        Ok(Self { esp, initrd, initrd_bytes, grub_cfg, commands })
    }

    pub(super) fn manifest(
        &self,
        files: &BootFiles,
        archive: &cpio::Archive,
        tree: &Tree,
    ) -> Result<Manifest, LabError> {
        let mut executables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut add = |path: String, contents: &[u8]| {
            executables.entry(path).or_default().insert(hex::encode(Sha256::digest(contents)));
        };
        for (path, entry) in archive.entries() {
            if let cpio::Entry::File(mode, contents) = entry
                && (mode & 0o111 != 0 || kmod::is_module(path))
            {
                add(format!("/{path}"), contents);
            }
        }
        for (path, contents) in tree.executables() {
            add(path, contents);
        }
        let kernel_contents = read(&files.kernel())?;
        let kernel_command_line = self.commands[0].trim_start_matches("linuxefi ").to_owned();
        Ok(Manifest {
            shim: boot_program("/EFI/BOOT/BOOTX64.EFI", &files.shim())?,
            grub: boot_program("/EFI/BOOT/grubx64.efi", &files.grub())?,
            kernel: boot_program("/vmlinuz", &files.kernel())?,
            initrd: Digests::of(&self.initrd_bytes),
            grub_events: self.grub_events(&kernel_command_line, &kernel_contents),
            grub_cfg: self.grub_cfg.clone(),
            kernel_command_line,
            executables,
            ima_policy: initrd::IMA_POLICY.to_owned(),
            packages: files.versions().to_owned(),
        })
    }

    /// GRUB measures a file when it has read it, and a command before it runs it; `linux` passes its own command line on.
    fn grub_events(&self, kernel_command_line: &str, kernel: &[u8]) -> Vec<GrubEvent> {
        let text = |prefix: &str, text: &str| GrubEvent {
            pcr: 8,
            text: format!("{prefix}{text}"),
            digests: Digests::of(text.as_bytes()),
        };
        let file =
            |name: &str, contents: &[u8]| GrubEvent { pcr: 9, text: name.to_owned(), digests: Digests::of(contents) };
        vec![
            file("(hd0)/EFI/debian/grub.cfg", self.grub_cfg.as_bytes()),
            text("grub_cmd: ", &self.commands[0]),
            file("/vmlinuz", kernel),
            text("kernel_cmdline: ", kernel_command_line),
            text("grub_cmd: ", &self.commands[1]),
            file("/initrd", &self.initrd_bytes),
            text("grub_cmd: ", &self.commands[2]),
        ]
    }
}

fn boot_program(path: &str, source: &Path) -> Result<BootProgram, LabError> {
    let contents = read(source)?;
    let bad = |error: pe::PeError| LabError::BadFile { path: source.display().to_string(), problem: error.to_string() };
    Ok(BootProgram {
        path: path.to_owned(),
        file: Digests::of(&contents),
        authenticode: Digests {
            sha256: pe::authenticode::<Sha256>(&contents).map_err(bad)?,
            sha384: pe::authenticode::<Sha384>(&contents).map_err(bad)?,
        },
    })
}
