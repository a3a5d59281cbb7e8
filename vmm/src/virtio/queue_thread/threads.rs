//! The threads themselves.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use vmm_sys_util::eventfd::EventFd;

use super::QueueThread;
use crate::jail::JailError;
use crate::jail::seccomp::{self, Descriptors, ThreadKind};
use crate::vcpu::Message;
use crate::vm::STACK;

/// How the threads tell the main thread of what happens to them.
#[derive(Clone)]
pub struct Report {
    /// Where messages go.
    pub messages: Sender<Message>,
    /// Written after each message while the VM runs.
    pub wake: Arc<EventFd>,
}

/// Starts a thread for each of `threads`. Each confines itself, says so ([`Message::Confined`]), and serves its queue
/// whenever the VM runs. They end when they are told to, or with the process: none is waited for, as the host may be
/// long with what it does for one.
/// `known` are the VM's descriptors, for their filters; without, they have none.
pub fn start(threads: Vec<QueueThread>, report: &Report, known: Option<&Descriptors>) -> std::io::Result<()> {
    threads.into_iter().enumerate().try_for_each(|(number, thread)| {
        let (report, known) = (report.clone(), known.cloned());
        let builder = std::thread::Builder::new().name(format!("queue{number}")).stack_size(STACK);
        builder.spawn(move || run(thread, &report, known)).map(drop)
    })
}

fn run(mut thread: QueueThread, report: &Report, known: Option<Descriptors>) {
    let confined = known.map_or(Ok(()), |known| confine(&thread, known));
    let ok = confined.is_ok();
    // The main thread waits for just this: it needs not be woken by the counter.
    let _ = report.messages.send(Message::Confined(confined));
    if ok && let Err(source) = serve(&mut thread) {
        let _ = report.messages.send(Message::QueueThread(source));
        let _ = report.wake.write(1);
    }
}

fn serve(thread: &mut QueueThread) -> std::io::Result<()> {
    while thread.serve(-1)? {}
    Ok(())
}

fn confine(thread: &QueueThread, known: Descriptors) -> Result<(), JailError> {
    let known = Descriptors { events: vec![thread.as_raw_fd()], watched: vec![thread.server.timer()], ..known };
    let filter = seccomp::compile(ThreadKind::Queue, thread.server.system_calls(), &known)?;
    seccomp::install(ThreadKind::Queue, &filter)
}
