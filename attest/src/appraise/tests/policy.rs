//! What a policy demands beside the reference values.

use super::editions::{signed, signer};
use super::host::Host;
use crate::appraise::Policy;
use crate::eventlog::log_builder::{LogBuilder, signature_list, variable};
use crate::eventlog::{EventType, Guid};
use crate::key::{Bank, EnrolledAk};
use crate::reason::ReasonCode as Code;
use crate::reference::ReferenceValues;

#[test]
fn n98_a_tpm_without_certificate_where_the_policy_requires_one() {
    let mut host = Host::good();
    let before = host.policy.digest();
    demand(&mut host, "certified_ek = true");
    assert_ne!(host.policy.digest(), before);
    assert_eq!(host.codes(), [Code::EkNotCertified]);
    host.ak = host.ak.with_certified_ek(true);
    host.appraise().unwrap();
    // A key whose endorsement key is unknown is under no certified one.
    host.ak = EnrolledAk::without_parent(&host.ak_public()).unwrap().with_certified_ek(true);
    assert_eq!(host.codes(), [Code::EkNotCertified]);
}

#[test]
fn a_policy_is_for_the_hosts_that_it_names() {
    let mut host = Host::good();
    let mut with = |hosts: &[&str]| {
        host.policy.hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        host.appraise().map_err(|reasons| super::host::codes(&reasons))
    };
    for hosts in [&["host"][..], &["*"], &["ho*"], &["other", "host"]] {
        with(hosts).unwrap();
    }
    for hosts in [&[][..], &["other"], &["hos"], &["host-*"], &["hostt"]] {
        assert_eq!(with(hosts).unwrap_err(), [Code::PolicyHost], "{hosts:?}");
    }
    let text = super::host::POLICY;
    for wrong in ["**", "a*b", "*a", "", "Host"] {
        assert!(Policy::from_toml(&text.replace("[\"*\"]", &format!("[{wrong:?}]"))).is_err(), "{wrong}");
    }
}

#[test]
fn a_digest_is_of_what_is_said_and_not_of_how_it_is_written() {
    let text = super::host::POLICY;
    let policy = Policy::from_toml(text).unwrap();
    let same = Policy::from_toml(&format!("# the same\nima = true\n{}", text.replace("ima = true\n", ""))).unwrap();
    assert_eq!(policy.digest(), same.digest());
    let other = Policy::from_toml(&text.replace("ima = true", "ima = false")).unwrap();
    assert_ne!(policy.digest(), other.digest());

    let host = Host::good();
    let values = host.reference();
    let (signed, _) = signed(&host, &signer());
    assert_eq!(values.digest(), signed.digest());
    let text = values.to_toml().unwrap();
    let later = ReferenceValues::from_toml(&text.replacen("name =", "version = 1\nname =", 1)).unwrap();
    assert_ne!(values.digest(), later.digest());
    assert_eq!((values.version(), later.version()), (0, 1));
}

/// The host's policy with these lines more.
pub(super) fn demand(host: &mut Host, more: &str) {
    host.policy = Policy::from_toml(&format!("{}{more}\n", super::host::POLICY)).unwrap();
}

/// The good host in another firmware or boot, with reference values that accept it: only the policy can object.
pub(super) fn host_with(change: impl FnOnce(&mut LogBuilder)) -> Host {
    let mut host = Host::good();
    change(&mut host.log);
    host.accept_log();
    host
}

/// Replaces the event that has `needle` in it by the first event of another log.
pub(super) fn replace(log: &mut LogBuilder, needle: &[u8], build: impl FnOnce(&mut LogBuilder)) {
    let mut other = LogBuilder::new(&super::host::BANKS);
    build(&mut other);
    let at = log.position(needle);
    log.events[at] = other.events.remove(0);
}

pub(super) fn sha256(content: &[u8]) -> String {
    hex::encode(Bank::Sha256.hash(content))
}

/// DER enough to be told from other content.
pub(super) const CERTIFICATE: &[u8] = &[0x30, 0x03, 0x02, 0x01, 0x05];

pub(super) fn authority(log: &mut LogBuilder, name: &str, entry: &[u8]) {
    let content = variable(Guid::IMAGE_SECURITY, name, &[&[7; 16], entry].concat());
    log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &content);
}

