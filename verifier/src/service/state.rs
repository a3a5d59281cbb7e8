//! The state directory: made once by `init`, opened by one service at a time.
//!
//! | file | what | mode |
//! |---|---|---|
//! | `verifier.toml` | schema, id, names of the service | 0600 |
//! | `ca.pem`, `ca.key.pem` | the CA that signs the service's and people's certificates | 0600 |
//! | `server.pem`, `server.key.pem` | the service's certificate | 0600 |
//! | `token.key.pem`, `order.key.pem` | what signs results and orders (ES256) | 0600 |
//! | `volume.kek` | 32 bytes that encrypt volume keys in the database | 0600 |
//! | `verifier.db` | everything else | 0600 |
//! | `lock` | held by the running service | 0600 |
//! | `trust/` | `ca.pem`, `order-keys.json`, `verifier-id`: what goes into every host's measured initrd | 0644 |

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::authority::{self, AuthorityError};
use super::signer::{Signer, SignerError};
use crate::name;

const SCHEMA: &str = "portcullis/verifier-state/1";
/// No file of the state directory but the database is longer.
const MAX_FILE: u64 = 64 * 1024;

/// Why the state directory cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// There is something already.
    #[error("{} exists and is not empty: a verifier's state is never overwritten, choose another directory", .0.display())]
    Exists(PathBuf),
    /// Another process has it.
    #[error("{} is in use by another portcullis-verifier; stop it first", .0.display())]
    InUse(PathBuf),
    /// A secret is readable by others.
    #[error("{} is readable by others (mode {mode:o}); run chmod 600 on it and consider its key exposed", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A bad name on the command line.
    #[error(transparent)]
    Name(#[from] name::NameError),
    /// Making a certificate failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Making or reading a signing key failed.
    #[error(transparent)]
    Signer(#[from] SignerError),
}

impl StateError {
    /// The exit code of a command that ends with this: 2 bad usage or unreadable input, 3 unavailable.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::InUse(_)) { 3 } else { 2 }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    schema: String,
    id: String,
    san: Vec<String>,
}

/// What `init` made, for people.
#[derive(Serialize, Debug)]
pub struct Made {
    /// The state directory.
    pub state: PathBuf,
    /// The directory to be put into the measured initrd.
    pub trust: PathBuf,
    /// The verifier's id.
    pub verifier: String,
    /// SHA-256 of the CA certificate (DER), hex.
    pub ca_sha256: String,
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path, source }
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), StateError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(io("cannot create", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("cannot write", path))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StateError> {
    DirBuilder::new().mode(mode).create(path).map_err(io("cannot create", path))
}

/// Makes a new state directory for the verifier `id`, reachable as any of `san` (DNS names or IP addresses).
///
/// All of it appears at once or not at all: it is built beside `dir` and renamed.
pub fn init(dir: &Path, id: &str, san: &[String]) -> Result<Made, StateError> {
    name::check("verifier", id)?;
    match std::fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(StateError::Exists(dir.to_owned()));
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(io("cannot look into", dir)(e)),
    }
    let mut building = dir.as_os_str().to_owned();
    building.push(format!(".init-{}", std::process::id()));
    let building = PathBuf::from(building);
    make_dir(&building, 0o700)?;
    let made = fill(&building, id, san).and_then(|ca_sha256| {
        std::fs::rename(&building, dir).map_err(io("cannot rename to", dir))?;
        Ok(Made { state: dir.to_owned(), trust: dir.join("trust"), verifier: id.to_owned(), ca_sha256 })
    });
    if made.is_err() {
        // Best effort: what failed is reported, and a half-made directory holds keys that nobody uses.
        let _ = std::fs::remove_dir_all(&building);
    }
    made
}

