use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { head: 512, body: 64 };

fn complete(text: &str) -> (Request, usize) {
    match parse(text.as_bytes(), LIMITS) {
        Ok(Parsed::Complete(request, len)) => (request, len),
        other => panic!("{text:?}: {other:?}"),
    }
}

fn rejected(text: &str) -> Status {
    match parse(text.as_bytes(), LIMITS) {
        Err(rejected) => rejected.status,
        other => panic!("{text:?}: {other:?}"),
    }
}

#[test]
fn what_clients_send_is_read() {
    let text = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    let (request, len) = complete(&format!("{text}GET"));
    assert_eq!((request.method, request.path.as_str(), request.body.len()), (Method::Get, "/", 0));
    assert_eq!((len, request.keep_alive), (text.len(), true));
    let (request, _) = complete("PUT /actions HTTP/1.1\r\ncontent-length: 2\r\nExpect: 100-continue\r\n\r\n{}rest");
    assert_eq!((request.method, request.body.as_slice()), (Method::Put, b"{}".as_slice()));
    let (request, _) = complete("PATCH http://localhost:80/vm HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((request.method, request.path.as_str()), (Method::Patch, "/vm"));
}

#[test]
fn connections_stay_open_as_the_version_says() {
    let keeps = |version: &str, header: &str| complete(&format!("GET / HTTP/{version}\r\n{header}\r\n")).0.keep_alive;
    assert!(keeps("1.1", ""));
    assert!(!keeps("1.1", "Connection: close\r\n"));
    assert!(!keeps("1.1", "Connection: x, Close\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!keeps("1.0", "Connection: keep-alive, close\r\n"));
}

#[test]
fn a_client_that_waits_for_the_word_gets_it() {
    let waits = |text: &str| match parse(text.as_bytes(), LIMITS) {
        Ok(Parsed::Partial { wants_continue }) => wants_continue,
        other => panic!("{text:?}: {other:?}"),
    };
    assert!(waits("PUT /vm HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"));
    assert!(!waits("PUT /vm HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234"));
    assert!(!waits("PUT /vm HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n"));
    assert_eq!(rejected("PUT /vm HTTP/1.1\r\nExpect: 200-ok\r\n\r\n"), Status::ExpectationFailed);
}

#[test]
fn what_readers_could_see_differently_is_no_request() {
    for head in [
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 1\r\ncontent-length: 2",
        "Content-Length: +1",
        "Content-Length: -1",
        "Content-Length: 1, 1",
        "Content-Length: 0x1",
        "Content-Length:",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nContent-Length: 1",
        "Content-Length : 1",
        " Content-Length: 1",
        "A: b\r\n Content-Length: 1",
        "A: b\0",
    ] {
        assert_eq!(rejected(&format!("PUT / HTTP/1.1\r\n{head}\r\n\r\n{{}}")), Status::BadRequest, "{head}");
    }
    for line in
        ["HEAD / HTTP/1.1", "get / HTTP/1.1", "GET version HTTP/1.1", "GET http:///x HTTP/1.1", "GET * HTTP/1.1"]
    {
        assert_eq!(rejected(&format!("{line}\r\n\r\n")), Status::BadRequest, "{line}");
    }
    for line in ["GET / HTTP/2.0", "GET /", "GET / HTTP/1.1 x", "\u{16}\u{3}\u{1}\0"] {
        assert_eq!(rejected(&format!("{line}\r\n\r\n")), Status::BadRequest, "{line}");
    }
}

#[test]
fn sizes_are_bounded_before_memory_is_taken() {
    let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(LIMITS.head));
    assert_eq!(rejected(&long), Status::HeadTooLarge);
    let fits = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(LIMITS.head - 23));
    assert_eq!(fits.len(), LIMITS.head);
    complete(&fits);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A:b\r\n".repeat(MAX_HEADERS + 1));
    assert_eq!(rejected(&many), Status::HeadTooLarge);
    complete(&format!("GET / HTTP/1.1\r\n{}\r\n", "A:b\r\n".repeat(MAX_HEADERS)));
    let body = |len: usize| format!("PUT / HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{}", "x".repeat(len));
    complete(&body(LIMITS.body));
    assert_eq!(rejected(&body(LIMITS.body + 1)), Status::PayloadTooLarge);
    assert_eq!(rejected(&format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", usize::MAX)), Status::PayloadTooLarge);
}

#[test]
fn responses_are_what_clients_read() {
    assert_eq!(
        String::from_utf8(Response::done().to_bytes(true)).unwrap(),
        "HTTP/1.1 204 No Content\r\nServer: portcullis-vmm\r\nConnection: keep-alive\r\n\r\n"
    );
    let fault = Response::fault(Status::BadRequest, "a \"word\"");
    let text = String::from_utf8(fault.to_bytes(false)).unwrap();
    assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n") && text.contains("\r\nConnection: close\r\n"), "{text}");
    let body = r#"{"fault_message":"a \"word\""}"#;
    assert!(text.ends_with(&format!("Content-Length: {}\r\n\r\n{body}", body.len())), "{text}");
}

fn header() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z-]{1,12}: [ -~]{0,20}",
        "(?i)content-length: [0-9]{1,3}",
        "(?i)connection: (close|keep-alive)",
        "(?i)expect: 100-continue"
    ]
}

proptest! {
    #[test]
    fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        if let Ok(Parsed::Complete(request, len)) = parse(&bytes, LIMITS) {
            prop_assert!(len <= bytes.len() && request.body.len() <= LIMITS.body);
        }
    }

    #[test]
    fn a_request_is_the_same_however_it_arrives(
        method in "(GET|PUT|PATCH|DELETE|[A-Z]{1,6})",
        path in "/[!-~]{0,40}",
        headers in proptest::collection::vec(header(), 0..8),
        body in "[ -~]{0,80}",
    ) {
        let head = headers.iter().fold(String::new(), |head, header| head + header + "\r\n");
        let text = format!("{method} {path} HTTP/1.1\r\n{head}\r\n{body}");
        let whole = parse(text.as_bytes(), LIMITS);
        // Byte by byte: partial until it is complete or refused, and then the same as all at once.
        for end in 0..=text.len() {
            let part = parse(&text.as_bytes()[..end], LIMITS);
            match part {
                Ok(Parsed::Partial { .. }) => {}
                Ok(Parsed::Complete(_, len)) => {
                    prop_assert!(len <= end);
                    prop_assert_eq!(&part, &whole);
                }
                Err(_) => prop_assert!(whole.is_err(), "{text:?} is refused at {end} and accepted as a whole"),
            }
        }
    }

    #[test]
    fn requests_in_a_row_are_told_apart(bodies in proptest::collection::vec("[ -~]{0,64}", 1..6)) {
        let request = |b: &String| format!("PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n{b}", b.len());
        let text = bodies.iter().map(request).collect::<Vec<_>>().concat();
        let mut rest = text.as_bytes();
        for body in &bodies {
            let Ok(Parsed::Complete(request, len)) = parse(rest, LIMITS) else { panic!("{text:?}") };
            prop_assert_eq!(&request.body, body.as_bytes());
            rest = &rest[len..];
        }
        prop_assert!(rest.is_empty());
    }
}
