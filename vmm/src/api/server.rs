//! The loop that serves all clients on one thread.
//!
//! Requests are answered one after another, in the order in which they become complete. A client can keep the others
//! waiting only for as long as its own commands take the VM.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::connection::{Connection, Turn};
use super::http::{Limits, Request, Response, Status};
use super::socket::Socket;

/// Most connections at a time. With one more, that which has been idle for longest is closed; if none is, the new one.
pub const MAX_CONNECTIONS: usize = 16;
/// Requests of one client that are answered before others have their turn.
const BURST: usize = 8;

/// What answers requests.
pub trait Service {
    /// Answers one request. The VM may be asked meanwhile.
    fn answer(&mut self, request: &Request) -> Response;
}

/// Serves `socket` until `ended` is readable.
pub fn serve(socket: &Socket, ended: BorrowedFd<'_>, limits: Limits, service: &mut impl Service) {
    let mut server = Server { socket, limits, service, connections: Vec::with_capacity(MAX_CONNECTIONS) };
    while server.turn(ended) {}
}

struct Server<'a, S> {
    socket: &'a Socket,
    limits: Limits,
    service: &'a mut S,
    connections: Vec<Connection>,
}

impl<S: Service> Server<'_, S> {
    /// Waits for anything to happen and serves it; `false` once the VM has ended.
    fn turn(&mut self, ended: BorrowedFd<'_>) -> bool {
        let mut set = Vec::with_capacity(2 + self.connections.len());
        set.extend([ended, self.socket.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        set.extend(self.connections.iter().map(|connection| PollFd::new(connection.as_fd(), connection.wants())));
        match poll(&mut set, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing of this can fail but for want of memory: the VM goes on without its API.
            Err(_) => return false,
        }
        let ready: Vec<bool> = set.iter().map(|entry| entry.any().unwrap_or(false)).collect();
        drop(set);
        let (fixed, clients) = ready.split_at_checked(2).unwrap_or_default();
        if fixed.first() == Some(&true) {
            return false;
        }
        self.serve_clients(clients);
        if fixed.get(1) == Some(&true) {
            self.accept();
        }
        true
    }

    fn timeout(&self) -> PollTimeout {
        let Some(next) = self.connections.iter().filter_map(Connection::deadline).min() else {
            return PollTimeout::NONE;
        };
        let left = next.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn serve_clients(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        let service = &mut *self.service;
        self.connections.retain_mut(|connection| {
            let now = Instant::now();
            let turn = if ready.next() == Some(&true) {
                connection.serve(now)
            } else if connection.deadline().is_some_and(|deadline| deadline <= now) {
                connection.expire(now)
            } else {
                Turn::Wait
            };
            answer_all(connection, turn, service)
        });
    }

    fn accept(&mut self) {
        // Out of descriptors, or gone again: the next turn will see.
        let Ok(fd) = self.socket.accept() else {
            return;
        };
        let now = Instant::now();
        let mut connection = Connection::new(fd, self.limits, now);
        if self.connections.len() >= MAX_CONNECTIONS {
            let idle = self.connections.iter().enumerate().filter(|(_, connection)| connection.is_idle());
            let Some((oldest, _)) = idle.min_by_key(|(_, connection)| connection.since()) else {
                let fault = Response::fault(Status::ServiceUnavailable, "too many connections");
                connection.reject(&fault, now);
                let _ = connection.serve(now);
                return;
            };
            self.connections.swap_remove(oldest);
        }
        self.connections.push(connection);
    }
}

/// Answers what `turn` and what follows in the same bytes ask; gives whether the connection stays.
fn answer_all(connection: &mut Connection, turn: Turn, service: &mut impl Service) -> bool {
    let mut turn = turn;
    for _ in 0..BURST {
        match turn {
            Turn::Wait => return true,
            Turn::End => return false,
            Turn::Answer(request) => {
                let response = service.answer(&request);
                let now = Instant::now();
                connection.answer(&response, now);
                turn = connection.serve(now);
            }
        }
    }
    match turn {
        Turn::End => false,
        Turn::Wait => true,
        Turn::Answer(request) => {
            // Its answer waits in the output, and what follows in the input, for the next turn.
            let response = service.answer(&request);
            connection.answer(&response, Instant::now());
            true
        }
    }
}

#[cfg(test)]
mod tests;
