//! What a program of the host says first: `CONNECT <port>` and a newline. It gets `OK <its own port>`.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::stream;

/// Most bytes of the line, the newline included.
pub const MAX_LINE: usize = 32;

/// A connection of the host that has not said yet where to.
pub struct Greeting {
    /// The program's end.
    pub stream: UnixStream,
    /// Until when it must have said it.
    pub deadline: Instant,
    line: Vec<u8>,
}

/// How far a greeting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Not at its end.
    Part,
    /// The program wants this port of the guest.
    Port(u32),
    /// The program has gone, or said something else.
    Wrong,
}

impl Greeting {
    /// Nothing was said yet.
    pub fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self { stream, deadline, line: Vec::new() }
    }

    /// Takes what there is of the line. What follows the line is left for the guest.
    pub fn hear(&mut self) -> Heard {
        // Byte by byte: the kernel keeps what comes behind the newline.
        while self.line.len() < MAX_LINE {
            let mut byte = [0];
            match stream::read(&self.stream, &mut byte) {
                Ok(1..) => self.line.extend(byte),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Heard::Part,
                Ok(0) | Err(_) => return Heard::Wrong,
            }
            if byte == *b"\n" {
                return parse(&self.line).map_or(Heard::Wrong, Heard::Port);
            }
        }
        Heard::Wrong
    }
}

/// Reads a whole line, the newline included.
pub fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    // Firecracker reads the word in any case.
    if !word.eq_ignore_ascii_case("connect") || words.next().is_some() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

/// The answer, once the guest has accepted.
pub fn answer(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_read_as_firecracker_reads_them() {
        for (line, port) in [
            ("CONNECT 52\n", Some(52)),
            ("connect 0\n", Some(0)),
            ("CoNNeCT  4294967295\n", Some(u32::MAX)),
            ("CONNECT 52\r\n", Some(52)),
            ("CONNECT 4294967296\n", None),
            ("CONNECT -1\n", None),
            ("CONNECT +1\n", None),
            ("CONNECT 0x10\n", None),
            ("CONNECT\n", None),
            ("CONNECT 1 2\n", None),
            ("CONNECT52\n", None),
            ("CONNECT 52", None),
            ("HELLO 52\n", None),
            ("\n", None),
            ("", None),
        ] {
            assert_eq!(parse(line.as_bytes()), port, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff\n"), None);
        assert_eq!(answer(1 << 30), "OK 1073741824\n");
    }

    fn greeting() -> (UnixStream, Greeting) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, Greeting::new(server, Instant::now()))
    }

    #[test]
    fn a_line_may_come_in_pieces_and_what_follows_is_left() {
        let (mut client, mut greeting) = greeting();
        assert_eq!(greeting.hear(), Heard::Part);
        client.write_all(b"CONN").unwrap();
        assert_eq!(greeting.hear(), Heard::Part);
        client.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(greeting.hear(), Heard::Port(7));
        let mut rest = [0; 9];
        assert_eq!(stream::read(&greeting.stream, &mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
    }

    #[test]
    fn what_never_becomes_a_line_is_wrong() {
        let (mut client, mut long) = greeting();
        client.write_all(&[b' '; 2 * MAX_LINE]).unwrap();
        assert_eq!(long.hear(), Heard::Wrong);
        let (client, mut gone) = greeting();
        drop(client);
        assert_eq!(gone.hear(), Heard::Wrong);
    }

    proptest! {
        #[test]
        fn any_port_is_understood_and_nothing_panics(port in any::<u32>(), junk in any::<Vec<u8>>()) {
            prop_assert_eq!(parse(format!("CONNECT {port}\n").as_bytes()), Some(port));
            let _ = parse(&junk);
        }
    }
}
