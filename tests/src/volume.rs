//! A tenant's volume, made as a tenant makes it: away from any host, and without root.
//!
//! The volume is LUKS2 around an ext4 file system. This machine may lack device-mapper, so the header comes from
//! `cryptsetup luksFormat` on a plain file and the payload is encrypted here, sector by sector, with the same cipher.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aes::Aes256;
use aes::cipher::KeyInit;
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use crate::Trouble;

/// Bytes in a sector; images partitioned in 512-byte sectors need the same from the encryption.
const SECTOR: usize = 512;
/// Where the payload begins in the volume, in sectors (1 MiB: header, metadata and key slots fit).
const PAYLOAD_SECTORS: u64 = 2048;

/// A LUKS2 volume and the key of its only key slot.
pub struct TenantVolume {
    /// The image file.
    pub path: PathBuf,
    /// What opens it: the tenant hands this to the verifier, and nobody else.
    pub key: Zeroizing<Vec<u8>>,
}

impl TenantVolume {
    /// Makes `path` hold an encrypted ext4 file system of `size_mib` MiB with `files` (name in the volume, source).
    pub fn make(path: &Path, size_mib: u64, files: &[(&str, &Path)]) -> Result<Self, Trouble> {
        let scratch = tempfile::tempdir()?;
        let plain = scratch.path().join("plain.ext4");
        let tree = scratch.path().join("tree");
        for (name, source) in files {
            let target = tree.join(name);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::copy(source, &target)?;
        }
        File::create(&plain)?.set_len(size_mib * 1024 * 1024)?;
        run(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&plain), &[])?;

        let key = Zeroizing::new(random(32)?);
        let master = Zeroizing::new(random(64)?);
        let master_file = scratch.path().join("master");
        fs::write(&master_file, &*master)?;
        File::create(path)?.set_len(PAYLOAD_SECTORS * SECTOR as u64 + size_mib * 1024 * 1024)?;
        let offset = PAYLOAD_SECTORS.to_string();
        run(
            Command::new("/sbin/cryptsetup")
                .args(["luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64"])
                .args(["--key-size", "512", "--sector-size", "512", "--offset", &offset])
                .args(["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k"])
                // The key is random: stretching it would only cost time.
                .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"])
                .arg("--volume-key-file")
                .arg(&master_file)
                .arg("--key-file=-")
                .arg(path),
            &key,
        )?;
        encrypt(&plain, path, &master)?;
        Ok(Self { path: path.to_owned(), key })
    }
}

/// Encrypts `plain` into the payload of `volume` with AES-256-XTS and the `plain64` tweak (sector number).
fn encrypt(plain: &Path, volume: &Path, master: &[u8]) -> Result<(), Trouble> {
    let (first, second) = master.split_at(32);
    let cipher = |half: &[u8]| Aes256::new_from_slice(half).map_err(|e| Trouble::Step(format!("volume key: {e}")));
    let xts = Xts128::new(cipher(first)?, cipher(second)?);
    let mut from = File::open(plain)?;
    let mut to = File::options().write(true).open(volume)?;
    to.seek(SeekFrom::Start(PAYLOAD_SECTORS * SECTOR as u64))?;
    let mut chunk = vec![0; 1 << 20];
    let mut sector = 0_u128;
    loop {
        let n = from.read(&mut chunk)?;
        if n == 0 {
            return Ok(());
        }
        xts.encrypt_area(&mut chunk[..n], SECTOR, sector, get_tweak_default);
        to.write_all(&chunk[..n])?;
        sector += (n / SECTOR) as u128;
    }
}

fn random(n: usize) -> Result<Vec<u8>, Trouble> {
    let mut bytes = vec![0; n];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Trouble::Step("the random generator failed".into()))?;
    Ok(bytes)
}

/// Runs a program to its end with `input` on its standard input; its own words are the error.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, Trouble> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Trouble::Step(format!("{name} did not start: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is judged by its exit status, not here.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Trouble::Step(format!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opens(volume: &Path, key: &[u8]) -> bool {
        let test = &["open", "--test-passphrase", "--type", "luks2", "--key-file=-"];
        run(Command::new("/sbin/cryptsetup").args(test).arg(volume), key).is_ok()
    }

    #[test]
    fn the_tenants_key_opens_the_volume_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("hello");
        fs::write(&source, b"only the tenant reads this").unwrap();
        let volume = TenantVolume::make(&folder.path().join("v.luks"), 8, &[("boot/hello", &source)]).unwrap();
        assert!(opens(&volume.path, &volume.key));
        let mut other = volume.key.to_vec();
        other[0] ^= 1;
        assert!(!opens(&volume.path, &other));
        let bytes = fs::read(&volume.path).unwrap();
        assert!(!bytes.windows(10).any(|w| w == b"only the t"), "the payload is in the clear");
    }
}
