//! Where metrics go.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, RawFd};

/// A file or FIFO, opened so that it never blocks. What nobody reads waits: one line at most, until the next.
#[derive(Debug)]
pub struct Output<W = File> {
    file: W,
    /// The rest of a line that did not fit.
    waiting: Vec<u8>,
    /// The last byte that was written ends no line.
    unfinished: bool,
}

impl AsRawFd for Output {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl<W: Write> Output<W> {
    /// Writes to `file` from now on.
    pub fn new(file: W) -> Self {
        Self { file, waiting: Vec::new(), unfinished: false }
    }

    /// Writes the line that `make` makes, unless the one before still waits: then nothing is made, and what was counted
    /// stays for the next. An error loses the line; what is there of it already stays a line of its own. Gives whether the
    /// line was made.
    pub fn write(&mut self, make: impl FnOnce() -> Vec<u8>) -> std::io::Result<bool> {
        self.drain()?;
        let free = self.waiting.is_empty();
        if free {
            self.waiting = make();
            if self.unfinished {
                self.waiting.insert(0, b'\n');
            }
            self.drain()?;
        }
        Ok(free)
    }

    fn drain(&mut self) -> std::io::Result<()> {
        while !self.waiting.is_empty() {
            match self.file.write(&self.waiting) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let last = self.waiting.drain(..count.min(self.waiting.len())).next_back();
                    self.unfinished = last != Some(b'\n');
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.waiting.clear();
                    return Err(e);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn a_full_fifo_holds_one_line_back_and_breaks_none() {
        let (read, write) = nix::unistd::pipe().unwrap();
        fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut output = Output::new(File::from(write as OwnedFd));
        let line = |number: usize| format!("{number} {}\n", "x".repeat(9000)).into_bytes();
        let mut made = 0;
        for _ in 0..20 {
            output
                .write(|| {
                    made += 1;
                    line(made)
                })
                .unwrap();
        }
        // As many as the pipe holds, and one that waits.
        assert!((4..20).contains(&made), "{made}");
        let mut reader = File::from(read);
        let mut first = vec![0; line(1).len() * 3];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(first, [line(1), line(2), line(3)].concat());
        output.write(|| line(made + 1)).unwrap();
        drop(output);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, (4..=made + 1).flat_map(line).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_is_told_and_costs_one_line() {
        let mut output = Output::new(File::options().write(true).open("/dev/full").unwrap());
        for _ in 0..2 {
            assert_eq!(output.write(|| b"line\n".to_vec()).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
        assert!(output.waiting.is_empty());
    }

    /// A disk with room for so many bytes.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.room == 0 {
                return Err(std::io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.written.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_does_not_run_into_the_next() {
        // Room for the first line and a part of the second, up to all of it but its end.
        for part in 0..=6 {
            let mut output = Output::new(Disk { room: 6 + part, written: Vec::new() });
            output.write(|| b"first\n".to_vec()).unwrap();
            output.write(|| b"second\n".to_vec()).unwrap_err();
            // Still full, then with room for one byte: what ends the piece, where there is one.
            output.write(|| b"third\n".to_vec()).unwrap_err();
            output.file.room = 1;
            output.write(|| b"\x1e".to_vec()).unwrap_or_default();
            output.file.room = 100;
            output.write(|| b"fourth\n".to_vec()).unwrap();
            output.write(|| b"fifth\n".to_vec()).unwrap();
            let text = String::from_utf8(output.file.written).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert!(text.ends_with("\nfourth\nfifth\n"), "{part}: {text:?}");
            let piece = if part == 0 { "\x1e" } else { &"second"[..part] };
            assert_eq!(lines, ["first", piece, "fourth", "fifth"], "{part}");
        }
    }
}
