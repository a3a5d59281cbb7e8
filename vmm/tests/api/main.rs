//! Firecracker's API as clients meet it: the program as a process, requests on its socket, tiny guests on the local KVM.

#[path = "../vm/guest.rs"]
#[allow(dead_code)] // made for the VM's own tests
mod guest;

#[path = "../vm/tap.rs"]
#[allow(dead_code)]
mod tap;
#[path = "../vm/virtio.rs"]
#[allow(dead_code)]
mod virtio;

mod client;
mod clients;
mod fctools;
mod firecracker;
mod getting_started;
mod hostile;
mod life;
mod network;
mod openapi;
mod page_faults;
mod processes;
mod snapshots;
mod states;
