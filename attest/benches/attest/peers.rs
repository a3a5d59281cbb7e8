//! What others take for the same: programs of tpm2-tools beside ours, and Keylime's functions beside our library's.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use portcullis_attest::eventlog::CertificateCache;
use portcullis_attest::ima::{ExtendRule, ImaList};
use portcullis_attest::key::Bank;
use tempfile::TempDir;

use crate::boots::{self, Boot};
use crate::ima::List;
use crate::quote;
use crate::report::{Report, Row};
use crate::rounds::{self, Contender};
use crate::software_tpm::binding;

/// Entries of the IMA list.
const ENTRIES: u64 = 10_000;

/// Where the programs are that are measured.
#[derive(Default)]
pub struct Programs {
    /// Ours, of the release profile.
    pub portcullis: Option<PathBuf>,
    /// A Python that has Keylime.
    pub keylime: Option<PathBuf>,
}

pub fn run(report: &mut Report, rounds: usize, programs: &Programs) {
    let boot = Boot::new("recorded, filled up", boots::log_of_116_events(), &[Bank::Sha256]);
    let list = List::new(&[0; 32], 0, ENTRIES);
    let files = Files::new(&boot, &list);
    report.section("programs, from their start to their end");
    match &programs.portcullis {
        Some(portcullis) => whole_programs(report, rounds.min(51), portcullis, &files),
        None => report.attention("no release build of portcullis (--portcullis FILE): programs were not compared"),
    }
    report.section("libraries: ours in Rust, Keylime's in Python");
    match programs.keylime.as_ref().map(|python| Keylime::start(python, &files)) {
        Some(Ok(mut keylime)) => libraries(report, rounds.min(31), &boot, &list, &mut keylime),
        Some(Err(error)) => report.attention(&format!("Keylime does not start: {error}")),
        None => report.attention("no Keylime (--keylime PYTHON): it was not compared"),
    }
    report.attention("go-attestation and go-eventlog were not compared: no registry that is reached has them");
}

/// A quote, its log and an IMA list, as tpm2-tools and Linux write them.
struct Files(TempDir);

