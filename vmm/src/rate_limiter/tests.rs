use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;

use super::*;

fn limits(bandwidth: Option<(u64, u64)>, ops: Option<(u64, u64)>) -> RateLimiterConfig {
    let bucket = |(size, refill_time)| TokenBucketConfig { size, one_time_burst: None, refill_time };
    RateLimiterConfig { bandwidth: bandwidth.map(bucket), ops: ops.map(bucket) }
}

/// An hour's refill time: nothing comes in while a test runs.
const HOUR: u64 = 3_600_000;

fn is_ready(limiter: &RateLimiter, timeout: PollTimeout) -> bool {
    // SAFETY: the limiter outlives the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(limiter.as_raw_fd()) };
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap() > 0
}

#[test]
fn without_limits_everything_passes() {
    let mut limiter = RateLimiter::new(None).unwrap();
    assert!((0..1000).all(|_| limiter.admit(u64::MAX)));
    let mut limiter = RateLimiter::new(Some(&limits(Some((0, 100)), Some((5, 0))))).unwrap();
    assert!((0..1000).all(|_| limiter.admit(u64::MAX)));
}

#[test]
fn each_bucket_limits_for_itself_and_a_refusal_costs_nothing() {
    let passed = |config| {
        let mut limiter = RateLimiter::new(Some(&config)).unwrap();
        (0..100).take_while(|_| limiter.admit(100)).count()
    };
    assert_eq!(passed(limits(Some((1050, HOUR)), None)), 10);
    assert_eq!(passed(limits(None, Some((7, HOUR)))), 7);
    assert_eq!(passed(limits(Some((1050, HOUR)), Some((7, HOUR)))), 7);
    // Too many bytes now: the operation is not counted, and something smaller passes after the timer.
    let mut limiter = RateLimiter::new(Some(&limits(Some((1050, HOUR)), Some((3, HOUR))))).unwrap();
    assert!(limiter.admit(1000) && !limiter.admit(51));
    limiter.timer_event();
    assert!(limiter.admit(50) && limiter.admit(0) && !limiter.admit(0));
}

#[test]
fn the_timer_goes_off_when_something_may_go_on() {
    let mut limiter = RateLimiter::new(Some(&limits(None, Some((1, 20))))).unwrap();
    assert!(limiter.admit(1) && !limiter.admit(1) && limiter.is_waiting());
    assert!(is_ready(&limiter, PollTimeout::from(60_000u16)));
    assert!(!limiter.admit(1), "not before it was heard");
    limiter.timer_event();
    assert!(!is_ready(&limiter, PollTimeout::ZERO) && limiter.admit(1));
}

#[test]
fn new_limits_are_heard_of_at_once_and_leave_the_others_alone() {
    let mut limiter = RateLimiter::new(Some(&limits(Some((10, HOUR)), Some((1, HOUR))))).unwrap();
    assert!(limiter.admit(5) && !limiter.admit(5));
    limiter.update(&limits(None, Some((0, 0))));
    assert!(is_ready(&limiter, PollTimeout::from(60_000u16)));
    limiter.timer_event();
    assert!(limiter.admit(5), "no longer limited in operations");
    assert!(!limiter.admit(1), "still limited in bytes");
}

#[test]
fn a_snapshot_keeps_what_was_used_up() {
    let mut limiter = RateLimiter::new(Some(&limits(Some((10, HOUR)), None))).unwrap();
    assert!(limiter.admit(8));
    let state = limiter.save();
    let mut restored = RateLimiter::new(None).unwrap();
    restored.restore(state).unwrap();
    assert!(restored.admit(2) && !restored.admit(1));
    let bad: Level =
        serde_json::from_str(r#"{"size": 0, "refill_ns": 1, "burst": 0, "balance": 0, "fraction": 0}"#).unwrap();
    assert!(restored.restore(RateLimiterState { bandwidth: None, ops: Some(bad) }).is_err());
}

#[test]
fn firecrackers_json_is_read_and_refill_times_are_bounded() {
    let text = r#"{"bandwidth": {"size": 1000, "one_time_burst": 5000, "refill_time": 100}, "ops": null}"#;
    let config: RateLimiterConfig = serde_json::from_str(text).unwrap();
    let bucket = TokenBucketConfig { size: 1000, one_time_burst: Some(5000), refill_time: 100 };
    assert_eq!(config, RateLimiterConfig { bandwidth: Some(bucket), ops: None });
    assert!(config.check().is_ok());
    for bad in [r#"{"bandwith": {}}"#, r#"{"ops": {"size": 1}}"#, r#"{"ops": {"size": -1, "refill_time": 1}}"#] {
        assert!(serde_json::from_str::<RateLimiterConfig>(bad).is_err(), "{bad}");
    }
    let error = limits(None, Some((1, u64::MAX))).check().unwrap_err().to_string();
    assert!(error.contains("rate_limiter.ops.refill_time"), "{error}");
}
