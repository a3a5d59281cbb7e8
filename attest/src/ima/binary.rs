//! The binary form. Integers are little-endian, as on every machine that runs a PC firmware.

use std::borrow::Cow;

use super::{Entry, ImaError, Template, template};
use crate::eventlog::{Cursor, Short};

/// Longest template name. The kernel's own are shorter.
const MAX_TEMPLATE_NAME: u32 = 64;

pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>, ImaError> {
    let mut cursor = Cursor::new(bytes);
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let mut number = 0_u64;
    while !cursor.is_empty() {
        number = number.saturating_add(1);
        entries.push(entry(&mut cursor, number)?);
    }
    Ok(entries)
}

fn entry<'a>(cursor: &mut Cursor<'a>, number: u64) -> Result<Entry<'a>, ImaError> {
    let short = |field: &'static str| {
        move |short: Short| ImaError::Truncated { entry: number, field, needed: short.needed, left: short.left }
    };
    let wrong = |what| ImaError::Field { entry: number, what };
    let pcr = cursor.u32().map_err(short("the PCR index"))?;
    let template_digest = cursor.array().map_err(short("the template digest"))?;
    let name_size = cursor.u32().map_err(short("the size of the template's name"))?;
    if name_size > MAX_TEMPLATE_NAME {
        return Err(wrong("the name of its template is longer than any"));
    }
    let name = cursor.take(u64::from(name_size)).map_err(short("the template's name"))?;
    let template = Template::from_name(name)
        .ok_or_else(|| ImaError::Template { entry: number, name: String::from_utf8_lossy(name).into_owned() })?;
    let data = if template == Template::Ima {
        // No size of the whole, no size of the digest; the name is listed without the padding with which it is hashed.
        let digest = cursor.take(20).map_err(short("the digest"))?;
        let size = cursor.u32().map_err(short("the size of the name"))?;
        let name = cursor.take(u64::from(size)).map_err(short("the name"))?;
        Cow::Owned(template::old_data(digest, name).ok_or_else(|| wrong("its name is too long for its template"))?)
    } else {
        let size = cursor.u32().map_err(short("the size of the template data"))?;
        Cow::Borrowed(cursor.take(u64::from(size)).map_err(short("the template data"))?)
    };
    template::split(template, &data).map_err(wrong)?;
    Ok(Entry { number, pcr, template_digest, template, data })
}
