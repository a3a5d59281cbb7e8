//! The worst evidence that the service accepts, 16 MiB of JSON: how many times as much as hashing its bytes it costs from
//! the value to the verdict.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use portcullis_attest::eventlog::{CertificateCache, EventLog, MAX_EVENTS};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::ima::{ExtendRule, ImaList};
use portcullis_attest::key::Bank;

use crate::boots::{self, Boot};
use crate::hostile::{self, EV_EFI_VARIABLE_AUTHORITY, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_IPL, event};
use crate::report::{Report, Row};
use crate::rounds::{self, Contender};
use crate::software_tpm::binding;
use crate::verdict::Rules;

/// How many bytes of logs fit into 16 MiB of JSON, as base64 and next to the quotes.
const SIZE: usize = (12 << 20) - (64 << 10);

const EV_EVENT_TAG: u32 = 6;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;

/// One kind of evidence.
struct Worst {
    name: &'static str,
    evidence: Evidence,
    rules: Rules,
    /// Whether what was found good before is known.
    seen: bool,
}

pub fn run(report: &mut Report, rounds: usize) {
    report.section("the worst evidence of 16 MiB of JSON, from the value to the verdict");
    let boot = Boot::new("recorded", boots::recorded_log(), &[Bank::Sha256]);
    for worst in logs(&boot).into_iter().chain(lists(&boot)) {
        measure(report, rounds, &boot, &worst);
    }
}

fn measure(report: &mut Report, rounds: usize, boot: &Boot, worst: &Worst) {
    let (log, ima) = (&worst.evidence.eventlog, &worst.evidence.ima);
    let certificates = CertificateCache::new();
    let judge = |certificates: &CertificateCache| worst.rules.appraise(&worst.evidence, &boot.ak, certificates);
    let verdict = match judge(&certificates) {
        Ok(_) => "accepted".to_owned(),
        Err(denial) => denial.reasons[0].code.to_string(),
    };
    let mut contenders = [
        Contender::new("hashed once", 1, || {
            std::hint::black_box((digest(&SHA256, log), digest(&SHA256, ima)));
        }),
        Contender::new("hashed piece by piece", 1, || piece_by_piece(log, ima)),
        Contender::new("judged", 1, || {
            drop(if worst.seen { judge(&certificates) } else { judge(&CertificateCache::new()) });
        }),
    ];
    rounds::run(&mut contenders, rounds);
    let [once, pieces, judged] = &contenders;
    let about = format!(
        "{} ({:.1} MB, {verdict})",
        worst.name,
        f64::from(u32::try_from(log.len() + ima.len()).expect("short")) / 1e6
    );
    report.row(Row::of(&about, judged).against(judged, once));
    report.row(Row::of("", pieces).against(judged, pieces));
}

/// What nobody can do without who believes a log because of a quote: each event and entry hashed for itself, and the PCR
/// extended with it.
fn piece_by_piece(log: &[u8], ima: &[u8]) {
    let extend = || std::hint::black_box(digest(&SHA256, &[7; 64]));
    if let Ok(log) = EventLog::parse(log) {
        for event in log.events() {
            std::hint::black_box((digest(&SHA256, event.data), extend()));
        }
    }
    if let Ok(list) = ImaList::parse_binary(ima) {
        for entry in list.entries() {
            std::hint::black_box((digest(&SHA256, &entry.template_data()), extend()));
        }
    }
}

/// A quote that agrees with this firmware log.
fn of_log(boot: &Boot, name: &'static str, eventlog: Vec<u8>, more: &str) -> Worst {
    let pcrs = (0..=9).chain(11..=15);
    let mut values: BTreeMap<u8, Vec<u8>> = pcrs.map(|pcr| (pcr, vec![0; 32])).collect();
    values.extend(EventLog::parse(&eventlog).expect("a log that can be read").replay(Bank::Sha256));
    let quotes = boot.tpm.evidence(&binding(), &[(Bank::Sha256, values)].into()).quotes;
    let evidence = Evidence::new(binding(), quotes, eventlog, Vec::new());
    Worst { name, evidence, rules: Rules::of(&boots::recorded_log()).with(more), seen: false }
}

