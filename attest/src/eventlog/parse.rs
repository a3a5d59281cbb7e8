//! Reads both forms of a firmware event log.

use thiserror::Error;

use super::digests::{self, DigestsError};
use super::{Cursor, Digests, Event, EventLog, EventType, Format, PCR_COUNT, Short, SpecId};
use crate::key::Bank;
use crate::work;

/// Longest log that is read, in bytes. Real ones have some tens of kilobytes.
pub const MAX_BYTES: usize = 64 << 20;

/// Most events that a log may have. Real ones have some hundreds; and each costs several hashes, however short it is.
pub const MAX_EVENTS: usize = 16_384;

/// Bytes that an event takes in many real logs; only for how much room to make beforehand.
const LIKELY_EVENT_SIZE: usize = 192;

/// Most algorithms that a header may declare: a TPM has no more banks than `HASH_COUNT` of its specification.
const MAX_ALGORITHMS: u32 = 16;

/// Largest digest of an algorithm that only its header knows: 512 bits.
pub(super) const MAX_DIGEST: u16 = 64;

const SPEC_ID: &[u8; 13] = b"Spec ID Event";
const SPEC_ID_AGILE: &[u8; 16] = b"Spec ID Event03\0";
const SPEC_ID_SHA1: [&[u8; 16]; 2] = [b"Spec ID Event00\0", b"Spec ID Event02\0"];
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// PCR index of an event that belongs to no PCR, and so extends nothing.
pub(crate) const NO_PCR: u32 = u32::MAX;

/// Why bytes are not a firmware event log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EventLogError {
    /// The log has no event at all.
    #[error(
        "the log is empty, it has no event: read it from /sys/kernel/security/tpm0/binary_bios_measurements as root"
    )]
    Empty,
    /// The bytes are something else.
    #[error(
        "not a firmware event log: the file begins with {begin}, which is no event; Linux shows the log in \
         /sys/kernel/security/tpm0/binary_bios_measurements"
    )]
    Foreign {
        /// The first bytes: as text where they are text, else in hex.
        begin: String,
    },
    /// The log is larger than any real one.
    #[error("the log has {0} bytes, {MAX_BYTES} are the most that is read")]
    TooLarge(usize),
    /// The log has more events than any real one.
    #[error("the log has more than {MAX_EVENTS} events")]
    TooManyEvents,
    /// A field says it is longer than the bytes that are there.
    #[error("event {event} at byte {offset}: {field} needs {needed} bytes, {left} are left: the log was cut short")]
    Truncated {
        /// Number of the event, 0 for the header.
        event: usize,
        /// Where the event starts.
        offset: usize,
        /// The field.
        field: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// The header is not what the specification says.
    #[error("the Spec ID header {0}")]
    SpecId(String),
    /// An event names a PCR that no TPM has.
    #[error("event {event} at byte {offset} names PCR {pcr}: a TPM has PCRs 0 to 23")]
    Pcr {
        /// Number of the event.
        event: usize,
        /// Where the event starts.
        offset: usize,
        /// The PCR it names.
        pcr: u32,
    },
    /// An event's digests are none that the header allows.
    #[error("event {event} at byte {offset} {what}")]
    Digests {
        /// Number of the event.
        event: usize,
        /// Where the event starts.
        offset: usize,
        /// What is wrong.
        what: String,
    },
    /// The event that tells the startup locality is not as the specification says, or not alone, or too late.
    #[error("event {event}, the startup locality, {what}")]
    StartupLocality {
        /// Number of the event.
        event: usize,
        /// What is wrong.
        what: &'static str,
    },
}

pub(super) fn log(bytes: &[u8]) -> Result<EventLog<'_>, EventLogError> {
    if bytes.is_empty() {
        return Err(EventLogError::Empty);
    }
    if bytes.len() > MAX_BYTES {
        return Err(EventLogError::TooLarge(bytes.len()));
    }
    let mut cursor = Cursor::new(bytes);
    let format = header(&mut cursor)?;
    let events = Vec::with_capacity(bytes.len().div_ceil(LIKELY_EVENT_SIZE).min(MAX_EVENTS));
    let banks_of_pcr = [u8::MAX; PCR_COUNT as usize];
    let mut log = EventLog { format, events, trailing: &[], startup_locality: None, extended: 0, banks_of_pcr };
    let padding = padding_start(bytes);
    while !cursor.is_empty() {
        if cursor.offset() >= padding || is_no_event(cursor.rest(), &log.format) {
            log.trailing = cursor.rest();
            break;
        }
        work::steps(1);
        let number = log.events.len().saturating_add(1);
        if number > MAX_EVENTS {
            return Err(EventLogError::TooManyEvents);
        }
        let first = cursor.offset() == 0;
        event(&mut cursor, number, &log.format, &mut log.events)
            .map_err(|error| if first { foreign(bytes) } else { error })?;
        let Some(event) = log.events.last() else { break };
        if event.event_type == EventType::NO_ACTION {
            let event = *event;
            no_action(&event, &mut log)?;
        } else if let Some(banks) = usize::try_from(event.pcr).ok().and_then(|pcr| log.banks_of_pcr.get_mut(pcr)) {
            *banks &= event.digests.banks();
            log.extended |= 1_u32.checked_shl(event.pcr).unwrap_or(0);
        }
    }
    if log.events.is_empty() {
        // Behind a header there may be nothing; without one, nothing says that this is a log at all.
        return Err(if log.trailing.len() == bytes.len() { foreign(bytes) } else { EventLogError::Empty });
    }
    Ok(log)
}