#[test]
fn only_the_policys_signers_may_have_verified_anything() {
    let good = || host_with(|log| replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE)));
    let mut host = good();
    demand(&mut host, &format!("boot_signers = [\"{}\"]", sha256(CERTIFICATE)));
    host.appraise().unwrap();
    let policy = host.policy.clone();

    demand(&mut host, &format!("boot_signers = [\"{}\"]", sha256(b"another certificate")));
    assert_eq!(host.codes(), [Code::PolicyBootSigner]);
    assert!(host.denied()[0].found.as_ref().unwrap().contains(&sha256(CERTIFICATE)));
    // One more beside the right one.
    for entry in [&[0x30, 0x03, 0x02, 0x01, 0x06][..], &[9; 32], b"no certificate"] {
        let mut host = host_with(|log| {
            replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE));
            authority(log, "db", entry);
        });
        host.policy = policy.clone();
        assert_eq!(host.codes(), [Code::PolicyBootSigner], "{entry:02x?}");
    }
    // Nothing that can be read, and nothing at all.
    let mut host = Host::good();
    host.policy = policy.clone();
    assert_eq!(host.codes(), [Code::PolicyBootSigner]);
    let mut host = host_with(|log| {
        replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE));
        replace(log, &variable(Guid::GLOBAL, "SecureBoot", &[1]), |log| {
            log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::GLOBAL, "SecureBoot", &[0]));
        });
    });
    host.policy = Policy { secure_boot: false, ..policy };
    assert_eq!(host.codes(), [Code::PolicyBootSigner]);
}

/// The log shows the policy's signer beside the digest of another one.
#[test]
fn n50_an_authority_that_no_digest_covers_is_nobodys() {
    let mut host = host_with(|log| replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE)));
    let signers = format!("boot_signers = [\"{}\"]", sha256(CERTIFICATE));
    demand(&mut host, &signers);
    host.appraise().unwrap();
    let shown = variable(Guid::IMAGE_SECURITY, "db", &[&[7; 16], CERTIFICATE].concat());
    // Old versions of shim log a byte more, which may be covered or not.
    for shown in [shown.clone(), [&shown[..], &[0]].concat()] {
        let mut host = host_with(|log| {
            replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE));
            log.measure(7, EventType::EFI_VARIABLE_AUTHORITY, &shown, b"another signer");
        });
        // Such an event could be a setting of shim's, too; the rule on signers is judged by itself here.
        host.policy.shim.validation = false;
        host.appraise().unwrap();
        demand(&mut host, &signers);
        host.policy.shim.validation = false;
        assert_eq!(host.codes(), [Code::PolicyBootSigner]);
    }
}

/// An authority whose log entry says that it is shim's own state, which verifies nothing: no digest covers that.
#[test]
fn n46_an_authority_is_not_hidden_as_shims_state() {
    let mut host = host_with(|log| {
        replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE));
        let state = variable(Guid::SHIM_LOCK, "SbatLevel", b"sbat,1,2022111500\n");
        let hidden = variable(Guid::IMAGE_SECURITY, "db", &[&[7; 16][..], &[0x30, 3, 2, 1, 6]].concat());
        log.measure(7, EventType::EFI_VARIABLE_AUTHORITY, &state, &hidden);
    });
    let shim = "[shim]\nvalidation = false";
    demand(&mut host, shim);
    host.appraise().unwrap();
    demand(&mut host, &format!("boot_signers = [\"{}\"]\n{shim}", sha256(CERTIFICATE)));
    assert_eq!(host.codes(), [Code::PolicyBootSigner]);
}

/// Of what GRUB read only the content is measured: a kernel that is called an initrd is a kernel all the same.
#[test]
fn n46_a_kernel_is_not_hidden_as_another_file() {
    let kernels = format!("kernels = [\"{}\", \"{}\"]", sha256(b"the kernel"), sha256(b"kernel image"));
    let with = |label: &'static [u8]| {
        let mut host = host_with(|log| {
            replace(log, &Bank::Sha256.hash(b"the kernel"), |log| {
                log.measure(9, EventType::IPL, label, b"an old kernel");
            });
        });
        host.appraise().unwrap();
        demand(&mut host, &kernels);
        host
    };
    assert_eq!(with(b"/vmlinuz\0").codes(), [Code::PolicyKernel]);
    assert_eq!(with(b"/initrd-6.1\0").codes(), [Code::PolicyKernel]);
}

