//! What evidence is judged by, read once from the operator's files: roots, reference values, policies.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use portcullis_attest::appraise::{Judged, Policy, PolicyError, ima_rules};
use portcullis_attest::endorsement::{ANCHORS, EkRoots, Revocations, RevocationsError, RootFile, RootsError};
use portcullis_attest::reference::signature::SignerKey;
use portcullis_attest::reference::{ReferenceError, ReferenceValues};

use super::Service;

/// Largest file of reference values, policy, signature or certificate, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Where the files are.
#[derive(Clone, Debug, Default)]
pub struct RuleFiles {
    /// Directory with the certificates of TPM vendors; those of its subdirectory `anchors` are trusted whoever issued them.
    pub roots: PathBuf,
    /// Roots (SHA-256 of the certificate) whose EK certificates may have no extended key usage.
    pub roots_without_eku: Vec<[u8; 32]>,
    /// Directory with revocation lists: of vendors (CRLs), and the operator's own (fingerprints).
    pub revocations: Option<PathBuf>,
    /// Whether a CRL counts after the time at which its vendor would have replaced it.
    pub accept_stale_revocations: bool,
    /// Reference values; a signature lies beside each, as `FILE.sig`.
    pub references: Vec<PathBuf>,
    /// Policies, in the order in which they are tried for a host.
    pub policies: Vec<PathBuf>,
}

/// Why the rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is longer than any of its kind.
    #[error("{} is longer than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A file is no text.
    #[error("{} is no UTF-8 text", .0.display())]
    Text(PathBuf),
    /// A policy.
    #[error("{}: {error}", path.display())]
    Policy {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<PolicyError>,
    },
    /// Reference values, or their signature.
    #[error("{}: {error}", path.display())]
    Reference {
        /// Their file.
        path: PathBuf,
        /// What is wrong with them.
        error: Box<ReferenceError>,
    },
    /// A certificate.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// A root is named that is not there.
    #[error("no root in {} has the SHA-256 fingerprint {}", dir.display(), hex::encode(fingerprint))]
    UnknownRoot {
        /// The directory of the roots.
        dir: PathBuf,
        /// The fingerprint.
        fingerprint: [u8; 32],
    },
    /// A revocation list.
    #[error(transparent)]
    Revocations(#[from] RevocationsError),
}

/// A policy, and by what IMA entries are judged under it.
struct PolicyInForce {
    policy: Policy,
    ima_rules: BTreeSet<[u8; 32]>,
}

/// What evidence is judged by.
pub struct Rules {
    roots: EkRoots,
    references: Vec<ReferenceValues>,
    policies: Vec<PolicyInForce>,
    /// For when there is none: it trusts nothing.
    nothing: Policy,
}

