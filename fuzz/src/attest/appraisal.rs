//! The whole judgement, end to end: logs that the TPM's quote fits, so that every stage is reached, and genuine quotes
//! that fit only the genuine log.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use portcullis_attest::appraise::{
    Appraisal, Claims, Context, JUDGED_PCRS, Judged, Policy, RUNTIME_PCR, ReplayedLog, STATIC_PCRS, appraise,
};
use portcullis_attest::eventlog::{CertificateCache, EventLog, initial_value};
use portcullis_attest::evidence::{Evidence, PcrValues};
use portcullis_attest::ima::{ExtendRule, ImaList};
use portcullis_attest::key::Bank;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reference::{ReferenceBuilder, ReferenceValues};
use portcullis_firmware_fixtures::recorded::{self, RecordedBoot};
use serde_json::Value;

use super::Target;
use super::ima;
use super::keys::{AK, BINDING, TPM};
use super::log_edit::{Input, LogParts};
use super::recordings::Recordings;

/// Policies of the tried kinds.
pub const POLICIES: [&str; 4] = [
    "schema = \"portcullis/policy/1\"\nname = \"boot\"\nbank = \"sha256\"\nhosts = [\"*\"]\n\
     references = [\"direct\", \"shim\"]\nunsigned_references = true\n",
    "schema = \"portcullis/policy/1\"\nname = \"ima\"\nbank = \"sha256\"\nhosts = [\"*\"]\nima = true\n\
     references = [\"direct\", \"shim\"]\nunsigned_references = true\n",
    "schema = \"portcullis/policy/1\"\nname = \"all\"\nbank = \"sha256\"\nhosts = [\"honest\"]\nima = true\n\
     secure_boot = true\nreferences = [\"direct\", \"shim\"]\nunsigned_references = true\n",
    include_str!("strict-policy.toml"),
];

/// The two ways to boot that were recorded: without a boot loader (short), and through shim and GRUB.
const RECORDED: [(&str, RecordedBoot); 2] = [("direct", recorded::DIRECT), ("shim", recorded::SECURE_BOOT)];

struct Host {
    log: LogParts,
    ima: Vec<Vec<u8>>,
    /// What it was judged to be when its IMA list had half of its entries, by the policy "ima".
    judged: Judged,
}

impl Host {
    /// How many entries of its list were judged.
    fn judged_entries(&self) -> usize {
        self.ima.len() / 2
    }
}

struct World {
    policies: Vec<Policy>,
    references: Vec<ReferenceValues>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| World {
    policies: POLICIES.iter().map(|text| Policy::from_toml(text).expect("a policy")).collect(),
    references: RECORDED.iter().map(|(name, boot)| reference(name, boot)).collect(),
});

static HOSTS: LazyLock<Vec<Host>> = LazyLock::new(|| RECORDED.iter().map(|(_, boot)| host(boot)).collect());

fn reference(name: &str, boot: &RecordedBoot) -> ReferenceValues {
    let log = EventLog::parse(boot.event_log).expect("a recorded log");
    let mut builder = ReferenceBuilder::new(name, "recorded");
    builder.recorded(&log, &[Bank::Sha256], &STATIC_PCRS);
    let manifest: Value = serde_json::from_str(boot.manifest_json).expect("a recorded manifest");
    for (path, digests) in manifest["executables"].as_object().into_iter().flatten() {
        for digest in digests.as_array().into_iter().flatten().filter_map(Value::as_str) {
            let digest = hex::decode(digest).expect("a digest");
            builder.ima(path, &digest.try_into().expect("of SHA-256"));
        }
    }
    builder.build().expect("reference values of a recorded boot")
}

/// Reference values made from any log, if that can be.
pub fn reference_of(log: &[u8]) -> Option<ReferenceValues> {
    let log = EventLog::parse(log).ok()?;
    ReferenceBuilder::new("any", "recorded").recorded(&log, &log.banks(), &STATIC_PCRS).build().ok()
}

