//! The guest's requests (HTTP/1.0 and 1.1) and their answers: bytes in, bytes out.

use std::borrow::Cow;
use std::time::Instant;

use super::config::Version;
use super::store::{Format, Mmds, MmdsError};

/// Most bytes of a request, its body included.
pub(super) const MAX_REQUEST: usize = 8192;
/// Most lines of a request's head.
const MAX_HEADERS: usize = 48;
/// Where sessions begin.
const TOKEN_PATH: &str = "/latest/api/token";

const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const TTL: [&str; 2] = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];

/// What is to be done with the bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for more.
    Partial,
    /// A request has been answered.
    Answer {
        /// Bytes of it.
        used: usize,
        /// The answer.
        response: Vec<u8>,
        /// Whether the connection ends behind it.
        close: bool,
    },
}

/// A request, as far as it is looked at.
struct Request<'a> {
    method: &'a str,
    path: Cow<'a, str>,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> Request<'a> {
    /// The value of the first of these headers that is there. One that is no text is an empty one.
    fn header(&self, names: &[&str]) -> Option<&'a str> {
        header(self.headers, names)
    }
}

fn header<'a>(headers: &'a [httparse::Header<'a>], names: &[&str]) -> Option<&'a str> {
    let wanted = |header: &&httparse::Header<'_>| names.iter().any(|name| header.name.eq_ignore_ascii_case(name));
    let found = headers.iter().find(wanted)?;
    Some(std::str::from_utf8(found.value).unwrap_or_default().trim())
}

/// What an answer says.
struct Answer {
    status: &'static str,
    json: bool,
    /// One more line of the head, with its end.
    line: String,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, json: false, line: String::new(), body: body.into() }
    }

    fn write(&self, minor: u8, close: bool) -> Vec<u8> {
        let Self { status, json, line, body } = self;
        let kind = if *json { "application/json" } else { "text/plain" };
        let connection = if close { "close" } else { "keep-alive" };
        let len = body.len();
        format!(
            "HTTP/1.{minor} {status}\r\nConnection: {connection}\r\nContent-Type: {kind}\r\n{line}\
             Content-Length: {len}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

const BAD_REQUEST: &str = "400 Bad Request";
const UNAUTHORIZED: &str = "401 Unauthorized";

/// Looks at what a connection has brought, and answers the request that it begins with, if it is whole.
pub fn outcome(mmds: &mut Mmds, bytes: &[u8], now: Instant) -> Outcome {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let refused = |status, body: &str| Outcome::Answer {
        used: bytes.len(),
        response: Answer::text(status, body).write(1, true),
        close: true,
    };
    let partial = || {
        if bytes.len() < MAX_REQUEST {
            Outcome::Partial
        } else {
            refused("413 Payload Too Large", "The request is too large.")
        }
    };
    let head = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return partial(),
        Err(httparse::Error::TooManyHeaders) => {
            return refused("431 Request Header Fields Too Large", "The request has too many header fields.");
        }
        Err(_) => return refused(BAD_REQUEST, "This is no HTTP request."),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return refused(BAD_REQUEST, "This is no HTTP request.");
    };
    let headers = &*parsed.headers;
    let Some(used) = body_len(headers).and_then(|body| head.checked_add(body)) else {
        return refused(BAD_REQUEST, "A body is taken only with one plain Content-Length.");
    };
    if used > MAX_REQUEST {
        return refused("413 Payload Too Large", "The request is too large.");
    }
    if used > bytes.len() {
        return partial();
    }
    let answer = respond(mmds, &Request { method, path: path(target), headers }, now);
    mmds.metrics.rx_count.inc();
    let wish = header(headers, &["connection"]).unwrap_or_default();
    let close = wish.eq_ignore_ascii_case("close") || (minor == 0 && !wish.eq_ignore_ascii_case("keep-alive"));
    Outcome::Answer { used, response: answer.write(minor, close), close }
}

/// Bytes of the body; `None` if the head does not say it in one way.
fn body_len(headers: &[httparse::Header<'_>]) -> Option<usize> {
    let named = |name: &'static str| headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    if named("transfer-encoding").next().is_some() {
        return None;
    }
    let mut lengths = named("content-length");
    let Some(length) = lengths.next() else {
        return Some(0);
    };
    let digits = std::str::from_utf8(length.value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    let len = digits.parse().ok()?;
    lengths.next().is_none().then_some(len)
}

/// The path of a request's target, each run of slashes as one.
fn path(target: &str) -> Cow<'_, str> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    };
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut single = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !single.ends_with('/') {
            single.push(c);
        }
    }
    Cow::Owned(single)
}

fn respond(mmds: &mut Mmds, request: &Request<'_>, now: Instant) -> Answer {
    match request.method {
        "GET" => get(mmds, request, now),
        "PUT" => begin_session(mmds, request, now),
        _ => Answer {
            line: "Allow: GET, PUT\r\n".to_owned(),
            ..Answer::text("405 Method Not Allowed", "Metadata is read with GET, a session begins with PUT.")
        },
    }
}

fn get(mmds: &Mmds, request: &Request<'_>, now: Instant) -> Answer {
    let token = request.header(&TOKEN);
    let good = token.is_some_and(|token| mmds.sessions.are_begun_by(token, now));
    match token {
        None => mmds.metrics.rx_no_token.inc(),
        Some(_) if !good => mmds.metrics.rx_invalid_token.inc(),
        Some(_) => {}
    }
    if mmds.version == Version::V2 && !good {
        let why = match token {
            None => format!("A session is needed: PUT {TOKEN_PATH} first, then send its token as X-metadata-token."),
            Some(_) => "The token is of no session, or of one that has ended.".to_owned(),
        };
        return Answer::text(UNAUTHORIZED, why);
    }
    let json = !mmds.imds_compat && request.header(&["accept"]).is_some_and(accepts_json);
    match mmds.part(&request.path, if json { Format::Json } else { Format::Imds }) {
        Ok(body) => Answer { json, ..Answer::text("200 OK", body) },
        Err(error @ MmdsError::NotText) => Answer::text("501 Not Implemented", error.to_string()),
        Err(_) => Answer::text("404 Not Found", format!("There is nothing at {}.", request.path)),
    }
}

fn accepts_json(accept: &str) -> bool {
    let kind = |range: &str| range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    accept.split(',').any(|range| kind(range) == "application/json")
}

fn begin_session(mmds: &mut Mmds, request: &Request<'_>, now: Instant) -> Answer {
    // A proxy that passes on what strangers send: not what runs in this guest.
    if request.header(&["x-forwarded-for"]).is_some() {
        return Answer::text(BAD_REQUEST, "A session cannot begin through a proxy (X-Forwarded-For).");
    }
    if request.path != TOKEN_PATH {
        return Answer::text("404 Not Found", format!("There is nothing to PUT at {}.", request.path));
    }
    let Some(ttl) = request.header(&TTL) else {
        return Answer::text(BAD_REQUEST, "X-metadata-token-ttl-seconds has to say how long the session lasts.");
    };
    let plain = Some(ttl).filter(|ttl| ttl.bytes().all(|b| b.is_ascii_digit()));
    let seconds = plain.and_then(|ttl| ttl.parse().ok()).unwrap_or(0);
    match mmds.sessions.begin(seconds, now) {
        Ok(token) => {
            let name = if request.header(&TTL[..1]).is_some() { TTL[0] } else { TTL[1] };
            Answer { line: format!("{name}: {seconds}\r\n"), ..Answer::text("200 OK", token) }
        }
        Err(error) => Answer::text(BAD_REQUEST, error.to_string()),
    }
}

#[cfg(test)]
mod tests;
