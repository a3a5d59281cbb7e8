//! The layouts of template data (Linux, Documentation/security/IMA-templates.rst).

use crate::eventlog::Cursor;
use crate::key::Bank;

/// Longest name in an entry of the oldest template, with its terminator; shorter ones are padded to it when hashed.
pub(super) const OLD_NAME_SIZE: usize = 256;

/// The kernel's own bound.
const MAX_FIELDS: usize = 15;

/// The oldest template: its entries are listed without sizes, and its name is padded when hashed.
const OLD: &str = "ima";

/// The templates that have names, and their fields. Any other is called by its fields.
const NAMED: [(&str, &str); 8] = [
    ("ima-sig", "d-ng|n-ng|sig"),
    ("ima-ng", "d-ng|n-ng"),
    (OLD, "d|n"),
    ("ima-buf", "d-ng|n-ng|buf"),
    ("ima-modsig", "d-ng|n-ng|sig|d-modsig|modsig"),
    ("ima-ngv2", "d-ngv2|n-ng"),
    ("ima-sigv2", "d-ngv2|n-ng|sig"),
    ("evm-sig", "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode"),
];

/// A field of template data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// `d`: a SHA-1 or MD5 digest.
    OldDigest,
    /// `n`: a name of at most 255 bytes.
    OldName,
    /// `d-ng`: a digest with its algorithm.
    Digest,
    /// `d-ngv2`: a digest with its algorithm that says whether it is fs-verity's.
    TypedDigest,
    /// `n-ng`: a name.
    Name,
    /// `sig`: the file's signature, or EVM's portable one; empty if it has none.
    Signature,
    /// `buf`: what was measured itself.
    Buffer,
    /// `d-modsig`: the digest that a signature appended to the file is of; empty if it has none.
    AppendedDigest,
    /// `modsig`: a signature that was appended to the file; empty if it has none.
    AppendedSignature,
    /// `evmsig`: EVM's portable signature.
    EvmSignature,
    /// `xattrnames`: the attributes that EVM covers.
    XattrNames,
    /// `xattrlengths`: their lengths.
    XattrLengths,
    /// `xattrvalues`: their values.
    XattrValues,
    /// `iuid`: the file's owner.
    Owner,
    /// `igid`: the file's group.
    Group,
    /// `imode`: the file's mode.
    Mode,
}

/// How a field is written in the ASCII form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Hex,
    HexWithAlgorithm,
    Text { terminated: bool },
    Number { bytes: usize },
}

impl Field {
    const ALL: [(&str, Self); 16] = [
        ("d", Self::OldDigest),
        ("n", Self::OldName),
        ("d-ng", Self::Digest),
        ("d-ngv2", Self::TypedDigest),
        ("n-ng", Self::Name),
        ("sig", Self::Signature),
        ("buf", Self::Buffer),
        ("d-modsig", Self::AppendedDigest),
        ("modsig", Self::AppendedSignature),
        ("evmsig", Self::EvmSignature),
        ("xattrnames", Self::XattrNames),
        ("xattrlengths", Self::XattrLengths),
        ("xattrvalues", Self::XattrValues),
        ("iuid", Self::Owner),
        ("igid", Self::Group),
        ("imode", Self::Mode),
    ];

    const fn is_digest(self) -> bool {
        matches!(self, Self::OldDigest | Self::Digest | Self::TypedDigest)
    }

    pub(super) const fn is_name(self) -> bool {
        matches!(self, Self::OldName | Self::Name)
    }

    pub(super) const fn shown(self) -> Shown {
        match self {
            Self::Digest | Self::TypedDigest | Self::AppendedDigest => Shown::HexWithAlgorithm,
            Self::OldName | Self::Name => Shown::Text { terminated: true },
            Self::XattrNames => Shown::Text { terminated: false },
            Self::Owner | Self::Group => Shown::Number { bytes: 4 },
            Self::Mode => Shown::Number { bytes: 2 },
            Self::OldDigest
            | Self::Signature
            | Self::Buffer
            | Self::AppendedSignature
            | Self::EvmSignature
            | Self::XattrLengths
            | Self::XattrValues => Shown::Hex,
        }
    }
}

/// How an entry's template data is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template<'a> {
    name: &'a str,
    fields: [Field; MAX_FIELDS],
    count: usize,
}