fn foreign(bytes: &[u8]) -> EventLogError {
    let begin = bytes.get(..16).unwrap_or(bytes);
    let text = core::str::from_utf8(begin).ok().filter(|text| text.chars().all(|c| !c.is_control() || c == '\n'));
    EventLogError::Foreign {
        begin: text.map_or_else(|| format!("0x{}", hex::encode(begin)), |text| format!("{text:?}")),
    }
}

/// Reads the header event if there is one, and says which form follows. The header itself always has the old form.
fn header<'a>(cursor: &mut Cursor<'a>) -> Result<Format<'a>, EventLogError> {
    let mut ahead = *cursor;
    let mut first = Vec::new();
    // Without a header the log has the old form; if it is unreadable, its first event will say why.
    let is_read = event(&mut ahead, 0, &Format::Sha1, &mut first).is_ok();
    let Some(first) = first.pop().filter(|first| is_read && first.data.starts_with(SPEC_ID)) else {
        return Ok(Format::Sha1);
    };
    let wrong = |what: &str| EventLogError::SpecId(what.to_owned());
    // Its PCR is not looked at: it extends none, and there is firmware that writes 1.
    if first.event_type != EventType::NO_ACTION {
        return Err(wrong("is not an EV_NO_ACTION event"));
    }
    if first.digests.iter().any(|(_, digest)| digest.iter().any(|byte| *byte != 0)) {
        return Err(wrong("carries a digest, though it extends nothing"));
    }
    *cursor = ahead;
    if SPEC_ID_SHA1.iter().any(|signature| first.data.starts_with(*signature)) {
        return Ok(Format::Sha1);
    }
    let Some(body) = first.data.strip_prefix(SPEC_ID_AGILE) else {
        return Err(wrong("has a signature that no version of the specification names"));
    };
    spec_id(body).map(Format::Agile)
}

fn spec_id(body: &[u8]) -> Result<SpecId<'_>, EventLogError> {
    let wrong = |what: String| EventLogError::SpecId(what);
    let short =
        |short: Short| wrong(format!("is cut short: {} bytes are needed, {} are left", short.needed, short.left));
    let mut cursor = Cursor::new(body);
    let platform_class = cursor.u32().map_err(short)?;
    let [minor, major, errata, uintn_size] = cursor.array().map_err(short)?;
    let count = cursor.u32().map_err(short)?;
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(wrong(format!("declares {count} digest algorithms: 1 to {MAX_ALGORITHMS} are allowed")));
    }
    let mut algorithms: Vec<(u16, u16)> = Vec::new();
    for _ in 0..count {
        let id = cursor.u16().map_err(short)?;
        let size = cursor.u16().map_err(short)?;
        if algorithms.iter().any(|(known, _)| *known == id) {
            return Err(wrong(format!("declares algorithm {id:#06x} twice")));
        }
        match Bank::from_tpm_alg_id(id) {
            Some(bank) if bank.digest_size() != usize::from(size) => {
                return Err(wrong(format!("gives {bank} digests of {size} bytes, they have {}", bank.digest_size())));
            }
            None if size == 0 || size > MAX_DIGEST => {
                return Err(wrong(format!("gives algorithm {id:#06x} digests of {size} bytes")));
            }
            _ => algorithms.push((id, size)),
        }
    }
    let vendor_size = cursor.u8().map_err(short)?;
    let vendor_info = cursor.take(u64::from(vendor_size)).map_err(short)?;
    if !cursor.is_empty() {
        return Err(wrong(format!("goes on for {} bytes after its end", cursor.rest().len())));
    }
    if !algorithms.iter().any(|(id, _)| Bank::from_tpm_alg_id(*id).is_some()) {
        return Err(wrong("declares only algorithms that are not known".to_owned()));
    }
    Ok(SpecId { platform_class, spec_version: (major, minor, errata), uintn_size, algorithms, vendor_info })
}

