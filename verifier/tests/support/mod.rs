//! What the service's tests share: the service as a process, hosts with real (software) TPMs, a boot made in software.
#![allow(dead_code, missing_docs)]

pub mod boot;
pub mod host;
pub mod service;
