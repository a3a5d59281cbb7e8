//! A TPM 2.0 for one test or one lab host: swtpm with its own state, its own endorsement key (EK) and EK certificates.
//!
//! ```no_run
//! use portcullis_firmware_fixtures::tpm::Swtpm;
//!
//! let tpm = Swtpm::new()?;
//! println!("tss-esapi and tpm2-tools: {}", tpm.tcti());
//! println!("EK certificate: {} bytes", tpm.ek_certificate_der()?.len());
//! # Ok::<(), portcullis_firmware_fixtures::tpm::SwtpmError>(())
//! ```
//!
//! swtpm serves one client at a time: one [`Swtpm`] a test.

mod ports;
mod vendor;

pub use vendor::VendorCa;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::child::Guarded;
use crate::workdir;
use ports::PortPair;

/// How long swtpm may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long one TPM command of the harness itself may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// What went wrong with a software TPM.
#[derive(Debug, thiserror::Error)]
pub enum SwtpmError {
    /// A file, directory or socket could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A program is missing or could not be started.
    #[error("cannot start {program}: {source} (scripts/install-packages installs it)")]
    Program {
        /// The program's name.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The TPM could not be manufactured.
    #[error("{program} failed ({status}): {output}")]
    Manufacture {
        /// The program that failed.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// swtpm did not come up.
    #[error("swtpm did not come up: {0}")]
    Start(String),
    /// The TPM is not running.
    #[error("the TPM is not running: call start() first")]
    NotRunning,
    /// The operation needs the TCP interface.
    #[error("{0} needs a TPM with TCP ports; this one has a control socket for QEMU")]
    NeedsTcp(&'static str),
    /// The TPM did not answer, most likely because another client is connected.
    #[error("the TPM did not answer {command}: {source} (swtpm serves one client at a time: is one still connected?)")]
    Busy {
        /// The TPM command.
        command: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The TPM refused a command.
    #[error("the TPM refused {command}: response code 0x{code:08x}")]
    Refused {
        /// The TPM command.
        command: &'static str,
        /// The TPM's response code.
        code: u32,
    },
}

pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> SwtpmError {
    let what = what.into();
    move |source| SwtpmError::Io { what, source }
}

/// How clients reach the TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Two loopback TCP ports, for tss-esapi and tpm2-tools. The TPM is started with `TPM2_Startup(CLEAR)`.
    #[default]
    Tcp,
    /// A Unix control socket, for QEMU. The firmware starts the TPM.
    QemuSocket,
}

/// How a TPM is made; see [`Swtpm::builder`].
#[derive(Debug, Clone, Default)]
pub struct SwtpmBuilder {
    transport: Transport,
    vendor: Option<VendorCa>,
}

impl SwtpmBuilder {
    /// How clients reach the TPM; [`Transport::Tcp`] when not called.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Who signs the EK certificate; the lab's shared vendor when not called.
    #[must_use]
    pub fn vendor(mut self, vendor: &VendorCa) -> Self {
        self.vendor = Some(vendor.clone());
        self
    }

    /// Manufactures the TPM and starts it.
    ///
    /// # Errors
    /// When a program is missing or fails; the message has the end of what it printed.
    pub fn build(self) -> Result<Swtpm, SwtpmError> {
        let vendor = match self.vendor {
            Some(vendor) => vendor,
            None => VendorCa::shared()?,
        };
        let dir = workdir::scratch("tpm").map_err(io_error("cannot make a directory for the TPM"))?;
        let state = dir.path().join("state");
        fs::create_dir(&state).map_err(io_error("cannot make the TPM's state directory"))?;
        vendor.manufacture(&state)?;
        let mut tpm = Swtpm { process: None, ports: None, transport: self.transport, vendor, dir };
        tpm.start()?;
        Ok(tpm)
    }
}

/// A TPM 2.0 of its own: distinct EK, banks sha1, sha256 and sha384, EK certificates in NV as a vendor puts them there.
///
/// Ends, and its directory goes away, when it is dropped.
#[derive(Debug)]
pub struct Swtpm {
    // Dropped in this order: the process before its ports and directory.
    process: Option<Guarded>,
    ports: Option<PortPair>,
    transport: Transport,
    vendor: VendorCa,
    dir: TempDir,
}

impl Swtpm {
    /// A new TPM on TCP ports, certified by the lab's shared vendor.
    ///
    /// # Errors
    /// See [`SwtpmBuilder::build`].
    pub fn new() -> Result<Self, SwtpmError> {
        Self::builder().build()
    }

    /// A TPM with other than the usual settings.
    pub fn builder() -> SwtpmBuilder {
        SwtpmBuilder::default()
    }

    /// The TCTI configuration for tss-esapi and tpm2-tools: `swtpm:host=127.0.0.1,port=N`. The control port is N + 1.
    ///
    /// # Panics
    /// When the TPM was made for QEMU: that is a mistake in the test.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port())
    }

    /// The TCP port of the TPM's command channel; the control channel is the next one.
    ///
    /// # Panics
    /// When the TPM was made for QEMU: that is a mistake in the test.
    pub fn port(&self) -> u16 {
        assert!(self.transport == Transport::Tcp, "this TPM has a control socket for QEMU, not TCP ports");
        self.ports.as_ref().expect("a TCP TPM has ports from its first start").command()
    }

    /// The Unix control socket for QEMU's `-tpmdev emulator`.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.path().join("ctrl")
    }

    /// How clients reach this TPM.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The directory of this TPM: its state, logs and certificates.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process id of swtpm while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::pid)
    }