/// GRUB starts a unified kernel image: it reads a file that is called none of a kernel's names, measures no command line,
/// and the firmware loads the image, whose stub measures its sections into PCR 11.
fn chain_loaded(change: impl FnOnce(&mut LogBuilder)) -> Host {
    const UKI: &str = "/EFI/Linux/debian.efi";
    let mut host = Host::good();
    let of_kernel = [&b"linux /vmlinuz"[..], b"kernel_cmdline", b"initrd /initrd", b"/vmlinuz\0", b"/initrd\0"];
    host.log.events.retain(|event| !of_kernel.iter().any(|part| event.windows(part.len()).any(|bytes| bytes == *part)));
    host.log.grub("grub_cmd", &format!("chainloader {UKI}"));
    host.log.measure(9, EventType::IPL, format!("{UKI}\0").as_bytes(), b"the whole file");
    for (name, content) in [(".linux", &b"the kernel"[..]), (".cmdline", b"quiet")] {
        let label = crate::eventlog::log_builder::utf16(&format!("{name}\0"));
        host.log.measure(11, EventType::IPL, &label, format!("{name}\0").as_bytes());
        host.log.measure(11, EventType::IPL, &label, content);
    }
    change(&mut host.log);
    host.selection.get_mut(&Bank::Sha256).unwrap().push(11);
    host.selection.get_mut(&Bank::Sha384).unwrap().push(11);
    host.accept_log();
    host
}

#[test]
fn a_unified_image_that_grub_started_is_judged_as_the_kernel() {
    let (section, image) = (sha256(b"the kernel"), sha256(b"kernel image"));
    let mut host = chain_loaded(|_| ());
    host.appraise().unwrap();
    demand(&mut host, &format!("kernels = [\"{section}\", \"{image}\"]"));
    host.appraise().unwrap();
    for (kernels, pcr) in [(&section, 4), (&image, 11)] {
        demand(&mut host, &format!("kernels = [\"{kernels}\"]"));
        assert_eq!(host.codes(), [Code::PolicyKernel]);
        assert_eq!(host.denied()[0].pcr, Some(pcr));
    }
    // A kernel that GRUB started itself, under another file's name: it got a command line. Or GRUB's texts do not show
    // what it started.
    for hidden in [
        (|log| _ = log.grub("kernel_cmdline", "/evil quiet")) as fn(&mut LogBuilder),
        |log| _ = log.grub("grub_cmd", "/evil quiet"),
        |log| _ = log.measure(8, EventType::IPL, b"boot", b"/evil quiet"),
        |log| _ = log.grub("grub_cmd", "2048+20000 quiet"),
        |log| replace(log, b"grub_cmd: chainloader", |log| _ = log.grub("grub_cmd", "boot")),
    ] {
        let mut host = chain_loaded(hidden);
        host.appraise().unwrap();
        demand(&mut host, &format!("kernels = [\"{section}\", \"{image}\"]"));
        assert_eq!(host.codes(), [Code::PolicyKernel]);
        assert_eq!(host.denied()[0].pcr, Some(9));
    }
    // No image was started, whatever GRUB's command says.
    let mut host = chain_loaded(|log| {
        log.events.retain(|event| {
            let digests = [&b"shim"[..], b"grub", b"kernel image"].map(|image| Bank::Sha256.hash(image));
            !digests.iter().any(|digest| event.windows(32).any(|bytes| bytes == digest))
        });
    });
    demand(&mut host, &format!("kernels = [\"{section}\"]"));
    assert_eq!(host.codes(), [Code::PolicyKernel]);
}

