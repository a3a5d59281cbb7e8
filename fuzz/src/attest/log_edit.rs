//! Takes logs apart and puts them together again, so that a few bytes of input make a log that is genuine but for some
//! events: what bytes changed at random seldom are.

use portcullis_attest::eventlog::{EventLog, EventType, Format};
use portcullis_attest::key::Bank;

/// A log in parts, of either form.
#[derive(Clone)]
pub struct LogParts {
    /// The Spec ID event, as it stands in the log.
    header: Vec<u8>,
    /// The events behind it.
    pub events: Vec<EventParts>,
}

/// An event in parts.
#[derive(Clone, PartialEq, Eq)]
pub struct EventParts {
    /// Whether it has the old form: one digest, and no word of its algorithm.
    is_old: bool,
    pcr: u32,
    event_type: u32,
    digests: Vec<(Bank, Vec<u8>)>,
    data: Vec<u8>,
}

impl LogParts {
    /// Takes a log apart; `None` if it cannot be read, or has digests that no bank is known for.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let log = EventLog::parse(bytes).ok()?;
        let banks: Vec<Bank> = match log.format() {
            Format::Sha1 => vec![Bank::Sha1],
            Format::Agile(spec) => {
                spec.algorithms.iter().map(|(id, _)| Bank::from_tpm_alg_id(*id)).collect::<Option<_>>()?
            }
            _ => return None,
        };
        let event = |event: &portcullis_attest::eventlog::Event<'_>| EventParts {
            is_old: *log.format() == Format::Sha1,
            pcr: event.pcr,
            event_type: event.event_type.0,
            digests: banks.iter().filter_map(|bank| Some((*bank, event.digests.get(*bank)?.to_vec()))).collect(),
            data: event.data.to_vec(),
        };
        let events: Vec<EventParts> = log.events().iter().map(event).collect();
        let behind: usize = events.iter().map(|event| event.encode().len()).sum::<usize>() + log.trailing().len();
        Some(Self { header: bytes[..bytes.len() - behind].to_vec(), events })
    }

    /// Some of its events, with a separator for each PCR that has to have one: a boot in miniature.
    pub fn small_boot(&self, events: &[EventParts]) -> Vec<u8> {
        let separator = EventType::SEPARATOR.0;
        let mut events = events.to_vec();
        for pcr in 0..=7 {
            if let Some(first) = events.first().filter(|_| !events.iter().any(|event| event.is(pcr, separator))) {
                let mut event = EventParts { pcr, event_type: separator, data: vec![0; 4], ..first.clone() };
                event.measure();
                events.push(event);
            }
        }
        self.with(&events)
    }

    /// The log with other events.
    pub fn with(&self, events: &[EventParts]) -> Vec<u8> {
        let mut bytes = self.header.clone();
        for event in events {
            bytes.extend(event.encode());
        }
        bytes
    }

    /// Changes it as the input says.
    pub fn edit(&mut self, input: &mut Input<'_>) {
        let count = self.events.len();
        let Some(at) = input.index(count) else { return };
        match input.u8() % 11 {
            0 => drop(self.events.remove(at)),
            1 => self.events.insert(at, self.events[at].clone()),
            2 => {
                let other = input.index(count).unwrap_or(at);
                self.events.swap(at, other);
            }
            3 => self.events[at].pcr = u32::from(input.u8()),
            4 => self.events[at].event_type = event_type(input.u8()),
            5 => input.change(&mut self.events[at].data),
            6 => {
                input.change(&mut self.events[at].data);
                self.events[at].measure();
            }
            7 => {
                let bank = usize::from(input.u8()) % self.events[at].digests.len();
                let digest = &mut self.events[at].digests[bank].1;
                let place = usize::from(input.u8()) % digest.len();
                digest[place] ^= input.u8();
            }
            // The digest of one bank less, or the same ones in another order.
            8 if self.events[at].digests.len() > 1 => {
                let bank = usize::from(input.u8()) % self.events[at].digests.len();
                self.events[at].digests.remove(bank);
            }
            9 => self.events[at].digests.rotate_left(1),
            _ => {
                let data = input.slice().to_vec();
                let (pcr, event_type) = (u32::from(input.u8() % 24), event_type(input.u8()));
                let mut event = EventParts { pcr, event_type, data, ..self.events[at].clone() };
                event.measure();
                self.events.insert(at, event);
            }
        }
    }
}

impl EventParts {
    /// The event as it stands in the log.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [self.pcr.to_le_bytes(), self.event_type.to_le_bytes()].concat();
        if !self.is_old {
            out.extend(u32::try_from(self.digests.len()).unwrap().to_le_bytes());
        }
        for (bank, digest) in &self.digests {
            if !self.is_old {
                out.extend(bank.tpm_alg_id().to_le_bytes());
            }
            out.extend(digest);
        }
        out.extend(u32::try_from(self.data.len()).unwrap().to_le_bytes());
        out.extend(&self.data);
        out
    }

    fn is(&self, pcr: u32, event_type: u32) -> bool {
        (self.pcr, self.event_type) == (pcr, event_type)
    }

    /// Makes the digests those of the data, so that they cover it.
    fn measure(&mut self) {
        for (bank, digest) in &mut self.digests {
            *digest = bank.hash(&self.data);
        }
    }
}

/// A type from one byte: one of the first 32, of the EFI ones, or one without a name.
fn event_type(byte: u8) -> u32 {
    match byte {
        0..=31 => u32::from(byte),
        0xe0 => EventType::EFI_VARIABLE_AUTHORITY.0,
        _ => 0x8000_0000 | u32::from(byte % 32),
    }
}

/// What an input says to do, byte by byte; zeros when it is used up.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// A place among so many; `None` if there are none.
    pub fn index(&mut self, count: usize) -> Option<usize> {
        let at = usize::from(self.u16());
        (count > 0).then(|| at % count)
    }

    /// As many bytes as the next byte says.
    pub fn slice(&mut self) -> &'a [u8] {
        let length = usize::from(self.u8()).min(self.0.len());
        let (slice, rest) = self.0.split_at(length);
        self.0 = rest;
        slice
    }

    /// Overwrites, inserts or removes some bytes.
    pub fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.index(bytes.len() + 1).unwrap_or(0);
        match self.u8() % 3 {
            0 => drop(bytes.splice(at..at, self.slice().iter().copied())),
            1 => {
                let end = at.saturating_add(usize::from(self.u8())).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let new = self.slice();
                let end = at.saturating_add(new.len()).min(bytes.len());
                bytes.splice(at..end, new.iter().copied());
            }
        }
    }
}
