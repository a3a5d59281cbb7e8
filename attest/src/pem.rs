//! PEM (RFC 7468) as programs and vendors write it: with other text around it, with several blocks in a file, with lines of
//! any length.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

/// Why a text is not one block.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PemError {
    /// No line begins one.
    #[error("it has no line -----BEGIN …-----")]
    Missing,
    /// Its last line is not there, or says another type than the first.
    #[error("it has no line -----END {0}-----")]
    Unfinished(String),
    /// Text or another block behind it: some would read the one, some the other.
    #[error("more follows its line -----END {0}-----: give one block alone")]
    More(String),
    /// What is in it.
    #[error("what is in its block {0} is not base64, or has headers")]
    Base64(String),
}

/// The one block of a text: its type and its content. Words may stand before it, nothing behind it.
pub(crate) fn single(text: &str) -> Result<(String, Vec<u8>), PemError> {
    const BEGIN: &str = "-----BEGIN ";
    let (before, block) = text.trim_start().split_once(BEGIN).ok_or(PemError::Missing)?;
    if !before.is_empty() && !before.ends_with('\n') {
        return Err(PemError::Missing);
    }
    let (label, block) = block.split_once("-----").ok_or(PemError::Missing)?;
    if label.is_empty()
        || label.len() > 64
        || !label.bytes().all(|c| c.is_ascii_uppercase() || matches!(c, b' ' | b'0'..=b'9'))
    {
        return Err(PemError::Missing);
    }
    let (body, rest) =
        block.split_once(&format!("-----END {label}-----")).ok_or_else(|| PemError::Unfinished(label.to_owned()))?;
    if !rest.trim().is_empty() {
        return Err(PemError::More(label.to_owned()));
    }
    let content = decoded(body).map_err(|_| PemError::Base64(label.to_owned()))?;
    Ok((label.to_owned(), content))
}

/// A block that has no end or is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadBlock;

/// The content of a block, or why it has none.
pub(crate) type Block = Result<Vec<u8>, BadBlock>;

/// The content of every block of type `label`, in their order; empty if there is none.
pub(crate) fn blocks(content: &[u8], label: &str) -> Vec<Block> {
    // What stands around the blocks may be in any encoding: it must not hide them.
    split(&String::from_utf8_lossy(content), label).0
}

/// The content of every block of type `label`, and the text around them, in which each line has the number that it has in
/// the file.
pub(crate) fn split(text: &str, label: &str) -> (Vec<Block>, String) {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let (mut found, mut around) = (Vec::new(), String::new());
    let mut pieces = text.split(&begin);
    around.push_str(pieces.next().unwrap_or_default());
    for block in pieces {
        let Some((body, rest)) = block.split_once(&end) else {
            found.push(Err(BadBlock));
            continue;
        };
        around.extend(body.matches('\n'));
        around.push_str(rest);
        found.push(decoded(body));
    }
    (found, around)
}

fn decoded(body: &str) -> Block {
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).map_err(|_| BadBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &[u8] = &[7; 200];

    /// A block whose lines have `columns` characters.
    fn block(columns: usize) -> String {
        let body = STANDARD.encode(LONG);
        let lines: Vec<_> = body.as_bytes().chunks(columns).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    #[test]
    fn text_in_another_encoding_does_not_hide_a_block() {
        let file = [&b"# M\xfcller\n"[..], block(64).as_bytes()].concat();
        assert_eq!(blocks(&file, "PUBLIC KEY"), [Ok(LONG.to_vec())]);
    }

    #[test]
    fn a_bad_block_does_not_hide_the_others() {
        let (good, open) = (block(64), "-----BEGIN PUBLIC KEY-----\nBwcH\n");
        assert_eq!(blocks(format!("{open}{good}").as_bytes(), "PUBLIC KEY"), [Err(BadBlock), Ok(LONG.to_vec())]);
    }

    const LABEL: &str = "PUBLIC KEY";

    fn with(body: &str) -> Result<(String, Vec<u8>), PemError> {
        single(&format!("-----BEGIN {LABEL}-----\n{body}\n-----END {LABEL}-----\n"))
    }

    #[test]
    fn a_block_is_read_whatever_its_lines_are_long() {
        let content: Vec<u8> = (0..=255).collect();
        let base64 = STANDARD.encode(&content);
        for width in [1, 48, 64, 76, 1000] {
            let lines: Vec<_> =
                base64.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
            for end in ["\n", "\r\n"] {
                assert_eq!(with(&lines.join(end)), Ok((LABEL.to_owned(), content.clone())), "{width}");
            }
        }
        let before = format!("subject=CN = x\n\n-----BEGIN {LABEL}-----\n{base64}\n-----END {LABEL}-----");
        assert_eq!(single(&before), Ok((LABEL.to_owned(), content)));
    }

    #[test]
    fn what_is_not_one_block_is_refused() {
        let one = "-----BEGIN A-----\nAAAA\n-----END A-----\n";
        for (text, error) in [
            (String::new(), PemError::Missing),
            ("AAAA".to_owned(), PemError::Missing),
            (format!("x{one}"), PemError::Missing),
            (one.replace("A-----\nA", "a-----\nA"), PemError::Missing),
            (one.replace("END A", "END B"), PemError::Unfinished("A".to_owned())),
            (one[..30].to_owned(), PemError::Unfinished("A".to_owned())),
            (one.repeat(2), PemError::More("A".to_owned())),
            (format!("{one}x"), PemError::More("A".to_owned())),
            (one.replace("AAAA", "AAA"), PemError::Base64("A".to_owned())),
            (one.replace("AAAA", "AAA_"), PemError::Base64("A".to_owned())),
            (one.replace("AAAA", "Proc-Type: 4,ENCRYPTED\n\nAAAA"), PemError::Base64("A".to_owned())),
        ] {
            assert_eq!(single(&text), Err(error), "{text}");
        }
    }
}
