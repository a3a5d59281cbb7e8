//! Landlock: no new access to any file, and where the kernel knows how, to ports, sockets and other processes.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, stat};
use nix::sys::statfs::fstatfs;

use super::{JailError, Layer, Omitted};

/// Newest interface that the rules are written for.
const NEWEST: ABI = ABI::V6;
/// Least interface that is accepted, of Linux 5.19: it governs every way to a file but cutting one by its path, which
/// interface 3 brings and which the system-call filters deny (`truncate`, and `O_TRUNC`). What later ones bring (ports,
/// ioctl of devices, sockets and signals of other processes) is denied by the filters too, but for those of vsock.
const LEAST: i64 = 2;

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// Everything of the interface that the rules are written for.
    Full,
    /// What an older kernel can, but all rights to files.
    Partial,
}

impl Enforced {
    /// As it stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
        }
    }
}

/// What requests of the API may reach. Nothing, unless it is named.
///
/// Folders mean all that is below them. Never in it: `/` itself, and what is of `/proc`, `/sys` and other file systems that
/// are the kernel's controls, and `/dev`, but for single files (a block device).
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Folders and files that may be read and written; in folders, files may be made.
    pub written: Vec<PathBuf>,
    /// Folders and files that may be read.
    pub read: Vec<PathBuf>,
    /// The API's socket. The API's thread removes it: Landlock knows no finer than all files in its folder and below.
    pub socket: Option<PathBuf>,
}

impl Reach {
    /// Folders as a default gives them: those that cannot be part of it are left out.
    pub fn usable(folders: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
        folders.into_iter().filter(|folder| open(folder).is_ok()).collect()
    }

    /// The top-level folders of this host, but for those of the kernel's controls, of programs and of their settings.
    pub fn top_level() -> Vec<PathBuf> {
        const NOT: [&str; 8] = ["boot", "dev", "etc", "usr", "bin", "sbin", "proc", "sys"];
        let entries = std::fs::read_dir("/").into_iter().flatten().filter_map(Result::ok);
        let named = |name: &str| !NOT.contains(&name) && !name.starts_with("lib");
        let folders = entries.filter(|entry| entry.file_name().to_str().is_some_and(named));
        Self::usable(folders.map(|entry| entry.path()).filter(|path| path.is_dir()))
    }
}

/// What a thread may still reach.
#[derive(Debug)]
pub struct Domain(RulesetCreated);

/// Rights that the API's thread keeps: to read and write files, and to make regular ones. To run programs, to make
/// devices, sockets, links or folders, or to remove anything is not among them.
const WRITE_RIGHTS: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | MakeReg | Truncate});
const READ_RIGHTS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// What building a VM takes beside: the socket of its vsock device, which is removed again if the building fails.
const BUILD_RIGHTS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
/// What a file can have.
const FILE_RIGHTS: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | ReadFile | WriteFile | Truncate | IoctlDev});
/// The devices that building a VM takes.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd"];
const DEVICE_RIGHTS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});

impl Domain {
    /// No file that is not open already.
    pub fn no_files() -> Result<Self, JailError> {
        handle_all().map(Self).map_err(JailError::from)
    }

    /// The files of `reach`, and the removal of the socket.
    pub fn for_api(reach: &Reach) -> Result<Self, JailError> {
        let mut rules = reached(reach, BitFlags::EMPTY)?;
        if let Some(folder) = reach.socket.as_deref().map(folder) {
            let (open, _) = open(folder)?;
            rules = rules.add_rule(PathBeneath::new(open, AccessFs::RemoveFile)).map_err(JailError::from)?;
        }
        Ok(Self(rules))
    }

    /// The files of `reach` and the devices that a VM is made of.
    pub fn for_building(reach: &Reach) -> Result<Self, JailError> {
        let mut rules = reached(reach, BUILD_RIGHTS)?;
        for device in DEVICES {
            // One that is not there is missed where it is needed.
            if let Ok(open) = PathFd::new(device) {
                rules = rules.add_rule(PathBeneath::new(open, DEVICE_RIGHTS)).map_err(JailError::from)?;
            }
        }
        Ok(Self(rules))
    }

