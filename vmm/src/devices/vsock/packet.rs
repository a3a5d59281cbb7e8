//! The header of a packet (virtio 1.2, section 5.10.6): parsed once, and typed from there on.

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// The same, as a length in a queue.
pub const HEADER_BYTES: u32 = 44;
/// Most bytes behind a header, in either direction.
pub const MAX_PAYLOAD: u32 = 64 * 1024;
/// The host's address.
pub const HOST_CID: u64 = 2;

/// Connections of reliable, ordered bytes; the only kind there is here.
const TYPE_STREAM: u16 = 1;
const SHUTDOWN_RECEIVE: u32 = 1;
const SHUTDOWN_SEND: u32 = 2;

mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The two ends of a connection. There is one connection of each pair at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The port on the host's side.
    pub host: u32,
    /// The port on the guest's side.
    pub guest: u32,
}

/// What the sender of a packet can take in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Bytes that its buffer holds.
    pub buf_alloc: u32,
    /// Bytes that have left its buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

/// The directions that the sender of a packet has closed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// It takes nothing any more.
    pub receive: bool,
    /// It sends nothing any more.
    pub send: bool,
}

impl Closed {
    /// Whether both are.
    pub fn is_both(self) -> bool {
        self.receive && self.send
    }

    /// What is closed in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { receive: self.receive || other.receive, send: self.send || other.send }
    }
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Open a connection.
    Request,
    /// It is open.
    Response,
    /// There is no such connection, or no more.
    Reset,
    /// Directions are closed.
    Shutdown(Closed),
    /// That many bytes follow.
    Data(u32),
    /// Only the credit, which every packet has.
    CreditUpdate,
    /// Say your credit.
    CreditRequest,
}

/// A packet, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its connection.
    pub ports: Ports,
    /// The sender's credit.
    pub credit: Credit,
    /// What it says.
    pub op: Op,
}

/// Why a packet of the guest is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It comes from another address than the guest's, or goes to another than the host's: it is dropped.
    Foreign,
    /// It answers nothing that there could be: it is dropped, for a reset is never answered.
    StrayReset,
    /// A kind or an operation that this device does not know: the guest gets a reset (section 5.10.6.4.1).
    Unknown(Ports),
}

impl Packet {
    /// Reads the header of a packet that the guest `guest_cid` sends.
    pub fn from_guest(bytes: &[u8; HEADER_LEN], guest_cid: u32) -> Result<Self, Refusal> {
        let mut fields = Fields(bytes);
        let (src_cid, dst_cid) = (fields.u64(), fields.u64());
        let (src_port, dst_port) = (fields.u32(), fields.u32());
        let (len, kind, op, flags) = (fields.u32(), fields.u16(), fields.u16(), fields.u32());
        let credit = Credit { buf_alloc: fields.u32(), fwd_cnt: fields.u32() };
        if src_cid != u64::from(guest_cid) || dst_cid != HOST_CID {
            return Err(Refusal::Foreign);
        }
        let ports = Ports { host: dst_port, guest: src_port };
        let op = match op {
            op::RST if kind != TYPE_STREAM => return Err(Refusal::StrayReset),
            _ if kind != TYPE_STREAM => return Err(Refusal::Unknown(ports)),
            op::REQUEST => Op::Request,
            op::RESPONSE => Op::Response,
            op::RST => Op::Reset,
            op::SHUTDOWN => {
                Op::Shutdown(Closed { receive: flags & SHUTDOWN_RECEIVE != 0, send: flags & SHUTDOWN_SEND != 0 })
            }
            op::RW => Op::Data(len),
            op::CREDIT_UPDATE => Op::CreditUpdate,
            op::CREDIT_REQUEST => Op::CreditRequest,
            _ => return Err(Refusal::Unknown(ports)),
        };
        Ok(Self { ports, credit, op })
    }

    /// The header of a packet to the guest `guest_cid`.
    pub fn to_guest(self, guest_cid: u32) -> [u8; HEADER_LEN] {
        let flag = |set, bit| if set { bit } else { 0 };
        let (op, len, flags) = match self.op {
            Op::Request => (op::REQUEST, 0, 0),
            Op::Response => (op::RESPONSE, 0, 0),
            Op::Reset => (op::RST, 0, 0),
            Op::Shutdown(closed) => {
                (op::SHUTDOWN, 0, flag(closed.receive, SHUTDOWN_RECEIVE) | flag(closed.send, SHUTDOWN_SEND))
            }
            Op::Data(len) => (op::RW, len, 0),
            Op::CreditUpdate => (op::CREDIT_UPDATE, 0, 0),
            Op::CreditRequest => (op::CREDIT_REQUEST, 0, 0),
        };
        let mut header = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &HOST_CID.to_le_bytes(),
            &u64::from(guest_cid).to_le_bytes(),
            &self.ports.host.to_le_bytes(),
            &self.ports.guest.to_le_bytes(),
            &u32::to_le_bytes(len),
            &TYPE_STREAM.to_le_bytes(),
            &op.to_le_bytes(),
            &u32::to_le_bytes(flags),
            &self.credit.buf_alloc.to_le_bytes(),
            &self.credit.fwd_cnt.to_le_bytes(),
        ];
        for (place, byte) in header.iter_mut().zip(fields.into_iter().flatten()) {
            *place = *byte;
        }
        header
    }
}

