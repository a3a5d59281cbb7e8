//! IMA lists: what the kernel measured after boot.
