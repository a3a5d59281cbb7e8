use proptest::prelude::*;

use super::*;

/// A bucket of any size, also absurd ones.
fn any_bucket() -> impl Strategy<Value = TokenBucket> {
    let number = || prop_oneof![1..100u64, 1..1_000_000_000u64, Just(u64::MAX)];
    let refill = prop_oneof![1..100u64, 1..100_000u64, Just(u64::MAX / NANOS_PER_MS)];
    (number(), prop_oneof![Just(0), number()], refill)
        .prop_map(|(size, burst, refill)| TokenBucket::new(size, burst, refill).unwrap())
}

fn any_pause() -> impl Strategy<Value = Duration> {
    prop_oneof![0..1000u64, 0..10_000_000u64, 0..10_000_000_000u64].prop_map(Duration::from_nanos)
}

/// Costs from nothing to more than the bucket holds.
fn any_cost() -> impl Strategy<Value = u64> {
    prop_oneof![0..10u64, 0..1000u64, 0..2_000_000_000u64, Just(u64::MAX)]
}

proptest! {
    #[test]
    fn never_more_passes_than_is_allowed(
        mut bucket in any_bucket(),
        steps in proptest::collection::vec((any_pause(), any_cost()), 1..200),
    ) {
        let start = bucket.filled;
        let Level { size, refill_ns, burst, .. } = bucket.level;
        let (mut now, mut passed, mut debt) = (start, 0u128, 0u128);
        for (pause, cost) in steps {
            now += pause;
            if bucket.wait(cost, now) == Duration::ZERO {
                bucket.take(cost);
                passed += u128::from(cost);
                debt = debt.max(u128::from(cost.saturating_sub(size)));
            }
            // An upper bound that does not round: tokens that the time up to now brings.
            let refilled = (now - start).as_nanos() * u128::from(size) / u128::from(refill_ns);
            let allowed = u128::from(size) + u128::from(burst) + refilled + debt;
            prop_assert!(passed <= allowed, "{passed} of {allowed}");
        }
    }

    #[test]
    fn nobody_starves_and_nobody_waits_too_long(
        mut bucket in any_bucket(),
        before in proptest::collection::vec((any_pause(), any_cost()), 0..20),
        cost in any_cost(),
    ) {
        let mut now = bucket.filled;
        for (pause, cost) in before {
            now += pause;
            if bucket.wait(cost, now) == Duration::ZERO {
                bucket.take(cost);
            }
        }
        let wait = bucket.wait(cost, now);
        prop_assume!(wait < MAX_WAIT);
        prop_assert_eq!(bucket.clone().wait(cost, now + wait), Duration::ZERO);
        if let Some(early) = wait.checked_sub(Duration::from_nanos(1)) {
            // However often it is asked meanwhile.
            let mut asked = bucket.clone();
            for part in 1..20 {
                asked.wait(cost, now + early * part / 20);
            }
            prop_assert_eq!(asked.wait(cost, now + early), Duration::from_nanos(1));
            prop_assert_eq!(bucket.wait(cost, now + early), Duration::from_nanos(1));
        }
    }

    #[test]
    fn a_saved_bucket_goes_on_where_it_was(mut bucket in any_bucket(), cost in any_cost()) {
        bucket.take(cost);
        let level = bucket.save();
        let restored = TokenBucket::restore(level.clone()).unwrap();
        prop_assert_eq!(restored.level, level);
    }

    #[test]
    fn a_made_up_state_is_refused_or_harmless(
        (size, refill_ns, burst, fraction) in any::<(u64, u64, u64, u64)>(), balance: i128, cost: u64, pause in any_pause(),
    ) {
        if let Some(mut bucket) = TokenBucket::restore(Level { size, refill_ns, burst, balance, fraction }) {
            let now = bucket.filled + pause;
            bucket.take(cost);
            bucket.wait(cost, now);
            prop_assert!(bucket.level.balance <= i128::from(size));
        }
    }
}

#[test]
fn an_empty_bucket_fills_in_its_time_and_no_further() {
    let mut bucket = TokenBucket::new(1000, 0, 100).unwrap();
    let start = bucket.filled;
    bucket.take(1000);
    assert_eq!(bucket.available(start), 0);
    assert_eq!(bucket.wait(1, start), Duration::from_micros(100));
    assert_eq!(bucket.available(start + Duration::from_millis(50)), 500);
    assert_eq!(bucket.available(start + Duration::from_millis(99)), 990);
    assert_eq!(bucket.available(start + Duration::from_hours(1)), 1000);
}

#[test]
fn a_burst_is_used_first_and_does_not_come_back() {
    let mut bucket = TokenBucket::new(10, 100, 10).unwrap();
    let start = bucket.filled;
    bucket.take(105);
    assert_eq!(bucket.available(start), 5);
    assert_eq!(bucket.available(start + Duration::from_hours(1)), 10);
}

#[test]
fn what_is_bigger_than_the_bucket_passes_once_it_is_full_and_is_paid_for() {
    let mut bucket = TokenBucket::new(10, 0, 10).unwrap();
    let start = bucket.filled;
    bucket.take(1);
    assert_eq!(bucket.wait(35, start), Duration::from_millis(1));
    let full = start + Duration::from_millis(1);
    assert_eq!(bucket.wait(35, full), Duration::ZERO);
    bucket.take(35);
    assert_eq!((bucket.available(full), bucket.wait(1, full)), (0, Duration::from_millis(26)));
}

#[test]
fn what_limits_nothing_is_no_bucket() {
    assert_eq!(
        [(0, 5, 100), (5, 5, 0), (5, 0, u64::MAX)].map(|(s, b, r)| TokenBucket::new(s, b, r)),
        [None, None, None]
    );
}
