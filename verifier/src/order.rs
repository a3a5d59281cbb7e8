//! Launch orders: what the verifier signs for one host and one boot, and how a host checks it.
//!
//! An order is a JWS (ES256, `typ` [`TYP`]) whose payload is an [`Order`]; `schemas/order-1.json` describes it. The
//! keys that sign orders lie in the measured initrd of the host (protocol rule 6), so an order proves who ordered it
//! even when the network does not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use portcullis_attest::appraise::BootInstance;
use serde::{Deserialize, Serialize};

use crate::name;

/// The `typ` of an order's JWS header: nothing else that a verifier signs can be taken for an order.
pub const TYP: &str = "portcullis-order+jwt";
/// The schema that every order names.
pub const SCHEMA: &str = "portcullis/order/1";
/// Longest order accepted, in bytes of JWS.
pub const MAX_ORDER_BYTES: usize = 16 * 1024;
/// Most keys a key set may hold.
const MAX_KEYS: usize = 16;
/// How far the clock of the verifier may run ahead of the host's.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// A file inside the volume, with the SHA-256 that it must have.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// Path inside the volume, relative, without `..`; at most 255 bytes.
    pub path: String,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub sha256: String,
}

/// The virtual machine that an order starts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The tenant's name for it.
    pub name: String,
    /// Number of virtual CPUs, 1 to 32: what `portcullis-vmm` runs.
    pub vcpus: u32,
    /// Memory in MiB, 16 to 1 048 576.
    pub mem_mib: u64,
    /// Kernel command line, printable ASCII, at most 2047 bytes.
    pub cmdline: String,
    /// The kernel.
    pub kernel: VolumeFile,
    /// The initial RAM file system, if there is one.
    pub initrd: Option<VolumeFile>,
}

/// A launch order.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`SCHEMA`].
    pub schema: String,
    /// 128 random bits, 32 lower-case hex digits.
    pub id: String,
    /// The verifier that signed it.
    pub verifier: String,
    /// The host that it is for.
    pub host: String,
    /// The boot of that host that it is for.
    pub boot: BootInstance,
    /// The tenant that asked for it.
    pub tenant: String,
    /// What to start.
    pub vm: VmSpec,
    /// The tenant's volume to open.
    pub volume: String,
    /// Issued at, seconds since 1970.
    pub iat: u64,
    /// Not to be used at or after this time, seconds since 1970.
    pub exp: u64,
}

/// Why an order is no good.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Longer than [`MAX_ORDER_BYTES`].
    #[error("the launch order has {0} bytes, at most {MAX_ORDER_BYTES} are accepted")]
    TooLong(usize),
    /// Not a JWS of an order.
    #[error("the launch order is no signed order: {0}")]
    Malformed(String),
    /// Signed by a key that is not among the host's order keys, or not signed at all.
    #[error("the launch order is not signed by one of the verifier's order keys: {0}")]
    Signature(String),
    /// The host's key set is no good.
    #[error("the order keys (JWKS) cannot be used: {0}")]
    Keys(String),
    /// For another host.
    #[error("the launch order is for host {found:?}, this is {expected:?}")]
    OtherHost {
        /// This host.
        expected: String,
        /// The host that the order names.
        found: String,
    },
    /// Too late.
    #[error("the launch order expired {0} s ago")]
    Expired(u64),
    /// From the future.
    #[error("the launch order was issued {0} s in the future; set the clock")]
    NotYetValid(u64),
    /// A field has a value it cannot have.
    #[error("the launch order's {field} is no good: {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

fn bad(field: &'static str, problem: impl Into<String>) -> OrderError {
    OrderError::Field { field, problem: problem.into() }
}

impl VolumeFile {
    /// Checks path and digest.
    pub fn check(&self, field: &'static str) -> Result<(), OrderError> {
        let path = &self.path;
        let plain_part = |part: &str| !part.is_empty() && part != "." && part != "..";
        if path.len() > 255 || !path.bytes().all(|b| b.is_ascii_graphic()) || !path.split('/').all(plain_part) {
            return Err(bad(field, "the path must be relative, printable, without '.' and '..' and at most 255 bytes"));
        }
        if !is_hex(&self.sha256, 64) {
            return Err(bad(field, "sha256 must be 64 lower-case hex digits"));
        }
        Ok(())
    }
}

impl VmSpec {
    /// Checks every bound that the fields' descriptions name.
    pub fn check(&self) -> Result<(), OrderError> {
        name::check("vm", &self.name).map_err(|e| bad("vm.name", e.to_string()))?;
        if !(1..=32).contains(&self.vcpus) {
            return Err(bad("vm.vcpus", "must be 1 to 32"));
        }
        if !(16..=1_048_576).contains(&self.mem_mib) {
            return Err(bad("vm.mem_mib", "must be 16 to 1048576"));
        }
        let printable = |b: u8| b.is_ascii_graphic() || b == b' ';
        if self.cmdline.len() > 2047 || !self.cmdline.bytes().all(printable) {
            return Err(bad("vm.cmdline", "must be printable ASCII of at most 2047 bytes"));
        }
        self.kernel.check("vm.kernel")?;
        self.initrd.as_ref().map_or(Ok(()), |initrd| initrd.check("vm.initrd"))
    }
}

