//! Requests, out of the bytes that have come so far.

use std::fmt;

use super::Status;

/// Longest request line and headers together, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// Most headers of one request.
pub const MAX_HEADERS: usize = 64;
/// Longest body, in bytes, when nothing else was asked for. Firecracker's default.
pub const MAX_BODY: usize = 51_200;

/// How long a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line and headers, in bytes.
    pub head: usize,
    /// Body, in bytes.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: MAX_HEAD, body: MAX_BODY }
    }
}

/// What a request wants to be done with its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Read.
    Get,
    /// Set as a whole.
    Put,
    /// Change parts.
    Patch,
    /// Take away. Nothing of this API can be; known so that it is refused by what it asks for.
    Delete,
}

impl Method {
    fn parse(name: &str) -> Option<Self> {
        [Self::Get, Self::Put, Self::Patch, Self::Delete].into_iter().find(|method| method.as_str() == name)
    }

    /// As it stands in a request.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub method: Method,
    /// With what: an absolute path, as it was sent.
    pub path: String,
    /// The body; empty where there was none.
    pub body: Vec<u8>,
    /// Whether the client may send another request on the same connection.
    pub keep_alive: bool,
}

/// What can be said of the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// They are the begin of a request.
    Partial {
        /// The head is there, and the client waits for `100 Continue` before it sends the body.
        wants_continue: bool,
    },
    /// They begin with a whole request of this many bytes.
    Complete(Request, usize),
}

/// Why bytes are no request that can be answered. The connection ends with this: what follows cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Status of the response.
    pub status: Status,
    /// What is wrong, for a person.
    pub message: String,
}

fn bad(message: impl Into<String>) -> Rejected {
    Rejected { status: Status::BadRequest, message: message.into() }
}

/// What the headers say about the body and the connection.
#[derive(Default)]
struct Framing {
    length: Option<usize>,
    expects_continue: bool,
    close: bool,
    keep_alive: bool,
}

/// Reads the first request out of `bytes`.
pub fn parse(bytes: &[u8], limits: Limits) -> Result<Parsed, Rejected> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let window = bytes.get(..limits.head).unwrap_or(bytes);
    let head_len = match head.parse(window) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < limits.head => {
            return Ok(Parsed::Partial { wants_continue: false });
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Rejected {
                status: Status::HeadTooLarge,
                message: format!("the head has more than {} bytes or {MAX_HEADERS} headers", limits.head),
            });
        }
        Err(error) => return Err(bad(format!("not an HTTP request: {error}"))),
    };
    let name = head.method.unwrap_or_default();
    let method = Method::parse(name).ok_or_else(|| bad(format!("the method {} is not known", printable(name))))?;
    let path = path_of(head.path.unwrap_or_default())?;
    let framing = framing(head.headers)?;
    let length = framing.length.unwrap_or(0);
    if length > limits.body {
        return Err(Rejected {
            status: Status::PayloadTooLarge,
            message: format!(
                "the body has {length} bytes and may have {} at most (--http-api-max-payload-size)",
                limits.body
            ),
        });
    }
    let Some(body) = head_len.checked_add(length).and_then(|end| bytes.get(head_len..end)) else {
        return Ok(Parsed::Partial { wants_continue: framing.expects_continue });
    };
    // HTTP/1.0 closes unless asked not to.
    let keep_alive = !framing.close && (head.version == Some(1) || framing.keep_alive);
    let request = Request { method, path: path.to_owned(), body: body.to_vec(), keep_alive };
    Ok(Parsed::Complete(request, head_len.saturating_add(length)))
}

/// The path of a request target in origin form (`/version`) or absolute form (`http://localhost/version`).
fn path_of(target: &str) -> Result<&str, Rejected> {
    if target.starts_with('/') {
        return Ok(target);
    }
    let no_path = || bad(format!("{} is no path", printable(target)));
    let rest = target.strip_prefix("http://").ok_or_else(no_path)?;
    let at = rest.find('/').ok_or_else(no_path)?;
    rest.get(at..).filter(|_| at > 0).ok_or_else(no_path)
}

fn framing(headers: &[httparse::Header<'_>]) -> Result<Framing, Rejected> {
    let mut framing = Framing::default();
    for header in headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = header.value.trim_ascii();
        if is("content-length") {
            // A second one, even of the same value, has no place in a request of an honest client.
            if framing.length.replace(length(value)?).is_some() {
                return Err(bad("more than one Content-Length"));
            }
        } else if is("transfer-encoding") {
            return Err(bad("Transfer-Encoding is not supported: send the body with a Content-Length"));
        } else if is("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                let message = "nothing but 100-continue can be expected".to_owned();
                return Err(Rejected { status: Status::ExpectationFailed, message });
            }
            framing.expects_continue = true;
        } else if is("connection") {
            let has = |word: &[u8]| value.split(|b| *b == b',').any(|w| w.trim_ascii().eq_ignore_ascii_case(word));
            framing.close |= has(b"close");
            framing.keep_alive |= has(b"keep-alive");
        }
    }
    Ok(framing)
}

/// Digits and nothing else: `+1`, `1, 1` and `0x1` are lengths to some readers and not to others.
fn length(value: &[u8]) -> Result<usize, Rejected> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| bad("the Content-Length is not a number"))
}

/// The begin of what a client sent, fit to be shown.
fn printable(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}