/// A quote of the good boot with this list behind its own entry; `covered` by the quote, or leading nowhere.
fn of_list(boot: &Boot, name: &'static str, entries: &[u8], covered: bool, more: &str) -> Worst {
    let mut values = boot.evidence.quotes[0].pcrs.clone();
    let pcrs = values.get_mut(&Bank::Sha256).expect("quoted");
    let static_pcrs: Vec<u8> = (0..=9).flat_map(|pcr| pcrs[&pcr].clone()).collect();
    let aggregate = entry(b"boot_aggregate", &Bank::Sha256.hash(&static_pcrs), b"");
    let ima = [&aggregate, entries].concat();
    let list = ImaList::parse_binary(&ima).expect("a list that can be read");
    let value = if covered { list.replay(Bank::Sha256, ExtendRule::Digest) } else { vec![7; 32] };
    pcrs.insert(10, value);
    let quotes = boot.tpm.evidence(&binding(), &values).quotes;
    let evidence = Evidence::new(binding(), quotes, boot.evidence.eventlog.clone(), ima);
    Worst { name, evidence, rules: Rules::of(&boots::recorded_log()).with(more), seen: false }
}

/// As many of these events behind the recorded log as there may be.
fn behind(events: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut log = boots::recorded_log();
    let room = MAX_EVENTS - EventLog::parse(&log).expect("a recorded log").events().len();
    for event in events.into_iter().take(room) {
        if log.len() + event.len() > SIZE {
            break;
        }
        log.extend(event);
    }
    log
}

/// An event whose SHA-256 digest is that of `measured`.
fn measured(pcr: u32, event_type: u32, data: &[u8], measured: &[u8]) -> Vec<u8> {
    let mut event = event(pcr, event_type, data);
    event[36..68].copy_from_slice(&Bank::Sha256.hash(measured));
    event
}

fn logs(boot: &Boot) -> Vec<Worst> {
    let forever = |event: Vec<u8>| std::iter::repeat(event);
    let signers = "boot_signers = [\"48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507\"]\n";
    let lines = (0..).flat_map(|number| {
        let text = format!("/vmlinuz {number} {:0680}", 7);
        let data = format!("kernel_cmdline: {text}\0");
        let tag = [&0x8f3b_22ed_u32.to_le_bytes()[..], &0_u32.to_le_bytes()].concat();
        [measured(8, EV_IPL, data.as_bytes(), text.as_bytes()), event(9, EV_EVENT_TAG, &tag)]
    });
    // As many as are judged, each as long as the kernel reads, and a policy that allows all of these arguments.
    let argument = |number: usize| format!("{number:03x}");
    let arguments = (0..500).map(argument).collect::<Vec<_>>();
    let allowed = format!("command_line = {{ allow = [\"{}\"] }}\n", arguments.join("\", \""));
    let full = (0..60).map(|_| {
        let text = format!("/vmlinuz {}", arguments.join(" "));
        measured(8, EV_IPL, format!("kernel_cmdline: {text}\0").as_bytes(), text.as_bytes())
    });
    let lists = (0_u32..).map(|number| measured(14, EV_IPL, b"MokList\0", &number.to_le_bytes()));
    let known: Vec<_> = (0_u32..1000).map(|number| hex::encode(Bank::Sha256.hash(&number.to_be_bytes()))).collect();
    let known = format!("shim = {{ mok_lists = [\"{}\"] }}\n", known.join("\", \""));
    let authorities = (0_u32..).flat_map(|number| {
        let authority = hostile::variable(&[&[0x30, 6, 4, 4][..], &number.to_be_bytes()].concat());
        [
            measured(7, EV_EFI_VARIABLE_AUTHORITY, &authority, &authority),
            event(4, EV_EFI_BOOT_SERVICES_APPLICATION, &[0; 32]),
        ]
    });
    let commands = (0_u32..).map(|number| {
        let text = format!("{number:0590}");
        measured(8, EV_IPL, format!("grub_cmd: {text}\0").as_bytes(), text.as_bytes())
    });
    let one = SIZE - (1 << 20);
    let wide: Vec<u8> = [b'x', 0].repeat(one / 2);
    let dbx = hostile::variable(&hostile::signature_list().repeat(MAX_EVENTS - 1));
    vec![
        of_log(boot, "smallest events", behind(forever(event(4, EV_IPL, b""))), ""),
        of_log(boot, "commands that no digest covers", behind(forever(event(8, EV_IPL, &hostile::command(640)))), ""),
        of_log(boot, "commands, none as expected", behind(commands), ""),
        of_log(boot, "one command that no digest covers", behind([event(8, EV_IPL, &hostile::command(one))]), ""),
        of_log(boot, "one text in UTF-16 that none covers", behind([event(12, EV_IPL, &wide)]), ""),
        of_log(boot, "command lines and load options", behind(lines), "command_line = { forbid = [\"init\"] }\n"),
        of_log(boot, "60 lines of 500 arguments, all allowed", behind(full), &allowed),
        of_log(boot, "lists of shim's, none in the policy", behind(lists), &known),
        of_log(boot, "images and authorities", behind(authorities), signers),
        of_log(
            boot,
            "one authority that cannot be read",
            behind([event(7, EV_EFI_VARIABLE_AUTHORITY, &hostile::variable(&vec![0x30; one]))]),
            signers,
        ),
        of_log(
            boot,
            "dbx of smallest lists",
            {
                let dbx = measured(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &dbx, &dbx);
                let good = boots::recorded_log();
                let (header, rest) = good.split_at(32 + usize::from(good[28]));
                [header, &dbx, rest].concat()
            },
            "",
        ),
    ]
}

