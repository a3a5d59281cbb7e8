//! What no verifier can do without: one check of the signature, and hashing what the quote is about.

use aws_lc_rs::digest::{Digest, SHA256, digest};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use portcullis_attest::eventlog::EventLog;
use portcullis_attest::key::Bank;

use crate::boots::Boot;

/// The bytes of a boot, taken apart beforehand.
pub struct Floor<'a> {
    key: ParsedPublicKey,
    message: &'a [u8],
    signature: &'a [u8],
    /// PCR, digest and data of every event that extends.
    events: Vec<(usize, &'a [u8], &'a [u8])>,
    /// The quoted values, one after the other.
    values: Vec<u8>,
    /// The values from which the PCRs start.
    start: Vec<[u8; 32]>,
}

impl<'a> Floor<'a> {
    pub fn new(boot: &'a Boot) -> Self {
        let [quote] = &boot.evidence.quotes[..] else { panic!("one quote") };
        let log = EventLog::parse(&boot.evidence.eventlog).expect("a log that was read before");
        let mut start = vec![[0; 32]; 24];
        start[17..23].fill([0xff; 32]);
        start[0][31] = log.startup_locality().unwrap_or(0);
        let spki = boot.ak.public().spki_der().expect("an RSA key");
        Self {
            key: ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &spki).expect("an RSA key"),
            message: &quote.message,
            // TPMT_SIGNATURE: scheme, hash, size, then the number.
            signature: &quote.signature[6..],
            events: log
                .events()
                .iter()
                .filter(|event| event.extends())
                .map(|event| (event.pcr as usize, event.digests.get(Bank::Sha256).expect("SHA-256"), event.data))
                .collect(),
            values: quote.pcrs[&Bank::Sha256].values().flatten().copied().collect(),
            start,
        }
    }

    /// The signature check alone.
    pub fn signature(&self) {
        self.key.verify_sig(self.message, self.signature).expect("a good signature");
    }

    /// The signature check; every event's data, hashed once; every extend of a PCR; the digest of the quoted values.
    pub fn all(&self) {
        self.signature();
        let mut pcrs = self.start.clone();
        for (pcr, event_digest, data) in &self.events {
            std::hint::black_box(hashed(data));
            let mut both = [0; 64];
            both[..32].copy_from_slice(&pcrs[*pcr]);
            both[32..].copy_from_slice(event_digest);
            pcrs[*pcr].copy_from_slice(hashed(&both).as_ref());
        }
        std::hint::black_box((pcrs, hashed(&self.values)));
    }
}

fn hashed(bytes: &[u8]) -> Digest {
    digest(&SHA256, bytes)
}