    /// Restricts the calling thread, and those it makes. There is no way back.
    pub fn enter(self) -> Result<Enforced, JailError> {
        check_version()?;
        match self.0.restrict_self().map_err(JailError::from)?.ruleset {
            RulesetStatus::FullyEnforced => Ok(Enforced::Full),
            RulesetStatus::PartiallyEnforced => Ok(Enforced::Partial),
            RulesetStatus::NotEnforced => Err(lacking("the kernel does not enforce it".to_owned())),
        }
    }
}

/// Makes a domain, unless Landlock is left out.
pub fn unless(omitted: Omitted, make: impl FnOnce() -> Result<Domain, JailError>) -> Result<Option<Domain>, JailError> {
    if omitted.contains(Layer::Landlock) {
        return Ok(None);
    }
    make().map(Some)
}

/// The folder of a file.
fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl From<RulesetError> for JailError {
    fn from(error: RulesetError) -> Self {
        Self::Landlock(error.to_string())
    }
}

fn refused(path: &Path, error: &dyn std::error::Error) -> JailError {
    JailError::Reach { path: path.to_owned(), reason: error.to_string() }
}

fn lacking(reason: String) -> JailError {
    let remedy = "run a kernel of 5.19 or later with CONFIG_SECURITY_LANDLOCK, and with landlock in its lsm= list";
    JailError::Lacking { layer: Layer::Landlock, reason, remedy }
}

/// Checks that the kernel's interface is one that is accepted.
fn check_version() -> Result<(), JailError> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call reads no memory and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    match Errno::result(version) {
        Ok(LEAST..) => Ok(()),
        Ok(old) => Err(lacking(format!("its interface is {old}, and {LEAST} is needed"))),
        Err(Errno::ENOSYS) => Err(lacking("the kernel was built without it, or is older than 5.13".to_owned())),
        Err(Errno::EOPNOTSUPP) => Err(lacking("the kernel was booted without it".to_owned())),
        Err(other) => Err(lacking(other.to_string())),
    }
}

/// Rights that are handled and allowed by no rule are denied. What a kernel later than [`LEAST`] brings is handled where it
/// is known.
fn handle_all() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

/// The rules of `reach`; `more` are further rights in its written folders.
fn reached(reach: &Reach, more: BitFlags<AccessFs>) -> Result<RulesetCreated, JailError> {
    let mut rules = handle_all().map_err(JailError::from)?;
    let written = reach.written.iter().map(|path| (path, WRITE_RIGHTS | more));
    for (path, rights) in written.chain(reach.read.iter().map(|path| (path, READ_RIGHTS))) {
        let (open, is_folder) = open(path)?;
        let rights = if is_folder { rights } else { rights & FILE_RIGHTS };
        rules = rules.add_rule(PathBeneath::new(open, rights)).map_err(JailError::from)?;
    }
    Ok(rules)
}

/// Opens what is to be reached, if it may be, and says whether it is a folder.
fn open(path: &Path) -> Result<(PathFd, bool), JailError> {
    let not = |reason: &str| JailError::Reach { path: path.to_owned(), reason: reason.to_owned() };
    let open = PathFd::new(path).map_err(|e| refused(path, &e))?;
    let is_folder = {
        let data = fstat(open.as_fd()).map_err(|e| refused(path, &e))?;
        let kind = SFlag::from_bits_truncate(data.st_mode) & SFlag::S_IFMT;
        let same =
            |other: &str| stat(other).is_ok_and(|other| (other.st_dev, other.st_ino) == (data.st_dev, data.st_ino));
        let device = kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK;
        if same("/") {
            return Err(not("it is the root of all files"));
        }
        let in_dev = stat("/dev").is_ok_and(|dev| dev.st_dev == data.st_dev) && is_mount("/dev");
        if !device && (same("/dev") || in_dev) {
            return Err(not("it is in /dev; name a single device"));
        }
        if is_control(open.as_fd()).map_err(|e| refused(path, &e))? {
            return Err(not("it is one of the kernel's controls, as /proc and /sys"));
        }
        if kind == SFlag::S_IFDIR
            && let Some(mount) = control_below(path).map_err(|e| refused(path, &e))?
        {
            let mount = mount.display();
            return Err(not(&format!("devices or the kernel's controls are mounted below it, at {mount}")));
        }
        kind == SFlag::S_IFDIR
    };
    Ok((open, is_folder))
}