/// Reads one event and puts it behind the others, where it is made in place: copying each costs more than reading it.
fn event<'a>(
    cursor: &mut Cursor<'a>,
    number: usize,
    format: &Format<'_>,
    events: &mut Vec<Event<'a>>,
) -> Result<(), EventLogError> {
    let offset = cursor.offset();
    let short = |field: &'static str| {
        move |short: Short| EventLogError::Truncated {
            event: number,
            offset,
            field,
            needed: short.needed,
            left: short.left,
        }
    };
    let pcr = cursor.u32().map_err(short("the PCR index"))?;
    let event_type = EventType(cursor.u32().map_err(short("the event type"))?);
    if pcr >= PCR_COUNT && !(pcr == NO_PCR && event_type == EventType::NO_ACTION) {
        return Err(EventLogError::Pcr { event: number, offset, pcr });
    }
    let digests = match format {
        Format::Sha1 => Digests::sha1(cursor.take(20).map_err(short("the SHA-1 digest"))?),
        Format::Agile(spec) => {
            let wrong = |what: String| EventLogError::Digests { event: number, offset, what };
            let count = cursor.u32().map_err(short("the number of digests"))?;
            if !is_number_of_digests(count, spec) {
                let most = spec.algorithms.len();
                return Err(wrong(format!("has {count} digests, 1 to {most} are possible by the header")));
            }
            digests::take(cursor, count, &spec.algorithms).map_err(|error| match error {
                DigestsError::Short(missing) => short("a digest")(missing),
                DigestsError::Undeclared(id) => {
                    wrong(format!("has a digest of algorithm {id:#06x}, which the header does not declare"))
                }
                DigestsError::Repeated(id) => wrong(format!("has two digests of algorithm {id:#06x}")),
            })?
        }
    };
    let size = cursor.u32().map_err(short("the size of the event"))?;
    let data = cursor.take(u64::from(size)).map_err(short("the event"))?;
    events.push(Event { number, pcr, event_type, digests, data });
    Ok(())
}

/// Whether an event can have so many digests: firmware and boot loaders may measure into some of the banks only.
fn is_number_of_digests(count: u32, spec: &SpecId<'_>) -> bool {
    usize::try_from(count).is_ok_and(|count| (1..=spec.algorithms.len()).contains(&count))
}

/// What an event that extends nothing may still change: the value from which PCR 0 starts.
fn no_action(event: &Event<'_>, log: &mut EventLog<'_>) -> Result<(), EventLogError> {
    if event.data.starts_with(SPEC_ID) {
        return Err(EventLogError::SpecId(format!("appears again as event {}", event.number)));
    }
    // Compared without the terminator, so that a variation of the name is refused and not overlooked.
    if !event.data.starts_with(STARTUP_LOCALITY.strip_suffix(b"\0").unwrap_or(STARTUP_LOCALITY)) {
        return Ok(());
    }
    let wrong = |what| Err(EventLogError::StartupLocality { event: event.number, what });
    let Some([locality]) = event.data.strip_prefix(STARTUP_LOCALITY) else {
        return wrong("has another length than 17 bytes");
    };
    if !matches!(locality, 0 | 3 | 4) {
        return wrong("names a locality that cannot start a TPM: 0, 3 and 4 can");
    }
    if event.pcr != 0 {
        return wrong("does not name PCR 0");
    }
    if log.startup_locality.is_some() {
        return wrong("appears more than once");
    }
    if log.extends_pcr(0) {
        return wrong("comes after PCR 0 was extended");
    }
    log.startup_locality = Some(*locality);
    Ok(())
}

/// Where the run of 0x00 or 0xff bytes at the end of the log begins: cleared memory or erased flash, for some
/// firmware hands over the whole area it reserved. Only a run that begins where an event would is padding. Found once
/// from the end, so that a log of zeros is not searched again at each of its events.
fn padding_start(bytes: &[u8]) -> usize {
    match bytes.last() {
        Some(last @ (0x00 | 0xff)) => {
            let start = bytes.iter().rposition(|byte| byte != last).map_or(0, |index| index.saturating_add(1));
            work::steps(bytes.len().saturating_sub(start));
            start
        }
        _ => bytes.len(),
    }
}

/// Whether not even the beginning of what follows looks like an event. An event that is damaged in one field is an
/// error and not a tail; bytes that are wrong in two unrelated fields are no event at all.
fn is_no_event(rest: &[u8], format: &Format<'_>) -> bool {
    let mut cursor = Cursor::new(rest);
    let Ok(pcr) = cursor.u32() else { return false };
    if pcr < PCR_COUNT || cursor.u32().is_err() {
        return false;
    }
    match format {
        Format::Sha1 => cursor.take(20).is_ok() && cursor.u32().is_ok_and(|size| cursor.take(u64::from(size)).is_err()),
        Format::Agile(spec) => cursor.u32().is_ok_and(|count| !is_number_of_digests(count, spec)),
    }
}
