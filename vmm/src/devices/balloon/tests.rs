use super::*;
use crate::memory::GuestRam;
use crate::virtio::registers::offset;
use crate::virtio::transport::driver::{Driver, FREE};
use vm_memory::{Bytes, FileOffset, GuestAddress};

const ALL: u32 = (1 << FEATURE_STATISTICS) | (1 << FEATURE_DEFLATE_ON_OOM) | (1 << FEATURE_REPORTING);
const STATISTICS: usize = 2;

fn config() -> BalloonConfig {
    BalloonConfig {
        amount_mib: 2,
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
        free_page_reporting: true,
        ..BalloonConfig::default()
    }
}

fn balloon(config: &BalloonConfig) -> Box<Balloon> {
    Box::new(Balloon::new(config, 8).unwrap())
}

fn control<T>(driver: &Driver, work: impl FnOnce(&mut Balloon) -> (T, bool)) -> T {
    driver.slot.control(|device, _| work(device.as_any().downcast_mut().unwrap()))
}

#[test]
fn features_and_queues_are_those_that_were_asked_for() {
    let none = balloon(&BalloonConfig::default());
    assert_eq!((none.features(), none.queue_sizes().len()), (0, 2));
    let all = balloon(&config());
    assert_eq!((all.features(), all.queue_sizes().len()), (u64::from(ALL), 4));
}

#[test]
fn a_new_target_reaches_the_driver_and_too_much_does_not() {
    let mut driver = Driver::new(balloon(&config()));
    driver.start(ALL);
    driver.settle();
    let (target, generation) = (driver.get(offset::CONFIG), driver.get(offset::CONFIG_GENERATION));
    assert_eq!(target, 512);
    control(&driver, |balloon| (balloon.set_target(8).unwrap(), true));
    assert_eq!(driver.get(offset::CONFIG), 2048);
    assert_ne!(driver.get(offset::CONFIG_GENERATION), generation);
    assert_eq!(driver.get(offset::INTERRUPT_STATUS) & 2, 2, "the driver is called");
    for mib in [9, 1 << 24, u32::MAX] {
        let refused = control(&driver, |balloon| (balloon.set_target(mib), false));
        assert_eq!(refused, Err(BalloonError::TooManyPagesRequested));
    }
    assert_eq!(driver.get(offset::CONFIG), 2048);
    assert_eq!(control(&driver, |balloon| (balloon.config(), false)), BalloonConfig { amount_mib: 8, ..config() });
}

#[test]
fn statistics_cannot_be_switched_on_or_off_later() {
    let mut with = balloon(&config());
    assert_eq!(with.set_polling(0), Err(BalloonError::StatisticsStateChange));
    assert_eq!(with.set_polling(5), Ok(()));
    assert_eq!(with.config().stats_polling_interval_s, 5);
    let mut without = balloon(&BalloonConfig::default());
    assert_eq!(without.set_polling(1), Err(BalloonError::StatisticsStateChange));
    assert_eq!(without.set_polling(0), Ok(()));
    assert_eq!(without.statistics(), Err(BalloonError::StatisticsDisabled));
}

#[test]
fn statistics_come_in_and_live_on_in_a_snapshot_as_far_as_they_must() {
    let mut driver = Driver::new(balloon(&config()));
    driver.start(ALL);
    // Total memory, and a tag that nobody knows.
    let entries = [&5u16.to_le_bytes()[..], &77u64.to_le_bytes(), &99u16.to_le_bytes(), &1u64.to_le_bytes()].concat();
    driver.ram.write_slice(&entries, GuestAddress(FREE)).unwrap();
    driver.offer(STATISTICS, &[(FREE, 20, false)]);
    driver.set(offset::CONFIG + ACTUAL, 300);
    driver.settle();
    let got = control(&driver, |balloon| (balloon.statistics(), false)).unwrap();
    assert_eq!((got.target_pages, got.target_mib, got.actual_pages, got.actual_mib), (512, 2, 300, 1));
    assert_eq!(got.guest, GuestStatistics { total_memory: Some(77), ..GuestStatistics::default() });
    assert_eq!(driver.used(STATISTICS), None, "kept until the next are wanted");

    // The buffer that is kept is the restored device's.
    let mut restored = driver.restore(balloon(&config())).unwrap();
    let got = control(&restored, |balloon| (balloon.statistics(), false)).unwrap();
    assert_eq!((got.actual_pages, got.guest), (300, GuestStatistics::default()));
    assert_eq!(restored.until("statistics are wanted", |driver| driver.used(STATISTICS)), (0, 0));
    // A second buffer beside the one that is kept: the older comes back at once.
    restored.offer(STATISTICS, &[(FREE, 20, false)]);
    restored.offer(STATISTICS, &[(FREE, 20, false)]);
    assert_eq!(restored.until("the older comes back", |driver| driver.used(STATISTICS)), (1, 0));
}