impl Files {
    fn new(boot: &Boot, list: &List) -> Self {
        let files = Self(tempfile::tempdir().expect("a folder for files"));
        let [quote] = &boot.evidence.quotes[..] else { panic!("one quote") };
        let spki = boot.ak.public().spki_der().expect("an RSA key");
        files.write("ak.pem", pem(&spki).as_bytes());
        files.write("message", &quote.message);
        files.write("signature", &quote.signature);
        files.write("pcrs", &serialized(quote.pcrs[&Bank::Sha256].iter()));
        files.write("nonce", hex::encode(binding().extra_data()).as_bytes());
        files.write("eventlog", &boot.evidence.eventlog);
        files.write("ima", ascii(&list.bytes).as_bytes());
        files.write("ima.pcr", hex::encode(&list.pcr).as_bytes());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("a file can be written");
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

fn pem(spki: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(spki).into_bytes();
    let lines = text.chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
    format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n")
}

/// What `tpm2_quote -o` writes: TPML_PCR_SELECTION and then lists of digests, as they lie in memory.
fn serialized<'a>(pcrs: impl Iterator<Item = (&'a u8, &'a Vec<u8>)> + Clone) -> Vec<u8> {
    const SELECTIONS: usize = 16;
    const DIGESTS: usize = 8;
    let selected = pcrs.clone().fold(0_u32, |selected, (pcr, _)| selected | 1 << pcr).to_le_bytes();
    let mut bytes = 1_u32.to_le_bytes().to_vec();
    bytes.extend(Bank::Sha256.tpm_alg_id().to_le_bytes());
    bytes.extend([3, selected[0], selected[1], selected[2], 0, 0]);
    bytes.resize(4 + SELECTIONS * 8, 0);
    let values: Vec<_> = pcrs.map(|(_, value)| value).collect();
    let size = |count: usize| u32::try_from(count).expect("few").to_le_bytes();
    bytes.extend(size(values.len().div_ceil(DIGESTS)));
    for values in values.chunks(DIGESTS) {
        let end = bytes.len() + 4 + DIGESTS * 66;
        bytes.extend(size(values.len()));
        for value in values {
            bytes.extend(u16::try_from(value.len()).expect("short").to_le_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len() + 64 - value.len(), 0);
        }
        bytes.resize(end, 0);
    }
    bytes
}

/// The list as Linux shows it in `ascii_runtime_measurements`.
fn ascii(list: &[u8]) -> String {
    let list = ImaList::parse_binary(list).expect("a list as Linux writes it");
    let mut text = String::new();
    for entry in list.entries() {
        let (digest, file) = (hex::encode(entry.template_digest), hex::encode(entry.digest().digest));
        writeln!(text, "10 {digest} ima-ng sha256:{file} {}", entry.name_lossy()).expect("memory");
    }
    text
}

fn whole_programs(report: &mut Report, rounds: usize, portcullis: &Path, files: &Files) {
    let nonce = hex::encode(binding().extra_data());
    let ours = ["quote", "check", "--ak", "ak.pem", "--message", "message", "--signature", "signature"];
    let ours = [&ours[..], &["--pcrs", "pcrs", "--nonce", &nonce]].concat();
    let theirs = ["-u", "ak.pem", "-m", "message", "-s", "signature", "-f", "pcrs", "-g", "sha256", "-q", &nonce];
    pair(
        report,
        rounds,
        "quote",
        ("portcullis quote check", files.command(portcullis, &ours)),
        ("tpm2_checkquote", files.command("tpm2_checkquote", &theirs)),
    );
    pair(
        report,
        rounds,
        "quote and event log",
        (
            "portcullis quote check --eventlog",
            files.command(portcullis, &[&ours[..], &["--eventlog", "eventlog"]].concat()),
        ),
        ("tpm2_checkquote -e", files.command("tpm2_checkquote", &[&theirs[..], &["-e", "eventlog"]].concat())),
    );
    pair(
        report,
        rounds,
        "event log in words",
        ("portcullis eventlog show", files.command(portcullis, &["eventlog", "show", "eventlog"])),
        ("tpm2_eventlog", files.command("tpm2_eventlog", &["eventlog"])),
    );
}

/// Ours and theirs; they must both say yes.
fn pair(
    report: &mut Report,
    rounds: usize,
    about: &str,
    ours: (&'static str, Command),
    theirs: (&'static str, Command),
) {
    let mut programs = [ours, theirs];
    for (name, command) in &mut programs {
        match command.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                return report
                    .attention(&format!("{name} says no: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            Err(error) => return report.attention(&format!("{name} does not start: {error}")),
        }
    }
    let mut contenders = programs.map(|(name, mut command)| {
        Contender::program(name, move || assert!(command.status().is_ok_and(|status| status.success()), "{name}"))
    });
    rounds::run(&mut contenders, rounds);
    let [ours, theirs] = &contenders;
    report.row(Row::of(about, ours));
    report.row(Row::of(about, theirs).against(theirs, ours));
}

/// A Python in which Keylime's functions wait for their turn.
struct Keylime {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Keylime {
    fn start(python: &Path, files: &Files) -> std::io::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/attest/keylime_turns.py");
        let mut command = Command::new(python);
        command.arg(script).arg(files.0.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let missing = || std::io::Error::other("no pipe");
        let ask = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self { child, ask, answers })
    }

    /// What one call costs; `None` if the function failed, and with it Python.
    fn turn(&mut self, function: &str, times: u32) -> Option<Duration> {
        writeln!(self.ask, "{function} {times}").ok()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).ok()?;
        answer.trim().parse().ok().map(Duration::from_nanos)
    }
}

impl Drop for Keylime {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn libraries(report: &mut Report, rounds: usize, boot: &Boot, list: &List, keylime: &mut Keylime) {
    let cache = CertificateCache::new();
    let read = || {
        let parsed = ImaList::parse_binary(&list.bytes).expect("a list");
        assert_eq!(parsed.replay(Bank::Sha256, ExtendRule::Digest), list.pcr);
    };
    let ours: [(&str, &str, u32, &dyn Fn()); 3] = [
        ("quote", "checkquote", 20, &|| drop(black_box(quote::quoted(boot)))),
        ("quote and event log, every claim", "event_log", 1, &|| quote::judge(boot, &cache)),
        ("IMA list of 10,000 entries", "ima_list", 1, &read),
    ];
    for (about, function, times, work) in ours {
        if keylime.turn(function, 1).is_none() {
            return report.attention(&format!("Keylime's {function} fails: it was not compared"));
        }
        let turn = || keylime.turn(function, times).expect("it worked before");
        let mut contenders = [Contender::new("ours", 20, work), Contender::told("Keylime", turn)];
        rounds::run(&mut contenders, rounds);
        let [ours, theirs] = &contenders;
        report.row(Row::of(about, ours));
        report.row(Row::of(about, theirs).against(theirs, ours));
    }
}
