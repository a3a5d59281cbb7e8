//! Files made to cost much: processor seconds and memory until they end in an error.

use std::collections::BTreeMap;

use portcullis_attest::appraise::JUDGED_PCRS;
use portcullis_attest::eventlog::{CertificateCache, EventLog, Guid};
use portcullis_attest::evidence::{Evidence, MAX_JSON};
use portcullis_attest::key::Bank;

use crate::allocations;
use crate::boots::{self, Boot};
use crate::report::{Report, Row};
use crate::rounds::{Contender, Summary};
use crate::software_tpm::binding;
use crate::verdict::Rules;

/// Size of the files.
const SIZE: usize = 64 << 20;

pub const EV_IPL: u32 = 13;
pub const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
pub const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00e0;

pub fn run(report: &mut Report) {
    report.section("hostile files of 64 MiB, until the error");
    let host = Host::new();
    for (name, log) in event_logs() {
        let evidence = host.event_log(log);
        measure(report, "event log", name, || host.judge(&evidence));
    }
    for (name, list) in ima_lists() {
        let evidence = host.ima(list);
        measure(report, "IMA list", name, || host.judge(&evidence));
    }
    for (name, json) in host.json() {
        measure(report, "evidence", name, || Evidence::from_json(&json).map(drop).map_err(|error| error.to_string()));
    }
}

