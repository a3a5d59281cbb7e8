//! What `portcullis reference make` takes from Keylime: digests for the reference values, and keys for a policy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use portcullis_attest::appraise::{AcceptedContent, NamePattern, ProgramRule, ProgramRules};
use portcullis_attest::ima::Keyring;
use portcullis_attest::reference::{KeylimeError, KeylimePolicy, PolicySignature};
use serde::Serialize;

use crate::failure::Failure;
use crate::files::{self, LARGE, SMALL};
use crate::record::MakeArguments;
use crate::verify::{content, reason};

/// What the keyring is called.
const KEYRING: &str = "keylime";

/// Runtime policies that were read.
pub struct Keylime {
    pub policies: Vec<KeylimePolicy>,
    /// What whoever uses them should know.
    pub warnings: Vec<String>,
}

/// The part of a policy that is written.
#[derive(Serialize)]
struct PolicyPart {
    programs: ProgramRules,
}

impl Keylime {
    /// Reads all of them. If keys were given, one of these must have signed each.
    pub fn read(arguments: &MakeArguments) -> Result<Self, Failure> {
        let signers = signers(&arguments.keylime_key)?;
        let mut read = Self { policies: Vec::new(), warnings: Vec::new() };
        for path in &arguments.keylime_policy {
            let policy = KeylimePolicy::signed_by(&files::read_text(path, LARGE)?, &signers)
                .map_err(|error| refused(path, &error))?;
            if *policy.signature() == PolicySignature::Unchecked {
                read.warnings.push(format!(
                    "{}: its signature was not checked, so anybody may have written it: give the signer's public key or \
                     certificate with --keylime-key",
                    path.display()
                ));
            }
            read.policies.push(policy);
        }
        Ok(read)
    }

    fn keys(&self) -> usize {
        self.policies.iter().map(|policy| policy.verification_keys().len()).sum()
    }

    /// What of the policies is in no reference values, nor in the part of a policy if that is written.
    pub fn left_out(&self, policy_is_written: bool) -> Vec<String> {
        let mut left_out: Vec<_> =
            self.policies.iter().flat_map(|policy| policy.not_imported.iter().cloned()).collect();
        if self.keys() > 0 && !policy_is_written {
            left_out.push(format!(
                "verification-keys: {} keys; they belong into the policy: --policy-out writes them as a keyring",
                self.keys()
            ));
        }
        left_out
    }

    /// The part of a policy that says what the verification-keys say.
    pub fn policy(&self, reference: &str) -> Result<String, Failure> {
        if self.keys() == 0 {
            return Ok("# The Keylime policies have no verification-keys that a policy could name.\n".to_owned());
        }
        let unusable = |error: &dyn std::fmt::Display| Failure::Usage(format!("verification-keys: {error}"));
        let pems = self.policies.iter().flat_map(|policy| policy.verification_keys().pems());
        let keyring = Keyring::from_pems(pems).map_err(|error| unusable(&error))?;
        let rule = ProgramRule {
            names: "/**".parse::<NamePattern>().map_err(|error| unusable(&error))?,
            accept: AcceptedContent::SignedBy(KEYRING.to_owned()),
            reason: "signed by one of Keylime's verification-keys".to_owned(),
        };
        let programs = ProgramRules::new(BTreeMap::from([(KEYRING.to_owned(), keyring)]), vec![rule], Vec::new())
            .map_err(|error| unusable(&error))?;
        let toml = toml::to_string(&PolicyPart { programs }).map_err(|error| unusable(&error))?;
        Ok(format!(
            "# Copy this into the policy of the hosts that the reference values {reference:?} are for. As in Keylime, the rule\n\
             # accepts any file that one of the keys signed, whatever its name: narrow `names` to where such files are.\n{toml}"
        ))
    }
}

fn signers(paths: &[PathBuf]) -> Result<Keyring, Failure> {
    let mut pems = Vec::new();
    for path in paths {
        let pem = files::read_text(path, SMALL)?;
        Keyring::from_pems([&pem]).map_err(|error| content(path, &error))?;
        pems.push(pem);
    }
    Keyring::from_pems(pems).map_err(|error| Failure::Usage(format!("--keylime-key: {error}")))
}

/// That nobody who was named signed it is a no; all else is a file that cannot be read.
fn refused(path: &Path, error: &KeylimeError) -> Failure {
    let code = match error {
        KeylimeError::Unsigned => "reference.unsigned",
        KeylimeError::Signature => "reference.signature-invalid",
        _ => return content(path, error),
    };
    Failure::NotTrusted(vec![reason(code, format!("{}: {error}.", path.display()))])
}
