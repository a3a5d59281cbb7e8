//! The attestation result that relying parties read.