impl Order {
    /// Checks every bound that the fields' descriptions name, but neither signature nor time.
    pub fn check(&self) -> Result<(), OrderError> {
        if self.schema != SCHEMA {
            return Err(bad("schema", format!("must be {SCHEMA:?}")));
        }
        if !is_hex(&self.id, 32) {
            return Err(bad("id", "must be 32 lower-case hex digits"));
        }
        for (field, value) in
            [("verifier", &self.verifier), ("host", &self.host), ("tenant", &self.tenant), ("volume", &self.volume)]
        {
            name::check(field, value).map_err(|e| bad(field, e.to_string()))?;
        }
        if self.exp <= self.iat {
            return Err(bad("exp", "must be later than iat"));
        }
        self.vm.check()
    }
}

pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The public keys that sign launch orders: ES256 only, each with a key id.
#[derive(Clone)]
pub struct OrderKeys {
    keys: Vec<(String, DecodingKey)>,
}

impl std::fmt::Debug for OrderKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(kid, _)| kid)).finish()
    }
}

impl OrderKeys {
    /// Reads a JWKS, as `init` writes it to `trust/order-keys.json`. Every key must be a P-256 key with a `kid`.
    pub fn from_jwks(json: &[u8]) -> Result<Self, OrderError> {
        let bad_set = |problem: &str| OrderError::Keys(problem.to_owned());
        if json.len() > 64 * 1024 {
            return Err(bad_set("longer than 64 KiB"));
        }
        let set: JwkSet = serde_json::from_slice(json).map_err(|e| OrderError::Keys(e.to_string()))?;
        if set.keys.is_empty() || set.keys.len() > MAX_KEYS {
            return Err(bad_set("there must be 1 to 16 keys"));
        }
        let mut keys: Vec<(String, DecodingKey)> = Vec::new();
        for jwk in &set.keys {
            let (kid, key) = decoding_key(jwk)?;
            if keys.iter().any(|(known, _)| *known == kid) {
                return Err(bad_set("two keys have the same kid"));
            }
            keys.push((kid, key));
        }
        Ok(Self { keys })
    }
}

fn decoding_key(jwk: &Jwk) -> Result<(String, DecodingKey), OrderError> {
    let kid = jwk.common.key_id.clone().ok_or_else(|| OrderError::Keys("a key has no kid".into()))?;
    match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {}
        _ => return Err(OrderError::Keys(format!("key {kid:?} is not a P-256 key"))),
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|e| OrderError::Keys(e.to_string()))?;
    Ok((kid, key))
}

/// An order whose signature, host and time were checked. Nothing else makes one.
#[derive(Clone, Debug)]
pub struct VerifiedOrder {
    order: Order,
    jws: String,
}

impl VerifiedOrder {
    /// Checks signature, type, schema, bounds, host and validity at `now`.
    ///
    /// The caller still compares [`Order::boot`] with its own boot and lets the verifier consume the order: whether
    /// it was used before only the verifier knows.
    pub fn verify(jws: &str, keys: &OrderKeys, host: &str, now: SystemTime) -> Result<Self, OrderError> {
        let order = verify_signature(jws, keys)?;
        order.check()?;
        if order.host != host {
            return Err(OrderError::OtherHost { expected: host.to_owned(), found: order.host });
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now >= order.exp {
            return Err(OrderError::Expired(now.saturating_sub(order.exp)));
        }
        if order.iat > now.saturating_add(CLOCK_SKEW.as_secs()) {
            return Err(OrderError::NotYetValid(order.iat.saturating_sub(now)));
        }
        Ok(Self { order, jws: jws.to_owned() })
    }

    /// What is ordered.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// The bytes that were signed and that a launch quote binds.
    pub fn jws(&self) -> &str {
        &self.jws
    }
}

fn verify_signature(jws: &str, keys: &OrderKeys) -> Result<Order, OrderError> {
    if jws.len() > MAX_ORDER_BYTES {
        return Err(OrderError::TooLong(jws.len()));
    }
    let header = jsonwebtoken::decode_header(jws).map_err(|e| OrderError::Malformed(e.to_string()))?;
    if header.typ.as_deref() != Some(TYP) {
        return Err(OrderError::Malformed(format!("its typ is not {TYP:?}")));
    }
    let kid = header.kid.ok_or_else(|| OrderError::Signature("it names no key".into()))?;
    let (_, key) = keys
        .keys
        .iter()
        .find(|(known, _)| *known == kid)
        .ok_or_else(|| OrderError::Signature("it names a key that is not among them".into()))?;
    // The clock is the caller's, so the times are checked by us: this host may have a clock that only now was set.
    let mut validation = Validation::new(Algorithm::ES256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let token = jsonwebtoken::decode::<Order>(jws, key, &validation).map_err(|e| match e.kind() {
        jsonwebtoken::errors::ErrorKind::Json(_) => OrderError::Malformed(e.to_string()),
        _ => OrderError::Signature(e.to_string()),
    })?;
    Ok(token.claims)
}
