//! Opens a tenant's LUKS2 volume read-only and mounts its file system; closes it again whatever happens.
//!
//! The work with the key is cryptsetup's; it gets the key through a pipe, never as an argument or a file. As soon as
//! the file system is mounted, the mapping is marked for removal on last use: when the agent dies without a word, its
//! private mounts go with it and its VMs, and the kernel closes the mapping and forgets the key.
//!
//! One volume, one host: that a volume is closed is said only when its mapping is gone from the kernel. What is still in use
//! stays an [`OpenVolume`], to be closed later.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::child::{self, ChildError, Finished};
use crate::config::{Config, is_name};
use crate::luks_header;
use crate::store::{StoreError, make_private_dir};
use crate::volume_file;

/// Time for one run of cryptsetup: an argon2id key slot takes seconds, on a slow host many.
const CRYPTSETUP_LIMIT: Duration = Duration::from_mins(2);
/// How often a mapping is tried, and how long to wait between two tries.
const MAP_TRIES: u32 = 4;
/// See [`MAP_TRIES`].
const MAP_PAUSE: Duration = Duration::from_secs(1);
/// How often closing is tried, and how long to wait between two tries: a process that was just killed may hold a file for
/// a moment.
const CLOSE_TRIES: u32 = 5;
/// See [`CLOSE_TRIES`].
const CLOSE_PAUSE: Duration = Duration::from_millis(200);
/// Every mapping of ours is called so, followed by the order's id.
const MAPPING_PREFIX: &str = "portcullis-";
/// File systems that a volume may hold, tried in this order, and their mount options.
///
/// ext4's superblock, which the tenant writes, has options of its own: without ours it could ask for a panic of the
/// whole host at its first error, or for a journal on another device.
const FILE_SYSTEMS: [(&str, Option<&str>); 3] =
    [("ext4", Some("errors=remount-ro,nowarn_on_error,noload")), ("erofs", None), ("squashfs", None)];
/// cryptsetup's exit code for a key that opens no slot.
const NO_PERMISSION: i32 = 2;
/// cryptsetup's exit code for a mapping that does not exist.
const NO_DEVICE: i32 = 4;
/// Present where the kernel has a device-mapper.
const DEVICE_MAPPER: &str = "/sys/class/misc/device-mapper";

