//! The lab: measured hosts in QEMU, with real firmware, real Secure Boot, a real (software) TPM and a real KVM inside.
//!
//! ```text
//! swtpm  <-  OVMF  ->  shim (Microsoft's signature)  ->  GRUB (Debian's)  ->  Linux (Debian's, lockdown, IMA)  ->  kvm_amd
//! ```
//!
//! An [`image::Image`] is built from Debian's packages and what the caller adds; its [`manifest::Manifest`] says what was
//! put on it, which is what reference values are made from. A [`host::Host`] is one machine that boots an image.

pub mod boot_files;
pub mod control;
pub mod cpio;
pub mod debian_root;
pub mod esp;
pub mod host;
pub mod image;
pub mod initrd;
pub mod kmod;
pub mod machine;
pub mod manifest;
pub mod pe;
pub mod record;
pub mod rootfs;
pub mod variables;
pub mod vmlinux;

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::tpm::{SwtpmError, tail};

/// What went wrong in the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file, directory or socket could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program is missing or could not be started.
    #[error("cannot start {program}: {source} (scripts/install-packages installs what is missing)")]
    Program {
        /// The program's name.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// The program that failed.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A file that the lab needs is not what it should be.
    #[error("{path}: {problem}")]
    BadFile {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The description of an image or host makes no sense.
    #[error("{0}")]
    BadSpec(String),
    /// The host's TPM.
    #[error(transparent)]
    Tpm(#[from] SwtpmError),
    /// The host did not do something in time.
    #[error("host {host}: {what} not within {} s; the last lines of its console:\n{console}", limit.as_secs())]
    TooSlow {
        /// The host's name.
        host: String,
        /// What was waited for.
        what: String,
        /// The time limit.
        limit: Duration,
        /// The end of its serial log.
        console: String,
    },
    /// The host ended or failed while something was waited for.
    #[error("host {host}: {problem} while waiting for {what}; the last lines of its console:\n{console}")]
    Ended {
        /// The host's name.
        host: String,
        /// How it ended.
        problem: String,
        /// What was waited for.
        what: String,
        /// The end of its serial log.
        console: String,
    },
    /// A command on the host failed where it had to succeed.
    #[error("host {host}: `{command}` failed ({status}): {output}")]
    Command {
        /// The host's name.
        host: String,
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// The end of what it printed.
        output: String,
    },
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let what = what.into();
    move |source| LabError::Io { what, source }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    std::fs::read(path).map_err(io_error(format!("cannot read {}", path.display())))
}

pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), LabError> {
    std::fs::write(path, contents).map_err(io_error(format!("cannot write {}", path.display())))
}

/// Runs a program of the build to its end; what it prints matters only when it fails.
pub(crate) fn run(mut command: Command) -> Result<Output, LabError> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Debian keeps the file system tools where ordinary users' PATH does not look.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fail = |source| LabError::Program { program: program.clone(), source };
    let output = crate::child::spawn_guarded(command).map_err(fail)?.wait_with_output().map_err(fail)?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Err(LabError::Failed { program, status: output.status.to_string(), output: tail(&text) })
}
