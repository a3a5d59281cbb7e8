//! Agreement with tpm2-tools, which share no code with this crate: what they make verifies here, what is made here passes
//! there.

mod swtpm;

use std::path::Path;
use std::process::Command;

use portcullis_attest::binding::Purpose;
use portcullis_attest::endorsement::make_credential;
use portcullis_attest::evidence::{PcrValues, SignedQuote};
use portcullis_attest::key::{Bank, EnrolledAk, PublicArea};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::tpm::Tpm;
use portcullis_firmware_fixtures::tpm::Swtpm;
use swtpm::{Host, binding, evidence, selection};

/// tpm2-tools at work in one directory on one TPM.
struct Tools<'a> {
    dir: &'a Path,
    tcti: String,
}

impl<'a> Tools<'a> {
    fn new(swtpm: &'a Swtpm) -> Self {
        Self { dir: swtpm.dir(), tcti: swtpm.tcti() }
    }

    /// Runs a program and says whether it succeeded; on failure with what it printed.
    fn try_run(&self, command: &str) -> Result<(), String> {
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        let output = Command::new(program)
            .args(words)
            .current_dir(self.dir)
            .env("TPM2TOOLS_TCTI", &self.tcti)
            .output()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error} (scripts/install-packages installs it)"));
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "{command}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    fn run(&self, command: &str) {
        self.try_run(command).unwrap();
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.dir.join(file), bytes).unwrap();
    }

    /// Frees what a tool left in the TPM, as a resource manager would.
    fn flush(&self) {
        self.run("tpm2_flushcontext -t");
        self.run("tpm2_flushcontext -s");
    }
}

#[test]
fn tpm2_quotes_verify_here() {
    let swtpm = Swtpm::new().unwrap();
    let tools = Tools::new(&swtpm);
    tools.run("tpm2_createek -c ek.ctx -G rsa -u ek.pub");
    tools.flush();
    let asked = binding(Purpose::Attest);
    let nonce = hex::encode(asked.extra_data());
    for (algorithm, hash, scheme) in [
        ("ecc", "sha256", "ecdsa"),
        ("rsa", "sha256", "rsassa"),
        ("rsa", "sha256", "rsapss"),
        ("rsa", "sha384", "rsassa"),
    ] {
        let what = format!("{algorithm} {scheme} {hash}");
        tools.run(&format!("tpm2_createak -C ek.ctx -c ak.ctx -G {algorithm} -g {hash} -s {scheme} -u ak.pub"));
        tools.flush();
        tools.run(&format!(
            "tpm2_quote -c ak.ctx -l sha256:0,1,7,9+sha384:2,14 -q {nonce} -m message -s signature -g {hash} --scheme {scheme}"
        ));
        tools.flush();
        let area = |file| PublicArea::parse_tpm2b(&tools.read(file)).unwrap().bytes().to_vec();
        let ak = EnrolledAk::new(&area("ak.pub"), &area("ek.pub")).unwrap_or_else(|bad| panic!("{what}: {bad:?}"));
        // A TPM that no firmware has used yet.
        let zeros =
            |bank: Bank, pcrs: &[u8]| (bank, pcrs.iter().map(|pcr| (*pcr, vec![0; bank.digest_size()])).collect());
        let pcrs: PcrValues = [zeros(Bank::Sha256, &[0, 1, 7, 9]), zeros(Bank::Sha384, &[2, 14])].into();
        let quote = SignedQuote { message: tools.read("message"), signature: tools.read("signature"), pcrs };
        let verified = VerifiedQuote::verify(&evidence(&asked, vec![quote]), &ak, &asked);
        assert!(verified.is_ok(), "{what}: {verified:?}");
    }
}

#[test]
fn our_quotes_pass_tpm2_checkquote() {
    let mut host = Host::new();
    let asked = binding(Purpose::Attest);
    let quote = host.tpm.quote(&asked, &selection()).unwrap();
    let tools = Tools::new(&host.swtpm);
    tools.write("ak.pub", &PublicArea::parse(&host.ak_blob.public).unwrap().to_tpm2b());
    tools.write("message", &quote.message);
    tools.write("signature", &quote.signature);
    let check = |nonce: &[u8]| {
        let nonce = hex::encode(nonce);
        tools.try_run(&format!("tpm2_checkquote -u ak.pub -m message -s signature -g sha256 -q {nonce}"))
    };
    check(&asked.extra_data()).unwrap();
    check(&[0; 32]).unwrap_err();
}

#[test]
fn credentials_open_with_keys_of_every_kind() {
    let swtpm = Swtpm::new().unwrap();
    let tools = Tools::new(&swtpm);
    for (algorithm, hash) in [
        ("ecc256:aes128cfb", "sha256"),
        ("ecc384:aes256cfb", "sha384"),
        ("rsa2048:aes128cfb", "sha256"),
        ("rsa3072:aes256cfb", "sha384"),
    ] {
        tools.run(&format!("tpm2_createprimary -C o -G {algorithm} -g {hash} -c storage.ctx"));
        tools.flush();
        tools.run("tpm2_readpublic -c storage.ctx -o storage.pub");
        tools.flush();
        tools.run("tpm2_create -C storage.ctx -G ecc256:ecdsa-sha256 -u key.pub -r key.priv -c key.ctx");
        tools.flush();
        let area = |file| PublicArea::parse_tpm2b(&tools.read(file)).unwrap();
        let secret = [0x17; 32];
        let made = make_credential(area("storage.pub").bytes(), &area("key.pub").name(), &secret).unwrap();
        // The file format of tpm2_makecredential: a magic number, a version, and both structures.
        let header = [0xBADC_C0DE_u32.to_be_bytes(), 1_u32.to_be_bytes()].concat();
        tools.write("credential", &[header, made.blob, made.secret].concat());
        tools.run("tpm2_activatecredential -c key.ctx -C storage.ctx -i credential -o opened");
        tools.flush();
        assert_eq!(tools.read("opened"), secret, "{algorithm}");
    }
}

#[test]
fn our_endorsement_key_is_the_one_that_tpm2_createek_makes() {
    let swtpm = Swtpm::new().unwrap();
    let tools = Tools::new(&swtpm);
    tools.run("tpm2_createek -c ek.ctx -G rsa -u ek.pub");
    tools.flush();
    let theirs = PublicArea::parse_tpm2b(&tools.read("ek.pub")).unwrap();
    // Once as it was provisioned in the TPM, once made from the template.
    assert_eq!(Tpm::open(&swtpm.tcti()).unwrap().ek_public().unwrap(), theirs.bytes());
    tools.run("tpm2_evictcontrol -C o -c 0x81010001");
    assert_eq!(Tpm::open(&swtpm.tcti()).unwrap().ek_public().unwrap(), theirs.bytes());
    let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
    for _ in 0..3 {
        let ak = tpm.create_ak().unwrap();
        tpm.load_ak(&ak).unwrap();
        tpm.null_parent().unwrap();
        let enrolled = EnrolledAk::new(&ak.public, theirs.bytes()).unwrap();
        let credential = make_credential(theirs.bytes(), enrolled.name(), b"secret").unwrap();
        assert_eq!(tpm.activate_credential(&credential.blob, &credential.secret).unwrap().as_slice(), b"secret");
    }
}
