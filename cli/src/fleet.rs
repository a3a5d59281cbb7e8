//! Commands that ask the verifier: hosts, volumes, VMs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use portcullis_verifier::api::{Admission, HostView, LaunchRequest, OrderState, Pins, Trust, VolumeView};
use portcullis_verifier::client::Client;
use portcullis_verifier::order::VolumeFile;
use serde_json::json;

use crate::failure::Failure;
use crate::files;
use crate::output::{Output, explain, plain, table, when};

/// Longest volume key, in bytes: what fits a TPM object.
const MAX_KEY: usize = 128;

/// `portcullis host …`: for operators.
#[derive(Subcommand, Debug)]
pub enum HostCommand {
    /// List the enrolled hosts.
    Ls,
    /// Show one host, with every reason why it gets no work.
    Show {
        /// The host's name.
        host: String,
    },
    /// Print the verifier's signed word on which attestation key is the host's, for `portcullis verify --enrolment`.
    #[command(
        after_help = "Example:\n  portcullis host enrolment honest --keys-out verifier-keys.json >honest.enrolment"
    )]
    Enrolment {
        /// The host's name.
        host: String,
        /// Where to write the verifier's public keys (JWKS), by which the statement is checked.
        #[arg(long, value_name = "FILE")]
        keys_out: Option<PathBuf>,
    },
    /// Admit a TPM as one host: the host may get work once its evidence is good.
    #[command(
        after_help = "The TPM may enrol under this name and no other: policies are chosen by the name, and so no host \
                            chooses its own.\n\nExample:\n  portcullis host admit 3f5a… --name prod-7 --note 'rack 4, \
                            read off its console'"
    )]
    Admit {
        /// The endorsement key's fingerprint, read off the host itself (`portcullis-agent ek`).
        #[arg(value_name = "EK_FINGERPRINT", value_parser = fingerprint)]
        ek_fingerprint: String,
        /// The name of the host that it is in.
        #[arg(long, value_name = "HOST", value_parser = host_name)]
        name: String,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Take an admission back.
    Withdraw {
        /// The endorsement key's fingerprint.
        #[arg(value_name = "EK_FINGERPRINT", value_parser = fingerprint)]
        ek_fingerprint: String,
    },
    /// List the admitted TPMs.
    Admissions,
    /// Close a host for new work. What runs there goes on.
    Cordon {
        /// The host's name.
        host: String,
        /// Why, for the record and for whoever asks where the host has gone.
        #[arg(long)]
        reason: String,
    },
    /// Open a host for new work again.
    Uncordon {
        /// The host's name.
        host: String,
    },
    /// Take the PCR banks that a host enrols with next for its own.
    #[command(
        after_help = "After a change in the host's firmware setup, and only then: which banks its firmware measures into is \
                            taken from the host's next enrolment. Until then it is not trusted.\n\nExample:\n  \
                            portcullis host accept-banks honest"
    )]
    AcceptBanks {
        /// The host's name.
        host: String,
    },
    /// Say that an order's host can no longer reach the volume, so that it may be opened elsewhere.
    #[command(
        after_help = "Only after you cut the host off by other means (power, switch, storage): two hosts that write \
                            one volume destroy it.\n\nExample:\n  portcullis host fence 00112233445566778899aabbccddeeff \
                            --note 'rack 4 powered off'"
    )]
    Fence {
        /// The order's id.
        order: String,
        /// What was done, for the record.
        #[arg(long)]
        note: String,
    },
    /// Forget a host, so that it can enrol anew.
    #[command(
        after_help = "Needed when the host lost its attestation key. Its PCR banks, its TPM's certificate and a cordon are kept as \
                            long as the TPM is admitted: the next enrolment must show the same banks. What was judged of the \
                            host is forgotten. To forget all of it, withdraw the TPM's admission too.\n\nExample:\n  \
                            portcullis host forget honest"
    )]
    Forget {
        /// The host's name.
        host: String,
    },
}

