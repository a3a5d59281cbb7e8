//! The ASCII form. Linux writes names as they are, so a name with a newline in it breaks its line: such a list is
//! refused, either here or because the entry's template digest is not that of what the line says.

use std::borrow::Cow;

use super::{Entry, ImaError, TEMPLATE_DIGEST_SIZE, Template, template};

pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>, ImaError> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if text.is_empty() {
        return Ok(entries);
    }
    for (line, number) in text.split(|byte| *byte == b'\n').zip(1_u64..) {
        entries.push(entry(line, number)?);
    }
    Ok(entries)
}

fn entry(line: &[u8], number: u64) -> Result<Entry<'static>, ImaError> {
    let wrong = |what| ImaError::Field { entry: number, what };
    let mut columns = line.splitn(4, |byte| *byte == b' ');
    let mut column = |what| columns.next().ok_or_else(|| wrong(what));
    let pcr = column("it has no PCR")?;
    let pcr =
        core::str::from_utf8(pcr).ok().and_then(|pcr| pcr.parse().ok()).ok_or_else(|| wrong("its PCR is no number"))?;
    let digest = unhex(column("it has no template digest")?).ok_or_else(|| wrong("its template digest is not hex"))?;
    let template_digest =
        <[u8; TEMPLATE_DIGEST_SIZE]>::try_from(digest).map_err(|_| wrong("its template digest is not 20 bytes"))?;
    let name = column("it has no template")?;
    let template = Template::from_name(name)
        .ok_or_else(|| ImaError::Template { entry: number, name: String::from_utf8_lossy(name).into_owned() })?;
    let rest = column("it has no template data")?;
    let data = data(template, rest).map_err(wrong)?;
    template::split(template, &data).map_err(wrong)?;
    Ok(Entry { number, pcr, template_digest, template, data: Cow::Owned(data) })
}

/// Makes the template data again of which the line shows the fields.
fn data(template: Template, fields: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut split = fields.splitn(2, |byte| *byte == b' ');
    let digest = split.next().unwrap_or_default();
    let rest = split.next().ok_or("it has no name")?;
    if template == Template::Ima {
        let digest = unhex(digest).ok_or("its digest is not hex")?;
        return template::old_data(&digest, rest).ok_or("its name is too long for its template");
    }
    // A name may have spaces; the fields behind it are hex or empty, so they are taken from the end.
    let mut from_end = rest.rsplitn(template.more_fields().saturating_add(1), |byte| *byte == b' ');
    let mut more = Vec::new();
    for _ in 0..template.more_fields() {
        more.push(from_end.next().ok_or("it has too few fields for its template")?);
    }
    let name = from_end.next().ok_or("it has too few fields for its template")?;

    let colon = digest.iter().rposition(|byte| *byte == b':').ok_or("its digest names no algorithm")?;
    let (algorithm, digest) =
        digest.split_at_checked(colon.saturating_add(1)).ok_or("its digest names no algorithm")?;
    let digest = unhex(digest).ok_or("its digest is not hex")?;
    let mut data = Vec::new();
    push_field(&mut data, &[algorithm, b"\0", &digest]);
    push_field(&mut data, &[name, b"\0"]);
    for field in more.into_iter().rev() {
        push_field(&mut data, &[&unhex(field).ok_or("a field behind its name is not hex")?]);
    }
    Ok(data)
}

fn push_field(data: &mut Vec<u8>, parts: &[&[u8]]) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    // A line is never as long as 4 GiB: the whole list is bounded.
    data.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    for part in parts {
        data.extend_from_slice(part);
    }
}

/// Lower-case hex, as Linux writes it.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    hex::decode(text).ok()
}
