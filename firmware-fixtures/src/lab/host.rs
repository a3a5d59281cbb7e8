//! A host: one machine that boots an image, with its own TPM, and a way in for the harness.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::control::{Control, Interrupted, Output};
use super::image::Image;
use super::machine::{
    CONTROL_SOCKET, Connections, Disk, Firmware, MONITOR_SOCKET, Machine, SERIAL_LOG, SERIAL_SOCKET, VARIABLES,
};
use super::rootfs::{self, HostFile};
use super::{LabError, io_error, run, write};
use crate::child::Guarded;
use crate::tpm::{Swtpm, Transport, last_lines, tail};
use crate::workdir;

/// How long a host may take from power-on until its control shell answers. Fifteen to twenty-five seconds are usual when the
/// machine is not busy.
pub const BOOT_LIMIT: Duration = Duration::from_mins(3);

/// What a host is.
#[derive(Debug)]
pub struct HostSpec {
    /// Its name: in messages, and its hostname.
    pub name: String,
    /// What it boots.
    pub image: Image,
    /// How it starts.
    pub firmware: Firmware,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The port on this machine's loopback that the host reaches as 10.0.2.100:7000; no other place is reachable.
    pub verifier_port: Option<u16>,
    /// Disks beside boot disk and root: `/dev/vdc` and on.
    pub disks: Vec<Disk>,
    /// Files of this host's own copy of the root file system, such as its configuration.
    pub files: Vec<HostFile>,
    /// Its TPM; a new one when none is given.
    pub tpm: Option<Swtpm>,
    /// Whether its clock counts the instructions that it executes, a nanosecond each, and leaps over the time in which
    /// there are none. What is measured with it hardly depends on how busy this machine is. The host is slower then.
    pub counted: bool,
    /// How long it may take to start.
    pub boot_limit: Duration,
}

impl HostSpec {
    /// A host with one processor and 1 GiB, started as the image's variants ask for.
    pub fn new(name: &str, image: &Image) -> Self {
        Self {
            name: name.to_owned(),
            image: image.clone(),
            firmware: image.firmware,
            memory_mib: 1024,
            verifier_port: None,
            disks: Vec::new(),
            files: Vec::new(),
            tpm: None,
            counted: false,
            boot_limit: BOOT_LIMIT,
        }
    }

    /// What firmware sees of this host.
    pub fn machine(&self) -> Machine {
        Machine {
            firmware: self.firmware,
            memory_mib: self.memory_mib,
            extra_disks: self.disks.len(),
            counted: self.counted,
        }
    }
}

/// A running host. Killed, and its directory removed, when it is dropped.
#[derive(Debug)]
pub struct Host {
    name: String,
    // Dropped in this order: the machine before its TPM, both before the directory.
    machine: Guarded,
    control: Control,
    tpm: Swtpm,
    dir: TempDir,
    boot_limit: Duration,
    log_start: u64,
}

impl Host {
    /// Starts a host and waits until its control shell answers.
    ///
    /// # Errors
    /// When it does not start within its limit; the message has the last lines of its console.
    pub fn boot(spec: HostSpec) -> Result<Self, LabError> {
        let mut host = Self::start(spec)?;
        host.wait_ready()?;
        Ok(host)
    }

    /// Turns a host on without waiting for it; see [`Self::wait_ready`].
    ///
    /// # Errors
    /// When QEMU or the TPM cannot be started.
    pub fn start(spec: HostSpec) -> Result<Self, LabError> {
        if spec.name.is_empty() || !spec.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        {
            return Err(LabError::BadSpec(format!("{:?} is no name for a host: letters, digits, . and -", spec.name)));
        }
        let dir = workdir::scratch("host").map_err(io_error("cannot make a directory for the host"))?;
        let root = dir.path().join("root.ext4");
        copy_sparse(&spec.image.root, &root)?;
        let mut files = vec![HostFile::data("/etc/hostname", format!("{}\n", spec.name))];
        files.extend(spec.files.iter().cloned());
        rootfs::add_files(&root, &spec.image.tree, &files, dir.path())?;
        let machine = spec.machine();
        let image = &spec.image;
        let direct = spec.firmware.is_given_the_kernel().then_some((
            image.kernel.as_path(),
            image.initrd.as_path(),
            image.command_line.as_str(),
        ));
        let parts =
            Parts { esp: &image.esp, root: &root, disks: &spec.disks, verifier_port: spec.verifier_port, direct };
        Self::power_on(&spec.name, &machine, &parts, spec.tpm, dir, spec.boot_limit)
    }

