//! PEM with other text around it and with several blocks in a file, as vendors publish certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A block that has no end or is not base64: its number, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadBlock(pub usize);

/// The content of every block of type `label`; empty if there is none.
pub(super) fn blocks(content: &[u8], label: &str) -> Result<Vec<Vec<u8>>, BadBlock> {
    let Ok(text) = std::str::from_utf8(content) else { return Ok(Vec::new()) };
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut found = Vec::new();
    for block in text.split(&begin).skip(1) {
        let bad = BadBlock(found.len().saturating_add(1));
        let (body, _) = block.split_once(&end).ok_or(bad)?;
        let body: String = body.split_ascii_whitespace().collect();
        found.push(STANDARD.decode(body).map_err(|_| bad)?);
    }
    Ok(found)
}
