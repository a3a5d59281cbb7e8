//! A quote and its event log, judged: against the floor.

use std::hint::black_box;

use portcullis_attest::appraise::{Claims, ReplayedLog};
use portcullis_attest::eventlog::CertificateCache;
use portcullis_attest::key::Bank;
use portcullis_attest::quote::VerifiedQuote;

use crate::boots::{self, Boot};
use crate::floor::Floor;
use crate::report::{Report, Row};
use crate::rounds::{self, Contender};
use crate::software_tpm::binding;
use crate::verdict::Rules;

pub fn quoted(boot: &Boot) -> VerifiedQuote {
    VerifiedQuote::verify(&boot.evidence, &boot.ak, &binding()).expect("a quote that holds")
}

fn replayed(boot: &Boot) -> ReplayedLog<'_> {
    ReplayedLog::replay(quoted(boot), &boot.evidence, None).expect("a log that leads to the quoted values")
}

fn checked<'a>(boot: &'a Boot, certificates: &'a CertificateCache) -> Claims<'a> {
    Claims::read(replayed(boot), Bank::Sha256, certificates).expect("claims without contradiction")
}

/// All checks and every claim, as the library gives them to callers.
pub fn judge(boot: &Boot, certificates: &CertificateCache) {
    every_claim(&checked(boot, certificates));
}

fn every_claim(claims: &Claims<'_>) {
    black_box((claims.secure_boot(), claims.platform_key(), claims.exchange_keys(), claims.db(), claims.dbx()));
    black_box((claims.images(), claims.option_roms(), claims.authorities(), claims.verified_by()));
    black_box((claims.grub_commands(), claims.command_lines(), claims.kernel(), claims.initrd(), claims.uki()));
    black_box((claims.shim_lists(), claims.sbat_level(), claims.mok_list_trusted()));
    black_box((claims.firmware_version(), claims.firmware_code(), claims.dma_protection(), claims.boot_order()));
}

pub fn run(report: &mut Report, rounds: usize) {
    report.section("quote (RSA-2048) with event log: signature, replay, all checks and claims");
    measure(report, rounds, &Boot::new("recorded, filled up", boots::log_of_116_events(), &[Bank::Sha256]));
    measure(report, rounds, &Boot::new("recorded", boots::recorded_log(), &[Bank::Sha256]));
    match boots::corpus() {
        Some(logs) => {
            for (name, log) in logs {
                measure(report, rounds, &Boot::new(name, log, &[Bank::Sha256]));
            }
        }
        None => report.attention("no corpus of real logs beside the project: only the recorded log was measured"),
    }
}

fn measure(report: &mut Report, rounds: usize, boot: &Boot) {
    let floor = Floor::new(boot);
    let seen_before = CertificateCache::new();
    let rules = Rules::of(&boot.evidence.eventlog);
    let mut contenders = [
        Contender::new("signature check alone", 20, || floor.signature()),
        Contender::new("floor", 20, || floor.all()),
        Contender::new("quote alone", 20, || drop(black_box(quoted(boot)))),
        Contender::new("… and log replayed", 20, || drop(black_box(replayed(boot)))),
        Contender::new("… and every check", 20, || drop(black_box(checked(boot, &seen_before)))),
        Contender::new("… and every claim", 20, || judge(boot, &seen_before)),
        Contender::new("… by policy and references", 20, || {
            black_box(rules.appraise(&boot.evidence, &boot.ak, &seen_before).expect("a boot as it was recorded"));
        }),
        Contender::new("every claim, first time", 20, || judge(boot, &CertificateCache::new())),
    ];
    rounds::run(&mut contenders, rounds);
    let [signature, floor, ours @ ..] = &contenders;
    let about = format!("{} ({} events)", boot.name, boot.events);
    report.row(Row::of(&about, signature));
    report.row(Row::of(&about, floor));
    for stage in ours {
        report.row(Row::of(&about, stage).against(stage, floor));
    }
}