fn host(boot: &RecordedBoot) -> Host {
    let log = LogParts::parse(boot.event_log).expect("a recorded log");
    let ima = ima::entries(boot.ima);
    let judged = ima[..ima.len() / 2].concat();
    let shown = Shown { log: boot.event_log, ima: &judged, ima_from: 0 };
    let pcrs = pcrs(boot.event_log, &judged).expect("recorded logs");
    let appraisal = judge(&shown, &pcrs, &WORLD.policies[1], None).expect("a recorded boot");
    Host { log, ima, judged: appraisal.judged() }
}

/// What a verifier stores of the first recorded host.
pub fn judged() -> Judged {
    HOSTS[0].judged.clone()
}

/// The values that a TPM would quote if the logs were true; `None` if they cannot be read.
fn pcrs(log: &[u8], ima: &[u8]) -> Option<PcrValues> {
    let log = EventLog::parse(log).ok()?;
    let ima = ImaList::parse_binary(ima).ok()?;
    let mut values = PcrValues::new();
    // Also banks of which some events have no digest: the quote then has their initial values.
    for bank in log.declared_banks().into_iter().filter(|bank| matches!(bank, Bank::Sha256 | Bank::Sha384)) {
        let replayed = log.replay(bank);
        let locality = log.startup_locality().unwrap_or(0);
        let value = |pcr: u8| replayed.get(&pcr).cloned().unwrap_or_else(|| initial_value(bank, pcr, locality));
        let pcrs = replayed.keys().copied().chain(JUDGED_PCRS);
        values.insert(bank, pcrs.map(|pcr| (pcr, value(pcr))).collect());
    }
    if let Some(values) = values.get_mut(&Bank::Sha256) {
        values.insert(RUNTIME_PCR, ima.replay(Bank::Sha256, ExtendRule::Digest));
    }
    Some(values)
}

/// What a host shows beside its quote.
struct Shown<'a> {
    log: &'a [u8],
    ima: &'a [u8],
    ima_from: usize,
}

fn judge(shown: &Shown<'_>, pcrs: &PcrValues, policy: &Policy, previous: Option<&Judged>) -> Option<Appraisal> {
    let quotes = TPM.evidence(&BINDING, pcrs).quotes;
    let mut evidence = Evidence::new(BINDING.clone(), quotes, shown.log.to_vec(), shown.ima.to_vec());
    evidence.ima_from = shown.ima_from as u64;
    let (references, certificates) = (WORLD.references.as_slice(), &CertificateCache::new());
    let context = Context { references, policy, certificates, previous, now: 0, abandoned: None };
    match VerifiedQuote::verify(&evidence, &AK, &BINDING).and_then(|quote| appraise(quote, &evidence, &context)) {
        Ok(appraisal) => Some(appraisal),
        Err(denial) => {
            assert!(!denial.reasons.is_empty(), "a denial says why");
            assert!(!denial.to_string().is_empty());
            None
        }
    }
}

/// An event log, of which the quote says that it is true: all claims are read from it.
pub const APPRAISE_EVENT_LOG: Target =
    Target { name: "appraise_event_log", body: appraise_event_log, max_len: 4096, seeds: small_boots };

fn appraise_event_log(bytes: &[u8]) -> bool {
    // A log may have no bank that is quoted.
    let Some(pcrs) = pcrs(bytes, &[]).filter(|pcrs| !pcrs.is_empty()) else { return false };
    let ima = boot_aggregate(&pcrs);
    let Some(pcrs) = self::pcrs(bytes, &ima) else { return false };
    let quotes = TPM.evidence(&BINDING, &pcrs).quotes;
    let evidence = Evidence::new(BINDING.clone(), quotes, bytes.to_vec(), ima);
    let quote = VerifiedQuote::verify(&evidence, &AK, &BINDING).expect("a genuine quote");
    let Ok(replayed) = ReplayedLog::replay(quote, &evidence, None) else { return false };
    let certificates = CertificateCache::new();
    let Ok(claims) = Claims::read(replayed, Bank::Sha256, &certificates) else { return false };
    every_claim(&claims);
    let _ = claims.appraise(&WORLD.policies[0], &WORLD.references, 0);
    true
}