impl Rules {
    /// These roots, reference values and policies.
    pub fn new(roots: EkRoots, references: Vec<ReferenceValues>, policies: Vec<Policy>) -> Self {
        let in_force = |policy: Policy| {
            let ima_rules = references.iter().map(|values| ima_rules(&policy, values)).collect();
            PolicyInForce { policy, ima_rules }
        };
        let policies = policies.into_iter().map(in_force).collect();
        Self { roots, references, policies, nothing: Policy::default() }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Anything that cannot be read or understood, and a signature that does not hold: a service that skipped it would
    /// judge by other rules than its operator believes.
    pub fn load(files: &RuleFiles) -> Result<Self, RulesError> {
        let mut policies = Vec::new();
        for path in &files.policies {
            let policy = Policy::from_toml(&read_text(path)?);
            policies.push(policy.map_err(|e| RulesError::Policy { path: path.clone(), error: Box::new(e) })?);
        }
        let signers: Vec<SignerKey> = policies.iter().flat_map(|policy| policy.reference_signers.clone()).collect();
        let mut references = Vec::new();
        for path in &files.references {
            references.push(reference(path, &signers)?);
        }
        let mut revocations = match &files.revocations {
            Some(dir) => Revocations::from_dir_files(read_dir(dir)?)?,
            None => Revocations::default(),
        };
        if files.accept_stale_revocations {
            revocations = revocations.accept_stale();
        }
        let roots = roots(files)?.with_revocations(revocations);
        Ok(Self::new(roots, references, policies))
    }

    /// Roots that EK certificates must lead to.
    pub fn roots(&self) -> &EkRoots {
        &self.roots
    }

    /// What good boots look like.
    pub fn references(&self) -> &[ReferenceValues] {
        &self.references
    }

    /// What is required of a host: the first policy that is for it. If none is, the first of all, which says so.
    pub fn policy(&self, host: &str) -> &Policy {
        self.in_force(host).or(self.policies.first()).map_or(&self.nothing, |found| &found.policy)
    }

    fn in_force(&self, host: &str) -> Option<&PolicyInForce> {
        self.policies.iter().find(|found| found.policy.is_for(host))
    }

    /// From which entry on the host's next IMA list may go: 0, the whole list, unless what came before was judged by the
    /// very rules that are in force now.
    pub fn ima_from(&self, host: &str, judged: Option<&Judged>) -> u64 {
        let state = judged.and_then(|judged| judged.ima.as_ref());
        let rules = self.in_force(host).map(|found| &found.ima_rules);
        match (state, rules) {
            (Some(state), Some(rules)) if rules.contains(&state.rules) => state.entries,
            _ => 0,
        }
    }

    /// What an operator should know: reference values that no policy accepts, before hosts are denied for it, files among the
    /// roots that were skipped, and revocation lists that do not count.
    pub fn warnings(&self) -> Vec<String> {
        let now = Service::now();
        let useless =
            |values: &&ReferenceValues| self.policies.iter().all(|found| found.policy.distrust(values, now).is_some());
        let words = |values: &ReferenceValues| {
            let signed = values.signed_by().map_or_else(|| "nobody".to_owned(), |signer| format!("the key {signer}"));
            let (name, version) = (values.name(), values.version());
            format!("the reference values {name:?}, version {version}, signed by {signed}, count under no policy")
        };
        self.references.iter().filter(useless).map(words).chain(self.roots.warnings()).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RulesError> {
    let problem = |source| RulesError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(problem)?;
    let mut content = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(problem)?;
    if content.len() as u64 > MAX_FILE {
        return Err(RulesError::TooLarge(path.to_owned()));
    }
    Ok(content)
}

/// Reads a text file of the operator's.
pub fn read_text(path: &Path) -> Result<String, RulesError> {
    String::from_utf8(read(path)?).map_err(|_| RulesError::Text(path.to_owned()))
}

/// Reference values, with the signature that lies beside them if one does.
fn reference(path: &Path, signers: &[SignerKey]) -> Result<ReferenceValues, RulesError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".sig");
    let text = read_text(path)?;
    let (from, values) = match read_text(Path::new(&beside)) {
        Ok(jws) => (PathBuf::from(beside), ReferenceValues::from_signed(&text, &jws, signers)),
        Err(RulesError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            (path.to_owned(), ReferenceValues::from_toml(&text))
        }
        Err(error) => return Err(error),
    };
    values.map_err(|e| RulesError::Reference { path: from, error: Box::new(e) })
}

/// The roots of a directory, and the anchors of its subdirectory.
fn roots(files: &RuleFiles) -> Result<EkRoots, RulesError> {
    let anchors = files.roots.join(ANCHORS);
    let anchors = if anchors.is_dir() { read_roots(&anchors)? } else { Vec::new() };
    let roots = EkRoots::from_files(read_roots(&files.roots)?, anchors)?;
    roots.allow_missing_usage(&files.roots_without_eku).map_err(|unknown| RulesError::UnknownRoot {
        dir: files.roots.clone(),
        fingerprint: unknown.first().copied().unwrap_or_default(),
    })
}

/// The files of a directory, each with its content or why it cannot be read.
fn read_roots(dir: &Path) -> Result<Vec<RootFile>, RulesError> {
    let files = paths(dir)?.into_iter().filter(|path| !path.is_dir());
    Ok(files.map(|path| (path.display().to_string(), read(&path).map_err(|error| error.to_string()))).collect())
}

/// The files of a directory, by name, with their content.
fn read_dir(dir: &Path) -> Result<Vec<(String, Vec<u8>)>, RulesError> {
    let files = paths(dir)?.into_iter().filter(|path| path.is_file());
    files.map(|path| Ok((path.display().to_string(), read(&path)?))).collect()
}

/// What is in a directory, in order.
fn paths(dir: &Path) -> Result<Vec<PathBuf>, RulesError> {
    let problem = |source| RulesError::Read { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(problem)? {
        paths.push(entry.map_err(problem)?.path());
    }
    paths.sort();
    Ok(paths)
}
