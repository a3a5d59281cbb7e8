//! `boot-source`: what the VM boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, objects_only};

/// Longest kernel command line, in bytes without the closing NUL (`COMMAND_LINE_SIZE` of x86 Linux is 2048).
pub const MAX_CMDLINE: usize = 2047;
/// The command line of a configuration that gives none: Firecracker's. Such a guest ends its VM when it reboots or panics,
/// loads no modules, has no serial console, and does not look for a mouse.
pub const DEFAULT_CMDLINE: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// Kernel, initramfs and command line.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BootSource {
    /// A bzImage, or an ELF image with a 64-bit or a PVH entry point.
    pub kernel_image_path: PathBuf,
    /// An initramfs, loaded as it is.
    #[serde(default)]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line, [`DEFAULT_CMDLINE`] if none is given; an empty one is empty. Only a root device adds
    /// something to it, see [`super::VmConfig::cmdline`].
    #[serde(default)]
    pub boot_args: Option<String>,
}

objects_only!(BootSource);

impl BootSource {
    /// The command line.
    pub fn cmdline(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(DEFAULT_CMDLINE)
    }

    /// Checks the command line's text.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let args = self.cmdline();
        // A NUL or a newline would show the host one command line and the guest another.
        if let Some(bad) = args.chars().find(|c| c.is_control()) {
            return Err(ConfigError::OutOfRange {
                field: "boot-source.boot_args",
                found: format!("text with the control character {bad:?}"),
                allowed: "printable text".to_owned(),
            });
        }
        Ok(())
    }
}

/// Checks the length of a whole command line.
pub(super) fn check_len(cmdline: &str) -> Result<(), ConfigError> {
    if cmdline.len() <= MAX_CMDLINE {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        field: "boot-source.boot_args",
        found: format!("{} bytes long", cmdline.len()),
        allowed: format!("at most {MAX_CMDLINE} bytes"),
    })
}