/// `portcullis volume …`: for tenants.
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// List your volumes.
    Ls,
    /// Deposit the key that opens your volume. It is given to no one but a trusted host, for one order.
    #[command(
        after_help = "With pins the key goes only to a host that was judged by such a policy and by reference values of such a \
                      signer, so that no operator reads it with a policy or reference values of their own; `portcullis verify \
                      --json` prints both as policy_sha256 and reference_signer. With pinned TPMs it goes to these hosts only: \
                      without, an operator can admit a TPM of their own that imitates a good host. Putting the same key again \
                      replaces the pins of the kinds that are given, and keeps the others.\n\nExamples:\n  portcullis volume put data \
                      --key-file data.key\n  portcullis volume put data --key-file data.key --pin-policy 9f86… \
                      --pin-signer 60303…"
    )]
    Put {
        /// The volume's name.
        name: String,
        /// The key, 16 to 128 bytes, byte for byte as `cryptsetup --key-file` takes it; `-` for standard input.
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// SHA-256 of a policy by which the host may be judged; several are alternatives.
        #[arg(long, value_name = "SHA256", value_parser = sha256)]
        pin_policy: Vec<String>,
        /// The id of a key that may have signed the reference values; several are alternatives.
        #[arg(long, value_name = "ID", value_parser = sha256)]
        pin_signer: Vec<String>,
        /// The fingerprint of a TPM's endorsement key, as `portcullis-agent ek` prints it; several are alternatives.
        #[arg(long, value_name = "FINGERPRINT", value_parser = fingerprint)]
        pin_tpm: Vec<String>,
        /// Take all pins of the volume away.
        #[arg(long, conflicts_with_all = ["pin_policy", "pin_signer", "pin_tpm"])]
        no_pins: bool,
    },
}

/// `portcullis vm …`: for tenants.
#[derive(Subcommand, Debug)]
pub enum VmCommand {
    /// Ask for a VM on a trusted host.
    #[command(
        after_help = "Example:\n  portcullis vm launch --name web --volume data --vcpus 2 --mem-mib 512 \\\n    \
                      --kernel boot/vmlinuz --kernel-sha256 9f86… --initrd boot/initrd --initrd-sha256 60303… \\\n    \
                      --cmdline 'console=ttyS0'"
    )]
    Launch(Box<LaunchArguments>),
    /// List your VMs.
    Ls,
}

/// What to launch.
#[derive(Args, Debug)]
pub struct LaunchArguments {
    /// Your name for the VM.
    #[arg(long)]
    name: String,
    /// The volume that holds it.
    #[arg(long)]
    volume: String,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    vcpus: u32,
    /// Memory, MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    mem_mib: u64,
    /// The kernel's path inside the volume.
    #[arg(long, value_name = "PATH")]
    kernel: String,
    /// The kernel's SHA-256.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    kernel_sha256: String,
    /// The initrd's path inside the volume.
    #[arg(long, value_name = "PATH", requires = "initrd_sha256")]
    initrd: Option<String>,
    /// The initrd's SHA-256.
    #[arg(long, value_name = "HEX", requires = "initrd", value_parser = sha256)]
    initrd_sha256: Option<String>,
    /// The kernel's command line.
    #[arg(long, default_value = "")]
    cmdline: String,
    /// Only this host will do.
    #[arg(long)]
    host: Option<String>,
}

fn sha256(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    if lower.len() == 64 && lower.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(lower);
    }
    Err("64 hex digits are needed, as `sha256sum` prints them".to_owned())
}

