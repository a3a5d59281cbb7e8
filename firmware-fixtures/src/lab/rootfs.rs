//! The root file system: an ext4 image made without root, with the programs of a host and the libraries they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::boot_files::BootFiles;
use super::cpio::{Archive, Entry};
use super::{LabError, io_error, kmod, read, run, write};
use crate::workdir::{self, CacheLock};

/// The kernel modules every host loads at its start: KVM, encrypted volumes, tap devices.
/// XTS works block by block through ECB, which it does not name as a dependency.
pub const MODULES: [&str; 8] = ["kvm-amd", "loop", "dm-mod", "dm-crypt", "aesni-intel", "ecb", "xts", "tun"];

/// Where shared libraries lie on a host: the first place its dynamic linker looks.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";

/// A file on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// Absolute path on the host.
    pub path: String,
    /// Permission bits, for example 0o755.
    pub mode: u32,
    /// Contents.
    pub contents: Vec<u8>,
}

impl HostFile {
    /// A file with mode 0644.
    pub fn data(path: &str, contents: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), mode: 0o644, contents: contents.into() }
    }

    /// A file with mode 0755.
    pub fn program(path: &str, contents: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), mode: 0o755, contents: contents.into() }
    }
}

/// What the root file system has: by path, so that what is put later replaces what was there.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    files: BTreeMap<String, (u32, Vec<u8>)>,
    links: BTreeMap<String, String>,
    dirs: BTreeSet<String>,
}

impl Tree {
    /// The parts every host has: busybox, kernel modules, init, the harness's control shell.
    ///
    /// # Errors
    /// When a boot file or module is missing.
    pub fn base(files: &BootFiles, extra_modules: &[String]) -> Result<Self, LabError> {
        let mut tree = Self::default();
        for dir in ["dev", "proc", "sys", "run", "tmp", "root", "var/lib", "var/log", "mnt", "usr/bin", "usr/sbin"] {
            tree.directory(dir);
        }
        tree.put(HostFile::program("/bin/busybox", read(&files.busybox())?));
        for link in ["/bin/sh", "/bin/mount", "/bin/umount", "/sbin/modprobe", "/sbin/ip", "/usr/bin/env"] {
            tree.link(link, "/bin/busybox");
        }
        tree.link("/usr/lib/x86_64-linux-gnu", LIBRARIES);
        tree.put(HostFile::program("/sbin/init", include_str!("host_files/root-init")));
        tree.put(HostFile::program("/usr/lib/lab/control", include_str!("host_files/control")));
        tree.put(HostFile::data("/etc/hostname", "host\n"));
        tree.put(HostFile::data("/etc/hosts", "127.0.0.1 localhost\n"));
        tree.put(HostFile::data("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"));
        tree.put(HostFile::data("/etc/group", "root:x:0:\nnogroup:x:65534:\n"));

        let mut names: Vec<&str> = MODULES.to_vec();
        names.extend(extra_modules.iter().map(String::as_str));
        tree.put(HostFile::data("/etc/modules", names.join("\n") + "\n"));
        let modules = kmod::closure(&files.modules(), &names)?;
        let dir = format!("/lib/modules/{}", files.kernel_release());
        tree.put(HostFile::data(&format!("{dir}/modules.dep"), kmod::modules_dep(&modules)));
        tree.put(HostFile::data(&format!("{dir}/modules.alias"), kmod::modules_alias(&modules)));
        for module in modules {
            tree.put(HostFile::data(&format!("{dir}/{}", module.path), module.contents));
        }
        Ok(tree)
    }

    /// Puts a file, in place of what was there.
    pub fn put(&mut self, file: HostFile) {
        let path = file.path.trim_matches('/').to_owned();
        self.parents(&path);
        self.links.remove(&path);
        self.files.insert(path, (file.mode, file.contents));
    }