/// Where devices or the kernel's controls are mounted in a folder: a rule for the folder would reach them. What is mounted
/// there later is not seen.
fn control_below(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    let folder = folder.canonicalize()?;
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    Ok(mounts.split(|byte| *byte == b'\n').filter_map(control_mount).find(|mount| mount.starts_with(&folder)))
}

/// The place of a line of mountinfo (proc(5)), if such a file system is mounted there.
fn control_mount(line: &[u8]) -> Option<PathBuf> {
    const CONTROLS: [&str; 17] = [
        "proc",
        "sysfs",
        "cgroup",
        "cgroup2",
        "debugfs",
        "tracefs",
        "securityfs",
        "selinuxfs",
        "bpf",
        "configfs",
        "pstore",
        "efivarfs",
        "devpts",
        "devtmpfs",
        "mqueue",
        "binfmt_misc",
        "nfsd",
    ];
    let mut fields = line.split(|byte| *byte == b' ');
    let place = fields.nth(4)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    CONTROLS
        .iter()
        .any(|control| control.as_bytes() == kind)
        .then(|| PathBuf::from(OsString::from_vec(unescaped(place))))
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let octal = digits.map(|digits| digits.iter().fold(0u16, |number, digit| number * 8 + u16::from(digit - b'0')));
        let (byte, len) = octal.and_then(|octal| u8::try_from(octal).ok()).map_or((*first, 0), |byte| (byte, 3));
        bytes.push(byte);
        rest = behind.get(len..).unwrap_or_default();
    }
    bytes
}

/// Whether a file system of its own is mounted there.
fn is_mount(path: &str) -> bool {
    let device = |path: &str| stat(path).map(|data| data.st_dev);
    device(path).is_ok_and(|own| device("/").is_ok_and(|root| own != root))
}

/// Whether this is of a file system whose files are the kernel's controls (Linux include/uapi/linux/magic.h).
fn is_control(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    const CONTROLS: [i64; 14] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x6265_6570, // configfs
        0x6165_676c, // pstore
        0xde5e_81e4, // efivarfs
        0x1cd1,      // devpts
        0x1980_0202, // mqueue
        0x4249_4e4d, // binfmt_misc
    ];
    Ok(CONTROLS.contains(&fstatfs(file)?.filesystem_type().0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_controls_are_found_in_the_kernels_list() {
        let found = |line: &str| control_mount(line.as_bytes()).map(|place| place.to_str().unwrap().to_owned());
        assert_eq!(found("36 35 98:0 / /srv/a\\040b\\134/proc rw - proc proc rw").unwrap(), "/srv/a b\\/proc");
        assert_eq!(found("36 35 0:5 / /jail/dev rw,nosuid shared:2 master:1 - devtmpfs udev rw").unwrap(), "/jail/dev");
        for line in ["", "36 35 98:0 / /mnt rw - ext4 /dev/sda rw", "36 35 98:0 / /proc rw", "proc - proc"] {
            assert_eq!(found(line), None, "{line}");
        }
        // This system's own.
        assert_eq!(control_below(Path::new("/proc")).unwrap().unwrap(), Path::new("/proc"));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(control_below(folder.path()).unwrap(), None);
    }

    #[test]
    fn roots_and_the_kernels_controls_are_never_reached() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc/sys", &link).unwrap();
        let refused = ["/", "/proc", "/proc/self", "/sys", "/sys/kernel", "/dev", "/usr/..", "/absent/folder"];
        for path in refused.map(Path::new).into_iter().chain([link.as_path()]) {
            let reach = Reach { written: vec![path.to_owned()], ..Reach::default() };
            let error = Domain::for_api(&reach).unwrap_err();
            assert!(matches!(error, JailError::Reach { .. }), "{}: {error}", path.display());
            assert!(Reach::usable([path.to_owned()]).is_empty());
        }
        let good = vec![dir.path().to_owned(), PathBuf::from("/dev/null")];
        assert_eq!(Reach::usable(good.clone()), good);
        Domain::for_api(&Reach { written: good.clone(), read: good, socket: Some(dir.path().join("s")) }).unwrap();
        let top = Reach::top_level();
        assert!(top.contains(&PathBuf::from("/tmp")), "{top:?}");
        for never in ["/", "/proc", "/sys", "/dev", "/etc", "/usr", "/boot"] {
            assert!(!top.contains(&PathBuf::from(never)), "{top:?}");
        }
    }
}
