//! Judges attestation evidence.