fn host_name(text: &str) -> Result<String, String> {
    portcullis_verifier::name::check("a host's name", text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// The given pins, with those of the other kinds that the volume has: who pins a new policy means to keep the signers.
fn with_other_kinds(given: Pins, volume: &str, client: &Client) -> Result<Pins, Failure> {
    let there = client.volumes()?.volumes.into_iter().find(|view| view.name == volume);
    let there = there.map(|view| view.pins).unwrap_or_default();
    let kept = |given: Vec<String>, there: Vec<String>| if given.is_empty() { there } else { given };
    Ok(Pins {
        policies: kept(given.policies, there.policies),
        signers: kept(given.signers, there.signers),
        tpms: kept(given.tpms, there.tpms),
    })
}

fn pins_in_words(pins: &Pins) -> String {
    let policies = pins.policies.iter().map(|pin| format!("policy {pin}"));
    let signers = pins.signers.iter().map(|pin| format!("signer {pin}"));
    let all: Vec<String> = policies.chain(signers).chain(pins.tpms.iter().map(|pin| format!("TPM {pin}"))).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn fingerprint(text: &str) -> Result<String, String> {
    sha256(text).map_err(|_| "64 hex digits are needed, as `portcullis-agent ek` prints them".to_owned())
}

/// Runs `portcullis host …`.
pub fn host(command: HostCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        HostCommand::Ls => {
            let answer = client.hosts()?;
            out.show(&answer, || {
                let rows: Vec<Vec<String>> = answer.hosts.iter().map(host_row).collect();
                table(&["HOST", "ADMITTED", "TRUST", "VMS", "ATTESTED", "WHY NOT"], &rows, "No host is enrolled.")
            })
        }
        HostCommand::Show { host } => {
            let host = client.host(&host)?;
            out.show(&host, || host_in_words(&host))
        }
        HostCommand::Enrolment { host, keys_out } => {
            let answer = client.enrolment(&host)?;
            if let Some(path) = keys_out {
                files::write(&path, format!("{:#}\n", client.jwks()?).as_bytes())?;
            }
            out.show(&json!({ "host": host, "enrolment": answer.enrolment }), || answer.enrolment.clone())
        }
        HostCommand::Admit { ek_fingerprint, name, note } => {
            client.admit(&ek_fingerprint, &name, &note)?;
            let value = json!({ "admitted": ek_fingerprint, "host": name });
            out.show(&value, || format!("admitted {ek_fingerprint} as {}", plain(&name)))
        }
        HostCommand::Withdraw { ek_fingerprint } => {
            client.withdraw(&ek_fingerprint)?;
            out.show(&json!({ "withdrawn": ek_fingerprint }), || format!("no longer admitted: {ek_fingerprint}"))
        }
        HostCommand::Admissions => {
            let answer = client.admissions()?;
            out.show(&answer, || {
                let row = |admission: &portcullis_verifier::api::AdmissionView| {
                    vec![
                        admission.ek_fingerprint.clone(),
                        admission.host.clone().unwrap_or_else(|| "- (admit it again with --name)".to_owned()),
                        admission.by.clone(),
                        when(admission.at),
                        admission.note.clone(),
                    ]
                };
                let rows: Vec<Vec<String>> = answer.admissions.iter().map(row).collect();
                table(&["EK FINGERPRINT", "HOST", "BY", "WHEN", "NOTE"], &rows, "No TPM is admitted.")
            })
        }
        HostCommand::Cordon { host, reason } => {
            client.cordon(&host, Some(&reason))?;
            out.show(&json!({ "cordoned": host }), || format!("{} gets no new work", plain(&host)))
        }
        HostCommand::Uncordon { host } => {
            client.cordon(&host, None)?;
            out.show(&json!({ "uncordoned": host }), || format!("{} may get work again", plain(&host)))
        }
        HostCommand::AcceptBanks { host } => {
            client.accept_banks(&host)?;
            let words = || format!("{} is trusted again when it has enrolled and attested", plain(&host));
            out.show(&json!({ "banks_accepted": host }), words)
        }
        HostCommand::Fence { order, note } => {
            client.fence(&order, &note)?;
            out.show(&json!({ "fenced": order }), || format!("order {} is ended, its volume is free", plain(&order)))
        }
        HostCommand::Forget { host } => {
            client.remove_host(&host)?;
            out.show(&json!({ "forgotten": host }), || format!("forgot {}", plain(&host)))
        }
    }
}

/// Runs `portcullis volume …`.
pub fn volume(command: VolumeCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        VolumeCommand::Ls => {
            let answer = client.volumes()?;
            out.show(&answer, || {
                let row = |volume: &VolumeView| {
                    let held_by = volume.held_by.clone().unwrap_or_else(|| "-".to_owned());
                    vec![volume.name.clone(), held_by, pins_in_words(&volume.pins)]
                };
                let rows: Vec<Vec<String>> = answer.volumes.iter().map(row).collect();
                table(&["VOLUME", "HELD BY ORDER", "PINS"], &rows, "You have no volume.")
            })
        }
        VolumeCommand::Put { name, key_file, pin_policy, pin_signer, pin_tpm, no_pins } => {
            let key = files::read_secret(&key_file, MAX_KEY)?;
            if key.len() < 16 {
                let text = format!("a key of {} bytes is too short, 16 to {MAX_KEY} are needed", key.len());
                return Err(Failure::Content { path: key_file, text });
            }
            let given = Pins { policies: pin_policy, signers: pin_signer, tpms: pin_tpm };
            let pins = match (no_pins, given.is_empty()) {
                (true, _) => Some(given),
                (false, true) => None,
                (false, false) => Some(with_other_kinds(given, &name, client)?),
            };
            client.put_pinned_volume(&name, &key, pins)?;
            out.show(&json!({ "volume": name }), || format!("the key of {} is deposited", plain(&name)))
        }
    }
}

/// Runs `portcullis vm …`.
pub fn vm(command: VmCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        VmCommand::Launch(arguments) => {
            let answer = client.launch(&arguments.request())?;
            out.show(&answer, || format!("placed on {} as order {}", plain(&answer.host), plain(&answer.order_id)))
        }
        VmCommand::Ls => {
            let answer = client.vms()?;
            out.show(&answer, || {
                let row = |vm: &portcullis_verifier::api::VmView| {
                    let state = order_state(vm.state).to_owned();
                    vec![
                        vm.name.clone(),
                        vm.host.clone(),
                        state,
                        vm.volume.clone(),
                        when(vm.placed_at),
                        vm.order_id.clone(),
                        vm.detail.clone(),
                    ]
                };
                let rows: Vec<Vec<String>> = answer.vms.iter().map(row).collect();
                table(&["VM", "HOST", "STATE", "VOLUME", "PLACED", "ORDER", "DETAIL"], &rows, "You have no VM.")
            })
        }
    }
}