/// Why a volume is not open.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A name could leave the volumes directory.
    #[error("{name:?} is not a name for a tenant, volume or order")]
    Name {
        /// The name that was refused.
        name: String,
    },
    /// There is no image of that name.
    #[error("cannot open the volume image {path}: {source}; put it into volumes_dir as <tenant>.<volume>.luks")]
    Image {
        /// The image looked for.
        path: PathBuf,
        /// What the system said.
        source: nix::Error,
    },
    /// The image's header is not one that we open.
    #[error("the volume image {path} is refused: {text}")]
    Header {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// The released key does not open the image.
    #[error("the released key opens no key slot of {path}: the image was made with another key")]
    WrongKey {
        /// The image.
        path: PathBuf,
    },
    /// The key fits, but the kernel cannot map the volume.
    #[error("the key opens {path}, but it cannot be mapped (are dm_mod, dm_crypt and loop loaded?): {text}")]
    Mapping {
        /// The image.
        path: PathBuf,
        /// cryptsetup's complaint.
        text: String,
    },
    /// cryptsetup failed otherwise.
    #[error("cryptsetup {action} failed for {path}: {text}")]
    Cryptsetup {
        /// The cryptsetup action.
        action: &'static str,
        /// The image or mapping.
        path: PathBuf,
        /// cryptsetup's complaint.
        text: String,
    },
    /// The volume holds no file system that we mount.
    #[error("the opened volume holds none of {:?}: {source}", FILE_SYSTEMS.map(|(kind, _)| kind))]
    FileSystem {
        /// The last refusal.
        source: nix::Error,
    },
    /// The file system cannot be unmounted.
    #[error("cannot unmount the volume from {root}: {source}")]
    InUse {
        /// Where it is mounted.
        root: PathBuf,
        /// What the system said.
        source: nix::Error,
    },
    /// cryptsetup cannot be run.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// A directory cannot be made.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opens volumes as the configuration says.
#[derive(Debug, Clone)]
pub struct Volumes {
    cryptsetup: PathBuf,
    images: PathBuf,
    mounts: PathBuf,
}

/// A volume that was not opened.
#[derive(Debug)]
pub struct NotOpened {
    /// Why not.
    pub error: VolumeError,
    /// The volume, if it could not be closed again either.
    pub still_open: Option<Box<OpenVolume>>,
}

impl<E: Into<VolumeError>> From<E> for NotOpened {
    fn from(error: E) -> Self {
        Self { error: error.into(), still_open: None }
    }
}

/// An open volume: mounted read-only at [`OpenVolume::root`]. Closed when dropped; whoever must know whether that worked
/// calls [`OpenVolume::close`].
#[derive(Debug)]
pub struct OpenVolume {
    volumes: Volumes,
    mapping: String,
    root: PathBuf,
    mounted: bool,
    closed: bool,
}

impl Volumes {
    /// Volumes of this host.
    pub fn new(config: &Config) -> Self {
        Self {
            cryptsetup: config.cryptsetup.clone(),
            images: config.volumes_dir.clone(),
            mounts: config.runtime_dir.join("volumes"),
        }
    }

    /// The image of a tenant's volume; it is there, is a regular file and its header is one that we open.
    pub fn image(&self, tenant: &str, volume: &str) -> Result<PathBuf, VolumeError> {
        for name in [tenant, volume] {
            if !is_name(name) {
                return Err(VolumeError::Name { name: name.to_owned() });
            }
        }
        let name = format!("{tenant}.{volume}.luks");
        let path = self.images.join(&name);
        let refused = |source| VolumeError::Image { path: path.clone(), source };
        let file = volume_file::open_beneath(&self.images, Path::new(&name)).map_err(refused)?;
        let is_file = std::fs::File::from(file).metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            return Err(refused(nix::Error::EINVAL));
        }
        let dump = self.cryptsetup(["luksDump", "--dump-json-metadata"].map(OsStr::new), &path, &[])?;
        if dump.code != Some(0) {
            return Err(VolumeError::Header { path, text: format!("it is not LUKS2: {}", dump.complaint) });
        }
        luks_header::check(&dump.stdout).map_err(|text| VolumeError::Header { path: path.clone(), text })?;
        Ok(path)
    }

    /// Whether the key opens a slot of this image; needs no device-mapper.
    pub fn check_key(&self, image: &Path, key: &[u8]) -> Result<(), VolumeError> {
        let arguments = ["open", "--test-passphrase", "--type", "luks2", "--batch-mode", "--key-file", "-"];
        let done = self.cryptsetup(arguments.map(OsStr::new), image, key)?;
        match done.code {
            Some(0) => Ok(()),
            Some(NO_PERMISSION) => Err(VolumeError::WrongKey { path: image.to_owned() }),
            _ => Err(VolumeError::Cryptsetup {
                action: "open --test-passphrase",
                path: image.to_owned(),
                text: done.complaint,
            }),
        }
    }

    /// Opens a tenant's volume for one order and mounts its file system, read-only. On failure all is undone.
    pub fn open(&self, order: &str, tenant: &str, volume: &str, key: &[u8]) -> Result<OpenVolume, NotOpened> {
        let mut opening = self.of_order(order)?;
        let image = self.image(tenant, volume)?;
        make_private_dir(&opening.root)?;
        opening.closed = false;
        match opening.map_and_mount(&image, key) {
            Ok(()) => Ok(opening),
            Err(error) => {
                let still_open = opening.close().is_err().then(|| Box::new(opening));
                Err(NotOpened { error, still_open })
            }
        }
    }

    /// What an earlier agent may have left open for an order, to be closed.
    pub fn left_open(&self, order: &str) -> Result<OpenVolume, VolumeError> {
        let mut left = self.of_order(order)?;
        left.closed = false;
        Ok(left)
    }

    /// The volume of an order, nothing of it open yet.
    fn of_order(&self, order: &str) -> Result<OpenVolume, VolumeError> {
        if !is_order_id(order) {
            return Err(VolumeError::Name { name: order.to_owned() });
        }
        let (mapping, root) = (format!("{MAPPING_PREFIX}{order}"), self.mounts.join(order));
        Ok(OpenVolume { volumes: self.clone(), mapping, root, mounted: false, closed: true })
    }

    /// Maps the volume. A kernel that is still testing a cipher whose module was just loaded says that it has none (seen
    /// on busy hosts in the first seconds after their boot), so a mapping that fails is tried again a little later.
    fn map(&self, image: &Path, mapping: &str, key: &[u8]) -> Result<(), VolumeError> {
        let mut tries = 1;
        loop {
            match self.map_once(image, mapping, key) {
                Err(error @ VolumeError::Mapping { .. }) if tries < MAP_TRIES => {
                    tracing::warn!(%error, tries, "the volume could not be mapped; trying again");
                    std::thread::sleep(MAP_PAUSE);
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    fn map_once(&self, image: &Path, mapping: &str, key: &[u8]) -> Result<(), VolumeError> {
        let mut command = self.command();
        command.args(["open", "--type", "luks2", "--readonly", "--batch-mode", "--key-file", "-"]);
        command.arg(image).arg(mapping);
        let done = child::run(command, key, CRYPTSETUP_LIMIT)?;
        match done.code {
            Some(0) => Ok(()),
            Some(NO_PERMISSION) => Err(VolumeError::WrongKey { path: image.to_owned() }),
            // Say whether it was the key or the kernel: cryptsetup asks the kernel first.
            _ => {
                self.check_key(image, key)?;
                Err(VolumeError::Mapping { path: image.to_owned(), text: done.complaint })
            }
        }
    }

    /// Removes what an earlier agent left behind: mounts below our directory and mappings of ours. Gives the number of
    /// things removed.
    pub fn remove_leftovers(&self) -> usize {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.mounts).into_iter().flatten().flatten() {
            if umount2(&entry.path(), MntFlags::MNT_DETACH).is_ok() {
                removed += 1;
            }
            // Only ever an empty directory; if it is not, the volume is still mounted and must stay.
            let _ = std::fs::remove_dir(entry.path());
        }
        for entry in std::fs::read_dir("/dev/mapper").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let order = name.to_str().and_then(|name| name.strip_prefix(MAPPING_PREFIX));
            if let Some(Ok(mut left)) = order.map(|order| self.left_open(order)) {
                removed += usize::from(left.close().is_ok());
            }
        }
        removed
    }

    fn close_mapping(&self, mapping: &str) -> Result<(), VolumeError> {
        let done = self.cryptsetup([OsStr::new("close")], Path::new(mapping), &[])?;
        if done.code == Some(0) || self.is_gone(mapping)? {
            // A removal by the kernel leaves the node behind where no udev runs.
            let _ = std::fs::remove_file(node(mapping));
            return Ok(());
        }
        Err(VolumeError::Cryptsetup { action: "close", path: mapping.into(), text: done.complaint })
    }

    fn is_gone(&self, mapping: &str) -> Result<bool, VolumeError> {
        // Without a device-mapper nothing is mapped, and cryptsetup says only that it cannot know.
        if !Path::new(DEVICE_MAPPER).exists() && !node(mapping).exists() {
            return Ok(true);
        }
        Ok(self.cryptsetup([OsStr::new("status")], Path::new(mapping), &[])?.code == Some(NO_DEVICE))
    }

    fn command(&self) -> Command {
        let mut command = child::command(&self.cryptsetup);
        if !Path::new("/run/udev/control").exists() {
            // Otherwise device-mapper waits for a udev that is not there.
            command.env("DM_DISABLE_UDEV", "1");
        }
        command
    }

    fn cryptsetup<const N: usize>(
        &self,
        arguments: [&OsStr; N],
        object: &Path,
        input: &[u8],
    ) -> Result<Finished, VolumeError> {
        let mut command = self.command();
        command.args(arguments).arg(object);
        Ok(child::run(command, input, CRYPTSETUP_LIMIT)?)
    }
}

impl OpenVolume {
    /// Where the volume's file system is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn map_and_mount(&mut self, image: &Path, key: &[u8]) -> Result<(), VolumeError> {
        self.volumes.map(image, &self.mapping, key)?;
        mount_read_only(&node(&self.mapping), &self.root).map_err(|source| VolumeError::FileSystem { source })?;
        self.mounted = true;
        let deferred =
            self.volumes.cryptsetup(["close", "--deferred"].map(OsStr::new), Path::new(&self.mapping), &[])?;
        if deferred.code != Some(0) {
            let (mapping, complaint) = (&self.mapping, deferred.complaint);
            tracing::warn!(mapping, complaint, "the mapping would outlive a crash of the agent");
        }
        Ok(())
    }

    /// Unmounts the volume and closes its mapping; tries for about a second.
    ///
    /// # Errors
    /// The volume may still be open on this host, its key in the kernel's memory. It may be tried again.
    pub fn close(&mut self) -> Result<(), VolumeError> {
        for tries in 1.. {
            match self.try_close() {
                Err(VolumeError::InUse { .. } | VolumeError::Cryptsetup { .. }) if tries < CLOSE_TRIES => {
                    std::thread::sleep(CLOSE_PAUSE);
                }
                Err(error) => {
                    tracing::error!(mapping = self.mapping, %error, "the volume cannot be closed");
                    self.detach();
                    return Err(error);
                }
                Ok(()) => break,
            }
        }
        Ok(())
    }

    fn try_close(&mut self) -> Result<(), VolumeError> {
        if self.closed {
            return Ok(());
        }
        if self.mounted {
            let in_use = |source| VolumeError::InUse { root: self.root.clone(), source };
            umount2(&self.root, MntFlags::empty()).map_err(in_use)?;
            self.mounted = false;
        }
        self.volumes.close_mapping(&self.mapping)?;
        self.closed = true;
        match std::fs::remove_dir(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(root = %self.root.display(), %error, "cannot remove the mount point");
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the file system out of everybody's sight. The kernel closes the mapping when its last user is gone.
    fn detach(&mut self) {
        if self.mounted && umount2(&self.root, MntFlags::MNT_DETACH).is_ok() {
            self.mounted = false;
        }
    }
}

impl Drop for OpenVolume {
    fn drop(&mut self) {
        // What went wrong was logged.
        let _ = self.close();
    }
}

/// The device of a mapping.
fn node(mapping: &str) -> PathBuf {
    Path::new("/dev/mapper").join(mapping)
}

/// Whether `text` is an order's id: 32 lower-case hex digits.
pub fn is_order_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn mount_read_only(device: &Path, root: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let mut last = nix::Error::ENODEV;
    for (kind, options) in FILE_SYSTEMS {
        match mount(Some(device), root, Some(kind), flags, options) {
            Ok(()) => return Ok(()),
            // ENODEV: the kernel does not know this file system. Keep the more telling error.
            Err(nix::Error::ENODEV) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
