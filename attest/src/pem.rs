//! PEM (RFC 7468) as programs and vendors write it: with other text around it, with several blocks in a file, with lines of
//! any length.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A block that has no end or is not base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadBlock;

/// The content of a block, or why it has none.
pub(crate) type Block = Result<Vec<u8>, BadBlock>;

/// The content of every block of type `label`, in their order; empty if there is none.
pub(crate) fn blocks(content: &[u8], label: &str) -> Vec<Block> {
    std::str::from_utf8(content).map_or_else(|_| Vec::new(), |text| split(text, label).0)
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

/// The label and the content of a text that is one block and nothing else.
pub(crate) fn document(text: &str) -> Result<(&str, Vec<u8>), BadBlock> {
    let text = text.trim_ascii().strip_prefix("-----BEGIN ").ok_or(BadBlock)?;
    let (label, text) = text.split_once("-----").ok_or(BadBlock)?;
    let body = text.strip_suffix("-----").and_then(|text| text.strip_suffix(label)).ok_or(BadBlock)?;
    let body = body.strip_suffix("-----END ").ok_or(BadBlock)?;
    Ok((label, decoded(body)?))
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
    fn lines_may_have_any_length() {
        for columns in [1, 64, 76, 1000] {
            assert_eq!(document(&block(columns)), Ok(("PUBLIC KEY", LONG.to_vec())), "{columns}");
            assert_eq!(blocks(block(columns).as_bytes(), "PUBLIC KEY"), [Ok(LONG.to_vec())], "{columns}");
        }
        assert_eq!(document(&block(76).replace('\n', "\r\n")), Ok(("PUBLIC KEY", LONG.to_vec())));
    }

    #[test]
    fn a_document_is_one_block_and_nothing_else() {
        let good = block(64);
        for bad in [
            String::new(),
            "-----BEGIN PUBLIC KEY-----".to_owned(),
            good.replace("END PUBLIC", "END PRIVATE"),
            good.replace("BwcH", "!"),
            format!("{good}{good}"),
            format!("text\n{good}"),
            format!("{good}text"),
        ] {
            assert_eq!(document(&bad), Err(BadBlock), "{bad}");
        }
    }

    #[test]
    fn a_bad_block_does_not_hide_the_others() {
        let (good, open) = (block(64), "-----BEGIN PUBLIC KEY-----\nBwcH\n");
        assert_eq!(blocks(format!("{open}{good}").as_bytes(), "PUBLIC KEY"), [Err(BadBlock), Ok(LONG.to_vec())]);
    }
}