impl LaunchArguments {
    fn request(self) -> LaunchRequest {
        let initrd = self.initrd.zip(self.initrd_sha256).map(|(path, sha256)| VolumeFile { path, sha256 });
        LaunchRequest {
            name: self.name,
            vcpus: self.vcpus,
            mem_mib: self.mem_mib,
            cmdline: self.cmdline,
            kernel: VolumeFile { path: self.kernel, sha256: self.kernel_sha256 },
            initrd,
            volume: self.volume,
            host: self.host,
        }
    }
}

fn host_row(host: &HostView) -> Vec<String> {
    let why = host.reasons.iter().map(|reason| reason.code.to_string()).collect::<Vec<_>>().join(", ");
    vec![
        host.host.clone(),
        admission(host.state).to_owned(),
        trust(host.trust).to_owned(),
        host.vms.to_string(),
        host.attested_at.map_or_else(|| "never".to_owned(), when),
        why,
    ]
}

fn host_in_words(host: &HostView) -> String {
    let boot = host.boot.as_ref();
    let rows = vec![
        ("host", host.host.clone()),
        ("EK fingerprint", host.ek_fingerprint.clone()),
        ("EK certificate", host.certificate.clone()),
        ("AK name", host.ak_name.clone()),
        ("PCR banks", host.banks.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string)),
        ("admitted", admission(host.state).to_owned()),
        ("trust", trust(host.trust).to_owned()),
        ("trusted until", host.trusted_until.map_or_else(|| "-".to_owned(), when)),
        ("attested", host.attested_at.map_or_else(|| "never".to_owned(), when)),
        (
            "boot",
            boot.map_or_else(
                || "-".to_owned(),
                |boot| format!("reset {}, restart {}", boot.reset_count, boot.restart_count),
            ),
        ),
        ("VMs", host.vms.to_string()),
    ];
    let mut lines: Vec<String> = rows.into_iter().map(|(name, value)| format!("{name:15} {}", plain(&value))).collect();
    if !host.reasons.is_empty() {
        lines.push("why not trusted:".to_owned());
        lines.extend(host.reasons.iter().map(|reason| explain(reason, "  ")));
    }
    lines.join("\n")
}

fn admission(state: Admission) -> &'static str {
    match state {
        Admission::Pending => "no",
        Admission::Admitted => "yes",
    }
}

fn trust(trust: Trust) -> &'static str {
    match trust {
        Trust::Trusted => "trusted",
        Trust::Untrusted => "denied",
        Trust::Expired => "expired",
        Trust::Unknown => "unknown",
    }
}

fn order_state(state: OrderState) -> &'static str {
    match state {
        OrderState::Placed => "placed",
        OrderState::Released => "released",
        OrderState::Running => "running",
        OrderState::Ended => "ended",
        OrderState::Expired => "expired",
    }
}
