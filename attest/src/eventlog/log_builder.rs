//! Writes logs for tests: genuine ones, and such that are wrong in one thing.

use super::{EventType, Guid};
use crate::key::Bank;

/// A log in the making. Each event's digests are those of what was measured, in every bank.
#[derive(Clone)]
pub(crate) struct LogBuilder {
    banks: Vec<Bank>,
    header: Vec<u8>,
    pub events: Vec<Vec<u8>>,
}

impl LogBuilder {
    pub fn new(banks: &[Bank]) -> Self {
        let mut body = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
        body.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
        for bank in banks {
            body.extend(bank.tpm_alg_id().to_le_bytes());
            body.extend(u16::try_from(bank.digest_size()).unwrap().to_le_bytes());
        }
        body.push(0);
        Self { banks: banks.to_vec(), header: sha1_event(0, EventType::NO_ACTION, &[0; 20], &body), events: Vec::new() }
    }

    /// An event whose digest is that of `measured`.
    pub fn measure(&mut self, pcr: u32, event_type: EventType, data: &[u8], measured: &[u8]) -> &mut Self {
        let event = self.encode(pcr, event_type, data, |bank| bank.hash(measured));
        self.events.push(event);
        self
    }

    /// An event whose digest is that of its data.
    pub fn event(&mut self, pcr: u32, event_type: EventType, data: &[u8]) -> &mut Self {
        self.measure(pcr, event_type, data, data)
    }

    /// Text as GRUB logs it.
    pub fn grub(&mut self, prefix: &str, text: &str) -> &mut Self {
        self.measure(8, EventType::IPL, format!("{prefix}: {text}\0").as_bytes(), text.as_bytes())
    }

    pub fn no_action(&mut self, data: &[u8]) -> &mut Self {
        let event = self.encode(0, EventType::NO_ACTION, data, |bank| vec![0; bank.digest_size()]);
        self.events.push(event);
        self
    }

    pub fn encode(&self, pcr: u32, event_type: EventType, data: &[u8], digest: impl Fn(Bank) -> Vec<u8>) -> Vec<u8> {
        let mut out = [pcr.to_le_bytes(), event_type.0.to_le_bytes()].concat();
        out.extend(u32::try_from(self.banks.len()).unwrap().to_le_bytes());
        for bank in &self.banks {
            out.extend(bank.tpm_alg_id().to_le_bytes());
            out.extend(digest(*bank));
        }
        out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        out.extend(data);
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.header.clone(), self.events.concat()].concat()
    }

    /// The place of the only event that has these bytes in it.
    pub fn position(&self, needle: &[u8]) -> usize {
        let mut hits = self.events.iter().enumerate().filter(|(_, e)| e.windows(needle.len()).any(|w| w == needle));
        let (index, _) = hits.next().expect("no event has these bytes");
        assert!(hits.next().is_none(), "more than one event has these bytes");
        index
    }

    /// A good boot with Secure Boot through shim and GRUB, in miniature: every kind of event that a real one has.
    pub fn good_boot(banks: &[Bank]) -> Self {
        let mut log = Self::new(banks);
        log.event(0, EventType::S_CRTM_VERSION, &utf16("EDK II 2022.11\0"));
        log.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, &[0x11; 16], b"PEIFV");
        log.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, &[0x22; 16], b"DXEFV");
        log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::GLOBAL, "SecureBoot", &[1]));
        for (guid, name) in [(Guid::GLOBAL, "PK"), (Guid::GLOBAL, "KEK"), (Guid::IMAGE_SECURITY, "db")] {
            let list = signature_list(name.as_bytes());
            log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(guid, name, &list));
        }
        log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::IMAGE_SECURITY, "dbx", &[]));
        log.event(7, EventType::SEPARATOR, &[0; 4]);
        log.measure(
            1,
            EventType::EFI_VARIABLE_BOOT,
            &variable(Guid::GLOBAL, "BootOrder", &[0, 0, 1, 0]),
            &[0, 0, 1, 0],
        );
        log.event(4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option");
        for pcr in 0..=6 {
            log.event(pcr, EventType::SEPARATOR, &[0; 4]);
        }
        log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(Guid::IMAGE_SECURITY, "db", b"Microsoft UEFI CA"));
        log.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &image("\\EFI\\BOOT\\BOOTX64.EFI"), b"shim");
        log.measure(14, EventType::IPL, b"MokList\0", b"mok list");
        log.event(
            7,
            EventType::EFI_VARIABLE_AUTHORITY,
            &variable(Guid::SHIM_LOCK, "SbatLevel", b"sbat,1,2022111500\n"),
        );
        log.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &image("\\EFI\\BOOT\\grubx64.efi"), b"grub");
        log.measure(9, EventType::IPL, b"(hd0)/EFI/debian/grub.cfg\0", b"grub.cfg");
        log.grub("grub_cmd", "search --file --set=root /vmlinuz");
        log.grub("grub_cmd", "linux /vmlinuz console=ttyS0 quiet");
        log.measure(9, EventType::IPL, b"/vmlinuz\0", b"the kernel");
        log.grub("kernel_cmdline", "/vmlinuz console=ttyS0 quiet");
        log.grub("grub_cmd", "initrd /initrd");
        log.measure(9, EventType::IPL, b"/initrd\0", b"the initrd");
        log.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &image(""), b"kernel image");
        log.event(5, EventType::EFI_ACTION, b"Exit Boot Services Invocation");
        log.event(5, EventType::EFI_ACTION, b"Exit Boot Services Returned with Success");
        log
    }
}

/// An event in the old form.
pub(crate) fn sha1_event(pcr: u32, event_type: EventType, digest: &[u8; 20], data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&pcr.to_le_bytes()[..], &event_type.0.to_le_bytes(), digest, &size, data].concat()
}

pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

pub(crate) fn variable(guid: Guid, name: &str, data: &[u8]) -> Vec<u8> {
    let units = (name.encode_utf16().count() as u64).to_le_bytes();
    [&guid.0[..], &units, &(data.len() as u64).to_le_bytes(), &utf16(name), data].concat()
}

/// A signature list with one certificate.
pub(crate) fn signature_list(certificate: &[u8]) -> Vec<u8> {
    const X509: [u8; 16] =
        [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
    let signature = u32::try_from(certificate.len() + 16).unwrap();
    let list = signature + 28;
    [&X509[..], &list.to_le_bytes(), &[0; 4], &signature.to_le_bytes(), &[7; 16], certificate].concat()
}

/// An image load event with a device path that names a file.
fn image(path: &str) -> Vec<u8> {
    let path = utf16(&format!("{path}\0"));
    let node =
        [&[4, 4][..], &u16::try_from(path.len() + 4).unwrap().to_le_bytes(), &path, &[0x7f, 0xff, 4, 0]].concat();
    [&[0; 24][..], &(node.len() as u64).to_le_bytes(), &node].concat()
}