/// Reads all that can be claimed.
fn every_claim(claims: &Claims<'_>) {
    let count = claims.replayed().log().events().len();
    let all = [
        format!("{:?} {:?} {:?}", claims.secure_boot(), claims.db(), claims.dbx()),
        format!("{:?} {:?}", claims.platform_key(), claims.exchange_keys()),
        format!("{:?} {:?}", claims.grub_commands(), claims.command_lines()),
        format!("{:?} {:?} {:?} {:?}", claims.command_line(), claims.kernel(), claims.initrd(), claims.uki()),
        format!("{:?} {:?}", claims.firmware_version(), claims.firmware_code()),
        format!("{:?} {:?}", claims.dma_protection(), claims.boot_order()),
        format!("{:?} {:?}", claims.images(), claims.option_roms()),
        format!("{:?} {:?}", claims.authorities(), claims.verified_by()),
        format!("{:?} {:?} {:?}", claims.shim_lists(), claims.sbat_level(), claims.mok_list_trusted()),
    ];
    assert!(all.iter().all(|text| !text.is_empty()));
    for image in claims.images() {
        assert!((1..=count).contains(&image.ground.event), "a claim rests on an event of the log");
    }
}

/// The entry with which IMA ties its list to these PCR values.
fn boot_aggregate(pcrs: &PcrValues) -> Vec<u8> {
    let sha256 = pcrs.get(&Bank::Sha256).into_iter().flatten();
    let values: Vec<&[u8]> = sha256.filter(|(pcr, _)| **pcr <= 9).map(|(_, value)| value.as_slice()).collect();
    let digest = [b"sha256:\0", Bank::Sha256.hash_parts(&values).as_slice()].concat();
    let data = [ima::sized(&digest), ima::sized(b"boot_aggregate\0")].concat();
    ima::encode(10, &Bank::Sha1.hash(&data), "ima-ng", &data)
}

/// Some events of each recorded boot, and what else a boot must have.
fn small_boots(recordings: &Recordings) -> Vec<Vec<u8>> {
    let mut seeds = vec![recorded::DIRECT.event_log.to_vec()];
    for log in recordings.event_logs.iter().filter_map(|bytes| LogParts::parse(bytes)) {
        seeds.extend(log.events.chunks(3).map(|events| log.small_boot(events)));
    }
    seeds
}

/// An IMA list, of which the quote says that it is true, behind a genuine event log.
pub const APPRAISE_IMA: Target =
    Target { name: "appraise_ima", body: appraise_ima, max_len: 1024, seeds: |_| direct_lists() };

fn appraise_ima(bytes: &[u8]) -> bool {
    let log = recorded::DIRECT.event_log;
    let Some(pcrs) = pcrs(log, bytes) else { return false };
    judge(&Shown { log, ima: bytes, ima_from: 0 }, &pcrs, &WORLD.policies[1], None).is_some()
}

fn direct_lists() -> Vec<Vec<u8>> {
    let ima = &HOSTS[0].ima;
    (1..8).map(|count| ima[..count].concat()).collect()
}

/// What of a genuine boot to change: the first byte says which boot, what the quote covers, what is required and what was
/// judged before; the rest says what to do to which event or entry.
pub const APPRAISE_EDITED: Target =
    Target { name: "appraise_edited", body: appraise_edited, max_len: 96, seeds: |_| edits() };

/// The boot through shim and GRUB, and not the one without a boot loader.
pub const SHIM: u8 = 1;
/// The quote is of the genuine logs, and not of the changed ones.
pub const GENUINE_QUOTE: u8 = 2;
/// Half of the list was judged before.
pub const JUDGED_BEFORE: u8 = 4;
/// And only the rest of it is shown.
pub const CONTINUED: u8 = 8;
/// The event log has more bytes at its end.
pub const TRAILING: u8 = 16;
/// The list begins with the aggregate of the PCRs that the changed log leads to.
pub const AGGREGATE: u8 = 32;
/// From this bit on: which policy.
pub const POLICY_SHIFT: u32 = 6;

