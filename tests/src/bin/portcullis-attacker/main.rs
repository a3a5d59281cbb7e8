//! What an attacker would run: speaks the agent's protocol and breaks its rules. For the demonstration and the lab tests.
//!
//! It is root on a host that was tampered with, so it has that host's TPM and the agent's attestation key; it makes its
//! own TLS key and says of itself what it likes.

mod host;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use portcullis_attest::binding::{EMPTY_BODY, Purpose};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::release::WrappedKey;
use portcullis_attest::tpm::TpmError;
use portcullis_verifier::client::ClientError;
use serde_json::{Value, json};

use crate::host::{Host, Trouble};

/// How long the relay waits for the other host's answer.
const RELAY_LIMIT: Duration = Duration::from_secs(90);

/// Carries out one attack and prints what came of it as one JSON object: {"refused": bool, "codes": […], "text": "…"}.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The configuration of the agent on this host.
    #[arg(long, default_value = "/etc/portcullis/agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    attack: Attack,
}

#[derive(Subcommand)]
enum Attack {
    /// Answer a fresh challenge with evidence that was made for another one.
    Replay {
        /// Whom to claim to be.
        #[arg(long = "as")]
        host: String,
        /// The old evidence.
        #[arg(long)]
        evidence: PathBuf,
        /// Write the fresh challenge on the envelope; what the TPM signed stays what it was.
        #[arg(long)]
        relabel: bool,
    },
    /// Hand this host's challenge to somebody else and send what they answer.
    Relay {
        /// Whom to claim to be.
        #[arg(long = "as")]
        host: String,
        /// Where to leave the nonce (hex).
        #[arg(long)]
        nonce_out: PathBuf,
        /// Where the other host's evidence will appear.
        #[arg(long)]
        evidence_in: PathBuf,
    },
    /// Quote honestly, but send another host's event log with it.
    ForgedLog {
        /// The log to send.
        #[arg(long)]
        eventlog: PathBuf,
    },
    /// Ask for the volume key of an order that is for another host.
    AskKey {
        /// The order's id.
        #[arg(long)]
        id: String,
        /// The order's JWS.
        #[arg(long)]
        order: PathBuf,
    },
    /// Open a wrapped key with this host's TPM.
    OpenBlob {
        /// The wrapped key as the verifier sent it.
        #[arg(long)]
        wrapped: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match carry_out(&arguments) {
        Ok(outcome) => {
            println!("{outcome}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the attack could not be carried out: {error}");
            ExitCode::from(3)
        }
    }
}

fn carry_out(arguments: &Arguments) -> Result<Value, Trouble> {
    let mut me = Host::open(&arguments.config)?;
    match &arguments.attack {
        Attack::Replay { host, evidence, relabel } => {
            let mut evidence = read_evidence(evidence)?;
            let fresh = me.challenge(host, Purpose::Attest, EMPTY_BODY)?;
            if *relabel {
                evidence.binding = fresh;
            }
            verdict(me.client.attest(host, evidence))
        }
        Attack::Relay { host, nonce_out, evidence_in } => {
            let binding = me.challenge(host, Purpose::Attest, EMPTY_BODY)?;
            std::fs::write(nonce_out, hex::encode(&binding.nonce))?;
            wait_for(evidence_in)?;
            verdict(me.client.attest(host, read_evidence(evidence_in)?))
        }
        Attack::ForgedLog { eventlog } => {
            let name = me.config.host.clone();
            let binding = me.challenge(&name, Purpose::Attest, EMPTY_BODY)?;
            let mut evidence = me.evidence(&binding)?;
            evidence.eventlog = std::fs::read(eventlog)?;
            verdict(me.client.attest(&name, evidence))
        }
        Attack::AskKey { id, order } => {
            let (request, parent) = me.release_request(std::fs::read_to_string(order)?.trim())?;
            match me.client.release(id, &request) {
                Ok(released) => open(&mut me, parent, &released.wrapped),
                Err(error) => refusal(error),
            }
        }
        Attack::OpenBlob { wrapped } => {
            let wrapped: WrappedKey = serde_json::from_slice(&std::fs::read(wrapped)?)
                .map_err(|e| Trouble::Words(format!("{}: {e}", wrapped.display())))?;
            let parent = me.tpm.null_parent()?;
            open(&mut me, parent, &wrapped)
        }
    }
}

/// What the verifier's answer means for the attacker.
fn verdict<T>(answer: Result<T, ClientError>) -> Result<Value, Trouble> {
    match answer {
        Ok(_) => Ok(json!({"refused": false, "codes": [], "text": "the verifier trusted it"})),
        Err(error) => refusal(error),
    }
}

/// A refusal is one only if the verifier said no; that it could not be reached, or could not read what was sent, means
/// that nothing was tried.
fn refusal(error: ClientError) -> Result<Value, Trouble> {
    match error {
        ClientError::Denied { reasons } => {
            let codes: Vec<String> = reasons.iter().map(|r| r.code.to_string()).collect();
            let text = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Ok(json!({"refused": true, "codes": codes, "text": text}))
        }
        other => Err(other.into()),
    }
}

fn open(me: &mut Host, parent: portcullis_attest::tpm::ParentHandle, wrapped: &WrappedKey) -> Result<Value, Trouble> {
    match me.tpm.import_unseal(parent, wrapped) {
        Ok(_) => Ok(json!({"refused": false, "codes": [], "text": "the TPM opened the key"})),
        Err(error) => {
            let code = match &error {
                TpmError::WrongParent => "tpm.wrong-parent",
                TpmError::PolicyFailed => "tpm.policy-failed",
                _ => return Err(error.into()),
            };
            Ok(json!({"refused": true, "codes": [code], "text": error.to_string()}))
        }
    }
}

fn read_evidence(path: &Path) -> Result<Evidence, Trouble> {
    let bytes = std::fs::read(path)?;
    Evidence::from_json(&bytes).map_err(|e| Trouble::Words(format!("{}: {e}", path.display())))
}

fn wait_for(path: &Path) -> Result<(), Trouble> {
    let until = Instant::now() + RELAY_LIMIT;
    while !path.exists() {
        if Instant::now() > until {
            return Err(Trouble::Words(format!("{} did not appear", path.display())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
