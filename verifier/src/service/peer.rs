//! Who is calling, from the TLS handshake alone.
//!
//! People have certificates of the verifier's CA. Hosts have a key made anew each boot, in a certificate that they
//! signed themselves: TLS proves that they hold it, a quote proves whose it is. So the handshake takes both, and what
//! a call may do is decided afterwards from what was proved.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Tagged};

use crate::name;

const OID_CN: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const OID_OU: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");
/// Largest client certificate, in bytes.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// What a person may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Admits TPMs, sees and removes hosts.
    Operator,
    /// Owns volumes and VMs.
    Tenant,
}

impl Role {
    /// As it stands in a certificate's OU.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        }
    }
}

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No certificate, or one of the CA that names no role.
    Anonymous,
    /// A person with a certificate of the CA.
    Person {
        /// The role.
        role: Role,
        /// The name.
        name: String,
        /// The certificate's end, seconds since 1970: a connection may outlive it, a call may not.
        until: u64,
    },
    /// Whoever holds this key.
    HostKey {
        /// SHA-256 of the DER SubjectPublicKeyInfo.
        spki_sha256: [u8; 32],
    },
}

/// Takes any client key that the handshake proves, and tells people from hosts afterwards.
#[derive(Debug)]
pub struct PeerVerifier {
    people: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// A verifier for people's certificates by `roots`.
    pub fn new(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let people = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self { people, algorithms: provider.signature_verification_algorithms })
    }

    /// Who proved to hold the key of `chain`, at `now`.
    pub fn classify(&self, chain: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Peer {
        let Some((end_entity, intermediates)) = chain.and_then(<[_]>::split_first) else {
            return Peer::Anonymous;
        };
        if self.people.verify_client_cert(end_entity, intermediates, now).is_ok() {
            return person(end_entity).unwrap_or(Peer::Anonymous);
        }
        match ParsedCertificate::try_from(end_entity) {
            Ok(cert) => Peer::HostKey { spki_sha256: Sha256::digest(cert.subject_public_key_info()).into() },
            Err(_) => Peer::Anonymous,
        }
    }
}

/// Exactly one OU that is a role and exactly one CN that is a name; anything else is nobody.
fn person(der: &CertificateDer<'_>) -> Option<Peer> {
    let cert = Certificate::from_der(der).ok()?;
    let tbs = cert.tbs_certificate();
    let (mut names, mut units) = (Vec::new(), Vec::new());
    for attribute in tbs.subject().iter_rdn().flat_map(x509_cert::name::RelativeDistinguishedName::iter) {
        let value = match attribute.value.tag() {
            x509_cert::der::Tag::Utf8String => {
                attribute.value.decode_as::<Utf8StringRef<'_>>().ok()?.as_str().to_owned()
            }
            x509_cert::der::Tag::PrintableString => {
                attribute.value.decode_as::<PrintableStringRef<'_>>().ok()?.as_str().to_owned()
            }
            _ => return None,
        };
        match attribute.oid {
            OID_CN => names.push(value),
            OID_OU => units.push(value),
            _ => return None,
        }
    }
    let ([person], [unit]) = (names.as_slice(), units.as_slice()) else { return None };
    let role = [Role::Operator, Role::Tenant].into_iter().find(|role| role.as_str() == unit)?;
    name::check("name", person).ok()?;
    let until = tbs.validity().not_after.to_unix_duration().as_secs();
    Some(Peer::Person { role, name: person.clone(), until })
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a host's certificate is by no CA.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if end_entity.len() > MAX_CERTIFICATE || !intermediates.is_empty() {
            return Err(Error::General("a client sends one certificate of at most 16 KiB".into()));
        }
        ParsedCertificate::try_from(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