/// Takes little-endian numbers off the front; zeros behind the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CID: u32 = 42;

    /// A header of the guest: ports 9 (guest) and 7 (host), 5 bytes, a window of 0x100 of which 0x20 are free again.
    fn header(kind: u16, op: u16, flags: u32) -> [u8; HEADER_LEN] {
        let mut bytes = Vec::new();
        bytes.extend(u64::from(CID).to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        for word in [9u32, 7, 5] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        for word in [flags, 0x100, 0x20] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.try_into().unwrap()
    }

    #[test]
    fn each_operation_is_read_as_what_it_is() {
        let closed = |receive, send| Op::Shutdown(Closed { receive, send });
        for (number, flags, op) in [
            (1, 0, Op::Request),
            (2, 0, Op::Response),
            (3, 0, Op::Reset),
            (4, 0, closed(false, false)),
            (4, 1, closed(true, false)),
            (4, 2, closed(false, true)),
            (4, 0xffff_ffff, closed(true, true)),
            (5, 0, Op::Data(5)),
            (6, 0, Op::CreditUpdate),
            (7, 0, Op::CreditRequest),
        ] {
            let expected =
                Packet { ports: Ports { host: 7, guest: 9 }, credit: Credit { buf_alloc: 0x100, fwd_cnt: 0x20 }, op };
            assert_eq!(Packet::from_guest(&header(1, number, flags), CID), Ok(expected));
        }
    }

    #[test]
    fn what_is_not_for_this_host_or_not_from_this_guest_is_dropped() {
        assert_eq!(Packet::from_guest(&header(1, 5, 0), CID + 1), Err(Refusal::Foreign));
        // Each byte of either address counts.
        for at in 0..16 {
            let mut bytes = header(1, 5, 0);
            bytes[at] ^= 1;
            assert_eq!(Packet::from_guest(&bytes, CID), Err(Refusal::Foreign), "byte {at}");
        }
    }

    #[test]
    fn unknown_kinds_and_operations_are_told_so_and_resets_are_never_answered() {
        let ports = Ports { host: 7, guest: 9 };
        for (kind, op) in [(0, 5), (2, 1), (3, 5), (1, 0), (1, 8), (1, 0xffff)] {
            assert_eq!(Packet::from_guest(&header(kind, op, 0), CID), Err(Refusal::Unknown(ports)));
        }
        assert_eq!(Packet::from_guest(&header(2, 3, 0), CID), Err(Refusal::StrayReset));
    }

    proptest! {
        #[test]
        fn any_header_is_read_and_says_whom_to_answer(bytes in any::<[u8; HEADER_LEN]>(), cid in any::<u32>()) {
            let mut bytes = bytes;
            let _ = Packet::from_guest(&bytes, cid);
            bytes[..8].copy_from_slice(&u64::from(cid).to_le_bytes());
            bytes[8..16].copy_from_slice(&2u64.to_le_bytes());
            prop_assert_ne!(Packet::from_guest(&bytes, cid), Err(Refusal::Foreign));
        }

        #[test]
        fn what_is_written_is_read_back_with_the_ends_swapped(
            host in any::<u32>(), guest in any::<u32>(), buf_alloc in any::<u32>(), fwd_cnt in any::<u32>(),
            cid in any::<u32>(), choice in 0u8..9, len in any::<u32>()
        ) {
            let op = match choice {
                0 => Op::Request,
                1 => Op::Response,
                2 => Op::Reset,
                3 => Op::Data(len),
                4 => Op::CreditUpdate,
                5 => Op::CreditRequest,
                bits => Op::Shutdown(Closed { receive: bits & 1 != 0, send: bits & 2 != 0 }),
            };
            let packet = Packet { ports: Ports { host, guest }, credit: Credit { buf_alloc, fwd_cnt }, op };
            let mut bytes = packet.to_guest(cid);
            // As if the guest had sent it: addresses and ports change places.
            bytes[..16].rotate_left(8);
            bytes[16..24].rotate_left(4);
            prop_assert_eq!(Packet::from_guest(&bytes, cid), Ok(packet));
        }
    }
}
