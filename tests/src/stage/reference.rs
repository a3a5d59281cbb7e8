//! Reference values of the demonstration: from what was put on the image and from a recorded good boot of the firmware.
//! The host that is judged by them has no part in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use portcullis_attest::eventlog::{Event, EventLog};
use portcullis_attest::key::Bank;
use portcullis_attest::reference::signature::ReferenceSigner;
use portcullis_attest::reference::{ReferenceBuilder, Slot};
use portcullis_firmware_fixtures::lab::image::Image;
use portcullis_firmware_fixtures::lab::manifest::{Digests, GrubEvent, Manifest};
use portcullis_firmware_fixtures::lab::record::Recording;
use portcullis_verifier::service::authority;

use crate::Trouble;

/// What the verifier of the demonstration demands, before the keys of those whose reference values it believes.
const POLICY: &str = "schema = \"portcullis/policy/1\"
name = \"lab\"
bank = \"sha256\"
secure_boot = true
ima = true
references = [\"lab-host\"]
hosts = [\"*\"]
";

/// PCRs of which the firmware and shim measure all, whatever is on the disk.
const FIRMWARE: [u8; 8] = [0, 1, 2, 3, 5, 6, 7, 14];
const BANKS: [Bank; 2] = [Bank::Sha256, Bank::Sha384];

/// Writes the reference values, the signature beside them, and the policy that believes only this signer. Its key is made
/// here and gone when this returns: whoever takes the verifier's machine over cannot sign other values.
pub fn write(values: &str, reference: &Path, policy: &Path) -> Result<(), Trouble> {
    let words = |e: &dyn std::fmt::Display| Trouble::Step(format!("signing reference values: {e}"));
    let key = authority::make_key().map_err(|e| words(&e))?;
    let signer = ReferenceSigner::from_pem(&key).map_err(|e| words(&e))?;
    let jws = signer.sign(values.as_bytes()).map_err(|e| words(&e))?;
    let public = signer.public_pem().map_err(|e| words(&e))?;
    fs::write(reference, values)?;
    fs::write(reference.with_added_extension("sig"), jws + "\n")?;
    Ok(fs::write(policy, format!("{POLICY}reference_signers = [\"\"\"\n{public}\"\"\"]\n"))?)
}

/// Reference values for hosts that boot `image`, as TOML.
pub fn values(name: &str, image: &Image, recording: &Recording) -> Result<String, Trouble> {
    let words = |e: &dyn std::fmt::Display| Trouble::Step(format!("reference values: {e}"));
    let log = EventLog::parse(&recording.event_log).map_err(|e| words(&e))?;
    let mut builder = ReferenceBuilder::new(name, "the lab's image, and its firmware's recorded good boot");
    builder.recorded(&log, &BANKS, &FIRMWARE);
    boot_programs(&mut builder, &log, &recording.manifest, &image.manifest)?;
    for pcr in [8, 9] {
        grub(&mut builder, &log, pcr, &recording.manifest, &image.manifest)?;
    }
    for (path, accepted) in &image.manifest.executables {
        for sha256 in accepted {
            builder.ima(path, &array(sha256)?);
        }
    }
    builder.build().and_then(|values| values.to_toml()).map_err(|e| words(&e))
}

fn array(hex_text: &str) -> Result<[u8; 32], Trouble> {
    let mut digest = [0; 32];
    hex::decode_to_slice(hex_text, &mut digest).map_err(|e| Trouble::Step(format!("{hex_text:?}: {e}")))?;
    Ok(digest)
}

fn both(digests: &Digests) -> Result<BTreeMap<Bank, Vec<Vec<u8>>>, Trouble> {
    let decode = |text: &str| hex::decode(text).map_err(|e| Trouble::Step(format!("{text:?}: {e}")));
    Ok(BTreeMap::from([(Bank::Sha256, vec![decode(&digests.sha256)?]), (Bank::Sha384, vec![decode(&digests.sha384)?])]))
}

fn recorded(event: &Event<'_>, pcr: u8, what: &str) -> Slot {
    let digests = event.digests.iter().filter(|(bank, _)| BANKS.contains(bank));
    let digests = digests.map(|(bank, digest)| (bank, vec![digest.to_vec()])).collect();
    Slot { digests, ..Slot::new(pcr, event.event_type, what) }
}

/// PCR 4: in place of the recorder's boot programs, those of the image, by what the build computed of their files.
fn boot_programs(
    builder: &mut ReferenceBuilder,
    log: &EventLog<'_>,
    theirs: &Manifest,
    ours: &Manifest,
) -> Result<(), Trouble> {
    let programs = [
        ("boot loader (shim)", &theirs.shim, &ours.shim),
        ("boot loader (GRUB)", &theirs.grub, &ours.grub),
        ("kernel", &theirs.kernel, &ours.kernel),
    ];
    // The kernel is measured twice: when GRUB has shim verify it, and when it is started.
    let mut seen = [false; 3];
    for event in log.events().iter().filter(|event| event.extends() && event.pcr == 4) {
        let sha256 = event.digests.get(Bank::Sha256).map(hex::encode).unwrap_or_default();
        let Some(index) = programs.iter().position(|(_, theirs, _)| theirs.authenticode.sha256 == sha256) else {
            builder.slot(recorded(event, 4, &log.describe(event).words));
            continue;
        };
        let (what, _, ours) = programs[index];
        seen[index] = true;
        let mut slot = recorded(event, 4, what);
        slot.digests = both(&ours.authenticode)?;
        builder.slot(slot);
    }
    match seen.iter().position(|seen| !seen) {
        Some(missing) => {
            Err(Trouble::Step(format!("the recorded boot does not show the {} that was built", programs[missing].0)))
        }
        None => Ok(()),
    }
}

/// PCRs 8 and 9: what GRUB has built in as recorded; from `grub.cfg` on, what the build put on the image.
fn grub(
    builder: &mut ReferenceBuilder,
    log: &EventLog<'_>,
    pcr: u8,
    theirs: &Manifest,
    ours: &Manifest,
) -> Result<(), Trouble> {
    let of_pcr = |manifest: &Manifest| -> Vec<GrubEvent> {
        manifest.grub_events.iter().filter(|event| event.pcr == u32::from(pcr)).cloned().collect()
    };
    let events: Vec<&Event<'_>> =
        log.events().iter().filter(|event| event.extends() && event.pcr == u32::from(pcr)).collect();
    let own = of_pcr(theirs);
    let built_in = events.len().checked_sub(own.len());
    let (built_in, tail) = built_in.map(|n| events.split_at(n)).ok_or_else(|| {
        Trouble::Step(format!(
            "the recorded boot has {} events in PCR {pcr}, its image made {}",
            events.len(),
            own.len()
        ))
    })?;
    // The recording must end as its own image says, or the split would be in the wrong place.
    for (event, expected) in tail.iter().zip(&own) {
        let found = event.digests.get(Bank::Sha256).map(hex::encode).unwrap_or_default();
        if found != expected.digests.sha256 {
            return Err(Trouble::Step(format!(
                "the recorded boot has {} in PCR {pcr} where its image made {:?}",
                log.describe(event).words,
                expected.text
            )));
        }
    }
    for event in built_in {
        let words = match event.grub_text() {
            Some(text) => format!("GRUB command: {text}"),
            None => log.describe(event).words,
        };
        builder.slot(recorded(event, pcr, &words));
    }
    for event in of_pcr(ours) {
        builder.slot(image_slot(&event)?);
    }
    Ok(())
}

fn image_slot(event: &GrubEvent) -> Result<Slot, Trouble> {
    if let Some(command) = event.text.strip_prefix("grub_cmd: ") {
        return Ok(Slot::grub_command(command));
    }
    if let Some(line) = event.text.strip_prefix("kernel_cmdline: ") {
        return Ok(Slot::kernel_command_line(line));
    }
    let what = match event.text.rsplit('/').next() {
        Some("initrd") => "initrd",
        Some("vmlinuz") => "kernel file",
        _ => "GRUB configuration file",
    };
    let mut slot = Slot::grub_file(what, &array(&event.digests.sha256)?);
    slot.digests = both(&event.digests)?;
    Ok(slot)
}
