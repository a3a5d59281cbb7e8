use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::memory;
use crate::mmds::Mmds;
use crate::vm::control::{self, ControlError};

fn request(method: Method, path: &str, body: &Value) -> Request {
    Request { method, path: path.to_owned(), body: body.to_string().into_bytes(), keep_alive: true }
}

/// Three differences of a paused VM whose memory stays as it is: the status of each request, and the bytes that its memory
/// takes on disk. The first one fails: while it is written somebody else takes its name, or, before that, its state cannot be
/// had.
fn differences(dir: &Path, written: bool) -> Vec<(u16, Option<u64>)> {
    let (controller, commands) = control::connect(Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())).unwrap();
    let options = Options { id: "x".to_owned(), boot_timer: false, metadata: Mmds::new(100).into_shared() };
    let mut config = VmConfig::new("k").with_mem_mib(2);
    config.machine_config.track_dirty_pages = true;
    let mut session = Session::new(&options, controller, Some(config));
    commands.set_state(VmState::Paused);
    let taken = dir.join("state0");
    let main = std::thread::spawn(move || {
        let (ram, mut first) = (memory::reserve(2).unwrap(), true);
        while let Some(command) = commands.wait() {
            let Command::CreateSnapshot { reply, .. } = command else { panic!("another command") };
            if std::mem::take(&mut first) {
                if !written {
                    reply.send(Err(ControlError::Failed("no state".to_owned())));
                    continue;
                }
                std::fs::write(&taken, "").unwrap();
            }
            reply.send(Ok(Saved { state: snapshot::tests::state(), ram: ram.clone() }));
        }
    });
    let differences = (0..3).map(|number| {
        let [state, memory] = ["state", "memory"].map(|name| dir.join(format!("{name}{number}")));
        let body = serde_json::json!({"snapshot_path": state, "mem_file_path": memory, "snapshot_type": "Diff"});
        let status = session.answer(&request(Method::Put, "/snapshot/create", &body)).status.code();
        (status, std::fs::metadata(memory).ok().map(|data| data.blocks() * 512))
    });
    let differences = differences.collect();
    drop(session);
    main.join().unwrap();
    differences
}

#[test]
fn a_snapshot_that_failed_is_nothing_to_compare_with() {
    for written in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        // The second one has all of the memory, though it is as it was; the third is a difference to it.
        let expected = [(400, None), (204, Some(2 << 20)), (204, Some(0))];
        assert_eq!(differences(dir.path(), written), expected, "{written}");
    }
}