#[test]
fn a_restored_guest_that_gives_every_second_page_finds_a_limit_and_goes_on() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 << 20).unwrap();
    let ram = GuestRam::from_ranges_with_files([(GuestAddress(0), 8 << 20, Some(FileOffset::new(file, 0)))]).unwrap();
    let mut device = balloon(&BalloonConfig { free_page_reporting: true, ..BalloonConfig::default() });
    device.replaced = pages::Replaced::with_limit(3);
    let mut driver = Driver::over(device, ram);
    driver.start(1 << FEATURE_REPORTING);
    let page = |number: u64| FREE + 2 * number * 4096;
    let inflate = |driver: &mut Driver, number: u64| {
        driver.ram.write_slice(&[9; 4096], GuestAddress(page(number))).unwrap();
        driver.ram.write_obj(u32::try_from(page(number) / 4096).unwrap(), GuestAddress(0x8000)).unwrap();
        driver.offer(INFLATE, &[(0x8000, 4, false)]);
        driver.until("the request completes", |driver| driver.used(INFLATE));
        driver.ram.read_obj::<u8>(GuestAddress(page(number))).unwrap()
    };
    let taken: Vec<u8> = (0..5).map(|number| inflate(&mut driver, number)).collect();
    // Beyond the limit pages keep what is in them; those that were taken once can be taken again.
    assert_eq!(taken, [0, 0, 0, 9, 9]);
    assert_eq!(inflate(&mut driver, 1), 0);
    // Reported pages count as well, and the driver gets its buffer back.
    driver.offer(DEFLATE + 1, &[(page(7), 4096, true)]);
    driver.until("the report completes", |driver| driver.used(DEFLATE + 1));
    let counters = driver.slot.metrics().remove(0).1;
    assert_eq!((&counters["event_fails"], &counters["free_page_report_fails"]), (&2.into(), &1.into()));
    assert!(!driver.is_given_up() && control(&driver, |balloon| (balloon.told, false)));
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let state = |target, interval_s, held| postcard::to_stdvec(&State { target, actual: 0, interval_s, held }).unwrap();
    assert_eq!(balloon(&config()).restore(&state(2048, 3, Some(255))), Ok(()));
    for bad in [state(2049, 3, None), state(0, 0, None), state(0, 3, Some(256)), vec![], vec![0xff; 64]] {
        assert!(balloon(&config()).restore(&bad).is_err(), "{bad:?}");
    }
    let none = BalloonConfig::default();
    assert!(balloon(&none).restore(&state(0, 3, None)).is_err());
    assert_eq!(balloon(&none).restore(&state(0, 0, None)), Ok(()));
}

#[test]
fn firecrackers_object_is_read_and_what_is_not_supported_is_refused_by_name() {
    let parse = |text: &str| serde_json::from_str::<BalloonConfig>(text);
    let whole = parse(
        r#"{"amount_mib": 2, "deflate_on_oom": true, "stats_polling_interval_s": 1,
                          "free_page_hinting": false, "free_page_reporting": true}"#,
    );
    assert!(whole.unwrap().check(8).is_ok());
    let refused = parse(r#"{"amount_mib": 2, "deflate_on_oom": true, "free_page_hinting": true}"#).unwrap().check(8);
    assert!(refused.unwrap_err().to_string().contains("balloon.free_page_hinting"));
    assert!(parse(r#"{"amount_mib": 9, "deflate_on_oom": true}"#).unwrap().check(8).is_err());
    for bad in [r#"{"amount_mib": 2}"#, r#"{"amount_mib": -1, "deflate_on_oom": true}"#, r#"{"deflate_on_oom": true}"#]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