impl<'a> Template<'a> {
    /// The name that the list gives it: its own, or its fields with `|` between them.
    pub const fn name(&self) -> &'a str {
        self.name
    }

    /// Its fields.
    pub fn fields(&self) -> &[Field] {
        self.fields.get(..self.count).unwrap_or_default()
    }

    /// Whether it is the oldest one.
    pub(super) fn is_old(&self) -> bool {
        self.name == OLD
    }

    /// `None` if the kernel has no such template, or one that does not say what was measured: one digest, one name. They
    /// come first, as in all templates with names: no digest covers the template's name, so behind another order a field
    /// that the measured file's owner chose, such as an attribute, could be shown as the file's digest.
    pub(super) fn from_name(name: &'a [u8]) -> Option<Self> {
        let name = core::str::from_utf8(name).ok()?;
        let format = NAMED.iter().find(|(named, _)| *named == name).map_or(name, |(_, format)| format);
        let mut template = Self { name, fields: [Field::Name; MAX_FIELDS], count: 0 };
        for id in format.split('|') {
            let (_, field) = Field::ALL.iter().find(|(known, _)| *known == id)?;
            if template.fields().contains(field) {
                return None;
            }
            *template.fields.get_mut(template.count)? = *field;
            template.count = template.count.saturating_add(1);
        }
        let count = |is: fn(Field) -> bool| template.fields().iter().filter(|field| is(**field)).count();
        let first = matches!(template.fields(), [digest, name, ..] if digest.is_digest() && name.is_name());
        (first && count(Field::is_digest) == 1 && count(Field::is_name) == 1).then_some(template)
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

/// What the fields of an entry say of what was measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Content<'a> {
    /// Its digest.
    pub digest: FileDigest<'a>,
    /// Its name, without terminator: mostly a path. Bytes, for Linux allows any in a path.
    pub name: &'a [u8],
    /// The attribute `security.ima`, if it is a signature, else perhaps EVM's; empty if there is none.
    pub signature: &'a [u8],
    /// What was measured itself, if the template holds it.
    pub buffer: Option<&'a [u8]>,
    /// The digest that a signature appended to the file is of.
    pub appended_digest: Option<FileDigest<'a>>,
    /// The signature that was appended to the file, as CMS; empty if there is none.
    pub appended_signature: &'a [u8],
}

/// Splits template data as it is listed; the error says what is wrong. Every byte must belong to a field.
pub(super) fn split<'a>(
    template: &Template<'_>,
    data: &'a [u8],
    is_violation: bool,
) -> Result<Content<'a>, &'static str> {
    let mut cursor = Cursor::new(data);
    let mut content = Content::default();
    for field in template.fields() {
        let old_digest = template.is_old() && *field == Field::OldDigest;
        let bytes = if old_digest { old_sha1(&mut cursor) } else { sized(&mut cursor) }?;
        match field {
            Field::OldDigest => content.digest = old_digest_of(bytes)?,
            Field::Digest => content.digest = digest_with_algorithm(bytes, false, is_violation)?,
            Field::TypedDigest => content.digest = digest_with_algorithm(bytes, true, is_violation)?,
            Field::OldName | Field::Name => content.name = name(bytes, !template.is_old())?,
            Field::Signature => content.signature = bytes,
            Field::Buffer => content.buffer = Some(bytes),
            Field::AppendedDigest if bytes.is_empty() => {}
            Field::AppendedDigest => {
                content.appended_digest = Some(digest_with_algorithm(bytes, false, is_violation)?);
            }
            Field::AppendedSignature => content.appended_signature = bytes,
            Field::EvmSignature
            | Field::XattrNames
            | Field::XattrLengths
            | Field::XattrValues
            | Field::Owner
            | Field::Group
            | Field::Mode => {}
        }
    }
    if cursor.is_empty() { Ok(content) } else { Err("bytes follow the last field of its template") }
}

const SHORT: &str = "a field of its template is longer than the template data";

fn sized<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], &'static str> {
    let size = cursor.u32().map_err(|_| SHORT)?;
    cursor.take(u64::from(size)).map_err(|_| SHORT)
}

fn old_sha1<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], &'static str> {
    cursor.take(Bank::Sha1.digest_size() as u64).map_err(|_| SHORT)
}

fn old_digest_of(digest: &[u8]) -> Result<FileDigest<'_>, &'static str> {
    let algorithm = match digest.len() {
        16 => "md5",
        20 => "sha1",
        _ => return Err("its digest is neither SHA-1 nor MD5"),
    };
    Ok(FileDigest { algorithm, verity: false, digest })
}

fn name(field: &[u8], terminated: bool) -> Result<&[u8], &'static str> {
    let name = if terminated { field.strip_suffix(b"\0").ok_or("its name has no terminator")? } else { field };
    if !terminated && name.len() >= OLD_NAME_SIZE {
        return Err("its name is too long for its template");
    }
    if name.contains(&0) { Err("its name has a NUL in it") } else { Ok(name) }
}

/// `sha256:` NUL digest; where fs-verity is possible, `ima:` or `verity:` in front.
fn digest_with_algorithm(
    field: &[u8],
    verity_possible: bool,
    is_violation: bool,
) -> Result<FileDigest<'_>, &'static str> {
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
        // A violation has no digest; kernels leave room for a SHA-1, whatever the algorithm.
        Some(_) if is_violation && digest.digest == [0; 20] => Ok(digest),
        Some(bank) if bank.digest_size() != digest.digest.len() => {
            Err("its digest has another length than its algorithm's")
        }
        _ => Ok(digest),
    }
}
