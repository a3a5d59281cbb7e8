//! Reference values: what a good boot looks like.