fn fill(dir: &Path, id: &str, san: &[String]) -> Result<String, StateError> {
    let ca = authority::make_ca(id)?;
    let server = authority::make_server(&ca, san)?;
    let (token, order) = (authority::make_key()?, authority::make_key()?);
    let mut kek = Zeroizing::new([0u8; 32]);
    aws_lc_rs::rand::fill(kek.as_mut_slice()).map_err(|_| StateError::Content {
        path: dir.join("volume.kek"),
        problem: "the system gives no random bytes".into(),
    })?;
    let manifest = Manifest { schema: SCHEMA.into(), id: id.into(), san: san.to_vec() };
    let manifest_toml = toml::to_string(&manifest)
        .map_err(|e| StateError::Content { path: dir.join("verifier.toml"), problem: e.to_string() })?;
    let secret = |name: &str, content: &[u8]| write_new(&dir.join(name), content, 0o600);
    secret("verifier.toml", manifest_toml.as_bytes())?;
    secret("ca.pem", ca.cert_pem.as_bytes())?;
    secret("ca.key.pem", ca.key_pem.as_bytes())?;
    secret("server.pem", server.cert_pem.as_bytes())?;
    secret("server.key.pem", server.key_pem.as_bytes())?;
    secret("token.key.pem", token.as_bytes())?;
    secret("order.key.pem", order.as_bytes())?;
    secret("volume.kek", kek.as_slice())?;
    secret("lock", b"")?;
    let trust = dir.join("trust");
    make_dir(&trust, 0o755)?;
    let order_keys = Signer::from_pem(&order)?.jwks_json()?;
    write_new(&trust.join("ca.pem"), ca.cert_pem.as_bytes(), 0o644)?;
    write_new(&trust.join("order-keys.json"), order_keys.as_bytes(), 0o644)?;
    write_new(&trust.join("verifier-id"), format!("{id}\n").as_bytes(), 0o644)?;
    Ok(ca.sha256)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, StateError> {
    let file = File::open(path).map_err(io("cannot open", path))?;
    let mode = file.metadata().map_err(io("cannot look at", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Exposed { path: path.to_owned(), mode });
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(io("cannot read", path))?;
    if content.len() as u64 > MAX_FILE {
        return Err(StateError::Content { path: path.to_owned(), problem: format!("longer than {MAX_FILE} bytes") });
    }
    Ok(content)
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, StateError> {
    let bytes = read(path)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(StateError::Content { path: path.to_owned(), problem: "no UTF-8 text".into() }),
    }
}

fn manifest(dir: &Path) -> Result<Manifest, StateError> {
    let path = dir.join("verifier.toml");
    let text = read_text(&path)?;
    let manifest: Manifest =
        toml::from_str(&text).map_err(|e| StateError::Content { path: path.clone(), problem: e.to_string() })?;
    if manifest.schema != SCHEMA {
        return Err(StateError::Content { path, problem: format!("its schema is not {SCHEMA:?}") });
    }
    name::check("verifier", &manifest.id)?;
    Ok(manifest)
}

/// Writes a certificate and a new key for a person: `cert.pem`, `key.pem` (0600) and `ca.pem` in `out`.
pub fn certificate(
    dir: &Path,
    role: super::peer::Role,
    person: &str,
    days: u32,
    out: &Path,
) -> Result<Vec<PathBuf>, StateError> {
    name::check("name", person)?;
    manifest(dir)?;
    let ca_pem = read_text(&dir.join("ca.pem"))?;
    let ca_key = read_text(&dir.join("ca.key.pem"))?;
    let issued = authority::make_person(&ca_pem, &ca_key, role, person, days)?;
    std::fs::create_dir_all(out).map_err(io("cannot create", out))?;
    let files = [out.join("cert.pem"), out.join("key.pem"), out.join("ca.pem")];
    if let Some(there) = files.iter().find(|file| file.exists()) {
        return Err(StateError::Io {
            what: "will not overwrite",
            path: there.clone(),
            source: ErrorKind::AlreadyExists.into(),
        });
    }
    let [cert, key, ca] = &files;
    write_new(key, issued.key_pem.as_bytes(), 0o600)?;
    write_new(cert, issued.cert_pem.as_bytes(), 0o644)?;
    write_new(ca, ca_pem.as_bytes(), 0o644)?;
    Ok(files.to_vec())
}

/// An opened state directory. While it lives, no other service opens the same one.
pub struct State {
    /// The verifier's id.
    pub id: String,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// The service's certificate, PEM.
    pub server_pem: String,
    /// The service's key, PEM.
    pub server_key_pem: Zeroizing<String>,
    /// Signs attestation results.
    pub token_signer: Signer,
    /// Signs launch orders.
    pub order_signer: Signer,
    /// Encrypts volume keys in the database.
    pub kek: Zeroizing<[u8; 32]>,
    /// Where the database is.
    pub database: PathBuf,
    _lock: File,
}

impl State {
    /// Opens `dir` and takes its lock.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let manifest = manifest(dir)?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new().write(true).open(&lock_path).map_err(io("cannot open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse(dir.to_owned())),
            Err(TryLockError::Error(e)) => return Err(io("cannot lock", &lock_path)(e)),
        }
        let kek_path = dir.join("volume.kek");
        let kek: [u8; 32] = read(&kek_path)?
            .as_slice()
            .try_into()
            .map_err(|_| StateError::Content { path: kek_path, problem: "must be 32 bytes".into() })?;
        let database = dir.join("verifier.db");
        if !database.exists() {
            // SQLite would make it with the umask's mode.
            write_new(&database, b"", 0o600)?;
        }
        std::fs::set_permissions(&database, Permissions::from_mode(0o600))
            .map_err(io("cannot set the mode of", &database))?;
        Ok(Self {
            id: manifest.id,
            ca_pem: read_text(&dir.join("ca.pem"))?.to_string(),
            server_pem: read_text(&dir.join("server.pem"))?.to_string(),
            server_key_pem: read_text(&dir.join("server.key.pem"))?,
            token_signer: Signer::from_pem(&read_text(&dir.join("token.key.pem"))?)?,
            order_signer: Signer::from_pem(&read_text(&dir.join("order.key.pem"))?)?,
            kek: Zeroizing::new(kek),
            database,
            _lock: lock,
        })
    }
}
