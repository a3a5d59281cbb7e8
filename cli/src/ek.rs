//! `portcullis ek check`: whether an endorsement key's certificate leads to one of an operator's roots, and if not, why and
//! which root is missing. What is asked of it is what a verifier asks when a host enrols.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use portcullis_attest::endorsement::{
    ANCHORS, CertificateFingerprint, EkCertificate, EkRoots, Revocations, pem_certificates,
};
use serde_json::json;

use crate::failure::Failure;
use crate::files::{self, LIST, SMALL};
use crate::output::Output;
use crate::verify::{content, denied};

/// `portcullis ek …`.
#[derive(Subcommand, Debug)]
pub enum EkCommand {
    /// Check an endorsement key's certificate.
    #[command(
        after_help = "Example:\n  tpm2_nvread 0x01c00002 -o ek.crt\n  portcullis ek check ek.crt --roots /etc/portcullis/roots"
    )]
    Check(EkCheck),
}

/// Arguments of `portcullis ek check`.
#[derive(Args, Debug)]
pub struct EkCheck {
    /// The certificate, in DER (padding of an NV index allowed) or PEM.
    certificate: PathBuf,
    /// Certificates of authorities between it and a root, in DER or PEM (one or more).
    #[arg(long, value_name = "FILE")]
    intermediates: Option<PathBuf>,
    /// A directory with the roots (and intermediates, and revocation lists) that are trusted, in DER or PEM. Certificates in
    /// its subdirectory `anchors` are trusted without their root.
    #[arg(long, value_name = "DIR")]
    roots: PathBuf,
    /// A root (SHA-256 of its certificate) whose EK certificates may have no extended key usage; may be given more than once.
    #[arg(long, value_name = "SHA256")]
    allow_missing_eku: Vec<CertificateFingerprint>,
    /// A directory with revocation lists, in DER or PEM, and text files with fingerprints of what is revoked.
    #[arg(long, value_name = "DIR")]
    revocations: Option<PathBuf>,
    /// Accept revocation lists that should have been replaced by newer ones.
    #[arg(long)]
    accept_stale_lists: bool,
}

/// Runs `portcullis ek …`.
pub fn ek(command: EkCommand, out: Output) -> Result<(), Failure> {
    let EkCommand::Check(arguments) = command;
    let certificate = match certificates(&arguments.certificate)?.as_slice() {
        [one] => one.clone(),
        more => {
            return Err(content(&arguments.certificate, &format!("{} certificates, where one is needed", more.len())));
        }
    };
    let intermediates = arguments.intermediates.as_deref().map(certificates).transpose()?.unwrap_or_default();
    let intermediates: Vec<&[u8]> = intermediates.iter().map(Vec::as_slice).collect();
    let roots = roots(&arguments)?;
    let warnings = roots.warnings();
    let checked = EkCertificate::check(&certificate, &intermediates, &roots, SystemTime::now()).map_err(|reasons| {
        // A root that was skipped may be the one that is missing.
        for warning in &warnings {
            crate::output::warn(warning);
        }
        denied(reasons)
    })?;
    let [manufacturer, model, version] = checked.tpm();
    let value = json!({
        "trusted": true, "reasons": [], "warnings": warnings, "fingerprint": hex::encode(checked.fingerprint()), "issuer": checked.issuer(),
        "root": checked.root(), "manufacturer": manufacturer, "model": model, "version": version,
    });
    out.show(&value, || {
        let or_unknown = |text: Option<&str>| crate::output::plain(text.unwrap_or("unknown"));
        format!(
            "trusted: the certificate leads to {}\nissuer       {}\nfingerprint  {}\nTPM          manufacturer {}, model {}, \
             version {}{}",
            crate::output::plain(checked.root()),
            crate::output::plain(checked.issuer()),
            hex::encode(checked.fingerprint()),
            or_unknown(manufacturer),
            or_unknown(model),
            or_unknown(version),
            warnings.iter().fold(String::new(), |text, line| text + "\nwarning      " + &crate::output::plain(line))
        )
    })
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    pem_certificates(&files::read(path, SMALL)?).map_err(|error| content(path, &error))
}

fn roots(arguments: &EkCheck) -> Result<EkRoots, Failure> {
    let (dir, anchors) = (&arguments.roots, arguments.roots.join(ANCHORS));
    let anchors = if anchors.is_dir() { files::read_each(&anchors, LIST)? } else { Vec::new() };
    let roots = EkRoots::from_files(files::read_each(dir, LIST)?, anchors).map_err(|error| content(dir, &error))?;
    let without_usage: Vec<_> = arguments.allow_missing_eku.iter().map(|root| root.0).collect();
    let roots = roots.allow_missing_usage(&without_usage).map_err(|unknown| {
        let unknown: Vec<_> = unknown.iter().map(hex::encode).collect();
        content(dir, &format!("no root in it has the SHA-256 fingerprint {}", unknown.join(", ")))
    })?;
    let mut revocations = Revocations::default();
    if let Some(dir) = &arguments.revocations {
        revocations = Revocations::from_dir_files(files::read_dir(dir, LIST)?).map_err(|error| content(dir, &error))?;
    }
    if arguments.accept_stale_lists {
        revocations = revocations.accept_stale();
    }
    Ok(roots.with_revocations(revocations))
}