    pub(super) fn power_on(
        name: &str,
        machine: &Machine,
        parts: &Parts,
        tpm: Option<Swtpm>,
        dir: TempDir,
        boot_limit: Duration,
    ) -> Result<Self, LabError> {
        let mut tpm = match tpm {
            Some(tpm) => tpm,
            None => Swtpm::builder().transport(Transport::QemuSocket).build()?,
        };
        if tpm.transport() != Transport::QemuSocket {
            return Err(LabError::BadSpec("a host's TPM needs Transport::QemuSocket".to_owned()));
        }
        // After a power-off swtpm has lost its client; a fresh one has never had any. Both are a power-on.
        tpm.stop();
        tpm.start()?;
        write(&dir.path().join(VARIABLES), &machine.firmware.new_variables()?)?;
        let socket = tpm.control_socket();
        let connections = Connections {
            dir: dir.path(),
            esp: parts.esp,
            root: parts.root,
            disks: parts.disks,
            tpm_socket: &socket,
            verifier_port: parts.verifier_port,
            direct: parts.direct,
        };
        let program = "qemu-system-x86_64";
        let errors = fs::File::create(dir.path().join("qemu.err")).map_err(io_error("cannot make QEMU's log"))?;
        let mut command = Command::new(program);
        command.args(machine.arguments(&connections));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut process = Guarded::spawn(program, command)
            .map_err(|source| LabError::Program { program: program.to_owned(), source })?;
        let control = connect(&mut process, dir.path(), name)?;
        Ok(Self { name: name.to_owned(), machine: process, control, tpm, dir, boot_limit, log_start: 0 })
    }

    /// Waits until the host's control shell answers.
    ///
    /// # Errors
    /// When it does not within the boot limit, or the machine ends; the message has the last lines of its console.
    pub fn wait_ready(&mut self) -> Result<(), LabError> {
        let limit = self.boot_limit;
        let end = Instant::now() + limit;
        self.with_control("its start", limit, |control, alive| control.wait_ready(end, alive))
    }

    /// Runs a shell command (busybox sh) on the host and waits for it; `limit` ends it with SIGKILL. To leave something
    /// running: `setsid program >/run/log 2>&1 &`.
    ///
    /// # Errors
    /// When the host does not answer. A command that fails is no error here: see [`Self::must_run`].
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output, LabError> {
        // The host's clock and ours do not run alike, and the answer takes its time too.
        let patience = limit * 2 + Duration::from_secs(30);
        let end = Instant::now() + patience;
        let what = format!("`{command}`");
        self.with_control(&what, patience, |control, alive| control.run(command, limit, end, alive))
    }

    /// Runs a command that has to succeed and gives back what it printed, without blanks at its end.
    ///
    /// # Errors
    /// When it fails or the host does not answer.
    pub fn must_run(&mut self, command: &str, limit: Duration) -> Result<String, LabError> {
        let output = self.run(command, limit)?;
        if output.status == 0 {
            return Ok(output.text());
        }
        Err(LabError::Command {
            host: self.name.clone(),
            command: command.to_owned(),
            status: output.status,
            output: tail(&format!("{}\n{}", output.text(), output.error_text())),
        })
    }