    /// Puts a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        let path = path.trim_matches('/').to_owned();
        self.parents(&path);
        self.files.remove(&path);
        self.links.insert(path, target.to_owned());
    }

    /// Makes a directory (mode 0755) and those above it.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/').to_owned();
        self.parents(&path);
        self.dirs.insert(path);
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.dirs.insert(path[..end].to_owned());
        }
    }

    /// Copies a program of this machine to `path`, see [`with_libraries`].
    ///
    /// # Errors
    /// When it is not there, or a library that it needs is not.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<(), LabError> {
        for file in with_libraries(path, source)? {
            self.put(file);
        }
        Ok(())
    }

    /// Whether the tree has a directory at `path`.
    pub fn has_directory(&self, path: &str) -> bool {
        self.dirs.contains(path.trim_matches('/'))
    }

    /// Whether the tree has a file at `path`.
    pub fn has_file(&self, path: &str) -> bool {
        self.files.contains_key(path.trim_matches('/'))
    }

    /// Path (absolute) and contents of everything that can be executed or mapped executable: programs, libraries,
    /// scripts, kernel modules.
    pub fn executables(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.files
            .iter()
            .filter(|(path, (mode, _))| mode & 0o111 != 0 || kmod::is_module(path))
            .map(|(path, (_, contents))| (format!("/{path}"), contents.as_slice()))
    }

    /// The same as an initramfs, with a console.
    pub fn archive(&self) -> Archive {
        let mut archive = Archive::new();
        archive.put("/dev/console", Entry::Character(5, 1));
        for dir in &self.dirs {
            archive.put(dir, Entry::Directory);
        }
        for (path, (mode, contents)) in &self.files {
            archive.put(path, Entry::File(*mode, contents.clone()));
        }
        for (path, target) in &self.links {
            archive.put(path, Entry::Symlink(target.clone()));
        }
        archive
    }

    /// Makes the image in `cache`, or finds the one made earlier of the same tree. `free_mib` is the space left on it.
    ///
    /// # Errors
    /// When the image cannot be made.
    pub fn image(&self, cache: &Path, free_mib: u64) -> Result<PathBuf, LabError> {
        let image = cache.join(format!("root-{}.ext4", self.key(free_mib)));
        let _lock = CacheLock::take_in(cache, "root").map_err(io_error("cannot lock the lab's cache"))?;
        if workdir::has(&image) {
            return Ok(image);
        }
        workdir::prune(cache, "root-");
        let staging = tempfile::tempdir_in(cache).map_err(io_error("cannot make a staging directory"))?;
        let root = staging.path().join("root");
        self.stage(&root)?;
        let unfinished = staging.path().join("image");
        let contents: u64 = self.files.values().map(|(_, contents)| contents.len() as u64).sum();
        let mib = contents * 5 / 4 / 1024 / 1024 + 16 + free_mib;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-L", "root", "-m", "0", "-J", "size=4", "-U", "706f7274-6375-6c6c-6973-000000000001"]);
        mkfs.args(["-E", "root_owner=0:0,lazy_itable_init=1,hash_seed=706f7274-6375-6c6c-6973-000000000002", "-d"]);
        mkfs.arg(&root).arg(&unfinished).arg(format!("{mib}M"));
        run(mkfs)?;
        if !nix::unistd::geteuid().is_root() {
            self.give_to_root(&unfinished, staging.path())?;
        }
        fs::rename(&unfinished, &image).map_err(io_error(format!("cannot make {}", image.display())))?;
        Ok(image)
    }

    fn key(&self, free_mib: u64) -> String {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(format!("root 1 {free_mib}").as_bytes());
        for (path, (mode, contents)) in &self.files {
            part(format!("file {path} {mode:o}").as_bytes());
            part(contents);
        }
        for (path, target) in &self.links {
            part(format!("link {path} {target}").as_bytes());
        }
        for path in &self.dirs {
            part(format!("directory {path}").as_bytes());
        }
        hex::encode(&hash.finalize()[..12])
    }

    fn stage(&self, root: &Path) -> Result<(), LabError> {
        fs::create_dir_all(root).map_err(io_error("cannot make a staging directory"))?;
        for dir in &self.dirs {
            fs::create_dir_all(root.join(dir)).map_err(io_error(format!("cannot stage /{dir}")))?;
        }
        for (path, (mode, contents)) in &self.files {
            let staged = root.join(path);
            write(&staged, contents)?;
            fs::set_permissions(&staged, fs::Permissions::from_mode(*mode))
                .map_err(io_error(format!("cannot stage /{path}")))?;
        }
        for (path, target) in &self.links {
            symlink(target, root.join(path)).map_err(io_error(format!("cannot stage /{path}")))?;
        }
        Ok(())
    }

    /// `mkfs.ext4 -d` keeps the builder's user id; on the host everything belongs to root.
    fn give_to_root(&self, image: &Path, staging: &Path) -> Result<(), LabError> {
        let paths = self.dirs.iter().chain(self.files.keys()).chain(self.links.keys());
        let script = paths.fold(String::new(), |mut script, path| {
            let _ = writeln!(script, "sif /{path} uid 0\nsif /{path} gid 0");
            script
        });
        debugfs(image, &script, staging)
    }
}

