//! A measured boot made in software: the events of a firmware with Secure Boot, shim, GRUB and a kernel, the programs
//! that IMA measures afterwards, and both of them extended into a TPM.

use portcullis_attest::appraise::JUDGED_PCRS;
use portcullis_attest::eventlog::{EventLog, EventType};
use portcullis_attest::key::Bank;
use portcullis_attest::reference::ReferenceBuilder;
use portcullis_firmware_fixtures::tpm::Swtpm;

/// The banks that every event is extended into.
pub const BANKS: [Bank; 3] = [Bank::Sha1, Bank::Sha256, Bank::Sha384];
/// The policy that [`Boot::good`] satisfies.
pub const POLICY: &str = "schema = \"portcullis/policy/1\"\nname = \"test\"\nbank = \"sha256\"\nsecure_boot = true\n\
                          ima = true\nreferences = [\"good\"]\nhosts = [\"*\"]\nunsigned_references = true\n";

const GLOBAL: [u8; 16] = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const IMAGE_SECURITY: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
const SHIM_LOCK: [u8; 16] =
    [0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23];
const X509: [u8; 16] = [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];

struct Event {
    pcr: u32,
    kind: EventType,
    data: Vec<u8>,
    measured: Vec<u8>,
}

/// A boot: what the firmware, the boot loader and IMA measured.
pub struct Boot {
    events: Vec<Event>,
    programs: Vec<(String, Vec<u8>)>,
    /// The banks that the firmware and the boot loader measure into. The kernel measures into all of them.
    firmware_banks: Vec<Bank>,
    extended: usize,
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn variable(guid: [u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    let name_units = (name.encode_utf16().count() as u64).to_le_bytes();
    [&guid[..], &name_units, &(data.len() as u64).to_le_bytes(), &utf16(name), data].concat()
}

fn signature_list(certificate: &[u8]) -> Vec<u8> {
    let size = u32::try_from(certificate.len() + 16).unwrap();
    [&X509[..], &(size + 28).to_le_bytes(), &[0; 4], &size.to_le_bytes(), &[7; 16], certificate].concat()
}

fn image(path: &str) -> Vec<u8> {
    let path = utf16(&format!("{path}\0"));
    let size = u16::try_from(path.len() + 4).unwrap().to_le_bytes();
    let node = [&[4, 4][..], &size, &path, &[0x7f, 0xff, 4, 0]].concat();
    [&[0; 24][..], &(node.len() as u64).to_le_bytes(), &node].concat()
}

impl Boot {
    /// The boot that the reference values are of.
    pub fn good() -> Self {
        Self::with(true, "console=ttyS0 quiet")
    }

    /// A boot with Secure Boot on or off and a command line.
    pub fn with(secure_boot: bool, command_line: &str) -> Self {
        Self::made(secure_boot, command_line, 0)
    }

    /// The good boot with another value in PCR 1, as firmware varies it from boot to boot: 0 or 1, both of them good.
    pub fn varied(boot_order: u8) -> Self {
        Self::made(true, "console=ttyS0 quiet", boot_order)
    }

    /// The good boot by a firmware that measures into these banks only.
    pub fn in_banks(banks: &[Bank]) -> Self {
        Self { firmware_banks: banks.to_vec(), ..Self::good() }
    }

    fn made(secure_boot: bool, command_line: &str, boot_order: u8) -> Self {
        let firmware_banks = BANKS.to_vec();
        let mut boot = Self { events: Vec::new(), programs: Vec::new(), firmware_banks, extended: 0 };
        boot.firmware(secure_boot, boot_order);
        boot.loader(command_line);
        boot.program("/usr/bin/portcullis-agent", b"the agent");
        boot
    }

    fn event(&mut self, pcr: u32, kind: EventType, data: &[u8]) {
        self.measure(pcr, kind, data, data);
    }

    fn measure(&mut self, pcr: u32, kind: EventType, data: &[u8], measured: &[u8]) {
        self.events.push(Event { pcr, kind, data: data.to_vec(), measured: measured.to_vec() });
    }

    fn firmware(&mut self, secure_boot: bool, boot_order: u8) {
        self.event(0, EventType::S_CRTM_VERSION, &utf16("firmware 1\0"));
        self.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB, &[0x11; 16], b"firmware volume");
        let setting = variable(GLOBAL, "SecureBoot", &[u8::from(secure_boot)]);
        self.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &setting);
        for (guid, name) in [(GLOBAL, "PK"), (GLOBAL, "KEK"), (IMAGE_SECURITY, "db")] {
            let list = signature_list(name.as_bytes());
            self.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(guid, name, &list));
        }
        self.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(IMAGE_SECURITY, "dbx", &[]));
        self.event(7, EventType::SEPARATOR, &[0; 4]);
        let order = [1, boot_order];
        self.measure(1, EventType::EFI_VARIABLE_BOOT, &variable(GLOBAL, "BootOrder", &order), &order);
        self.event(4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option");
        for pcr in 0..=6 {
            self.event(pcr, EventType::SEPARATOR, &[0; 4]);
        }
    }

    fn loader(&mut self, command_line: &str) {
        self.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(IMAGE_SECURITY, "db", b"vendor CA"));
        self.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &image("\\EFI\\BOOT\\BOOTX64.EFI"), b"shim");
        self.measure(14, EventType::IPL, b"MokList\0", b"mok list");
        let generation = variable(SHIM_LOCK, "SbatLevel", b"sbat,1,2022111500\n");
        self.event(7, EventType::EFI_VARIABLE_AUTHORITY, &generation);
        self.measure(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &image("\\EFI\\BOOT\\grubx64.efi"), b"grub");
        self.measure(9, EventType::IPL, b"(hd0)/EFI/debian/grub.cfg\0", b"grub.cfg");
        for (prefix, text) in [
            ("grub_cmd", format!("linux /vmlinuz {command_line}")),
            ("kernel_cmdline", format!("/vmlinuz {command_line}")),
        ] {
            self.measure(8, EventType::IPL, format!("{prefix}: {text}\0").as_bytes(), text.as_bytes());
        }
        self.measure(9, EventType::IPL, b"/vmlinuz\0", b"the kernel");
        self.measure(9, EventType::IPL, b"/initrd\0", b"the initrd");
        self.event(5, EventType::EFI_ACTION, b"Exit Boot Services Invocation");
        self.event(5, EventType::EFI_ACTION, b"Exit Boot Services Returned with Success");
    }

    /// A program that is started.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.programs.push((path.to_owned(), content.to_vec()));
    }

    /// The firmware event log.
    pub fn eventlog(&self) -> Vec<u8> {
        let mut body = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
        let banks = &self.firmware_banks;
        body.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
        for bank in banks {
            body.extend(bank.tpm_alg_id().to_le_bytes());
            body.extend(u16::try_from(bank.digest_size()).unwrap().to_le_bytes());
        }
        body.push(0);
        let size = u32::try_from(body.len()).unwrap().to_le_bytes();
        let mut log = [&[0; 4][..], &EventType::NO_ACTION.0.to_le_bytes(), &[0; 20], &size, &body].concat();
        for event in &self.events {
            log.extend(event.pcr.to_le_bytes());
            log.extend(event.kind.0.to_le_bytes());
            log.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
            for bank in banks {
                log.extend(bank.tpm_alg_id().to_le_bytes());
                log.extend(bank.hash(&event.measured));
            }
            log.extend(u32::try_from(event.data.len()).unwrap().to_le_bytes());
            log.extend(&event.data);
        }
        log
    }

    fn pcr(&self, bank: Bank, pcr: u32) -> Vec<u8> {
        let mut value = vec![0; bank.digest_size()];
        for event in self.events.iter().filter(|event| event.pcr == pcr) {
            value = bank.hash(&[value, bank.hash(&event.measured)].concat());
        }
        value
    }

    /// Template data of every IMA entry, as Linux makes them with `ima_hash=sha256` and template ima-ng.
    fn ima_entries(&self) -> Vec<Vec<u8>> {
        let static_pcrs: Vec<u8> = (0..=9).flat_map(|pcr| self.pcr(Bank::Sha256, pcr)).collect();
        let mut files = vec![("boot_aggregate".to_owned(), Bank::Sha256.hash(&static_pcrs))];
        files.extend(self.programs.iter().map(|(path, content)| (path.clone(), Bank::Sha256.hash(content))));
        files
            .into_iter()
            .map(|(path, digest)| {
                let mut data = Vec::new();
                for field in [[b"sha256:\0".as_slice(), &digest].concat(), [path.as_bytes(), b"\0"].concat()] {
                    data.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
                    data.extend(field);
                }
                data
            })
            .collect()
    }

    /// The IMA list, as Linux writes `binary_runtime_measurements`.
    pub fn ima(&self) -> Vec<u8> {
        self.ima_after(0)
    }

    /// The IMA list without its first entries.
    pub fn ima_after(&self, left_out: u64) -> Vec<u8> {
        let mut list = Vec::new();
        for data in self.ima_entries().into_iter().skip(usize::try_from(left_out).unwrap()) {
            list.extend(10u32.to_le_bytes());
            list.extend(Bank::Sha1.hash(&data));
            list.extend(6u32.to_le_bytes());
            list.extend(b"ima-ng");
            list.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            list.extend(data);
        }
        list
    }

    /// Extends into a TPM what was not extended yet.
    pub fn extend(&mut self, tpm: &Swtpm) {
        let firmware = self.events.iter().map(|event| (event.pcr, event.measured.clone(), &self.firmware_banks[..]));
        let programs = self.ima_entries().into_iter().map(|data| (10, data, &BANKS[..]));
        let all: Vec<(u32, Vec<u8>, &[Bank])> = firmware.chain(programs).collect();
        for (pcr, measured, banks) in &all[self.extended..] {
            tpm.transact("TPM2_PCR_Extend", &extend_command(*pcr, measured, banks)).unwrap();
        }
        self.extended = all.len();
    }
}