fn appraise_edited(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let flags = input.u8();
    let is = |flag| flags & flag != 0;
    let host = &HOSTS[usize::from(is(SHIM))];
    let policy = &WORLD.policies[usize::from(flags >> POLICY_SHIFT) % POLICIES.len()];
    let (mut log, mut entries) = (host.log.clone(), host.ima.clone());
    let left_out = if is(CONTINUED) { host.judged_entries() } else { 0 };
    let before: Vec<Vec<u8>> = entries.drain(..left_out).collect();
    let trailing = if is(TRAILING) { input.slice() } else { &[] };
    while !input.is_empty() {
        if input.u8().is_multiple_of(4) { edit_list(&mut entries, &mut input) } else { log.edit(&mut input) }
    }
    let genuine = host.log.with(&host.log.events);
    let edited = [&log.with(&log.events), trailing].concat();
    if let (Some(first), Some(pcrs)) = (entries.first_mut().filter(|_| is(AGGREGATE)), pcrs(&edited, &[])) {
        *first = boot_aggregate(&pcrs);
    }
    let whole_list = [before, entries.clone()].concat().concat();
    let covered = if is(GENUINE_QUOTE) { None } else { pcrs(&edited, &whole_list) };
    let covered = covered.or_else(|| pcrs(&genuine, &host.ima.concat())).expect("genuine logs");
    let previous = is(JUDGED_BEFORE).then_some(&host.judged);
    let shown = Shown { log: &edited, ima: &entries.concat(), ima_from: left_out };
    let Some(appraisal) = judge(&shown, &covered, policy, previous) else { return false };
    // All that is accepted of these boots is what was recorded, digest by digest.
    assert_eq!(measured(&edited), measured(&genuine), "another boot than the recorded one was trusted");
    assert!(!is(CONTINUED) || is(JUDGED_BEFORE), "a part of a list was taken for the whole");
    if let Some(previous) = previous {
        assert_eq!(appraisal.continues(previous), Ok(()));
        assert!(whole_list.starts_with(&host.ima[..host.judged_entries()].concat()), "the list's past was changed");
    }
    true
}

/// Every digest that a log extends a static PCR with, in order, by PCR.
fn measured(log: &[u8]) -> BTreeMap<u32, Vec<Vec<u8>>> {
    let mut digests = BTreeMap::<_, Vec<_>>::new();
    let log = EventLog::parse(log).expect("a log that was accepted");
    for event in log.events().iter().filter(|event| event.extends()) {
        digests.entry(event.pcr).or_default().push(event.digests.get(Bank::Sha256).unwrap_or_default().to_vec());
    }
    digests
}

/// Changes an IMA list as the input says.
fn edit_list(entries: &mut Vec<Vec<u8>>, input: &mut Input<'_>) {
    let Some(at) = input.index(entries.len()) else { return };
    match input.u8() % 6 {
        0 => drop(entries.remove(at)),
        1 => entries.insert(at, entries[at].clone()),
        2 => {
            let other = input.index(entries.len()).unwrap_or(at);
            entries.swap(at, other);
        }
        3 => entries.truncate(at),
        4 => input.change(&mut entries[at]),
        _ => {
            // Another name or digest, and the template digest that fits it.
            let list = ImaList::parse_binary(&entries[at]).ok();
            let Some(entry) = list.as_ref().and_then(|list| list.entries().next()) else { return };
            let mut data = entry.template_data().to_vec();
            input.change(&mut data);
            let changed = ima::encode(entry.pcr, &Bank::Sha1.hash(&data), entry.template.name(), &data);
            entries[at] = changed;
        }
    }
}

/// Each flag, without a change and with one of each kind.
fn edits() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for flags in 0..=u8::MAX {
        seeds.push(vec![flags]);
        let at = flags % 29;
        seeds.extend((0..11).map(|kind| vec![flags, 1, 0, at, kind, 7, 0, 2, 4, 1, 2, 3, 4]));
        seeds.extend((0..6).map(|kind| vec![flags, 0, 0, at, kind, 0, 60, 2, 4, 1, 2, 3, 4]));
    }
    seeds
}