    /// Reads a file of the host.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_file(&mut self, path: &str) -> Result<Vec<u8>, LabError> {
        let command = format!("cat '{path}'");
        let output = self.run(&command, Duration::from_mins(1))?;
        if output.status == 0 {
            return Ok(output.stdout);
        }
        let status = output.status;
        Err(LabError::Command { host: self.name.clone(), command, status, output: output.error_text() })
    }

    /// Writes a file on the host.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_file(&mut self, path: &str, contents: &[u8]) -> Result<(), LabError> {
        let limit = Duration::from_mins(2);
        let end = Instant::now() + limit;
        let what = format!("writing {path}");
        let output = self.with_control(&what, limit, |control, alive| control.put(path, contents, end, alive))?;
        if output.status == 0 {
            return Ok(());
        }
        let (status, command) = (output.status, what);
        Err(LabError::Command { host: self.name.clone(), command, status, output: output.error_text() })
    }

    /// Waits until the console has shown a line that contains `text` (in this boot).
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<(), LabError> {
        let end = Instant::now() + limit;
        let what = format!("{text:?} on its console");
        loop {
            if self.console().contains(text) {
                return Ok(());
            }
            if let Some(problem) = problem(&mut self.machine, self.dir.path(), self.log_start) {
                return Err(self.ended(problem, &what));
            }
            if Instant::now() >= end {
                return Err(self.too_slow(&what, limit));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Restarts the host from within (`reboot`) and waits until it is up again. The TPM sees a real reset: resetCount
    /// grows, the NULL hierarchy's seed changes, PCRs start anew. Its disk stays as it is.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn reboot(&mut self) -> Result<(), LabError> {
        self.log_start = self.console_length();
        // No answer can come: the shell goes away with the host.
        self.run("sync; setsid sh -c 'usleep 200000; reboot -f' >/dev/null 2>&1 &", Duration::from_secs(20))?;
        self.wait_ready()
    }

    /// Presses the reset button: nothing is saved or shut down in an orderly way. Waits until the host is up again.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn reset(&mut self) -> Result<(), LabError> {
        self.log_start = self.console_length();
        self.monitor("system_reset")?;
        self.wait_ready()
    }

    /// Turns the host off in an orderly way and gives back its TPM, for a [`HostSpec`] of its next boot.
    ///
    /// # Errors
    /// When it does not turn off.
    pub fn power_off(mut self) -> Result<Swtpm, LabError> {
        self.run("sync; setsid sh -c 'usleep 200000; poweroff -f' >/dev/null 2>&1 &", Duration::from_secs(20))?;
        self.wait_end(Duration::from_mins(1))?;
        Ok(self.tpm)
    }

    pub(super) fn wait_end(&mut self, limit: Duration) -> Result<(), LabError> {
        match self.machine.wait_for_end(limit).map_err(io_error("cannot wait for QEMU"))? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.ended(format!("QEMU ended ({status})"), "power off")),
            None => Err(self.too_slow("power off", limit)),
        }
    }

    /// Pulls the plug (SIGKILL) and gives back the TPM, whose power is cut too.
    pub fn kill(mut self) -> Swtpm {
        self.machine.kill();
        self.tpm.kill9();
        self.tpm
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's TPM, for its certificates.
    pub fn tpm(&self) -> &Swtpm {
        &self.tpm
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// What the console has shown in this boot.
    pub fn console(&self) -> String {
        console_since(self.dir.path(), self.log_start)
    }

    /// The socket of the console, for a person at a terminal.
    pub fn console_socket(&self) -> PathBuf {
        self.dir.path().join(SERIAL_SOCKET)
    }

    /// The host's own directory: logs, disks, sockets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The exit status of QEMU if the machine has ended.
    ///
    /// # Errors
    /// What `waitpid` says.
    pub fn ended_by_itself(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.machine.ended()
    }

    pub(super) fn with_control<T>(
        &mut self,
        what: &str,
        limit: Duration,
        act: impl FnOnce(&mut Control, &mut dyn FnMut() -> Option<String>) -> Result<T, Interrupted>,
    ) -> Result<T, LabError> {
        let (machine, dir, log_start) = (&mut self.machine, self.dir.path(), self.log_start);
        let result = act(&mut self.control, &mut || problem(machine, dir, log_start));
        result.map_err(|interrupted| match interrupted {
            Interrupted::TooSlow => self.too_slow(what, limit),
            Interrupted::Ended(problem) => self.ended(problem, what),
            Interrupted::Io(error) => {
                // Most likely QEMU has just ended: give it a moment, so that the message has the reason.
                let _ = self.machine.wait_for_end(Duration::from_secs(2));
                let gone = problem(&mut self.machine, self.dir.path(), self.log_start);
                self.ended(gone.unwrap_or_else(|| format!("its control port failed: {error}")), what)
            }
        })
    }

    fn too_slow(&self, what: &str, limit: Duration) -> LabError {
        LabError::TooSlow {
            host: self.name.clone(),
            what: what.to_owned(),
            limit,
            console: last_lines(&self.console(), 40),
        }
    }

    fn ended(&self, problem: String, what: &str) -> LabError {
        LabError::Ended {
            host: self.name.clone(),
            problem,
            what: what.to_owned(),
            console: last_lines(&self.console(), 40),
        }
    }

    fn console_length(&self) -> u64 {
        fs::metadata(self.dir.path().join(SERIAL_LOG)).map_or(0, |metadata| metadata.len())
    }

    /// Gives QEMU's monitor (QMP) one command without arguments.
    fn monitor(&self, command: &str) -> Result<(), LabError> {
        let talk = || -> io::Result<()> {
            let stream = UnixStream::connect(self.dir.path().join(MONITOR_SOCKET))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let mut writer = stream;
            let mut next = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
            next()?;
            for execute in ["qmp_capabilities", command] {
                writeln!(writer, "{{\"execute\":\"{execute}\"}}")?;
                while !next()?.contains("\"return\"") {}
            }
            Ok(())
        };
        talk().map_err(io_error(format!("host {}: QEMU's monitor did not take {command}", self.name)))
    }
}

/// What a machine is made of, beside its TPM.
pub(super) struct Parts<'a> {
    pub(super) esp: &'a Path,
    pub(super) root: &'a Path,
    pub(super) disks: &'a [Disk],
    pub(super) verifier_port: Option<u16>,
    pub(super) direct: Option<(&'a Path, &'a Path, &'a str)>,
}

fn connect(process: &mut Guarded, dir: &Path, name: &str) -> Result<Control, LabError> {
    let limit = Duration::from_secs(20);
    let end = Instant::now() + limit;
    loop {
        if let Ok(control) = Control::connect(&dir.join(CONTROL_SOCKET)) {
            return Ok(control);
        }
        let (host, what) = (name.to_owned(), "QEMU's start".to_owned());
        if let Some(problem) = problem(process, dir, 0) {
            return Err(LabError::Ended { host, problem, what, console: String::new() });
        }
        if Instant::now() >= end {
            return Err(LabError::TooSlow { host, what, limit, console: String::new() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says why the host will not do anything any more, if so.
fn problem(machine: &mut Guarded, dir: &Path, log_start: u64) -> Option<String> {
    if let Ok(Some(status)) = machine.ended() {
        let errors = fs::read_to_string(dir.join("qemu.err")).unwrap_or_default();
        return Some(format!("the machine ended ({status}) {}", tail(&errors)));
    }
    let console = console_since(dir, log_start);
    for bad in ["Kernel panic", "portcullis-initrd: FATAL"] {
        if let Some(line) = console.lines().find(|line| line.contains(bad)) {
            return Some(line.trim().to_owned());
        }
    }
    None
}

fn console_since(dir: &Path, start: u64) -> String {
    let bytes = fs::read(dir.join(SERIAL_LOG)).unwrap_or_default();
    let from = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
    String::from_utf8_lossy(&bytes[from..]).into_owned()
}

/// Copies an image, leaving out what is zero.
pub(super) fn copy_sparse(from: &Path, to: &Path) -> Result<(), LabError> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to);
    run(copy).map(|_| ())
}