#[test]
fn a_kernel_is_one_of_the_policys() {
    let mut host = Host::good();
    let (file, image) = (sha256(b"the kernel"), sha256(b"kernel image"));
    demand(&mut host, &format!("kernels = [\"{file}\", \"{image}\"]"));
    host.appraise().unwrap();
    demand(&mut host, &format!("kernels = [\"{image}\"]"));
    assert_eq!(host.codes(), [Code::PolicyKernel]);
    let reason = &host.denied()[0];
    assert_eq!((reason.pcr, reason.expected.as_deref()), (Some(9), Some(&*image)));
    demand(&mut host, &format!("kernels = [\"{file}\"]"));
    assert_eq!(host.denied()[0].pcr, Some(4));
    // A boot that shows no kernel at all.
    let mut host = host_with(|log| {
        log.events.retain(|event| {
            ![&b"kernel image"[..], b"shim", b"grub", b"the kernel"].iter().any(|image| {
                let digest = Bank::Sha256.hash(image);
                event.windows(32).any(|window| window == digest)
            })
        });
    });
    host.appraise().unwrap();
    demand(&mut host, &format!("kernels = [\"{file}\"]"));
    assert_eq!(host.codes(), [Code::PolicyKernel]);
    // And nothing that GRUB could have read.
    host.log.events.retain(|event| event[0] != 9);
    host.accept_log();
    assert_eq!(host.denied()[0].found.as_deref(), Some("no kernel was measured"));
    host.policy.kernels.clear();
    host.appraise().unwrap();
    for wrong in [&file[..62], ""] {
        assert!(Policy::from_toml(&format!("{}kernels = [\"{wrong}\"]", super::host::POLICY)).is_err());
    }
}

#[test]
fn the_command_line_is_judged_argument_by_argument() {
    let mut host = Host::good();
    for rules in ["require = [\"quiet\"]", "allow = [\"console\", \"quiet\"]", "forbid = [\"init\", \"/vmlinuz\"]"] {
        demand(&mut host, &format!("[command_line]\n{rules}"));
        host.appraise().unwrap();
    }
    for rules in ["require = [\"lockdown=integrity\"]", "allow = [\"console\"]", "forbid = [\"console=ttyS0\"]"] {
        demand(&mut host, &format!("[command_line]\n{rules}"));
        assert_eq!(host.codes(), [Code::PolicyCommandLine], "{rules}");
        assert_eq!(host.denied()[0].pcr, Some(8));
    }
    // Of several lines each must hold, whichever kernel was started.
    let mut host = host_with(|log| {
        log.grub("kernel_cmdline", "/vmlinuz init=/bin/sh");
    });
    demand(&mut host, "[command_line]\nforbid = [\"init\"]");
    assert_eq!(host.codes(), [Code::PolicyCommandLine]);
    // Without any, nothing shows that what is required is there.
    let mut host = host_with(|log| {
        let at = log.position(b"kernel_cmdline");
        log.events.remove(at);
    });
    demand(&mut host, "[command_line]\nforbid = [\"init\"]");
    assert_eq!(host.codes(), [Code::PolicyCommandLine]);
}

/// A command line that no reference value lists passes only by a policy that says what is allowed.
#[test]
fn n51_a_command_line_passes_by_rule_only_as_far_as_the_policy_lists_what_is_allowed() {
    let mut host = Host::good();
    let values = host.reference().to_toml().unwrap();
    let by_rule = values
        .replace("text = [\"/vmlinuz console=ttyS0 quiet\"]", "rule = \"command-line\"\nreason = \"roots differ\"");
    assert_ne!(values, by_rule);
    host.references = vec![ReferenceValues::from_toml(&by_rule).unwrap()];
    demand(&mut host, "[command_line]\nallow = [\"console\", \"quiet\"]");
    host.appraise().unwrap();
    for rules in ["", "[command_line]\nrequire = [\"quiet\"]", "[command_line]\nforbid = [\"init\"]"] {
        demand(&mut host, rules);
        assert_eq!(host.codes(), [Code::EventlogCommandLine], "{rules}");
    }
    demand(&mut host, "[command_line]\nallow = [\"quiet\"]");
    let codes = host.codes();
    assert!(codes.contains(&Code::EventlogCommandLine) && codes.contains(&Code::PolicyCommandLine), "{codes:?}");
}

