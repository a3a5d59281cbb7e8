//! The keys and hashes in Secure Boot's variables (`EFI_SIGNATURE_LIST`, UEFI Specification 2.10, section 32.4.1).

use thiserror::Error;

use super::{Cursor, Guid, Short};

/// Most signatures that one variable may have. Real lists of revoked hashes have some hundreds; and each certificate is
/// hashed for itself, however short it is.
const MAX_SIGNATURES: usize = 16_384;

/// Size of a list's header: type, list size, header size, signature size.
const LIST_HEADER: u64 = 28;

/// Size of a signature's owner.
pub(super) const OWNER_SIZE: usize = 16;

const CERT_SHA256: Guid =
    Guid([0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28]);
const CERT_X509: Guid =
    Guid([0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72]);

/// What a signature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignatureType {
    /// The SHA-256 digest of an image.
    Sha256,
    /// A DER certificate.
    X509,
    /// Anything else, by its GUID.
    Other(Guid),
}

/// One entry of db, dbx, KEK or PK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    /// What it is.
    pub kind: SignatureType,
    /// Who put it there.
    pub owner: Guid,
    /// The digest or certificate.
    pub data: &'a [u8],
}

/// Why a variable's content is no list of signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignatureListError {
    /// A list says it is longer than the bytes that are there.
    #[error("a signature list needs {needed} bytes, {left} are left")]
    Truncated {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// A list is shorter than its own header.
    #[error("a signature list says it has {0} bytes, less than its own header")]
    Underflow(u32),
    /// The signatures' size leaves no room for one, or does not divide the list.
    #[error("a signature list of {list} bytes has signatures of {signature} bytes")]
    SignatureSize {
        /// Bytes for signatures in the list.
        list: u64,
        /// Bytes that it gives each of them.
        signature: u32,
    },
    /// More signatures than any real list has.
    #[error("the variable has more than {MAX_SIGNATURES} signatures")]
    TooMany,
}

impl From<Short> for SignatureListError {
    fn from(short: Short) -> Self {
        Self::Truncated { needed: short.needed, left: short.left }
    }
}

/// All signatures of a variable's content. An empty variable has none.
///
/// # Errors
/// Any size that contradicts another.
pub fn signature_lists(data: &[u8]) -> Result<Vec<Signature<'_>>, SignatureListError> {
    let mut cursor = Cursor::new(data);
    let mut signatures = Vec::new();
    while !cursor.is_empty() {
        let kind = match Guid(cursor.array()?) {
            CERT_SHA256 => SignatureType::Sha256,
            CERT_X509 => SignatureType::X509,
            other => SignatureType::Other(other),
        };
        let list_size = cursor.u32()?;
        let header_size = u64::from(cursor.u32()?);
        let signature_size = cursor.u32()?;
        let body = u64::from(list_size)
            .checked_sub(LIST_HEADER)
            .and_then(|size| size.checked_sub(header_size))
            .ok_or(SignatureListError::Underflow(list_size))?;
        cursor.take(header_size)?;
        let mut list = Cursor::new(cursor.take(body)?);
        let wrong = SignatureListError::SignatureSize { list: body, signature: signature_size };
        let Some(content) = u64::from(signature_size).checked_sub(OWNER_SIZE as u64).filter(|size| *size > 0) else {
            return Err(wrong);
        };
        if body % u64::from(signature_size) != 0 {
            return Err(wrong);
        }
        while !list.is_empty() {
            if signatures.len() >= MAX_SIGNATURES {
                return Err(SignatureListError::TooMany);
            }
            let owner = Guid(list.array()?);
            signatures.push(Signature { kind, owner, data: list.take(content)? });
        }
    }
    Ok(signatures)
}
