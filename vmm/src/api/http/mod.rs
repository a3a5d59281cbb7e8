//! As much of HTTP/1.1 (RFC 9112) as Firecracker's clients speak: requests with a body of known length, responses in
//! JSON, connections that stay open.
//!
//! Who can open the socket may start and stop the VM, but is not trusted with the process: every size has a bound
//! before memory is taken for it, and what is not understood ends the connection, so that no two readers of the same
//! bytes can see different requests in them.

mod request;
mod response;

pub use request::{Limits, MAX_BODY, MAX_HEAD, MAX_HEADERS, Method, Parsed, Rejected, Request, parse};
pub use response::{CONTINUE, Response, Status};

#[cfg(test)]
mod tests;