/// TPM2_PCR_Extend of these banks.
pub fn extend_command(pcr: u32, measured: &[u8], banks: &[Bank]) -> Vec<u8> {
    let mut body = 0x0000_0182_u32.to_be_bytes().to_vec();
    body.extend(pcr.to_be_bytes());
    // One password session with an empty password.
    body.extend(9u32.to_be_bytes());
    body.extend([0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    body.extend(u32::try_from(banks.len()).unwrap().to_be_bytes());
    for bank in banks {
        body.extend(bank.tpm_alg_id().to_be_bytes());
        body.extend(bank.hash(measured));
    }
    let size = u32::try_from(body.len() + 6).unwrap().to_be_bytes();
    [&[0x80, 0x02][..], &size, &body].concat()
}

/// The reference values of [`Boot::good`], as TOML.
pub fn references() -> String {
    references_of(&[Boot::good()])
}

/// Reference values that accept each of these boots, as TOML.
pub fn references_of(boots: &[Boot]) -> String {
    references_named("good", boots)
}

/// The same under a name.
pub fn references_named(name: &str, boots: &[Boot]) -> String {
    let mut builder = ReferenceBuilder::new(name, "the boot of the tests");
    for boot in boots {
        let bytes = boot.eventlog();
        let log = EventLog::parse(&bytes).unwrap();
        builder.boot(&log, &[Bank::Sha256, Bank::Sha384], &JUDGED_PCRS);
    }
    let digest: [u8; 32] = Bank::Sha256.hash(b"the agent").try_into().unwrap();
    builder.ima("/usr/bin/portcullis-agent", &digest);
    let digest: [u8; 32] = Bank::Sha256.hash(b"the vmm").try_into().unwrap();
    builder.ima("/usr/bin/portcullis-vmm", &digest);
    builder.build().unwrap().to_toml().unwrap()
}
