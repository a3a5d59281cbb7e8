//! PEM with other text around it and with several blocks in a file, as vendors publish certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A block that has no end or is not base64: its number, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadBlock(pub usize);

/// The content of every block of type `label`; empty if there is none.
pub(super) fn blocks(content: &[u8], label: &str) -> Result<Vec<Vec<u8>>, BadBlock> {
    std::str::from_utf8(content).map_or(Ok(Vec::new()), |text| Ok(split(text, label)?.0))
}

/// The content of every block of type `label`, and the text around them, in which each line has the number that it has in
/// the file.
pub(super) fn split(text: &str, label: &str) -> Result<(Vec<Vec<u8>>, String), BadBlock> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let (mut found, mut around) = (Vec::new(), String::new());
    let mut pieces = text.split(&begin);
    around.push_str(pieces.next().unwrap_or_default());
    for block in pieces {
        let bad = BadBlock(found.len().saturating_add(1));
        let (body, rest) = block.split_once(&end).ok_or(bad)?;
        around.extend(body.matches('\n'));
        around.push_str(rest);
        let body: String = body.split_ascii_whitespace().collect();
        found.push(STANDARD.decode(body).map_err(|_| bad)?);
    }
    Ok((found, around))
}
