//! Pairs of neighbouring loopback ports: the swtpm TCTI looks for the control channel at the command port plus one.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use nix::fcntl::{Flock, FlockArg};

use crate::workdir;

/// Below the ephemeral ports, so that outgoing connections of other programs do not take them.
const FIRST: u16 = 20_000;
const PAIRS: u16 = 6_000;

/// A reserved pair. Reserved against other users of this crate by a locked file, against others only looked at.
#[derive(Debug)]
pub(super) struct PortPair {
    command: u16,
    _reserved: Flock<File>,
}

impl PortPair {
    pub(super) fn find() -> io::Result<Self> {
        let dir = workdir::scratch_base()?.join("ports");
        fs::create_dir_all(&dir)?;
        for _ in 0..256 {
            let random = RandomState::new().build_hasher().finish();
            let pair = u16::try_from(random % u64::from(PAIRS)).unwrap_or_default();
            let command = FIRST + pair * 2;
            let file = File::create(dir.join(command.to_string()))?;
            let Ok(reserved) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
            let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if free(command) && free(command + 1) {
                return Ok(Self { command, _reserved: reserved });
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "256 random pairs from 20000 to 31999 were all taken"))
    }

    pub(super) fn command(&self) -> u16 {
        self.command
    }

    pub(super) fn control(&self) -> u16 {
        self.command + 1
    }
}

/// Whether something listens on a port of this machine's IPv4 loopback (or all addresses): `/proc/net/tcp`, see proc(5).
pub(super) fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some(LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_listens_while_it_does() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(port));
        drop(listener);
        assert!(!listens(port));
    }
}
