//! `portcullis ek check`: whether an endorsement key's certificate leads to one of an operator's roots, and if not, why and
//! which root is missing. What is asked of it is what a verifier asks when a host enrols.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use portcullis_attest::endorsement::{EkCertificate, EkRoots, Revocations, pem_certificates};
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
    /// A directory with the roots (and intermediates, and revocation lists) that are trusted, in DER or PEM.
    #[arg(long, value_name = "DIR")]
    roots: PathBuf,
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
    let checked = EkCertificate::check(&certificate, &intermediates, &roots, SystemTime::now()).map_err(denied)?;
    let [manufacturer, model, version] = checked.tpm();
    let of_nobody = |issuer| format!("the revocation list of {issuer:?} is of none of the configured authorities");
    let warnings: Vec<String> = roots.unmatched_lists().into_iter().map(of_nobody).collect();
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
    let roots = EkRoots::from_dir_files(files::read_dir(&arguments.roots, LIST)?)
        .map_err(|error| content(&arguments.roots, &error))?;
    let mut revocations = Revocations::default();
    if let Some(dir) = &arguments.revocations {
        revocations = Revocations::from_dir_files(files::read_dir(dir, LIST)?).map_err(|error| content(dir, &error))?;
    }
    if arguments.accept_stale_lists {
        revocations = revocations.accept_stale();
    }
    Ok(roots.with_revocations(revocations))
}
