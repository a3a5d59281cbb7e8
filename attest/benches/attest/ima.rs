//! IMA lists: entries a second, and what a check costs that goes on from an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use portcullis_attest::appraise::{Claims, ReplayedLog};
use portcullis_attest::eventlog::CertificateCache;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::ima::{ExtendRule, ImaList, ImaState};
use portcullis_attest::key::Bank;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_firmware_fixtures::recorded;

use crate::boots::{self, Boot};
use crate::report::{Report, Row};
use crate::rounds::{self, Contender, Summary};
use crate::software_tpm::binding;

/// Entries of the list whose replay is measured.
const ENTRIES: u64 = 100_000;

/// Entries that were judged before, and new ones.
const OLD: u64 = 1_000_000;
const NEW: u64 = 10;

const PCR: u8 = 10;

pub fn run(report: &mut Report, rounds: usize) {
    report.section("IMA: lists with one SHA-256 bank");
    replay(report, rounds);
    goes_on(report, rounds);
}

fn replay(report: &mut Report, rounds: usize) {
    let list = List::new(&[0; 32], 0, ENTRIES).bytes;
    let parsed = ImaList::parse_binary(&list).expect("a list as Linux writes it");
    let whole = || ImaList::parse_binary(&list).expect("a list").replay(Bank::Sha256, ExtendRule::Digest);
    let digests_hold = || parsed.entries().all(|entry| entry.template_digest_holds());
    let mut contenders = [
        Contender::new("read and replay", 1, || drop(black_box(whole()))),
        Contender::new("SHA-1 template digests", 1, || assert!(digests_hold())),
    ];
    rounds::run(&mut contenders, rounds.min(31));
    for contender in &contenders {
        let about = format!("{ENTRIES} entries, {} bytes", list.len());
        report.row(Row::figure(&about, contender.name, per_second(contender.micros()), "million entries/s"));
    }
}

fn per_second(micros: Summary) -> Summary {
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let millions = |micros: f64| ENTRIES as f64 / micros;
    Summary { median: millions(micros.median), low: millions(micros.high), high: millions(micros.low) }
}

/// The whole check of a quote with the recorded log: without any new entry, and with ten new ones after a million.
fn goes_on(report: &mut Report, rounds: usize) {
    let mut pcr = vec![0; 32];
    // In parts, so that the million need not be held at once.
    for from in (0..OLD).step_by(usize::try_from(ENTRIES).expect("small")) {
        pcr = List::new(&pcr, from, ENTRIES).pcr;
    }
    let new = List::new(&pcr, OLD, NEW);
    let pcrs = [(Bank::Sha256, pcr.clone())].into();
    let before = ImaState { entries: OLD, pcrs, by_rule: BTreeMap::new(), rules: [0; 32], padded: BTreeSet::new() };
    let boot = Boot::new("recorded", boots::recorded_log(), &[Bank::Sha256]);
    let evidence = |pcr: &[u8], ima: Vec<u8>| {
        let mut quoted = boot.evidence.quotes[0].pcrs.clone();
        quoted.get_mut(&Bank::Sha256).expect("quoted").insert(PCR, pcr.to_vec());
        let evidence = boot.tpm.evidence(&binding(), &quoted);
        Evidence { eventlog: boot.evidence.eventlog.clone(), ima, ima_from: OLD, ..evidence }
    };
    let (unchanged, grown) = (evidence(&pcr, Vec::new()), evidence(&new.pcr, new.bytes));
    let cache = CertificateCache::new();
    let check = |evidence: &Evidence| {
        let quote = VerifiedQuote::verify(evidence, &boot.ak, &binding()).expect("a quote that holds");
        let replayed = ReplayedLog::replay(quote, evidence, Some(&before)).expect("a list that goes on");
        black_box(Claims::read(replayed, Bank::Sha256, &cache).expect("claims"));
    };
    let mut contenders = [
        Contender::new("check, no new entry", 20, || check(&unchanged)),
        Contender::new("check, 10 new entries", 20, || check(&grown)),
    ];
    rounds::run(&mut contenders, rounds);
    let [none, ten] = &contenders;
    let about = format!("after {OLD} entries");
    report.row(Row::of(&about, none));
    report.row(Row::of(&about, ten));
    report.row(Row::figure(&about, "10 new entries cost", ten.difference(none), "µs"));
}

/// A list as Linux writes it (`binary_runtime_measurements`, template ima-ng), with the names of a recorded one.
pub struct List {
    pub bytes: Vec<u8>,
    /// PCR 10 after it.
    pub pcr: Vec<u8>,
}

impl List {
    pub fn new(before: &[u8], from: u64, entries: u64) -> Self {
        let recorded = ImaList::parse(recorded::SECURE_BOOT.ima).expect("a recorded list");
        let names: Vec<_> = recorded.entries().skip(1).map(|entry| entry.name_lossy().into_owned()).collect();
        let mut list = Self { bytes: Vec::new(), pcr: before.to_vec() };
        for (number, name) in (from..from + entries).zip(names.iter().cycle()) {
            let digest = Bank::Sha256.hash(&number.to_le_bytes());
            let data = [field(&[b"sha256:\0", &digest]), field(&[name.as_bytes(), b"\0"])].concat();
            list.bytes.extend(u32::from(PCR).to_le_bytes());
            list.bytes.extend(Bank::Sha1.hash(&data));
            list.bytes.extend(field(&[b"ima-ng"]));
            list.bytes.extend(field(&[&data]));
            list.pcr = Bank::Sha256.extend(&list.pcr, &Bank::Sha256.hash(&data));
        }
        list
    }
}

fn field(parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let size = u32::try_from(content.len()).expect("short");
    [&size.to_le_bytes()[..], &content].concat()
}
