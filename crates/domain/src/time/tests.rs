use proptest::prelude::*;

use super::*;

fn ms(text: &str) -> UnixMillis {
    parse_rfc3339(text).unwrap()
}

#[test]
fn a_month_begins_at_local_midnight() {
    let zone: TimeZone = "Europe/Berlin".parse().unwrap();
    let period = zone.period_of(ms("2026-11-30T23:30:00Z"));
    assert_eq!(period.month.to_string(), "2026-12");
    assert_eq!(period.starts_at, ms("2026-11-30T23:00:00Z"));
    assert_eq!(period.ends_at, ms("2026-12-31T23:00:00Z"));
}

#[test]
fn a_month_with_a_clock_change_is_an_hour_longer() {
    let zone: TimeZone = "Europe/Berlin".parse().unwrap();
    let october = zone.period(Month::from_number(202_610).unwrap());
    assert_eq!(
        october.ends_at.since(october.starts_at),
        (31 * 24 + 1) * 3_600_000
    );
}

#[test]
fn december_is_followed_by_january() {
    assert_eq!(
        Month::from_number(202_612).unwrap().next(),
        Month::from_number(202_701).unwrap()
    );
}

#[test]
fn an_unknown_zone_is_refused() {
    assert!("Mars/Olympus".parse::<TimeZone>().is_err());
}

proptest! {
    #[test]
    fn every_instant_is_in_exactly_its_own_period_and_day(
        at in 0_i64..4_000_000_000_000,
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia", "Asia/Kathmandu", "America/Santiago"]),
    ) {
        let zone: TimeZone = zone.parse().unwrap();
        let at = UnixMillis(at);
        let period = zone.period_of(at);
        prop_assert!(period.contains(at));
        prop_assert_eq!(zone.period(period.month.next()).starts_at, period.ends_at);
        let day = zone.day_of(at);
        prop_assert!(day.starts_at <= at && at < day.ends_at);
        prop_assert_eq!(day.day.0 / 100, period.month.as_number());
    }
}

#[test]
fn a_month_that_has_begun_does_not_end_when_the_clock_goes_back_over_midnight() {
    // On 2009-11-01 at 00:01 it became 23:01 of the day before.
    let zone: TimeZone = "America/St_Johns".parse().unwrap();
    let begin = ms("2009-11-01T02:30:00Z");
    let november = zone.period_of(begin);
    assert_eq!(
        (november.month.as_number(), november.starts_at),
        (200_911, begin)
    );
    for again in [
        "2009-11-01T02:31:00Z",
        "2009-11-01T03:29:59Z",
        "2009-11-01T03:30:00Z",
    ] {
        assert_eq!(zone.period_of(ms(again)), november, "{again}");
        assert_eq!(zone.day_of(ms(again)).day, LocalDay(20_091_101), "{again}");
    }
    assert_eq!(
        zone.period_of(UnixMillis(begin.0 - 1)).month.as_number(),
        200_910
    );
}

/// How many times are tried: `SLUICE_PROVE_TIMES`, or few.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
fn tries() -> u64 {
    let wanted = std::env::var("SLUICE_PROVE_TIMES").ok();
    wanted.map_or(2_000, |count| count.parse().unwrap())
}

/// Random choices that a number repeats: `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, low: i64, high: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let span = u64::try_from(high - low).unwrap() + 1;
        low + i64::try_from((z ^ (z >> 31)) % span).unwrap()
    }
}

fn all_zones() -> Vec<TimeZone> {
    let names = tz::db().available().map(|name| name.to_string());
    let zones: Vec<TimeZone> = names.map(|name| name.parse().unwrap()).collect();
    assert!(zones.len() > 500, "{} zones", zones.len());
    zones
}

/// A time near a change of the clock in the zone, near the end of a month there, or any.
fn time_near_something(dice: &mut Dice, zone: &TimeZone) -> UnixMillis {
    const DAY: i64 = 86_400_000;
    let any = dice.roll(0, 4_100_000_000_000);
    let edge = match dice.roll(0, 3) {
        0 => any,
        1 => {
            let from = jiff::Timestamp::from_millisecond(any).unwrap();
            let next = zone.zone.following(from).next();
            next.map_or(any, |change| change.timestamp().as_millisecond())
        }
        _ => zone.period_of(UnixMillis(any)).ends_at.0,
    };
    let by = match dice.roll(0, 4) {
        0 => 0,
        1 => dice.roll(-1, 1),
        2 => dice.roll(-120_000, 120_000),
        3 => dice.roll(-2 * 3_600_000, 2 * 3_600_000),
        _ => dice.roll(-2 * DAY, 2 * DAY),
    };
    UnixMillis(edge + by)
}

/// Looks at one time in one zone from all sides.
#[track_caller]
fn check_time(zone: &TimeZone, at: UnixMillis) {
    let about = format!("{zone:?} at {}", at.to_rfc3339());
    let period = zone.period_of(at);
    assert!(period.contains(at), "{about}: {period:?}");
    assert_eq!(zone.period(period.month), period, "{about}");
    let (first, last) = (period.starts_at, UnixMillis(period.ends_at.0 - 1));
    for inside in [first, last] {
        assert_eq!(zone.period_of(inside), period, "{about}");
    }
    // Months adjoin.
    let next = zone.period_of(period.ends_at);
    assert_eq!(next.month, period.month.next(), "{about}");
    assert_eq!(next.month.previous(), period.month, "{about}");
    assert_eq!(next.starts_at, period.ends_at, "{about}");
    let before = zone.period_of(UnixMillis(first.0 - 1));
    assert_eq!(before.month.next(), period.month, "{about}");
    assert_eq!(before.ends_at, first, "{about}");
    // So do days, and a day is of one month.
    let day = zone.day_of(at);
    assert!(day.starts_at <= at && at < day.ends_at, "{about}: {day:?}");
    assert_eq!(
        day.day.0 / 100,
        period.month.as_number(),
        "{about}: {day:?}"
    );
    assert!(
        first <= day.starts_at && day.ends_at <= period.ends_at,
        "{about}: {day:?}"
    );
    for inside in [day.starts_at, UnixMillis(day.ends_at.0 - 1)] {
        assert_eq!(zone.day_of(inside), day, "{about}");
    }
    let tomorrow = zone.day_of(day.ends_at);
    assert!(
        tomorrow.day > day.day,
        "{about}: {tomorrow:?} after {day:?}"
    );
    assert_eq!(tomorrow.starts_at, day.ends_at, "{about}");
}

#[test]
fn every_time_is_in_exactly_one_month_and_day_of_every_zone() {
    let zones = all_zones();
    let mut dice = Dice(7);
    for number in 0..tries() {
        let zone = &zones[usize::try_from(number).unwrap() % zones.len()];
        check_time(zone, time_near_something(&mut dice, zone));
    }
}

#[test]
fn a_clock_that_steps_never_changes_the_order_of_months_and_days() {
    let zones = all_zones();
    let mut dice = Dice(8);
    for number in 0..tries() {
        let zone = &zones[usize::try_from(number).unwrap() % zones.len()];
        let one = time_near_something(&mut dice, zone);
        let other = UnixMillis(one.0 + dice.roll(-3 * 3_600_000, 3 * 3_600_000));
        let (early, late) = (one.min(other), one.max(other));
        let about = format!(
            "{zone:?} at {} and {}",
            early.to_rfc3339(),
            late.to_rfc3339()
        );
        assert!(
            zone.period_of(early).month <= zone.period_of(late).month,
            "{about}"
        );
        assert!(zone.day_of(early).day <= zone.day_of(late).day, "{about}");
    }
}