    /// Who signed the EK certificates.
    pub fn vendor(&self) -> &VendorCa {
        &self.vendor
    }

    /// The RSA-2048 EK certificate (DER) as manufactured; the TPM has it at NV index 0x01c00002.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ek_certificate_der(&self) -> Result<Vec<u8>, SwtpmError> {
        self.certificate("ek-rsa2048.crt")
    }

    /// The P-384 EK certificate (DER) as manufactured; the TPM has it at NV index 0x01c00016.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ecc_ek_certificate_der(&self) -> Result<Vec<u8>, SwtpmError> {
        self.certificate("ek-secp384r1.crt")
    }

    fn certificate(&self, file: &str) -> Result<Vec<u8>, SwtpmError> {
        let path = self.dir.path().join("state").join(file);
        fs::read(&path).map_err(io_error(format!("cannot read {}", path.display())))
    }

    /// Starts a stopped TPM with the state it had: for its clients this is a power-on (with TCP, `TPM2_Startup(CLEAR)`
    /// included). Does nothing when it runs.
    ///
    /// # Errors
    /// When swtpm does not come up; the message has the end of its log.
    pub fn start(&mut self) -> Result<(), SwtpmError> {
        if let Some(process) = &mut self.process
            && matches!(process.ended(), Ok(None))
        {
            return Ok(());
        }
        self.process = None;
        match self.transport {
            Transport::QemuSocket => self.start_on_socket(),
            Transport::Tcp => self.start_on_ports(),
        }
    }

    fn start_on_socket(&mut self) -> Result<(), SwtpmError> {
        let socket = self.control_socket();
        let _ = fs::remove_file(&socket);
        let mut command = self.command();
        command.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
        let mut process = spawn(command)?;
        self.wait_up(&mut process, || socket.exists())?;
        self.process = Some(process);
        Ok(())
    }

    fn start_on_ports(&mut self) -> Result<(), SwtpmError> {
        // The same ports again after a power cycle, so that a configured TCTI stays good.
        let mut last = None;
        for _ in 0..16 {
            let ports = match self.ports.take() {
                Some(ports) => ports,
                None => PortPair::find().map_err(io_error("no free pair of loopback ports for swtpm"))?,
            };
            let mut command = self.command();
            command.arg("--server").arg(format!("type=tcp,port={}", ports.command()));
            command.arg("--ctrl").arg(format!("type=tcp,port={}", ports.control()));
            command.args(["--flags", "not-need-init,startup-clear"]);
            let control = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.control()));
            let mut process = spawn(command)?;
            // Not a connection to the command port: swtpm would take it for its one client.
            let up = || ports::listens(ports.command()) && TcpStream::connect_timeout(&control, COMMAND_LIMIT).is_ok();
            match self.wait_up(&mut process, up) {
                Ok(()) => {
                    self.process = Some(process);
                    self.ports = Some(ports);
                    return Ok(());
                }
                // Somebody took a port between the look and the start: try others.
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(SwtpmError::NotRunning))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--tpmstate"]);
        command.arg(format!("dir={}", self.dir.path().join("state").display()));
        command.arg("--log").arg(format!("file={},level=1", self.log_path().display()));
        command
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("swtpm.log")
    }

    fn wait_up(&self, process: &mut Guarded, up: impl Fn() -> bool) -> Result<(), SwtpmError> {
        let end = Instant::now() + START_LIMIT;
        loop {
            let is_up = up();
            // Asked after `up`: a process that is gone did not open what answered.
            let ended = process.ended().map_err(io_error("cannot wait for swtpm"))?;
            if let Some(status) = ended {
                let log = fs::read_to_string(self.log_path()).unwrap_or_default();
                return Err(SwtpmError::Start(format!("it ended ({status}): {}", tail(&log))));
            }
            if is_up {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(SwtpmError::Start(format!("no answer within {} s", START_LIMIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Turns the machine off and on again: an orderly `TPM2_Shutdown(CLEAR)`, then power off and on. The TPM sees a TPM
    /// Reset: resetCount grows by one, PCRs start anew, what lived in the NULL hierarchy is gone.
    ///
    /// Clients must be closed first, because swtpm serves one at a time. For a TPM of a QEMU host, reboot the host.
    ///
    /// # Errors
    /// [`SwtpmError::Busy`] while a client is connected; [`SwtpmError::NeedsTcp`] for a TPM made for QEMU.
    pub fn power_cycle(&mut self) -> Result<(), SwtpmError> {
        if self.transport != Transport::Tcp {
            return Err(SwtpmError::NeedsTcp("power_cycle"));
        }
        // TPM_ST_NO_SESSIONS, 12 bytes, TPM_CC_Shutdown, TPM_SU_CLEAR
        self.transact("TPM2_Shutdown", &[0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0])?;
        self.stop();
        self.start()
    }

    /// Takes the power away: swtpm is killed with SIGKILL, nothing is saved in an orderly way. After [`Self::start`] the TPM
    /// reports `safe = NO`. Clients that are connected see their connection end.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops the TPM (SIGTERM); its state stays for [`Self::start`].
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(3));
        }
    }

    /// Sends one raw TPM command and gives back the response, for faults that no library lets a test cause.
    ///
    /// # Errors
    /// [`SwtpmError::Busy`] while another client is connected, [`SwtpmError::Refused`] with the TPM's response code.
    pub fn transact(&self, name: &'static str, command: &[u8]) -> Result<Vec<u8>, SwtpmError> {
        if self.transport != Transport::Tcp {
            return Err(SwtpmError::NeedsTcp("transact"));
        }
        if self.process.is_none() {
            return Err(SwtpmError::NotRunning);
        }
        let response = self.exchange(command).map_err(|source| SwtpmError::Busy { command: name, source })?;
        match response.get(6..10).and_then(|code| <[u8; 4]>::try_from(code).ok()).map(u32::from_be_bytes) {
            Some(0) => Ok(response),
            Some(code) => Err(SwtpmError::Refused { command: name, code }),
            None => Err(SwtpmError::Busy {
                command: name,
                source: io::Error::new(io::ErrorKind::UnexpectedEof, "short response"),
            }),
        }
    }

    fn exchange(&self, command: &[u8]) -> io::Result<Vec<u8>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
        let mut stream = TcpStream::connect_timeout(&address, COMMAND_LIMIT)?;
        stream.set_read_timeout(Some(COMMAND_LIMIT))?;
        stream.set_write_timeout(Some(COMMAND_LIMIT))?;
        stream.write_all(command)?;
        // A TPM response is at most 4096 bytes and swtpm writes it whole.
        let mut response = vec![0; 4096];
        let length = stream.read(&mut response)?;
        response.truncate(length);
        Ok(response)
    }
}

fn spawn(mut command: Command) -> Result<Guarded, SwtpmError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Guarded::spawn("swtpm", command).map_err(|source| SwtpmError::Program { program: "swtpm".to_owned(), source })
}

/// The last lines of a program's output, for messages.
pub(crate) fn tail(text: &str) -> String {
    last_lines(text, 12)
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
