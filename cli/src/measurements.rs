//! Reads event logs and IMA lists, and says of another file that it is neither.

use std::path::Path;

use portcullis_attest::eventlog::EventLog;
use portcullis_attest::ima::{self, ImaList};

use crate::failure::Failure;
use crate::verify::content;

/// A firmware event log.
pub fn event_log<'a>(path: &Path, bytes: &'a [u8]) -> Result<EventLog<'a>, Failure> {
    EventLog::parse(bytes).map_err(|error| content(path, &error))
}

/// An IMA list in either of its forms. An empty file is none: the first entry is there from the boot on.
pub fn ima_list<'a>(path: &Path, bytes: &'a [u8]) -> Result<ImaList<'a>, Failure> {
    if bytes.is_empty() {
        let text = "the list is empty: read it from /sys/kernel/security/ima/binary_runtime_measurements as root";
        return Err(content(path, &text));
    }
    ImaList::parse(bytes).map_err(|error| {
        if begins_as_list(bytes) { content(path, &error) } else { content(path, &format!("not an IMA list: {error}")) }
    })
}

/// Whether the first entry is one, whatever follows.
fn begins_as_list(bytes: &[u8]) -> bool {
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.first().is_some_and(u8::is_ascii_digit) {
        ImaList::parse_ascii(line).is_ok()
    } else {
        ima::after(bytes, 1).is_ok()
    }
}
