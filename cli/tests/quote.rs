//! `portcullis quote check` against what tpm2-tools, which share no code with this project, make on a software TPM.

mod program;

use std::path::Path;
use std::process::Command;

use portcullis_firmware_fixtures::tpm::Swtpm;
use program::json;
use serde_json::Value;

const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A software TPM with an endorsement key, and tpm2-tools in its directory.
struct Bench {
    swtpm: Swtpm,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { swtpm: Swtpm::new().unwrap() };
        bench.tool("tpm2_pcrextend 7:sha256=1111111111111111111111111111111111111111111111111111111111111111");
        bench.tool("tpm2_createek -c ek.ctx -G rsa -u ek.pub");
        bench
    }

    fn dir(&self) -> &Path {
        self.swtpm.dir()
    }

    /// Runs one of tpm2-tools and frees what it left in the TPM, as a resource manager would.
    fn tool(&self, command: &str) {
        for command in [command, "tpm2_flushcontext -t", "tpm2_flushcontext -s"] {
            let mut words = command.split_whitespace();
            let program = words.next().unwrap();
            let output = Command::new(program)
                .args(words)
                .current_dir(self.dir())
                .env("TPM2TOOLS_TCTI", self.swtpm.tcti())
                .output()
                .unwrap_or_else(|error| {
                    panic!("cannot start {program}: {error} (scripts/install-packages installs it)")
                });
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// An attestation key in all the forms that the tools write, and a quote by it.
    fn quote(&self, algorithm: &str, hash: &str, scheme: &str, banks: &str, more: &str) {
        self.tool(&format!("tpm2_createak -C ek.ctx -c ak.ctx -G {algorithm} -g {hash} -s {scheme} -u ak.pub"));
        self.tool("tpm2_readpublic -c ak.ctx -f pem -o ak.pem");
        self.tool(&format!(
            "tpm2_quote -c ak.ctx -l {banks} -q {NONCE} -m message -s signature -o pcrs -g {hash} --scheme {scheme} {more}"
        ));
    }

    fn check(&self, more: &[&str], code: i32) -> Value {
        let files = ["--message", "message", "--signature", "signature", "--pcrs", "pcrs"];
        json(self.dir(), &[&["quote", "check"], &files[..], more].concat(), code)
    }

    fn change(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.dir().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }
}

const AK: [&str; 4] = ["--ak", "ak.pub", "--nonce", NONCE];
const WITH_EK: [&str; 6] = ["--ak", "ak.pub", "--ek", "ek.pub", "--nonce", NONCE];

fn names(value: &Value, list: &str) -> Vec<String> {
    value[list].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn quotes_of_every_kind_that_tpm2_quote_makes_hold() {
    let bench = Bench::new();
    let all = "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23";
    for (algorithm, hash, scheme, banks, more) in [
        ("ecc", "sha256", "ecdsa", "sha256:0,1,7,9".to_owned(), ""),
        ("rsa", "sha256", "rsassa", "sha256:0,1,7,9+sha384:2,14".to_owned(), "-F values"),
        ("rsa", "sha256", "rsapss", format!("sha384:3+sha256:{all}"), ""),
        ("rsa", "sha384", "rsassa", format!("sha1:{all}+sha256:{all}+sha384:{all}+sha512:{all}"), ""),
        ("ecc384", "sha384", "ecdsa", format!("sha512:17,18+sha1:0+sha256:{all}"), "-F values"),
        ("rsa", "sha256", "rsassa", "sha256:7".to_owned(), "-f plain"),
        ("ecc", "sha256", "ecdsa", "sha256:7".to_owned(), "-f plain -F values"),
    ] {
        bench.quote(algorithm, hash, scheme, &banks, more);
        let value = bench.check(&WITH_EK, 0);
        assert_eq!(names(&value, "caveats"), Vec::<String>::new(), "{banks}");
        assert_eq!((value["hash"].as_str(), value["restart_count"].as_u64()), (Some(hash), Some(0)), "{value}");
        if banks.contains(all) || banks.contains("sha256:0,1,7") || banks.contains("sha256:7") {
            let seven = value["pcrs"]["sha256"]["7"].as_str().unwrap();
            assert!(seven.len() == 64 && seven != "00".repeat(32), "{seven}");
        }
        assert_eq!(names(&bench.check(&AK, 0), "caveats"), ["parent-unknown"]);
        let pem = bench.check(&["--ak", "ak.pem", "--nonce", NONCE], 0);
        assert_eq!(names(&pem, "caveats"), ["attributes-unknown", "parent-unknown"]);
        assert_eq!(pem["pcrs"], value["pcrs"]);
    }
}

/// Keys of older machines are bound to SHA-1: the answer says so. By a bare key, which is bound to nothing, SHA-1 is refused.
#[test]
fn a_key_bound_to_sha1_is_named() {
    let bench = Bench::new();
    bench.quote("rsa", "sha1", "rsassa", "sha256:7", "");
    assert_eq!(names(&bench.check(&WITH_EK, 0), "caveats"), ["sha1"]);
    let bare = ["--ak", "ak.pem", "--nonce", NONCE];
    assert_eq!(names(&bench.check(&bare, 1), "reasons"), ["quote.signature-scheme"]);
    bench.quote("rsa", "sha256", "rsassa", "sha256:7", "");
    bench.check(&bare, 0);
}

#[test]
fn what_does_not_hold_is_a_no_with_its_reason() {
    let bench = Bench::new();
    let banks = "sha256:0,7+sha384:2";
    let genuine = || bench.quote("rsa", "sha256", "rsassa", banks, "");
    genuine();
    bench.check(&WITH_EK, 0);
    let denied = |arguments: &[&str]| names(&bench.check(arguments, 1), "reasons");
    // Another nonce, a part of it, and none.
    for nonce in [&NONCE.replace("00", "01"), &NONCE[..32], ""] {
        assert_eq!(denied(&["--ak", "ak.pub", "--nonce", nonce]), ["quote.nonce-mismatch"]);
    }
    // Another value, relabelled values (CVE-2024-29039), and values that the quote does not cover (CVE-2022-0317).
    let file = std::fs::read(bench.dir().join("pcrs")).unwrap();
    let first_value = 4 + 16 * 8 + 4 + 4 + 2;
    for change in [
        &|pcrs: &mut Vec<u8>| pcrs[first_value] ^= 1,
        &|pcrs: &mut Vec<u8>| pcrs[4 + 3] = 0b0000_0110,
        &|pcrs: &mut Vec<u8>| pcrs[4 + 3] = 0b0100_0001,
    ] as [&dyn Fn(&mut Vec<u8>); 3]
    {
        bench.change("pcrs", |pcrs| change(pcrs));
        let codes = denied(&AK);
        assert!(codes.iter().all(|code| code.starts_with("quote.pcr-")) && !codes.is_empty(), "{codes:?}");
        std::fs::write(bench.dir().join("pcrs"), &file).unwrap();
    }
    // Signed bytes and signatures that were tampered with, or cut short.
    bench.change("message", |message| message[60] ^= 1);
    assert_eq!(denied(&AK), ["quote.signature-invalid"]);
    genuine();
    bench.change("signature", |signature| signature[20] ^= 1);
    assert_eq!(denied(&AK), ["quote.signature-invalid"]);
    bench.change("signature", |signature| signature.truncate(50));
    assert_eq!(denied(&AK), ["quote.signature-malformed"]);
    // Another key, and the key under another parent.
    genuine();
    std::fs::copy(bench.dir().join("ak.pub"), bench.dir().join("old.pub")).unwrap();
    genuine();
    assert_eq!(denied(&["--ak", "old.pub", "--nonce", NONCE]), ["quote.signature-invalid"]);
    bench.tool("tpm2_createek -c other.ctx -G ecc -u other.pub");
    assert_eq!(denied(&["--ak", "ak.pub", "--ek", "other.pub", "--nonce", NONCE]), ["quote.signer-mismatch"]);
    // Values of another quote, in the form that has no names.
    bench.quote("rsa", "sha256", "rsassa", banks, "-F values");
    bench.change("pcrs", |pcrs| pcrs.extend([0; 32]));
    assert_eq!(denied(&AK), ["quote.pcr-length"]);
}

#[test]
fn n20_quotes_by_keys_that_sign_anything() {
    let bench = Bench::new();
    bench.tool("tpm2_createprimary -C e -G ecc256 -c parent.ctx");
    bench.tool("tpm2_create -C parent.ctx -G ecc256:ecdsa-sha256 -u ak.pub -r ak.priv -c ak.ctx");
    bench.tool(&format!(
        "tpm2_quote -c ak.ctx -l sha256:7 -q {NONCE} -m message -s signature -o pcrs -g sha256 --scheme ecdsa"
    ));
    assert_eq!(names(&bench.check(&AK, 1), "reasons"), ["ak.not-restricted"]);
    // A PEM does not tell, so it is said that nobody knows.
    bench.tool("tpm2_readpublic -c ak.ctx -f pem -o ak.pem");
    let pem = bench.check(&["--ak", "ak.pem", "--nonce", NONCE], 0);
    assert_eq!(names(&pem, "caveats"), ["attributes-unknown", "parent-unknown"]);
}

#[test]
fn files_that_are_none_of_theirs_are_2() {
    let bench = Bench::new();
    bench.quote("ecc", "sha256", "ecdsa", "sha256:7", "");
    let cut = std::fs::read(bench.dir().join("ak.pub")).unwrap();
    std::fs::write(bench.dir().join("junk"), &cut[..20]).unwrap();
    let ek_of_pem = ["--ak", "ak.pem", "--ek", "ek.pub", "--nonce", NONCE];
    for arguments in [
        &["--ak", "junk", "--nonce", NONCE][..],
        &["--ak", "missing", "--nonce", NONCE],
        &["--ak", "ak.pub", "--ek", "junk", "--nonce", NONCE],
        &["--ak", "ak.pub", "--nonce", "zz"],
        &["--ak", "ak.pub", "--nonce", &"00".repeat(65)],
        &ek_of_pem,
    ] {
        assert!(bench.check(arguments, 2)["error"]["text"].is_string(), "{arguments:?}");
    }
}
