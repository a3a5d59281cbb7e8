//! The ASCII form. Linux writes names as they are, so a name with a newline in it breaks its line: such a list is
//! refused, either here or because the entry's template digest is not that of what the line says.

use super::ImaError;
use super::template::{Field, Shown, Template};
use crate::key::Bank;

/// Writes the list in the binary form, of which this one shows the fields.
pub(super) fn to_binary(bytes: &[u8]) -> Result<Vec<u8>, ImaError> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    // Hex takes two characters where a size takes four bytes: lists come out shorter than they were.
    let mut out = Vec::with_capacity(bytes.len());
    if text.is_empty() {
        return Ok(out);
    }
    let mut digest_size = None;
    for (line, number) in text.split(|byte| *byte == b'\n').zip(1_u64..) {
        let wrong = |what| ImaError::Field { entry: number, what };
        let mut columns = line.splitn(4, |byte| *byte == b' ');
        let mut column = |what| columns.next().ok_or_else(|| wrong(what));
        let pcr = column("it has no PCR")?;
        let pcr: u32 = number_of(pcr).ok_or_else(|| wrong("its PCR is no number"))?;
        let digest =
            unhex(column("it has no template digest")?).ok_or_else(|| wrong("its template digest is not hex"))?;
        if digest.len() != *digest_size.get_or_insert(digest.len()) {
            return Err(wrong("its template digest has another length than the first one's"));
        }
        if !Bank::ALL.iter().any(|bank| bank.digest_size() == digest.len()) {
            return Err(wrong("its template digest has no hash's length"));
        }
        let name = column("it has no template")?;
        let template = Template::from_name(name)
            .ok_or_else(|| ImaError::Template { entry: number, name: String::from_utf8_lossy(name).into_owned() })?;
        out.extend(pcr.to_le_bytes());
        out.extend(digest);
        push_sized(&mut out, &[name]);
        push_data(&mut out, &template, column("it has no template data")?).map_err(wrong)?;
    }
    Ok(out)
}

/// Writes the template data of which the line shows the fields.
fn push_data(out: &mut Vec<u8>, template: &Template<'_>, text: &[u8]) -> Result<(), &'static str> {
    const FEW: &str = "it has too few fields for its template";
    // A name may have spaces: the fields before it are taken from the beginning, those behind it from the end.
    let fields = template.fields();
    let at = fields.iter().position(|field| field.is_name()).ok_or(FEW)?;
    let (before, after) = fields.split_at_checked(at).ok_or(FEW)?;
    let (_, after) = after.split_first().ok_or(FEW)?;
    let mut columns = text.splitn(before.len().saturating_add(1), |byte| *byte == b' ');
    let mut values = Vec::with_capacity(fields.len());
    for _ in before {
        values.push(columns.next().ok_or(FEW)?);
    }
    let rest = columns.next().ok_or(FEW)?;
    let mut rest: Vec<_> = rest.rsplitn(after.len().saturating_add(1), |byte| *byte == b' ').collect();
    rest.reverse();
    values.extend(rest);
    // What strips spaces from the ends of lines takes empty fields with it.
    values.resize(fields.len(), b"");

    let mut data = Vec::new();
    for (field, value) in fields.iter().zip(values) {
        push_field(&mut data, template, *field, value)?;
    }
    if template.is_old() {
        out.extend(data);
    } else {
        push_sized(out, &[&data]);
    }
    Ok(())
}

fn push_field(data: &mut Vec<u8>, template: &Template<'_>, field: Field, value: &[u8]) -> Result<(), &'static str> {
    const NO_HEX: &str = "a field of it is not hex";
    match field.shown() {
        Shown::Hex if template.is_old() => data.extend(unhex(value).ok_or(NO_HEX)?),
        Shown::Hex => push_sized(data, &[&unhex(value).ok_or(NO_HEX)?]),
        Shown::HexWithAlgorithm if value.is_empty() && field == Field::AppendedDigest => push_sized(data, &[]),
        Shown::HexWithAlgorithm => {
            let colon = value.iter().rposition(|byte| *byte == b':').ok_or("its digest names no algorithm")?;
            let (algorithm, digest) =
                value.split_at_checked(colon.saturating_add(1)).ok_or("its digest names no algorithm")?;
            push_sized(data, &[algorithm, b"\0", &unhex(digest).ok_or(NO_HEX)?]);
        }
        Shown::Text { terminated: true } if !template.is_old() => push_sized(data, &[value, b"\0"]),
        Shown::Text { .. } => push_sized(data, &[value]),
        // A file that is none has no owner.
        Shown::Number { .. } if value.is_empty() => push_sized(data, &[]),
        Shown::Number { bytes } => {
            let number: u32 = number_of(value).ok_or("a field of it is no number")?;
            let number = number.to_le_bytes();
            let (low, high) = number.split_at_checked(bytes).unwrap_or_default();
            if high.iter().any(|byte| *byte != 0) {
                return Err("a number of it is too large for its field");
            }
            push_sized(data, &[low]);
        }
    }
    Ok(())
}

fn push_sized(data: &mut Vec<u8>, parts: &[&[u8]]) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    // A line is never as long as 4 GiB: the whole list is bounded.
    data.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    for part in parts {
        data.extend_from_slice(part);
    }
}

/// Decimal digits alone: one way to write each number.
fn number_of(text: &[u8]) -> Option<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    core::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Lower-case hex, as Linux writes it.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    hex::decode(text).ok()
}
