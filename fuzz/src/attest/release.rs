//! Storage parents to which keys are released.

use portcullis_attest::release::{CertifiedParent, RELEASE_PCRS};

use super::Target;
use super::keys::{AK, BINDING, TPM};
use super::software_tpm::{EK_ATTRIBUTES, Public, sized};

/// A parent's public area and its certification, validly signed whatever it says.
pub const CERTIFIED_PARENT: Target =
    Target { name: "certified_parent", body: parent, max_len: 1024, seeds: |_| parents() };

fn parent(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    let (public, attest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    assert!(RELEASE_PCRS.is_sorted());
    CertifiedParent::verify(public, attest, &TPM.sign(attest), &AK, &BINDING).is_ok()
}

/// A parent as agents make it, and what a TPM says of it.
fn parents() -> Vec<Vec<u8>> {
    // As the endorsement key, but with userWithAuth in the place of adminWithPolicy, and without a policy.
    let public = Public { attributes: EK_ATTRIBUTES & !(1 << 7) | 1 << 6, policy: Vec::new(), ..TPM.ek.clone() };
    let name = public.name();
    let qualified = public.qualified_name(&0x4000_0007_u32.to_be_bytes());
    let mut attest = TPM.attest(&BINDING, &std::collections::BTreeMap::new());
    attest.kind = 0x8017;
    attest.body = [sized(&name), sized(&qualified)].concat();
    vec![[sized(&public.bytes()), attest.bytes()].concat()]
}
