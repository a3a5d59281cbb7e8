//! The layouts of template data (Linux, Documentation/security/IMA-templates.rst).

use crate::eventlog::Cursor;
use crate::key::Bank;

/// Longest name in an entry of the oldest template, with its terminator; shorter ones are padded to it when hashed.
const OLD_NAME_SIZE: usize = 256;

/// How an entry's template data is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// `ima`: a SHA-1 or MD5 digest and a name of at most 255 bytes.
    Ima,
    /// `ima-ng`: digest with algorithm, name.
    ImaNg,
    /// `ima-sig`: and a signature, if the file has one.
    ImaSig,
    /// `ima-buf`: and the data itself.
    ImaBuf,
    /// `ima-modsig`: signature, digest and signature appended to the file.
    ImaModsig,
    /// `ima-ngv2`: the digest says whether it is fs-verity's.
    ImaNgV2,
    /// `ima-sigv2`: and a signature.
    ImaSigV2,
    /// `evm-sig`: EVM's signature and what it covers.
    EvmSig,
}

impl Template {
    const ALL: [Self; 8] = [
        Self::ImaSig,
        Self::ImaNg,
        Self::ImaBuf,
        Self::Ima,
        Self::ImaModsig,
        Self::ImaNgV2,
        Self::ImaSigV2,
        Self::EvmSig,
    ];

    /// The name that the list gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ima => "ima",
            Self::ImaNg => "ima-ng",
            Self::ImaSig => "ima-sig",
            Self::ImaBuf => "ima-buf",
            Self::ImaModsig => "ima-modsig",
            Self::ImaNgV2 => "ima-ngv2",
            Self::ImaSigV2 => "ima-sigv2",
            Self::EvmSig => "evm-sig",
        }
    }

    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.name().as_bytes() == name)
    }

    /// Fields behind the digest and the name.
    pub(super) const fn more_fields(self) -> usize {
        match self {
            Self::Ima | Self::ImaNg | Self::ImaNgV2 => 0,
            Self::ImaSig | Self::ImaBuf | Self::ImaSigV2 => 1,
            Self::ImaModsig => 3,
            Self::EvmSig => 7,
        }
    }
}

/// The digest of a measured file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileDigest<'a> {
    /// The algorithm, as Linux names it: "sha256".
    pub algorithm: &'a str,
    /// Whether it is the digest of fs-verity's Merkle tree and not of the file.
    pub verity: bool,
    /// The digest.
    pub digest: &'a [u8],
}

impl FileDigest<'_> {
    /// The bank whose hash this is.
    pub fn bank(&self) -> Option<Bank> {
        match self.algorithm {
            "sha1" => Some(Bank::Sha1),
            "sha256" => Some(Bank::Sha256),
            "sha384" => Some(Bank::Sha384),
            "sha512" => Some(Bank::Sha512),
            "sm3" | "sm3-256" => Some(Bank::Sm3_256),
            _ => None,
        }
    }
}

/// The fields that every template has.
pub(super) struct Fields<'a> {
    pub digest: FileDigest<'a>,
    pub name: &'a [u8],
}

/// Splits template data; the error says what is wrong. Every byte must belong to a field.
pub(super) fn split(template: Template, data: &[u8]) -> Result<Fields<'_>, &'static str> {
    if template == Template::Ima {
        return split_old(data);
    }
    let mut cursor = Cursor::new(data);
    let digest = field(&mut cursor)?;
    let name = field(&mut cursor)?;
    for _ in 0..template.more_fields() {
        field(&mut cursor)?;
    }
    if !cursor.is_empty() {
        return Err("bytes follow the last field of its template");
    }
    let name = name.strip_suffix(b"\0").ok_or("its name has no terminator")?;
    if name.contains(&0) {
        return Err("its name has a NUL in it");
    }
    let verity_possible = matches!(template, Template::ImaNgV2 | Template::ImaSigV2);
    Ok(Fields { digest: digest_with_algorithm(digest, verity_possible)?, name })
}

fn field<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], &'static str> {
    let short = "a field of its template is longer than the template data";
    let size = cursor.u32().map_err(|_| short)?;
    cursor.take(u64::from(size)).map_err(|_| short)
}

/// `sha256:` NUL digest; where fs-verity is possible, `ima:` or `verity:` in front.
fn digest_with_algorithm(field: &[u8], verity_possible: bool) -> Result<FileDigest<'_>, &'static str> {
    let end = field.iter().position(|byte| *byte == 0).ok_or("its digest names no algorithm")?;
    let (head, digest) = field.split_at_checked(end.saturating_add(1)).ok_or("its digest names no algorithm")?;
    let head = head.strip_suffix(b":\0").ok_or("its digest names no algorithm")?;
    let (verity, algorithm) = match (verity_possible, head.strip_prefix(b"ima:"), head.strip_prefix(b"verity:")) {
        (false, ..) => (false, head),
        (true, Some(algorithm), _) => (false, algorithm),
        (true, _, Some(algorithm)) => (true, algorithm),
        (true, None, None) => return Err("its digest does not say whether it is fs-verity's"),
    };
    if algorithm.is_empty() || !algorithm.iter().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err("its digest's algorithm has no plain name");
    }
    let algorithm = core::str::from_utf8(algorithm).map_err(|_| "its digest's algorithm has no plain name")?;
    let digest = FileDigest { algorithm, verity, digest };
    match digest.bank() {
        Some(bank) if bank.digest_size() != digest.digest.len() => {
            Err("its digest has another length than its algorithm's")
        }
        _ => Ok(digest),
    }
}

/// The oldest template is listed without field sizes: 20 bytes of digest, then the name, padded as it is hashed.
fn split_old(data: &[u8]) -> Result<Fields<'_>, &'static str> {
    let (digest, name) = data.split_at_checked(super::TEMPLATE_DIGEST_SIZE).ok_or("its template data is too short")?;
    let end = name.iter().position(|byte| *byte == 0).ok_or("its name has no terminator")?;
    let (name, padding) = name.split_at_checked(end).ok_or("its name has no terminator")?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err("its name has a NUL in it");
    }
    Ok(Fields { digest: FileDigest { algorithm: "sha1", verity: false, digest }, name })
}

/// The template data of the oldest template as it is hashed; `None` if the name is too long for it.
pub(super) fn old_data(digest: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    if name.len() >= OLD_NAME_SIZE || digest.len() != super::TEMPLATE_DIGEST_SIZE {
        return None;
    }
    let mut data = [digest, name].concat();
    data.resize(super::TEMPLATE_DIGEST_SIZE.saturating_add(OLD_NAME_SIZE), 0);
    Some(data)
}
