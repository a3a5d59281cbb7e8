//! Taps of this machine, and the host's end of them. Making one takes root.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The EtherType of local experiments: frames that nobody else sends.
pub const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Longest wait for a frame.
const LIMIT: Duration = Duration::from_secs(30);

/// A tap. Removed when dropped.
pub struct TestTap {
    pub name: String,
}

pub fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("iproute2 is installed");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {}: {errors} (these tests run as root)", args.join(" "));
}

impl TestTap {
    pub fn new() -> Self {
        Self::with_options(&[])
    }

    pub fn with_options(options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tap = Self { name: format!("pct{}n{number}", std::process::id()) };
        ip(&[&["tuntap", "add", "dev", &tap.name, "mode", "tap"], options].concat());
        // No frames of the host's own.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", tap.name), "1").unwrap();
        ip(&["link", "set", "dev", &tap.name, "up"]);
        tap
    }

    fn index(&self) -> i32 {
        let name = std::ffi::CString::new(self.name.as_str()).unwrap();
        // SAFETY: the name is a live string that ends in NUL.
        i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) }).unwrap()
    }

    /// The host's end: frames as they are, without header.
    pub fn wire(&self) -> Wire {
        self.open_wire(false)
    }

    /// The host's end: frames with the header of 10 bytes that says what is left undone.
    pub fn wire_with_header(&self) -> Wire {
        self.open_wire(true)
    }

    fn open_wire(&self, header: bool) -> Wire {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: a new descriptor that nothing else owns.
        let socket = unsafe {
            // Of no protocol: until it is bound, it would hear of the frames of every interface.
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let timeout = libc::timeval { tv_sec: 0, tv_usec: 100_000 };
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout);
        if header {
            set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32);
        }
        // SAFETY: all zeros is a valid address of this family.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = all;
        address.sll_ifindex = self.index();
        let len = length::<libc::sockaddr_ll>();
        // SAFETY: the address is live and of that length.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Wire { socket, tap: self.name.clone() }
    }
}

impl Drop for TestTap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", "dev", &self.name]).output();
    }
}

fn length<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap()
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) {
    let len = length::<T>();
    // SAFETY: the value is live and of that length.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The host's end of a tap.
pub struct Wire {
    socket: OwnedFd,
    tap: String,
}

impl Wire {
    /// Sends a frame, once the kernel has seen that the other end is plugged in: it drops them before.
    pub fn send(&self, frame: &[u8]) {
        let limit = Instant::now() + LIMIT;
        while !self.is_plugged_in() {
            assert!(Instant::now() < limit, "nobody has opened the tap");
        }
        // SAFETY: the frame is live and of that length.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "{}", io::Error::last_os_error());
    }

    fn is_plugged_in(&self) -> bool {
        // Asking takes the lock under which the state is changed and the queue is started.
        let output = Command::new("ip").args(["-br", "link", "show", "dev", &self.tap]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1) == Some("UP")
    }

    /// The next frame that fits, of those that the guest sent.
    pub fn receive(&self, fits: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let limit = Instant::now() + LIMIT;
        let mut buffer = vec![0; 70_000];
        loop {
            assert!(Instant::now() < limit, "no frame came");
            // SAFETY: all zeros is a valid address; it and the buffer are live and of these lengths.
            let (got, kind) = unsafe {
                let mut from: libc::sockaddr_ll = zeroed();
                let mut len = length::<libc::sockaddr_ll>();
                let (to, room) = (buffer.as_mut_ptr().cast(), buffer.len());
                let fd = self.socket.as_raw_fd();
                (libc::recvfrom(fd, to, room, 0, (&raw mut from).cast(), &raw mut len), from.sll_pkttype)
            };
            let Ok(got) = usize::try_from(got) else { continue };
            // Frames of the host's own are seen too.
            if kind != libc::PACKET_OUTGOING && fits(&buffer[..got]) {
                return buffer[..got].to_vec();
            }
        }
    }

    /// The next frame of [`EXPERIMENT`].
    pub fn receive_experiment(&self) -> Vec<u8> {
        self.receive(|frame| frame.get(12..14) == Some(&EXPERIMENT))
    }
}

/// A frame of [`EXPERIMENT`], filled with `fill` to `len` bytes.
pub fn experiment(to: [u8; 6], from: [u8; 6], fill: u8, len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &EXPERIMENT].concat();
    frame.resize(len, fill);
    frame
}
