//! The Authenticode digest of a PE file: what firmware measures of a boot program (PCR 4) and what Secure Boot's
//! signatures sign. It leaves out the checksum, the pointer to the signatures, and the signatures.
//!
//! "Windows Authenticode Portable Executable Signature Format", "Calculating the PE Image Hash".

/// A file that is not a PE image whose digest can be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed 64-bit PE image: {0}")]
pub struct PeError(&'static str);

/// The parts of `image` that the digest covers, in their order.
///
/// # Errors
/// When the headers are not those of a PE32+ image or point outside the file.
pub fn authenticode_parts(image: &[u8]) -> Result<Vec<&[u8]>, PeError> {
    let pe = number(image, 0x3c, 4).ok_or(PeError("no DOS header"))?;
    if image.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0") {
        return Err(PeError("no PE signature"));
    }
    let sections = number(image, pe + 6, 2).ok_or(PeError("no COFF header"))?;
    let optional_size = number(image, pe + 20, 2).ok_or(PeError("no COFF header"))?;
    let optional = pe + 24;
    if number(image, optional, 2) != Some(0x20b) {
        return Err(PeError("not PE32+"));
    }
    let headers_end = number(image, optional + 60, 4).ok_or(PeError("no optional header"))?;
    let directories = number(image, optional + 108, 4).ok_or(PeError("no optional header"))?;
    if directories < 5 || optional_size < 152 {
        return Err(PeError("no certificate table entry"));
    }
    let certificates = number(image, optional + 148, 4).ok_or(PeError("no certificate table entry"))?;
    let part = |from: usize, to: usize| image.get(from..to).ok_or(PeError("a header points outside the file"));
    let checksum = optional + 64;
    let entry = optional + 144;
    let mut parts = vec![part(0, checksum)?, part(checksum + 4, entry)?, part(entry + 8, headers_end)?];

    let table = optional + optional_size;
    let mut bodies = Vec::new();
    for index in 0..sections {
        let header = table + index * 40;
        let size = number(image, header + 16, 4).ok_or(PeError("a section header is outside the file"))?;
        let start = number(image, header + 20, 4).ok_or(PeError("a section header is outside the file"))?;
        if size > 0 {
            bodies.push((start, size));
        }
    }
    bodies.sort_unstable();
    let mut covered = headers_end;
    for (start, size) in bodies {
        parts.push(part(start, start + size)?);
        covered += size;
    }
    // What follows the sections, without the signatures at the end.
    let rest_end = image.len().checked_sub(certificates).ok_or(PeError("the certificate table is too large"))?;
    if rest_end > covered {
        parts.push(part(covered, rest_end)?);
    }
    Ok(parts)
}

/// The Authenticode digest of `image`, as hex, with the hash function `D`.
///
/// # Errors
/// See [`authenticode_parts`].
pub fn authenticode<D: sha2::Digest>(image: &[u8]) -> Result<String, PeError> {
    let mut hash = D::new();
    for part in authenticode_parts(image)? {
        hash.update(part);
    }
    Ok(hex::encode(hash.finalize()))
}

/// A little-endian number of `size` (2 or 4) bytes at `offset`.
fn number(image: &[u8], offset: usize, size: usize) -> Option<usize> {
    let bytes = image.get(offset..offset.checked_add(size)?)?;
    bytes.iter().rev().try_fold(0_usize, |value, byte| Some(value.checked_mul(256)? + usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Sha256;

    #[test]
    fn short_and_wrong_files_are_refused() {
        assert!(authenticode::<Sha256>(b"").is_err());
        assert!(authenticode::<Sha256>(&[0xff; 64]).is_err());
        let mut image = vec![0; 4096];
        image[0x3c] = 0x80;
        image[0x80..0x84].copy_from_slice(b"PE\0\0");
        assert_eq!(authenticode::<Sha256>(&image), Err(PeError("not PE32+")));
    }

    #[test]
    fn the_digest_is_the_one_that_debian_signed() {
        let files = super::super::boot_files::BootFiles::fetch().unwrap();
        for path in [files.shim(), files.grub(), files.kernel()] {
            let image = std::fs::read(&path).unwrap();
            let digest = hex::decode(authenticode::<Sha256>(&image).unwrap()).unwrap();
            // A signature's SpcIndirectDataContent has the digest as its last OCTET STRING of 32 bytes.
            let signed = [&[0x04, 0x20][..], &digest].concat();
            let found = image.windows(signed.len()).any(|window| window == signed);
            assert!(found, "{}: no signature over {}", path.display(), hex::encode(digest));
        }
    }
}