/// A program of this machine as a file at `path`, without its debug information, and the libraries it needs.
///
/// # Errors
/// When it is not there, or a library that it needs is not.
pub fn with_libraries(path: &str, source: &Path) -> Result<Vec<HostFile>, LabError> {
    let mut files = vec![HostFile::program(path, stripped(source)?)];
    let libraries = libraries(source)?;
    // The TSS library loads the module for /dev/tpmrm0 by name, so that the linker does not know.
    let loads_tcti = libraries.iter().any(|library| library.to_string_lossy().contains("libtss2-tctildr"));
    for library in &libraries {
        files.push(host_library(library)?);
    }
    // glibc loads this one when a thread is cancelled.
    for extra in ["libgcc_s.so.1", if loads_tcti { "libtss2-tcti-device.so.0" } else { "" }] {
        let candidates = [Path::new(LIBRARIES).join(extra), Path::new("/usr").join(&LIBRARIES[1..]).join(extra)];
        if !extra.is_empty()
            && !libraries.is_empty()
            && let Some(found) = candidates.iter().find(|path| path.exists())
        {
            files.push(host_library(found)?);
            for needed in self::libraries(found)? {
                files.push(host_library(&needed)?);
            }
        }
    }
    Ok(files)
}

/// A library at the place where a host's dynamic linker looks for it.
fn host_library(source: &Path) -> Result<HostFile, LabError> {
    let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let path = if name.starts_with("ld-linux") { format!("/lib64/{name}") } else { format!("{LIBRARIES}/{name}") };
    Ok(HostFile::program(&path, read(source)?))
}

/// Writes `files` into a root image; `tree` is what the image was made of. For the copy that belongs to one host.
///
/// # Errors
/// When debugfs fails.
pub fn add_files(image: &Path, tree: &Tree, files: &[HostFile], scratch: &Path) -> Result<(), LabError> {
    let mut script = String::new();
    let mut made = BTreeSet::new();
    let mut written = BTreeSet::new();
    for (number, file) in files.iter().enumerate() {
        let path = file.path.trim_matches('/');
        if path.contains(|c: char| c.is_whitespace() || c == '"') {
            return Err(LabError::BadSpec(format!("{}: no blanks in paths of host files, please", file.path)));
        }
        for (end, _) in path.match_indices('/') {
            let dir = &path[..end];
            if !tree.has_directory(dir) && made.insert(dir.to_owned()) {
                let _ = writeln!(script, "mkdir /{dir}\nsif /{dir} uid 0\nsif /{dir} gid 0");
            }
        }
        let source = scratch.join(format!("host-file-{number}"));
        write(&source, &file.contents)?;
        if tree.has_file(path) || !written.insert(path.to_owned()) {
            let _ = writeln!(script, "rm /{path}");
        }
        let _ = writeln!(script, "write {} /{path}\nsif /{path} mode 0{:o}", source.display(), 0o100_000 | file.mode);
        let _ = writeln!(script, "sif /{path} uid 0\nsif /{path} gid 0");
    }
    debugfs(image, &script, scratch)
}

fn debugfs(image: &Path, script: &str, scratch: &Path) -> Result<(), LabError> {
    let commands = scratch.join("debugfs-commands");
    write(&commands, script.as_bytes())?;
    let mut debugfs = Command::new("debugfs");
    debugfs.arg("-w").arg("-f").arg(&commands).arg(image);
    let output = run(debugfs)?;
    // It ends with success whatever happened; complaints go to the error stream, after its version.
    let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr).lines().skip(1).map(str::to_owned).collect();
    if complaints.is_empty() {
        return Ok(());
    }
    Err(LabError::Failed {
        program: "debugfs".to_owned(),
        status: "complaints".to_owned(),
        output: complaints.join("\n"),
    })
}

fn stripped(source: &Path) -> Result<Vec<u8>, LabError> {
    let contents = read(source)?;
    if !contents.starts_with(b"\x7fELF") {
        return Ok(contents);
    }
    let out = tempfile::NamedTempFile::new().map_err(io_error("cannot make a temporary file"))?;
    let mut strip = Command::new("strip");
    strip.arg("--strip-all").arg("-o").arg(out.path()).arg(source);
    run(strip)?;
    read(out.path())
}

/// The libraries a program is linked with, the dynamic linker among them; none for a static program or a script.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, LabError> {
    if !read(program)?.starts_with(b"\x7fELF") {
        return Ok(Vec::new());
    }
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let output = match run(ldd) {
        Ok(output) => output,
        Err(LabError::Failed { output, .. }) if output.contains("not a dynamic executable") => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        if target.starts_with("not found") {
            return Err(LabError::BadFile {
                path: program.display().to_string(),
                problem: format!("needs a library that is not here: {line}"),
            });
        }
        if target.starts_with('/')
            && let Some(path) = target.split_whitespace().next()
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}