fn lists(boot: &Boot) -> Vec<Worst> {
    let fill = |entry: &[u8]| entry.repeat(SIZE / 2 / entry.len());
    let numbered = |make: &dyn Fn(usize) -> Vec<u8>| {
        let mut all = Vec::new();
        let mut number = 0;
        while all.len() < SIZE - 300_000 {
            all.extend(make(number));
            number += 1;
        }
        all
    };
    let rule = |names: &str, accept: &str| {
        format!("[[programs.rules]]\nnames = \"{names}\"\naccept = {accept}\nreason = \"r\"\n")
    };
    let judged = |rules: &str| format!("ima = true\n{rules}");
    let any = judged(&rule("/srv/**", "\"any\""));
    let sixteen: String = (0..16).map(|number| rule(&format!("/srv/**b**c**{number:02}"), "\"listed\"")).collect();
    let key = Signer::new();
    let signed = judged(&key.rules(&rule("/srv/**", "\"any\"")));
    let content = |number: usize| Bank::Sha256.hash(&number.to_le_bytes());
    let good = numbered(&|number| {
        let attribute = key.attribute(&key.sign(&number.to_le_bytes()));
        entry(format!("/srv/{number}").as_bytes(), &content(number), &attribute)
    });
    let bad = numbered(&|number| {
        let signature = [&[0x30, 70, 2, 33, 0][..], &[7; 67]].concat();
        entry(format!("/srv/{number}").as_bytes(), &content(number), &key.attribute(&signature))
    });
    let usual = numbered(&|number| {
        entry(format!("/srv/lib/x86_64-linux-gnu/lib{number}.so").as_bytes(), &content(number), b"")
    });
    let long =
        numbered(&|number| entry(format!("/srv/{}{number:02}", "bc".repeat(2000)).as_bytes(), &content(number), b""));
    let seen = |worst: Worst| Worst { seen: true, ..worst };
    vec![
        of_list(boot, "usual entries", &usual, true, &any),
        of_list(boot, "smallest entries, leading nowhere", &fill(&hostile::small_entry(b"ima-ng")), false, ""),
        of_list(boot, "the same of the oldest template", &fill(&hostile::small_entry(b"ima")), false, ""),
        of_list(boot, "names of 4 KB, 16 rules with wildcards", &long, true, &judged(&sixteen)),
        of_list(boot, "signatures that do not hold", &bad, true, &signed),
        of_list(boot, "signatures that hold, first time", &good, true, &signed),
        seen(of_list(boot, "signatures that hold, seen before", &good, true, &signed)),
    ]
}

/// An entry of template ima-sig.
fn entry(name: &[u8], digest: &[u8], attribute: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    for field in [&[b"sha256:\0", digest].concat()[..], &[name, b"\0"].concat(), attribute] {
        data.extend(hostile::size(field));
        data.extend(field);
    }
    let template = b"ima-sig";
    let head = [&10_u32.to_le_bytes()[..], &Bank::Sha1.hash(&data), &hostile::size(template), template].concat();
    [&head[..], &hostile::size(&data), &data].concat()
}

/// Somebody who signs files.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"))
    }

    fn rules(&self, more: &str) -> String {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().expect("a public key");
        let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, der.as_ref()).expect("PEM");
        let rule = "[[programs.rules]]\nnames = \"/**\"\naccept = { signed-by = \"k\" }\nreason = \"signed\"\n";
        format!("[programs.keyrings]\nk = ['''{pem}''']\n{rule}{more}")
    }

    fn sign(&self, content: &[u8]) -> Vec<u8> {
        self.0.sign(&SystemRandom::new(), content).expect("a signature").as_ref().to_vec()
    }

    /// `security.ima` with this signature.
    fn attribute(&self, signature: &[u8]) -> Vec<u8> {
        let id = Bank::Sha1.hash(self.0.public_key().as_ref());
        let size = u16::try_from(signature.len()).expect("short").to_be_bytes();
        [&[3, 2, 4][..], &id[16..], &size, signature].concat()
    }
}
