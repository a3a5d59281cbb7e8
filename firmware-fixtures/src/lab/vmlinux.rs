//! The kernel inside a bzImage: what Linux' own decompressor makes of it, an ELF file with a PVH note.

use std::io::Read;

/// First of the two fields that say where the payload is, in bytes from the end of the setup part
/// (Linux Documentation/arch/x86/boot.rst, protocol 2.08 and later).
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SETUP_SECTS: usize = 0x1f1;
/// The payload ends with its unpacked size, for the decompressor's memory.
const SIZE_FIELD: usize = 4;
/// No kernel is bigger.
const MAX_SIZE: u64 = 512 << 20;

/// Unpacks the payload of a bzImage whose payload is LZ4, as Debian's cloud kernel's is.
///
/// # Errors
/// What is wrong with it.
pub fn unpack(bzimage: &[u8]) -> Result<Vec<u8>, String> {
    let number = |at: usize| {
        let bytes = bzimage.get(at..at + 4).ok_or("it is too short for a bzImage")?;
        Ok::<_, String>(u32::from_le_bytes(bytes.try_into().map_err(|_| "four bytes")?))
    };
    let sectors = usize::from(*bzimage.get(SETUP_SECTS).ok_or("it is too short for a bzImage")?);
    let start = (sectors + 1) * 512 + number(PAYLOAD_OFFSET)? as usize;
    let end = start + number(PAYLOAD_LENGTH)? as usize;
    let payload = bzimage.get(start..end).ok_or("its payload lies outside it")?;
    let payload = payload.get(..payload.len().saturating_sub(SIZE_FIELD)).unwrap_or_default();
    let mut kernel = Vec::new();
    let decoder = lz4_flex::frame::FrameDecoder::new(payload);
    decoder.take(MAX_SIZE).read_to_end(&mut kernel).map_err(|error| format!("its payload is no LZ4: {error}"))?;
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err("its payload is no ELF file".to_owned()) }
}
