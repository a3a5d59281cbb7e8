//! What the agent's tests share: a verifier (the real service, in this process), hosts with a software TPM that went
//! through a boot made in software, and the agent's own program.
#![allow(dead_code, missing_docs)]

// The boot that the verifier's own tests appraise: one boot, so that both sides speak of the same.
#[path = "../../../verifier/tests/support/boot.rs"]
pub mod boot;
pub mod host;
pub mod verifier;

use std::time::{Duration, Instant};

/// Asks again and again until there is an answer; fails after 40 seconds with what was waited for.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_or_tell(what, ask, String::new)
}

/// Like [`wait_for`]; the failure also tells how things stand then.
pub fn wait_or_tell<T>(what: &str, mut ask: impl FnMut() -> Option<T>, tell: impl Fn() -> String) -> T {
    let until = Instant::now() + Duration::from_secs(40);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited in vain for {what}\n{}", tell());
        std::thread::sleep(Duration::from_millis(50));
    }
}