/// Behind a log that is good by itself, so that every check is reached.
fn event_logs() -> [(&'static str, Vec<u8>); 7] {
    let good = boots::recorded_log();
    let fill = |event: &[u8]| [&good[..], &event.repeat((SIZE - good.len()) / event.len())].concat();
    let large = SIZE - (1 << 20);
    let cut = [&4_u32.to_le_bytes()[..], &EV_IPL.to_le_bytes(), &vec![1; large]].concat();
    [
        ("zeros", vec![0; SIZE]),
        ("an event with no end", [&good[..], &cut].concat()),
        ("smallest events", fill(&event(4, EV_IPL, b""))),
        ("commands of 910 bytes, beyond the limit", fill(&event(8, EV_IPL, &command(910)))),
        (
            "authorities of 910 bytes, beyond the limit",
            fill(&event(7, EV_EFI_VARIABLE_AUTHORITY, &variable(&vec![0x30; 874]))),
        ),
        ("one command", fill(&event(8, EV_IPL, &command(large)))),
        ("dbx of smallest lists", {
            let mut dbx = event(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &variable(&signature_list().repeat(large / 45)));
            // Its digest is right and it comes first, so that it is read.
            let digest = Bank::Sha256.hash(&dbx[dbx.len() - variable(&[]).len() - large / 45 * 45..]);
            dbx[36..68].copy_from_slice(&digest);
            let (header, rest) = good.split_at(32 + usize::from(good[28]));
            [header, &dbx, rest].concat()
        }),
    ]
}

fn ima_lists() -> [(&'static str, Vec<u8>); 5] {
    let fill = |entry: &[u8]| entry.repeat(SIZE / entry.len());
    let line = b"10 0000000000000000000000000000000000000000 ima-ng a: ";
    [
        ("zeros", vec![0; SIZE]),
        ("smallest entries", fill(&small_entry(b"ima-ng"))),
        ("smallest entries, old template", fill(&small_entry(b"ima"))),
        ("smallest lines", fill(&[line, &b"b\n"[..]].concat())),
        ("one line", [line.to_vec(), vec![b'b'; SIZE - line.len()]].concat()),
    ]
}

fn measure(report: &mut Report, kind: &str, name: &'static str, mut read: impl FnMut() -> Result<(), String>) {
    let (result, bytes) = allocations::peak(&mut read);
    let error = result.expect_err("a hostile file is refused");
    let mut contender = Contender::new(name, 1, || drop(read()));
    crate::rounds::run(std::slice::from_mut(&mut contender), 3);
    let seconds = Summary::of(vec![contender.micros().median / 1e6]);
    report.row(Row::figure(kind, name, seconds, "s"));
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mebibytes = Summary::of(vec![bytes as f64 / f64::from(1 << 20)]);
    report.row(Row::figure(kind, &format!("  {:.40}", error.replace('\n', " ")), mebibytes, "MiB"));
}

/// A host that is enrolled and hostile: its quote agrees with its firmware log, whatever that says.
struct Host {
    boot: Boot,
    rules: Rules,
}

impl Host {
    fn new() -> Self {
        let boot = Boot::new("recorded", boots::recorded_log(), &[Bank::Sha256]);
        Self { boot, rules: Rules::of(&boots::recorded_log()) }
    }

    fn event_log(&self, eventlog: Vec<u8>) -> Evidence {
        let mut values: BTreeMap<u8, Vec<u8>> = JUDGED_PCRS.into_iter().map(|pcr| (pcr, vec![0; 32])).collect();
        if let Ok(parsed) = EventLog::parse(&eventlog) {
            values.extend(parsed.replay(Bank::Sha256));
        }
        Evidence { eventlog, ..self.boot.tpm.evidence(&binding(), &[(Bank::Sha256, values)].into()) }
    }

    /// The quoted PCR 10 is nowhere in the list, so all of it is replayed.
    fn ima(&self, ima: Vec<u8>) -> Evidence {
        let mut values = self.boot.evidence.quotes[0].pcrs.clone();
        values.get_mut(&Bank::Sha256).expect("quoted").insert(10, vec![7; 32]);
        let eventlog = self.boot.evidence.eventlog.clone();
        Evidence { eventlog, ima, ..self.boot.tpm.evidence(&binding(), &values) }
    }

    fn judge(&self, evidence: &Evidence) -> Result<(), String> {
        let verdict = self.rules.appraise(evidence, &self.boot.ak, &CertificateCache::new());
        verdict.map(drop).map_err(|denial| {
            let codes = denial.reasons.first().map(|reason| reason.code.to_string());
            format!("{} ({} reasons)", codes.unwrap_or_default(), denial.reasons.len())
        })
    }

    fn json(&self) -> [(&'static str, Vec<u8>); 4] {
        let whole = String::from_utf8(self.boot.evidence.to_json().expect("evidence")).expect("JSON");
        let (front, _) = whole.split_once("\"eventlog\":\"").expect("evidence has a log");
        [
            ("brackets", vec![b'['; SIZE]),
            ("brackets, as long as is read", vec![b'['; MAX_JSON]),
            ("a log without end, as long as is read", {
                let mut json = format!("{front}\"eventlog\":\"").into_bytes();
                json.resize(MAX_JSON, b'A');
                json
            }),
            ("PCRs again and again, as long as is read", many_pcrs()),
        ]
    }
}

/// Evidence with PCR values as far as it is read, and no end.
fn many_pcrs() -> Vec<u8> {
    let mut json = b"{\"schema\":\"portcullis/evidence/1\",\"quotes\":[{\"pcrs\":{\"sha256\":{".to_vec();
    json.extend(b"\"7\":\"00\",".iter().cycle().take(MAX_JSON - json.len()));
    json
}

/// An event whose digests are of something else. That of SHA-256 is its bytes 36 to 67.
pub fn event(pcr: u32, event_type: u32, data: &[u8]) -> Vec<u8> {
    let mut event = [pcr.to_le_bytes(), event_type.to_le_bytes(), 3_u32.to_le_bytes()].concat();
    for bank in [Bank::Sha1, Bank::Sha256, Bank::Sha384] {
        event.extend(bank.tpm_alg_id().to_le_bytes());
        event.extend(vec![1; bank.digest_size()]);
    }
    event.extend(size(data));
    event.extend(data);
    event
}

/// A command of GRUB.
pub fn command(size: usize) -> Vec<u8> {
    let mut data = b"grub_cmd: ".to_vec();
    data.resize(size, b'x');
    data
}

/// The variable dbx with this content.
pub fn variable(content: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = "dbx".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let size = |count: usize| u64::try_from(count).expect("64 bits").to_le_bytes();
    [&Guid::IMAGE_SECURITY.0[..], &size(3), &size(content.len()), &name, content].concat()
}

/// A list with one signature of one byte: 45 bytes.
pub fn signature_list() -> Vec<u8> {
    [&[0; 16][..], &45_u32.to_le_bytes(), &0_u32.to_le_bytes(), &17_u32.to_le_bytes(), &[0; 17]].concat()
}

/// An entry as short as it can be.
pub fn small_entry(template: &[u8]) -> Vec<u8> {
    let mut entry = [&10_u32.to_le_bytes()[..], &[1; 20], &size(template), template].concat();
    if template == b"ima" {
        entry.extend([1; 20]);
        entry.extend([&1_u32.to_le_bytes()[..], b"b"].concat());
    } else {
        let data = [&3_u32.to_le_bytes()[..], b"a:\0", &2_u32.to_le_bytes(), b"b\0"].concat();
        entry.extend([&size(&data)[..], &data].concat());
    }
    entry
}

pub fn size(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_le_bytes()
}
