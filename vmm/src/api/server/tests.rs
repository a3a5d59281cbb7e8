use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::*;

/// Longest that a test waits for bytes that have to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with what it was asked, and counts.
struct Echo(u64);

impl Service for Echo {
    fn answer(&mut self, request: &Request) -> Response {
        self.0 += 1;
        let body = String::from_utf8_lossy(&request.body).into_owned();
        Response::json(&serde_json::json!({"path": request.path, "body": body, "number": self.0}))
    }
}

struct Running {
    dir: tempfile::TempDir,
    ended: EventFd,
    thread: Option<JoinHandle<()>>,
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = Socket::bind(&dir.path().join("api.sock")).unwrap();
    let ended = EventFd::new(0).unwrap();
    let watched = ended.try_clone().unwrap();
    let limits = Limits { head: 1024, body: 4096 };
    let thread = std::thread::spawn(move || {
        // SAFETY: `watched` lives until the thread's end.
        let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&watched)) };
        serve(&socket, fd.as_fd(), limits, &mut Echo(0));
    });
    Running { dir, ended, thread: Some(thread) }
}

impl Running {
    fn path(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.write(1).unwrap();
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() && !self.path().exists());
    }
}

/// One response: status line and headers, and the body.
fn response(stream: &mut UnixStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "closed after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

fn put(path: &str, body: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = start();
    let mut stream = server.connect();
    for number in 1..=3 {
        stream.write_all(put("/a", "body").as_bytes()).unwrap();
        let (head, body) = response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, format!(r#"{{"body":"body","number":{number},"path":"/a"}}"#));
    }
    stream.write_all(b"GET /b HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    assert!(response(&mut stream).0.contains("Connection: close"));
    assert!(is_closed(&mut stream));
}

#[test]
fn requests_in_a_row_are_answered_in_order() {
    let server = start();
    let mut stream = server.connect();
    let all: String = (0..50).map(|number| put(&format!("/{number}"), &"x".repeat(number))).collect();
    stream.write_all(all.as_bytes()).unwrap();
    for number in 0..50 {
        assert!(response(&mut stream).1.contains(&format!(r#""path":"/{number}""#)));
    }
}

#[test]
fn a_client_that_waits_for_the_word_gets_it_once() {
    let server = start();
    let mut stream = server.connect();
    stream.write_all(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
    assert!(response(&mut stream).0.starts_with("HTTP/1.1 100 Continue\r\n"));
    stream.write_all(b"bo").unwrap();
    stream.write_all(b"dy").unwrap();
    assert!(response(&mut stream).1.contains(r#""body":"body""#));
    // One that is too long is refused before it is sent.
    stream.write_all(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n").unwrap();
    assert!(response(&mut stream).0.starts_with("HTTP/1.1 413 "));
    assert!(is_closed(&mut stream));
}

#[test]
fn nonsense_ends_its_connection_and_no_other() {
    let server = start();
    let mut other = server.connect();
    for (bytes, status) in [
        ("\0\0\0\r\n\r\n".to_owned(), "400"),
        ("POST / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(2000)), "431"),
        ("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned(), "400"),
    ] {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        let (head, body) = response(&mut stream);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && body.contains("fault_message"), "{head}{body}");
        assert!(is_closed(&mut stream), "{bytes}");
    }
    other.write_all(put("/", "still").as_bytes()).unwrap();
    assert!(response(&mut other).1.contains("still"));
}

#[test]
fn slow_and_vanishing_clients_keep_nobody_waiting() {
    let server = start();
    let text = put("/slow", "0123456789");
    let mut slow = server.connect();
    for (number, byte) in text.as_bytes().iter().enumerate() {
        slow.write_all(&[*byte]).unwrap();
        let mut quick = server.connect();
        let request = put("/quick", "");
        if number % 2 == 0 {
            // And goes away in the middle.
            quick.write_all(&request.as_bytes()[..12]).unwrap();
        } else {
            quick.write_all(request.as_bytes()).unwrap();
            response(&mut quick);
        }
    }
    assert!(response(&mut slow).1.contains("0123456789"));
}

#[test]
fn a_client_that_reads_nothing_is_not_read_from() {
    let server = start();
    let mut deaf = server.connect();
    deaf.set_nonblocking(true).unwrap();
    let request = put("/", &"x".repeat(4000));
    // More than all buffers between the two hold: the server must stop reading, and so the client cannot go on.
    let mut sent = 0usize;
    let mut refused = 0;
    while refused < 50 {
        if let Ok(count) = deaf.write(request.as_bytes()) {
            (sent, refused) = (sent + count, 0);
        } else {
            refused += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(sent < 64 << 20, "everything is taken from a client that reads nothing");
    }
    let mut other = server.connect();
    other.write_all(put("/", "heard").as_bytes()).unwrap();
    assert!(response(&mut other).1.contains("heard"));
}

#[test]
fn idle_connections_make_room_and_busy_ones_do_not() {
    let server = start();
    let mut idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    // All are known to the server when the last is answered.
    idle.last_mut().unwrap().write_all(put("/", "").as_bytes()).unwrap();
    response(idle.last_mut().unwrap());
    let mut new = server.connect();
    new.write_all(put("/", "new").as_bytes()).unwrap();
    assert!(response(&mut new).1.contains("new"));
    assert!(is_closed(&mut idle[0]), "the one that was idle for longest");

    let mut busy: Vec<_> = idle.drain(1..).chain([new]).collect();
    for stream in &mut busy {
        stream.write_all(b"PUT / HTTP/1.1\r\n").unwrap();
    }
    // The server has seen those bytes when it has answered what comes after them on the last connection.
    busy.last_mut().unwrap().write_all(b"Content-Length: 1\r\n\r\nx").unwrap();
    response(busy.last_mut().unwrap());
    busy.last_mut().unwrap().write_all(b"PUT / HT").unwrap();
    let refused = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        let mut late = server.connect();
        let mut text = String::new();
        let _ = late.set_read_timeout(Some(Duration::from_millis(50)));
        let _ = late.read_to_string(&mut text);
        text.starts_with("HTTP/1.1 503 ")
    });
    assert!(refused);
    // Those that were there are served all the same.
    busy[3].write_all(b"Content-Length: 1\r\n\r\nx").unwrap();
    assert!(response(&mut busy[3]).0.starts_with("HTTP/1.1 200"));
}

#[test]
fn a_client_that_has_begun_a_request_has_some_time_to_end_it() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let begin = Instant::now();
    let mut connection = Connection::new(ours.into(), Limits::default(), begin);
    assert_eq!(connection.deadline(), None, "one that sends nothing is not slow");
    theirs.write_all(b"PUT /actions HTTP/1.1\r\n").unwrap();
    assert!(matches!(connection.serve(begin), Turn::Wait));
    let deadline = connection.deadline().unwrap();
    assert_eq!(deadline, begin + super::super::connection::SLOWEST);
    // It is told so, and the connection ends.
    let mut turn = connection.expire(deadline);
    while !matches!(turn, Turn::End) {
        turn = connection.serve(deadline);
    }
    let mut text = [0; 64];
    let length = theirs.read(&mut text).unwrap();
    assert!(String::from_utf8_lossy(&text[..length]).starts_with("HTTP/1.1 408 "), "{text:?}");
}
