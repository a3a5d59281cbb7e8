//! `portcullis-lab record`: boots hosts and keeps what they measured, for unit tests that need no lab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program, Variant};
use portcullis_firmware_fixtures::lab::machine::Firmware;

use crate::Failure;

const LIMIT: Duration = Duration::from_secs(30);
/// What the recorded quotes answer to.
const NONCE: &str = "portcullis recorded boot";

#[derive(Args)]
pub(crate) struct Arguments {
    /// The directory to write to; each boot gets a directory in it.
    #[arg(long)]
    out: PathBuf,
    /// Only these boots; all when not given.
    #[arg(long)]
    only: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let tools = Program { path: "/usr/bin/tpm2".to_owned(), source: PathBuf::from("/usr/bin/tpm2") };
    let good = ImageSpec { programs: vec![tools], ..ImageSpec::default() };
    let boots = [
        ("secure-boot", good.clone(), None),
        ("tampered", good.with(Variant::Cmdline("mitigations=off".to_owned())), None),
        ("secure-boot-off", good.with(Variant::SecureBootOff), None),
        ("direct", good.clone(), Some(Firmware::Direct)),
        ("seabios", good.clone(), Some(Firmware::SeaBios)),
    ];
    for (name, spec, firmware) in boots {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            let dir = arguments.out.join(name);
            std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
            record(name, &spec, firmware, &dir).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

fn record(name: &str, spec: &ImageSpec, firmware: Option<Firmware>, dir: &Path) -> Result<(), Failure> {
    let image = Image::build(spec)?;
    let mut host = HostSpec::new(name, &image);
    host.firmware = firmware.unwrap_or(host.firmware);
    eprintln!("record: booting {name} ({:?})", host.firmware);
    let start = Instant::now();
    let mut host = Host::boot(host)?;
    eprintln!("record: {name} is up after {:.1} s", start.elapsed().as_secs_f64());

    let keep = |file: &str, contents: &[u8]| {
        let path = dir.join(file);
        std::fs::write(&path, contents).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    let tpm2 = |command: &str| format!("cd /run && /usr/bin/tpm2 {command} -T device:/dev/tpmrm0 >/dev/null");
    for command in [
        "createek -c ek.ctx -G rsa -f tss -u ek.pub",
        "createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -f tss -u ak.pub -n ak.name",
    ] {
        host.must_run(&tpm2(command), LIMIT)?;
    }
    // Everything that the following commands run has been listed by now; look all the same.
    let ima_list = "/sys/kernel/security/ima/binary_runtime_measurements";
    let quote = tpm2(&format!(
        "quote -c ak.ctx -l sha256:0,1,2,3,4,5,6,7,8,9,10,14+sha384:0,1,2,3,4,5,6,7,8,9,14 -q {} -g sha256 \
         -m quote.msg -s quote.sig",
        hex::encode(NONCE)
    ));
    for attempt in 0.. {
        let before = host.read_file(ima_list)?;
        host.must_run(&quote, LIMIT)?;
        let pcrs =
            host.must_run("/usr/bin/tpm2 pcrread -T device:/dev/tpmrm0 sha1:all+sha256:all+sha384:all", LIMIT)?;
        if host.read_file(ima_list)? == before {
            keep("ima.bin", &before)?;
            keep("pcrs.json", (serde_json::to_string_pretty(&pcr_values(&pcrs))? + "\n").as_bytes())?;
            break;
        }
        if attempt == 5 {
            return Err("the IMA list does not stand still".into());
        }
    }
    keep("eventlog.bin", &host.read_file("/sys/kernel/security/tpm0/binary_bios_measurements")?)?;
    for file in ["quote.msg", "quote.sig", "ek.pub", "ak.pub", "ak.name"] {
        keep(file, &host.read_file(&format!("/run/{file}"))?)?;
    }
    keep("ek.crt", &host.tpm().ek_certificate_der()?)?;
    keep("vendor.pem", host.tpm().vendor().chain_pem()?.as_bytes())?;
    keep("manifest.json", (serde_json::to_string_pretty(&image.manifest)? + "\n").as_bytes())?;
    host.power_off()?;
    Ok(())
}

/// Bank → index → value in hex, from what `tpm2 pcrread` prints.
fn pcr_values(text: &str) -> BTreeMap<String, BTreeMap<u32, String>> {
    let mut banks: BTreeMap<String, BTreeMap<u32, String>> = BTreeMap::new();
    let mut bank = String::new();
    for (name, value) in text.lines().filter_map(|line| line.trim().split_once(':')) {
        match (name.trim().parse::<u32>(), value.trim().strip_prefix("0x")) {
            (Ok(index), Some(value)) => {
                banks.entry(bank.clone()).or_default().insert(index, value.to_ascii_lowercase());
            }
            _ => name.trim().clone_into(&mut bank),
        }
    }
    banks
}
