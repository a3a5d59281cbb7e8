use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::mmds::{DEFAULT_LIMIT, MmdsConfig};

fn filled(version: Version, imds_compat: bool) -> Mmds {
    let mut mmds = Mmds::new(DEFAULT_LIMIT);
    mmds.configure(&MmdsConfig { version, network_interfaces: Vec::new(), ipv4_address: None, imds_compat });
    mmds.put(json!({"latest": {"meta-data": {"id": "i-1", "count": 3}}})).unwrap();
    mmds
}

/// Status and body of the answer to a whole request.
fn ask(mmds: &mut Mmds, text: &str) -> (u16, String) {
    ask_at(mmds, text, Instant::now())
}

fn ask_at(mmds: &mut Mmds, text: &str, now: Instant) -> (u16, String) {
    match outcome(mmds, text.as_bytes(), now) {
        Outcome::Answer { response, .. } => {
            let response = String::from_utf8(response).unwrap();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{response}");
            (head[9..12].parse().unwrap(), body.to_owned())
        }
        Outcome::Partial => panic!("no answer to {text:?}"),
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n")
}

fn put(path: &str, headers: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\n{headers}\r\n")
}

const JSON: &str = "Accept: application/json\r\n";

#[test]
fn version_1_answers_as_text_or_json() {
    let mut mmds = filled(Version::V1, false);
    for (path, headers, status, body) in [
        ("/latest/", "", 200, "meta-data/"),
        ("/latest/meta-data", "", 200, "count\nid"),
        ("//latest///meta-data//id", "", 200, "i-1"),
        ("http://169.254.169.254/latest/meta-data/id", "", 200, "i-1"),
        ("/latest/meta-data/id", JSON, 200, r#""i-1""#),
        ("/latest/meta-data", "accept:text/html, Application/JSON;q=0.9\r\n", 200, r#"{"count":3,"id":"i-1"}"#),
        ("/latest/meta-data/count", JSON, 200, "3"),
        ("/latest/meta-data/count", "", 501, "the value is neither text nor an object, ask for it as JSON"),
        ("/nothing", "", 404, "There is nothing at /nothing."),
        // A token changes nothing.
        ("/latest", "X-metadata-token: 00\r\n", 200, "meta-data/"),
    ] {
        assert_eq!(ask(&mut mmds, &get(path, headers)), (status, body.to_owned()), "{path} {headers}");
    }
    assert_eq!(mmds.metrics.rx_invalid_token.total(), 1);
    assert_eq!(mmds.metrics.rx_count.total(), 10);
}

#[test]
fn compatible_with_ec2_it_does_not_look_at_what_is_accepted() {
    let mut mmds = filled(Version::V1, true);
    assert_eq!(ask(&mut mmds, &get("/latest/meta-data/id", JSON)), (200, "i-1".to_owned()));
}

#[test]
fn version_2_needs_a_session() {
    let mut mmds = filled(Version::V2, false);
    let now = Instant::now();
    for headers in ["", "X-metadata-token: \r\n", "X-metadata-token: 0000\r\n", "X-metadata-token: \u{fffd}\r\n"] {
        assert_eq!(ask(&mut mmds, &get("/latest", headers)).0, 401, "{headers:?}");
    }
    for names in [["X-metadata-token-ttl-seconds", "X-metadata-token"], [TTL[1], TOKEN[1]]] {
        let [ttl, name] = names;
        let (status, token) = ask_at(&mut mmds, &put(TOKEN_PATH, &format!("{ttl}: 60\r\n")), now);
        assert_eq!(status, 200);
        let request = get("/latest", &format!("{name}: {token}\r\n"));
        assert_eq!(ask_at(&mut mmds, &request, now), (200, "meta-data/".to_owned()));
    }
    let (_, token) = ask_at(&mut mmds, &put(TOKEN_PATH, "X-metadata-token-ttl-seconds: 60\r\n"), now);
    let request = get("/latest", &format!("X-metadata-token: {token}\r\n"));
    assert_eq!([59, 60].map(|s| ask_at(&mut mmds, &request, now + Duration::from_secs(s)).0), [200, 401]);
}

#[test]
fn sessions_begin_only_as_they_should() {
    let mut mmds = filled(Version::V2, false);
    let ttl = "X-metadata-token-ttl-seconds: 60\r\n";
    assert_eq!(ask(&mut mmds, &put("//latest/api//token", ttl)).0, 200);
    assert_eq!(ask(&mut mmds, &put("/latest/api/token", "")).0, 400);
    for bad in ["0", "21601", "-1", "+5", "", "1e3", "99999999999"] {
        let headers = format!("X-metadata-token-ttl-seconds: {bad}\r\n");
        assert_eq!(ask(&mut mmds, &put(TOKEN_PATH, &headers)).0, 400, "{bad}");
    }
    assert_eq!(ask(&mut mmds, &put(TOKEN_PATH, &format!("{ttl}X-Forwarded-For: 10.0.0.1\r\n"))).0, 400);
    assert_eq!(ask(&mut mmds, &put("/latest", ttl)).0, 404);
    assert_eq!(ask(&mut mmds, &put("/latest/api/token/", ttl)).0, 404);
    for method in ["POST", "HEAD", "DELETE", "PATCH"] {
        let Outcome::Answer { response, .. } =
            outcome(&mut mmds, format!("{method} / HTTP/1.1\r\n\r\n").as_bytes(), Instant::now())
        else {
            panic!("{method}");
        };
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 405 ") && response.contains("\r\nAllow: GET, PUT\r\n"), "{response}");
    }
}

#[test]
fn requests_follow_each_other_on_a_connection() {
    let mut mmds = filled(Version::V1, false);
    let first = format!("{}12345", put(TOKEN_PATH, "Content-Length: 5\r\nx-metadata-token-ttl-seconds: 1\r\n"));
    let second = get("/latest", "Connection: close\r\n");
    let both = format!("{first}{second}");
    for cut in 0..first.len() {
        assert_eq!(outcome(&mut mmds, &both.as_bytes()[..cut], Instant::now()), Outcome::Partial, "{cut}");
    }
    let Outcome::Answer { used, close, .. } = outcome(&mut mmds, both.as_bytes(), Instant::now()) else {
        panic!("no answer");
    };
    assert_eq!((used, close), (first.len(), false));
    let closes = |text: &str| {
        matches!(
            outcome(&mut filled(Version::V1, false), text.as_bytes(), Instant::now()),
            Outcome::Answer { close: true, .. }
        )
    };
    assert!(closes(&second) && closes("GET / HTTP/1.0\r\n\r\n"));
    assert!(!closes(&get("/", "")) && !closes("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
}

#[test]
fn what_is_no_request_or_too_large_is_refused() {
    let mut mmds = filled(Version::V1, false);
    let long = "a".repeat(MAX_REQUEST);
    for (text, status) in [
        ("\0\x01\x02", 400),
        ("GET / HTTP/2.0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", 400),
        ("GET / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\nx", 400),
        ("GET / HTTP/1.1\r\nContent-Length: 9000\r\n\r\nx", 413),
        (long.as_str(), 413),
        (&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1)), 431),
    ] {
        assert_eq!(ask(&mut mmds, text).0, status, "{text:?}");
    }
    assert_eq!(outcome(&mut mmds, &long.as_bytes()[1..], Instant::now()), Outcome::Partial);
}

proptest! {
    #[test]
    fn any_bytes_have_an_outcome(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut mmds = filled(Version::V2, false);
        if let Outcome::Answer { used, .. } = outcome(&mut mmds, &bytes, Instant::now()) {
            prop_assert!(used <= bytes.len() && used > 0);
        }
    }

    #[test]
    fn without_a_session_nothing_is_given(path in "/[a-z/~%0-9.-]{0,20}", headers in "([a-zA-Z-]{1,20}: [ -~]{0,30}\r\n){0,4}") {
        let mut mmds = filled(Version::V2, false);
        let text = get(&path, &headers);
        if let Outcome::Answer { response, .. } = outcome(&mut mmds, text.as_bytes(), Instant::now()) {
            prop_assert!(!response.starts_with(b"HTTP/1.1 200"));
        }
    }
}
