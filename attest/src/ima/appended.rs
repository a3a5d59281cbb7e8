//! Signatures that were appended to a file, as to kernel modules: CMS SignedData (RFC 5652) without the content.
//!
//! What is read of it is what says by whom and of what it is. Certificates in it are passed over: whoever signs can
//! put any there.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5911::{ID_DATA, ID_MESSAGE_DIGEST, ID_SIGNED_DATA};
use const_oid::db::rfc5912::{ID_SHA_256, ID_SHA_384, ID_SHA_512};
use der::asn1::AnyRef;
use der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag, TagNumber, Tagged as _};

use super::checks::Checks;
use super::keyring::{KeyName, Keyring};
use super::signature::{SignatureProblem, signable};
use super::template::FileDigest;
use crate::key::{Bank, Digest};

/// Longest appended signature that is read, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Most signers of one file.
const MAX_SIGNERS: usize = 8;

/// The tag of a signer that is named by the identifier of his key.
const SUBJECT_KEY_ID: Tag = Tag::ContextSpecific { constructed: false, number: TagNumber(0) };

/// One who signed.
struct Signer<'a> {
    /// Issuer and serial number, or the subject key identifier.
    id: AnyRef<'a>,
    hash: Bank,
    /// The value of the signed attributes, if there are any.
    attributes: Option<&'a [u8]>,
    signature: &'a [u8],
}

/// Whether a key of the keyring signed this digest.
pub(super) fn signed(
    cms: &[u8],
    digest: &FileDigest<'_>,
    keyring: &Keyring,
    checks: &mut Checks<'_>,
) -> Result<(), SignatureProblem> {
    let (bank, digest) = signable(digest)?;
    if cms.is_empty() {
        return Err(SignatureProblem::Missing);
    }
    let signers = read(cms).ok_or(SignatureProblem::Malformed("it is not CMS SignedData in DER"))?;
    let mut problem = SignatureProblem::Malformed("nobody signed it");
    for signer in signers {
        let name = hex::encode(Digest::hash(Bank::Sha256, signer.id.value()).as_slice().get(..8).unwrap_or_default());
        let key_name = signer.key_name();
        let mut named = keyring.named(&key_name).peekable();
        if named.peek().is_none() {
            problem = SignatureProblem::UnknownKey(format!("of the signer {name}"));
            continue;
        }
        let Some(signed) = signer.signed(bank, digest) else {
            problem = SignatureProblem::Malformed("it is of another digest than the one that was measured");
            continue;
        };
        for key in named {
            if checks.verify(key, bank, signed.as_slice(), signer.signature)? {
                return Ok(());
            }
        }
        problem = SignatureProblem::Invalid(format!("of the signer {name}"));
    }
    Err(problem)
}

impl Signer<'_> {
    fn key_name(&self) -> KeyName {
        let name = self.id.value().to_vec();
        if self.id.tag() == Tag::Sequence { KeyName::IssuerAndSerial(name) } else { KeyName::SubjectKeyId(name) }
    }

    /// The digest that was signed: the file's, or that of attributes of which one is the file's.
    fn signed(&self, bank: Bank, digest: &[u8]) -> Option<Digest> {
        if self.hash != bank {
            return None;
        }
        let Some(attributes) = self.attributes else { return Digest::new(bank, digest) };
        let mut reader = SliceReader::new(attributes).ok()?;
        let mut found = None;
        while !reader.is_finished() {
            let [kind, values] = parts(any(&mut reader)?.value())?;
            if oid(kind)? == ID_MESSAGE_DIGEST {
                let [value] = parts(values.value())?;
                // Twice would be once too often.
                if found.replace(value.value()).is_some() {
                    return None;
                }
            }
        }
        // Signed is the attributes' own encoding as a set, not the one that they have within the structure.
        let set = AnyRef::new(Tag::Set, attributes).and_then(|set| set.to_der()).ok()?;
        (found == Some(digest)).then(|| Digest::hash(bank, &set))
    }
}

/// `None` if it is anything else.
fn read(cms: &[u8]) -> Option<Vec<Signer<'_>>> {
    if cms.len() > MAX_BYTES {
        return None;
    }
    let outer = AnyRef::from_der(cms).ok().filter(|outer| outer.tag() == Tag::Sequence)?;
    let [kind, content] = parts(outer.value())?;
    if oid(kind)? != ID_SIGNED_DATA || content.tag() != context(0) {
        return None;
    }
    let [data] = parts(content.value())?;
    let mut reader = SliceReader::new(data.value()).ok()?;
    // Version, the hashes that are used, and the content: the kernel's is not there.
    expect(&mut reader, Tag::Integer)?;
    expect(&mut reader, Tag::Set)?;
    let [content] = parts(expect(&mut reader, Tag::Sequence)?.value())?;
    if oid(content)? != ID_DATA {
        return None;
    }
    let mut last = any(&mut reader)?;
    for revocations_or_certificates in [0, 1] {
        if last.tag() == context(revocations_or_certificates) {
            last = any(&mut reader)?;
        }
    }
    if last.tag() != Tag::Set || !reader.is_finished() {
        return None;
    }
    let mut reader = SliceReader::new(last.value()).ok()?;
    let mut signers = Vec::new();
    while !reader.is_finished() {
        if signers.len() >= MAX_SIGNERS {
            return None;
        }
        signers.push(signer(expect(&mut reader, Tag::Sequence)?.value())?);
    }
    Some(signers)
}

fn signer(bytes: &[u8]) -> Option<Signer<'_>> {
    let mut reader = SliceReader::new(bytes).ok()?;
    expect(&mut reader, Tag::Integer)?;
    let id = any(&mut reader)?;
    if id.tag() != Tag::Sequence && id.tag() != SUBJECT_KEY_ID {
        return None;
    }
    let hash = expect(&mut reader, Tag::Sequence)?;
    let hash = match oid(any(&mut SliceReader::new(hash.value()).ok()?)?)? {
        ID_SHA_256 => Bank::Sha256,
        ID_SHA_384 => Bank::Sha384,
        ID_SHA_512 => Bank::Sha512,
        _ => return None,
    };
    let mut next = any(&mut reader)?;
    let attributes = (next.tag() == context(0)).then_some(next.value());
    if attributes.is_some() {
        next = any(&mut reader)?;
    }
    // Which algorithm signs is the key's to say.
    if next.tag() != Tag::Sequence {
        return None;
    }
    let signature = expect(&mut reader, Tag::OctetString)?.value();
    if !reader.is_finished() && any(&mut reader)?.tag() != context(1) || !reader.is_finished() {
        return None;
    }
    Some(Signer { id, hash, attributes, signature })
}

const fn context(number: u32) -> Tag {
    Tag::ContextSpecific { constructed: true, number: TagNumber(number) }
}

fn any<'a>(reader: &mut SliceReader<'a>) -> Option<AnyRef<'a>> {
    AnyRef::decode(reader).ok()
}

fn expect<'a>(reader: &mut SliceReader<'a>, tag: Tag) -> Option<AnyRef<'a>> {
    any(reader).filter(|any| any.tag() == tag)
}

/// Exactly so many elements.
fn parts<const N: usize>(bytes: &[u8]) -> Option<[AnyRef<'_>; N]> {
    let mut reader = SliceReader::new(bytes).ok()?;
    let mut parts = [AnyRef::NULL; N];
    for part in &mut parts {
        *part = any(&mut reader)?;
    }
    reader.is_finished().then_some(parts)
}

fn oid(any: AnyRef<'_>) -> Option<ObjectIdentifier> {
    any.decode_as().ok()
}
