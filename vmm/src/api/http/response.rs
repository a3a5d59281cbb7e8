//! Responses.

use serde::Serialize;

/// Tells a client that waits for it to send the body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Here it is.
    Ok,
    /// Done.
    NoContent,
    /// The request is wrong, or cannot be done now.
    BadRequest,
    /// The request did not come to its end.
    RequestTimeout,
    /// The body is too long, or what it would be added to.
    PayloadTooLarge,
    /// The client expects what this server does not do.
    ExpectationFailed,
    /// The head is too long.
    HeadTooLarge,
    /// Too many connections.
    ServiceUnavailable,
}

impl Status {
    /// The number.
    pub fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::NoContent => 204,
            Self::BadRequest => 400,
            Self::RequestTimeout => 408,
            Self::PayloadTooLarge => 413,
            Self::ExpectationFailed => 417,
            Self::HeadTooLarge => 431,
            Self::ServiceUnavailable => 503,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::NoContent => "No Content",
            Self::BadRequest => "Bad Request",
            Self::RequestTimeout => "Request Timeout",
            Self::PayloadTooLarge => "Payload Too Large",
            Self::ExpectationFailed => "Expectation Failed",
            Self::HeadTooLarge => "Request Header Fields Too Large",
            Self::ServiceUnavailable => "Service Unavailable",
        }
    }
}

/// One response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// Its body in JSON; none for [`Status::NoContent`].
    pub body: Option<String>,
    /// Whether the request used something that Firecracker is going to drop: the header `Deprecation`.
    pub deprecated: bool,
}

impl Response {
    /// `204`: done.
    pub fn done() -> Self {
        Self { status: Status::NoContent, body: None, deprecated: false }
    }

    /// `200` with `value`.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self { status: Status::Ok, body: Some(body), deprecated: false },
            // Only maps with keys that are no text: there are none in this API.
            Err(error) => Self::fault(Status::BadRequest, &error.to_string()),
        }
    }

    /// An error as Firecracker words it: `{"fault_message": "…"}`.
    pub fn fault(status: Status, message: &str) -> Self {
        let body = serde_json::json!({ "fault_message": message }).to_string();
        Self { status, body: Some(body), deprecated: false }
    }

    /// The bytes to be sent; `keep_alive` says whether the connection stays open after them.
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nServer: portcullis-vmm\r\nConnection: {connection}\r\n",
            self.status.code(),
            self.status.reason()
        );
        if self.deprecated {
            text.push_str("Deprecation: true\r\n");
        }
        match &self.body {
            // A response without content has no length either (RFC 9110, section 8.6).
            None => text.push_str("\r\n"),
            Some(body) => {
                for part in
                    ["Content-Type: application/json\r\nContent-Length: ", &body.len().to_string(), "\r\n\r\n", body]
                {
                    text.push_str(part);
                }
            }
        }
        text.into_bytes()
    }
}
