//! What the guest finds when it wakes: kernel, initrd, command line, memory map, ACPI tables, and a reset where a PC has
//! its firmware.
//!
//! Kernel and initrd are files that a tenant chose: every number in them is checked before it is used, and nothing is
//! written outside guest memory.

pub mod acpi;
mod bzimage;
mod elf;
mod file;
mod linux;
mod pvh;
mod reset_vector;

use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress};

use crate::config::VmConfig;
use crate::memory::{GuestRam, layout, layout::VirtioPlace};

pub use file::BootFile;

/// Why the guest cannot be booted. Exit code 2: the configuration or a file it names is at fault.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be opened or read.
    #[error("cannot read the {what} {path}: {source}")]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a regular file: reading a pipe or a device might never end.
    #[error("the {what} {path} is not a regular file")]
    NotAFile {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Neither a bzImage nor an x86-64 ELF image.
    #[error("{path} is no kernel this VMM can boot: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file ends before what its header announces.
    #[error("the kernel {path} is truncated: {missing} is missing")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that is not there.
        missing: &'static str,
    },
    /// Guest memory is too small.
    #[error("the guest has too little memory: the {what} needs it up to {needed:#x}, and it ends at {end:#x}")]
    TooLittleMemory {
        /// "kernel" or "initrd".
        what: &'static str,
        /// First guest address that is not needed.
        needed: u64,
        /// First guest address that is not there.
        end: u64,
    },
    /// A boot structure did not fit where the layout puts it.
    #[error("cannot write the {0} into guest memory")]
    Write(&'static str),
}

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, the address of the boot parameters in RSI (Linux boot protocol).
    Long {
        /// First instruction.
        rip: u64,
    },
    /// 32-bit protected mode without paging, the address of the start info in EBX (PVH).
    Pvh {
        /// First instruction.
        eip: u32,
    },
}

/// A kernel that was put into guest memory.
struct Kernel {
    entry: Entry,
    /// First address above what the kernel needs before it manages memory itself.
    end: u64,
    /// Highest address that the initrd may touch.
    initrd_max: u64,
    /// The setup header of a bzImage, to be handed back to it.
    setup: Option<Vec<u8>>,
}

/// Where the initrd lies: start and length. Zero length means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Initrd {
    start: u64,
    len: u64,
}

/// Kernel and initrd, opened. Nothing of them is in guest memory yet.
pub struct BootFiles {
    kernel: BootFile,
    initrd: Option<BootFile>,
}

impl BootFiles {
    /// Opens what the configuration names.
    pub fn open(config: &VmConfig) -> Result<Self, BootError> {
        let source = &config.boot_source;
        let kernel = BootFile::open("kernel", &source.kernel_image_path)?;
        let initrd = source.initrd_path.as_deref().map(|path| BootFile::open("initrd", path)).transpose()?;
        Ok(Self { kernel, initrd })
    }

    /// Puts everything into guest memory and says how the first vCPU starts.
    pub fn load(mut self, ram: &GuestRam, config: &VmConfig, virtio: &[VirtioPlace]) -> Result<Entry, BootError> {
        let machine = &config.machine_config;
        let bytes = machine.mem_size_mib << 20;
        let low_end = layout::low_end(bytes);
        let kernel = load_kernel(&mut self.kernel, ram, low_end)?;
        let initrd = match &mut self.initrd {
            None => Initrd::default(),
            Some(file) => load_initrd(file, ram, &kernel, low_end)?,
        };
        let cmdline = &config.cmdline();
        write_cmdline(ram, cmdline)?;
        acpi::write(ram, machine.vcpu_count, virtio)?;
        reset_vector::write(ram)?;
        match kernel.entry {
            Entry::Long { .. } => linux::write_boot_params(ram, &kernel, initrd, cmdline, bytes)?,
            Entry::Pvh { .. } => pvh::write_start_info(ram, initrd, bytes)?,
        }
        Ok(kernel.entry)
    }
}

/// Chooses by content, never by name.
fn load_kernel(file: &mut BootFile, ram: &GuestRam, low_end: u64) -> Result<Kernel, BootError> {
    let head = file.read_up_to(0, 4096)?;
    if elf::is_elf(&head) {
        elf::load(file, &head, ram, low_end)
    } else if bzimage::is_bzimage(&head) {
        bzimage::load(file, &head, ram, low_end)
    } else {
        Err(file.bad_format("it is neither a bzImage nor an ELF image"))
    }
}

/// Puts the initrd as high as it may lie, page-aligned, so that it is out of the kernel's way.
fn load_initrd(file: &mut BootFile, ram: &GuestRam, kernel: &Kernel, low_end: u64) -> Result<Initrd, BootError> {
    let len = file.len();
    let top = low_end.min(kernel.initrd_max.saturating_add(1));
    let start = top.checked_sub(len).map(|start| start & !0xfff).filter(|start| *start >= kernel.end);
    let Some(start) = start else {
        return Err(BootError::TooLittleMemory { what: "initrd", needed: kernel.end.saturating_add(len), end: top });
    };
    file.copy_to(ram, 0, start, len, "its content")?;
    Ok(Initrd { start, len })
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    ram.write_slice(&text, GuestAddress(layout::CMDLINE)).map_err(|_| BootError::Write("command line"))
}

#[cfg(test)]
mod tests;
