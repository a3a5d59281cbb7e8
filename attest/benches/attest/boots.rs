//! Boots to judge: logs that firmware really wrote, with quotes by a software TPM over the values to which they lead.

use std::collections::BTreeMap;

use aws_lc_rs::rsa::KeySize;
use portcullis_attest::appraise::JUDGED_PCRS;
use portcullis_attest::eventlog::{EventLog, initial_value};
use portcullis_attest::evidence::{Evidence, PcrValues};
use portcullis_attest::key::{Bank, EnrolledAk};
use portcullis_firmware_fixtures::recorded;

use crate::software_tpm::{RSASSA, SoftTpm, binding};

const FROM_CORPUS: [&str; 2] = ["gcp-ubuntu-2104-no-dbx", "vm-fedora-uefi"];

/// Events that the log of the headline figure has.
pub const EVENTS: usize = 116;

/// Evidence of one boot that holds, and the key that signed it: RSA-2048, RSASSA with SHA-256.
pub struct Boot {
    pub name: String,
    pub events: usize,
    pub tpm: SoftTpm,
    pub ak: EnrolledAk,
    pub evidence: Evidence,
}

impl Boot {
    /// A boot that left this log, quoted in these banks: every PCR that the log extends, and every other that is judged.
    pub fn new(name: &str, log: Vec<u8>, banks: &[Bank]) -> Self {
        let parsed = EventLog::parse(&log).expect("a log that was read before");
        let pcrs: PcrValues = banks.iter().map(|&bank| (bank, values(&parsed, bank))).collect();
        let events = parsed.events().len();
        let tpm = SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256);
        let quotes = tpm.evidence(&binding(), &pcrs).quotes;
        let ak = tpm.enrolled().expect("a key as attestation keys are");
        Self { name: name.to_owned(), events, ak, evidence: Evidence::new(binding(), quotes, log, Vec::new()), tpm }
    }
}

fn values(log: &EventLog<'_>, bank: Bank) -> BTreeMap<u8, Vec<u8>> {
    let start = |pcr| (pcr, initial_value(bank, pcr, log.startup_locality().unwrap_or(0)));
    let mut values: BTreeMap<_, _> = JUDGED_PCRS.into_iter().map(start).collect();
    values.extend(log.replay(bank));
    values
}

/// The log of a recorded boot through shim and GRUB as it is: 45 events.
pub fn recorded_log() -> Vec<u8> {
    recorded::SECURE_BOOT.event_log.to_vec()
}

/// The recorded log with more of what makes most of a distribution's log: GRUB's commands and the files that it read.
/// They stand where GRUB's own stand. Three quarters of the events are GRUB's then, as in the corpus's logs of this length.
pub fn log_of_116_events() -> Vec<u8> {
    let recorded = recorded_log();
    let parsed = EventLog::parse(&recorded).expect("a recorded log");
    let last = parsed.events().iter().rfind(|event| event.pcr == 9).expect("GRUB reads files");
    let end = last.data.as_ptr_range().end.addr() - recorded.as_ptr().addr();
    let more = EVENTS - parsed.events().len();
    let (front, back) = recorded.split_at(end);
    [front, &(0..more).flat_map(grub_event).collect::<Vec<u8>>(), back].concat()
}

/// A command (PCR 8) or a file that GRUB read (PCR 9), by turns.
fn grub_event(number: usize) -> Vec<u8> {
    const EV_IPL: u32 = 13;
    let (pcr, measured, label): (u32, Vec<u8>, String) = if number.is_multiple_of(2) {
        let command = format!("menuentry_id_option_{number} --class gnu-linux --class gnu --class os {number}");
        (8, command.clone().into(), format!("grub_cmd: {command}\0"))
    } else {
        let file = format!("(hd0,gpt1)/boot/grub/x86_64-efi/module_{number}.mod\0");
        (9, vec![0x7f; 64 + number], file)
    };
    let mut event = [pcr.to_le_bytes(), EV_IPL.to_le_bytes(), 3_u32.to_le_bytes()].concat();
    for bank in [Bank::Sha1, Bank::Sha256, Bank::Sha384] {
        event.extend(bank.tpm_alg_id().to_le_bytes());
        event.extend(bank.hash(&measured));
    }
    event.extend(u32::try_from(label.len()).expect("short").to_le_bytes());
    event.extend(label.into_bytes());
    event
}

/// The logs of the corpus, where it is there.
pub fn corpus() -> Option<Vec<(&'static str, Vec<u8>)>> {
    let logs = recorded::corpus_dir().join("eventlogs");
    FROM_CORPUS
        .into_iter()
        .map(|name| Some((name, std::fs::read(logs.join(name).with_extension("bin")).ok()?)))
        .collect()
}
