//! The host's console on this terminal.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// Why the console was left.
pub(crate) enum Left {
    /// A signal (Ctrl-C).
    Signal,
    /// The host turned itself off.
    Ended,
}

/// Puts the terminal back as it was.
struct Terminal(Option<Termios>);

impl Terminal {
    /// Keys go to the host as they are typed and the host echoes them; Ctrl-C stays ours.
    fn keys_pass_through() -> Self {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut changed = before.clone();
        changed.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        let _ = tcsetattr(&stdin, SetArg::TCSANOW, &changed);
        Self(Some(before))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Passes bytes between this terminal and the console until a signal comes or the console closes.
pub(crate) fn attach(socket: &Path, signals: &SigSet) -> io::Result<Left> {
    let mut host = UnixStream::connect(socket)?;
    let signal = SignalFd::new(signals)?;
    let _terminal = Terminal::keys_pass_through();
    // A new prompt, for the one that was printed before anybody looked.
    host.write_all(b"\n")?;
    let stdin = io::stdin();
    let mut keys_open = true;
    let mut buffer = [0; 4096];
    loop {
        let mut fds =
            vec![PollFd::new(signal.as_fd(), PollFlags::POLLIN), PollFd::new(host.as_fd(), PollFlags::POLLIN)];
        if keys_open {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let is: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if is[0] {
            return Ok(Left::Signal);
        }
        if is[1] {
            let length = host.read(&mut buffer)?;
            if length == 0 {
                return Ok(Left::Ended);
            }
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..length])?;
            out.flush()?;
        }
        if keys_open && is[2] {
            let length = nix::unistd::read(&stdin, &mut buffer)?;
            keys_open = length > 0;
            host.write_all(&buffer[..length])?;
        }
    }
}
