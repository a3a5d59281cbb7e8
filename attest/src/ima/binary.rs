//! The binary form. Integers are little-endian, as on every machine that runs a PC firmware.

use super::{Entry, ExtendRule, ImaError, TemplateHash, template::Template};
use crate::eventlog::{Cursor, Short};
use crate::key::Bank;

/// Longest template name, in bytes. The longest of the kernel's is not half of it.
const MAX_TEMPLATE_NAME: u32 = 160;

/// Reads a list entry by entry, without looking into template data.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    cursor: Cursor<'a>,
    number: u64,
    hash: TemplateHash,
    /// The template of the entry before: mostly that of the next one too.
    template: Option<Template<'a>>,
}

impl<'a> Reader<'a> {
    /// `hash` says how long template digests are; what else it says is passed on. Entries are numbered behind `before`.
    pub const fn new(bytes: &'a [u8], hash: TemplateHash, before: u64) -> Self {
        Self { cursor: Cursor::new(bytes), number: before, hash, template: None }
    }

    /// What is left to read.
    pub fn rest(&self) -> &'a [u8] {
        self.cursor.rest()
    }

    /// The next entry; `None` at the end of the list.
    pub fn entry(&mut self) -> Option<Result<Entry<'a>, ImaError>> {
        if self.cursor.is_empty() {
            return None;
        }
        self.number = self.number.saturating_add(1);
        Some(self.read())
    }

    fn read(&mut self) -> Result<Entry<'a>, ImaError> {
        let number = self.number;
        let short = |field: &'static str| {
            move |short: Short| ImaError::Truncated { entry: number, field, needed: short.needed, left: short.left }
        };
        let cursor = &mut self.cursor;
        let pcr = cursor.u32().map_err(short("the PCR index"))?;
        let digest_size = self.hash.bank.digest_size() as u64;
        let template_digest = cursor.take(digest_size).map_err(short("the template digest"))?;
        let size = cursor.u32().map_err(short("the size of the template's name"))?;
        if size > MAX_TEMPLATE_NAME {
            return Err(ImaError::Field { entry: number, what: "the name of its template is longer than any" });
        }
        let name = cursor.take(u64::from(size)).map_err(short("the template's name"))?;
        let template = match self.template.filter(|last| last.name().as_bytes() == name) {
            Some(template) => template,
            None => Template::from_name(name).ok_or_else(|| ImaError::Template {
                entry: number,
                name: String::from_utf8_lossy(name).into_owned(),
            })?,
        };
        self.template = Some(template);
        let data = if template.is_old() {
            old_data(cursor).map_err(short("the template data"))?
        } else {
            let size = cursor.u32().map_err(short("the size of the template data"))?;
            cursor.take(u64::from(size)).map_err(short("the template data"))?
        };
        Ok(Entry { number, pcr, template_digest, template, data, hash: self.hash })
    }
}

/// The oldest template has no size of the whole, nor of its digest: 20 bytes, then the size of the name and the name.
fn old_data<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], Short> {
    let rest = *cursor;
    let digest = cursor.take(Bank::Sha1.digest_size() as u64)?.len();
    let size = cursor.u32()?;
    cursor.take(u64::from(size))?;
    let size = u64::from(size).saturating_add(digest as u64).saturating_add(4);
    { rest }.take(size)
}

/// How long the template digests of a list are: behind the first of them stands a template that is known. Lists have
/// SHA-1's, but for those that newer kernels show for one bank each; if none fits, the error is that of SHA-1.
pub(super) fn first_guess(bytes: &[u8]) -> TemplateHash {
    let fits = |bank: &Bank| {
        let hash = TemplateHash { bank: *bank, rule: ExtendRule::Digest };
        matches!(Reader::new(bytes, hash, 0).entry(), Some(Ok(_)))
    };
    let bank = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512].into_iter().find(fits).unwrap_or(Bank::Sha1);
    TemplateHash { bank, rule: ExtendRule::Digest }
}
