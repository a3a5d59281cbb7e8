//! What guests say of the loads that they put on their devices, and the other end of their network.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::{Value, json};

use super::exits;
use super::life::{self, Life, Standstill};
use crate::lab::load::{ECHO, HOST, SINK, SOURCE, STREAM_BYTES};

/// What guests say of the loads that they put on their devices, and the exits of each: of so many lives that came to their
/// end.
pub fn run(times: usize, program: &[&str]) -> Value {
    serve();
    let (all, standstills) = life::ended(times, program, loads);
    json!({"loads": all.concat(), "standstills": standstills})
}

/// The loads of one life.
fn loads(life: &mut Life) -> Result<Vec<Value>, Standstill> {
    let (mut all, mut before) = (Vec::new(), 0);
    while let Some(line) = life.line()? {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["load:", "begin", _] => before = exits(),
            ["load:", "end", name, amount, nanos] => {
                let number = |text: &str| text.parse::<u64>().expect("a number");
                let exits = exits() - before;
                all.push(json!({"name": name, "amount": number(amount), "nanos": number(nanos), "exits": exits}));
            }
            _ => {}
        }
    }
    assert!(!all.is_empty(), "a guest without loads");
    Ok(all)
}

/// Is the other end of the guests' network, in threads that end with the process. A guest that is ended in the middle of a
/// stream leaves its connection to a thread of its own.
fn serve() {
    let echo = UdpSocket::bind((HOST, ECHO)).expect("a tap with this address");
    std::thread::spawn(move || {
        let mut block = [0; 64];
        while let Ok((count, from)) = echo.recv_from(&mut block) {
            echo.send_to(block.get(..count).expect("what was read"), from).expect("a tap");
        }
    });
    accept(SINK, |mut stream| {
        let mut block = vec![0; 256 << 10];
        while stream.read(&mut block)? > 0 {}
        stream.write_all(&[0])
    });
    accept(SOURCE, |mut stream| {
        let block = vec![0; 256 << 10];
        (0..STREAM_BYTES / block.len() as u64).try_for_each(|_| stream.write_all(&block))
    });
}

/// Serves each connection to a port in a thread of its own.
fn accept(port: u16, serve: fn(TcpStream) -> std::io::Result<()>) {
    let listener = TcpListener::bind((HOST, port)).expect("a tap with this address");
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || serve(stream));
        }
    });
}
