//! Reads the files that commands are given, whole and never more than their kind may have; writes those they are asked for.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::failure::Failure;

/// Evidence, logs.
pub const LARGE: u64 = 64 * 1024 * 1024;
/// Revocation lists of vendors.
pub const LIST: u64 = 8 * 1024 * 1024;
/// Configuration, certificates, keys, reference values.
pub const SMALL: u64 = 1024 * 1024;

/// Reads a file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let failed = |source| Failure::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Failure::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// Reads a file of at most `limit` bytes, if there is one.
pub fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
    match read(path, limit) {
        Err(Failure::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads the files of a directory, each of at most `limit` bytes, by name. What is no file is passed over.
pub fn read_dir(dir: &Path, limit: u64) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    paths(dir)?
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| Ok((path.display().to_string(), read(&path, limit)?)))
        .collect()
}

/// A file's name with its content, or with the reason why that cannot be read.
pub type NamedFile = (String, Result<Vec<u8>, String>);

/// Reads the files of a directory, each of at most `limit` bytes; what cannot be read has the reason in the content's place.
pub fn read_each(dir: &Path, limit: u64) -> Result<Vec<NamedFile>, Failure> {
    let files = paths(dir)?.into_iter().filter(|path| !path.is_dir());
    Ok(files.map(|path| (path.display().to_string(), read(&path, limit).map_err(|error| error.to_string()))).collect())
}

/// What is in a directory, in order.
fn paths(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |source| Failure::Read { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Writes a file, in place of what may be there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes).map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Reads a text file of at most `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> Result<String, Failure> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| Failure::Content { path: path.to_owned(), text: "it is not UTF-8 text".to_owned() })
}

/// Reads a secret of at most `limit` bytes, from a file or, for `-`, from standard input; wiped after use.
pub fn read_secret(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |source| Failure::Read { path: path.to_owned(), source };
    // Room for all of it from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(vec![0_u8; limit.saturating_add(1)]);
    let mut source: Box<dyn Read> =
        if path.as_os_str() == "-" { Box::new(stdin().lock()) } else { Box::new(File::open(path).map_err(failed)?) };
    let mut length = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => {
                bytes.truncate(length);
                return Ok(bytes);
            }
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(Failure::TooLarge { path: path.to_owned(), limit: limit as u64 })
}