#[test]
fn n61_what_the_policy_wants_revoked_is_revoked() {
    let revoked: Vec<u8> = [1_u8, 2].iter().flat_map(|image| [*image; 32]).collect();
    let lists = |digests: &[u8]| {
        let kind = [0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28];
        let entries: Vec<u8> = digests.chunks(32).flat_map(|digest| [&[7; 16], digest].concat()).collect();
        let size = u32::try_from(entries.len() + 28).unwrap().to_le_bytes();
        [&kind[..], &size, &[0; 4], &48_u32.to_le_bytes(), &entries].concat()
    };
    let with = |digests: &[u8]| {
        let content = [lists(digests), signature_list(CERTIFICATE)].concat();
        host_with(|log| {
            replace(log, &variable(Guid::IMAGE_SECURITY, "dbx", &[]), |log| {
                log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::IMAGE_SECURITY, "dbx", &content));
            });
        })
    };
    let demands =
        format!("[dbx]\nminimum = [\"{}\", \"{}\", \"{}\"]", "01".repeat(32), "02".repeat(32), sha256(CERTIFICATE));
    let mut host = with(&revoked);
    demand(&mut host, &demands);
    host.appraise().unwrap();
    let mut host = with(&revoked[..32]);
    demand(&mut host, &demands);
    assert_eq!(host.codes(), [Code::PolicyDbx]);
    assert!(host.denied()[0].expected.as_ref().unwrap().contains(&"02".repeat(32)));
    let mut host = Host::good();
    demand(&mut host, &demands);
    assert_eq!(host.denied()[0].found.as_deref(), Some("3 of 3 are not revoked"));
}

#[test]
fn firmware_is_what_the_policy_says() {
    let mut host = Host::good();
    demand(&mut host, "[firmware]\ndma_protection = true\nversions = [\"EDK II 2022.11\"]\noption_roms = []");
    host.appraise().unwrap();
    demand(&mut host, "[firmware]\nversions = [\"EDK II 2023.05\"]");
    assert_eq!(host.codes(), [Code::PolicyFirmwareVersion]);

    let mut host = host_with(|log| {
        log.event(7, EventType::EFI_ACTION, b"DMA Protection Disabled");
    });
    host.appraise().unwrap();
    demand(&mut host, "[firmware]\ndma_protection = true");
    assert_eq!(host.codes(), [Code::PolicyDmaProtection]);

    let mut host = host_with(|log| {
        log.measure(2, EventType::EFI_BOOT_SERVICES_DRIVER, &[0; 32], b"network card");
    });
    host.appraise().unwrap();
    demand(&mut host, &format!("[firmware]\noption_roms = [\"{}\"]", sha256(b"network card")));
    host.appraise().unwrap();
    demand(&mut host, "[firmware]\noption_roms = []");
    assert_eq!(host.codes(), [Code::PolicyOptionRom]);
}

/// The quote covers PCRs 16 and 23, which any program can reset: what stands in them says nothing of the boot.
#[test]
fn n15_resettable_pcrs_prove_nothing() {
    let mut host = Host::good();
    for pcr in [16, 23] {
        host.selection.get_mut(&Bank::Sha256).unwrap().push(pcr);
    }
    host.appraise().unwrap();
    // Reference values cannot rest on them, though the log leads to what was quoted.
    for pcr in [16_u8, 23] {
        let mut host = host_with(|log| {
            log.measure(pcr.into(), EventType::IPL, b"good state", b"good state");
        });
        for pcrs in host.selection.values_mut() {
            pcrs.push(pcr);
        }
        assert_eq!(host.codes(), [Code::EventlogEventUnexpected], "PCR {pcr}");
        // Quoted in another bank only, they are not judged at all.
        host.selection.get_mut(&Bank::Sha256).unwrap().pop();
        assert_eq!(host.codes(), [Code::PolicyPcr], "PCR {pcr}");
        let slot = format!(
            "schema = \"portcullis/reference/1\"\nname = \"x\"\n[[event]]\npcr = {pcr}\ntype = \"EV_IPL\"\nwhat = \"state\"\n\
             text = [\"good state\"]\n"
        );
        assert!(ReferenceValues::from_toml(&slot).is_err(), "PCR {pcr}");
    }
}
