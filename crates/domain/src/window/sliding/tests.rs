use proptest::prelude::*;

use super::*;

fn admit(window: &mut SlidingWindow, at: u64, amount: u64, most: u64) -> bool {
    let fits = window.fits(CounterTime(at), amount, most);
    if fits {
        window.take(CounterTime(at), amount);
    }
    fits
}

/// The largest sum in any true window, which is as long as `before` buckets and begins with one of
/// the events: moving it to the next event loses nothing.
fn largest_sum(shape: WindowShape, events: &[(u64, u64)]) -> u64 {
    let length = shape.width_ms * shape.before;
    events
        .iter()
        .map(|(from, _)| {
            events
                .iter()
                .filter(|(at, _)| (*from..from + length).contains(at))
                .map(|(_, amount)| amount)
                .sum()
        })
        .max()
        .unwrap_or(0)
}

#[test]
fn the_end_of_the_first_second_counts_until_a_minute_is_over() {
    let most = 100;
    let mut window = SlidingWindow::new(WindowShape::MINUTE);
    for _ in 0..most {
        assert!(admit(&mut window, 999, 1, most));
    }
    assert!(!admit(&mut window, 60_000, 1, most));
    assert!(!admit(&mut window, 60_999, 1, most));
    // A whole minute after 0.999 s is 60.999 s; room is back less than a second later.
    assert!(admit(&mut window, 61_000, most, most));
}

#[test]
fn a_second_has_21_buckets() {
    let mut window = SlidingWindow::new(WindowShape::SECOND);
    assert!(admit(&mut window, 49, 10, 10));
    assert!(!admit(&mut window, 1_049, 1, 10));
    assert!(admit(&mut window, 1_050, 10, 10));
}

#[test]
fn a_steady_client_gets_nine_tenths_of_its_rate_or_more() {
    let mut window = SlidingWindow::new(WindowShape::SECOND);
    // 100 per second for a minute.
    let admitted = (0..6_000_u64)
        .filter(|n| admit(&mut window, n * 10, 1, 100))
        .count();
    assert!(admitted > 5_400, "{admitted} of 6000");
}

#[test]
fn a_clock_that_goes_back_frees_nothing() {
    let mut window = SlidingWindow::new(WindowShape::MINUTE);
    assert!(admit(&mut window, 100_000, 10, 10));
    for at in [95_000, 0, 100_000, 160_999] {
        assert!(!admit(&mut window, at, 1, 10), "at {at}");
    }
    assert_eq!(window.used(CounterTime(0)), 10);
    assert!(admit(&mut window, 161_000, 1, 10));
}

#[test]
fn a_clock_that_jumps_ahead_leaves_an_empty_window() {
    let mut window = SlidingWindow::new(WindowShape::MINUTE);
    assert!(admit(&mut window, 5_000, 10, 10));
    assert!(admit(&mut window, u64::MAX, 10, 10));
    assert!(!admit(&mut window, u64::MAX, 1, 10));
}

#[test]
fn what_has_left_the_window_is_no_credit() {
    let mut window = SlidingWindow::new(WindowShape::MINUTE);
    let number = window.take(CounterTime(0), 50);
    window.take(CounterTime(61_000), 30);
    window.give_back(CounterTime(61_000), number, 50);
    assert_eq!(window.used(CounterTime(61_000)), 30);
}

#[test]
fn what_is_given_back_makes_room_where_it_was_taken() {
    let mut window = SlidingWindow::new(WindowShape::MINUTE);
    let number = window.take(CounterTime(0), 50);
    window.take(CounterTime(30_000), 50);
    window.give_back(CounterTime(30_000), number, 20);
    assert_eq!(window.used(CounterTime(30_000)), 80);
    assert_eq!(window.used(CounterTime(61_000)), 50);
}

#[test]
fn the_wait_is_until_enough_has_left() {
    let mut window = SlidingWindow::new(WindowShape::MINUTE);
    window.take(CounterTime(500), 4);
    window.take(CounterTime(10_500), 6);
    let at = CounterTime(20_000);
    assert_eq!(window.wait(at, 0, 10), Duration::ZERO);
    assert_eq!(window.wait(at, 4, 10), Duration::from_secs(41));
    assert_eq!(window.wait(at, 5, 10), Duration::from_secs(51));
    assert_eq!(window.resets_in(at), Duration::from_secs(51));
}

/// Steps of a clock in milliseconds, with bursts, and with steps back.
fn arrivals() -> impl Strategy<Value = Vec<(i64, u64)>> {
    let step = prop_oneof![
        4 => Just(0_i64),
        4 => 1..50_i64,
        4 => 1..2_000_i64,
        // The edges of buckets and windows.
        3 => prop_oneof![Just(1_i64), Just(999), Just(1_000), Just(49), Just(50), Just(59_001)],
        1 => 30_000..70_000_i64,
        1 => -10_000..0_i64,
    ];
    prop::collection::vec((step, 1..5_u64), 1..200)
}

proptest! {
    #[test]
    fn no_true_window_holds_more_than_the_limit(
        arrivals in arrivals(),
        most in 1..20_u64,
        is_minute in any::<bool>(),
    ) {
        let shape = if is_minute { WindowShape::MINUTE } else { WindowShape::SECOND };
        let mut window = SlidingWindow::new(shape);
        let (mut clock, mut latest) = (100_000_i64, 0);
        let mut admitted = Vec::new();
        for (step, amount) in arrivals {
            clock = (clock + step).max(0);
            // The clock of the counter does not go back.
            latest = latest.max(clock.unsigned_abs());
            if admit(&mut window, clock.unsigned_abs(), amount, most) {
                admitted.push((latest, amount));
            }
        }
        prop_assert!(largest_sum(shape, &admitted) <= most);
    }

    #[test]
    fn room_is_back_at_most_one_bucket_late(
        arrivals in arrivals(),
        most in 5..20_u64,
        is_minute in any::<bool>(),
    ) {
        let shape = if is_minute { WindowShape::MINUTE } else { WindowShape::SECOND };
        let mut window = SlidingWindow::new(shape);
        let mut latest = 100_000;
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for (step, amount) in arrivals {
            latest += step.unsigned_abs();
            let is_admitted = admit(&mut window, latest, amount, most);
            // What a perfect counter of one more bucket would still hold.
            let length = shape.width_ms * (shape.before + 1);
            let held: u64 = admitted
                .iter()
                .filter(|(at, _)| at + length > latest)
                .map(|(_, amount)| amount)
                .sum();
            prop_assert!(is_admitted || held + amount > most, "refused at {latest}");
            let wait = window.wait(CounterTime(latest), amount, most);
            prop_assert!(window.clone().fits(
                CounterTime(latest + u64::try_from(wait.as_millis()).unwrap()),
                amount,
                most,
            ));
            if is_admitted {
                admitted.push((latest, amount));
            }
        }
    }

    #[test]
    fn the_sum_is_that_of_the_buckets_whatever_is_given_back(
        steps in prop::collection::vec((0..5_000_u64, 0..9_u64, any::<Option<prop::sample::Index>>()), 1..100),
    ) {
        let mut window = SlidingWindow::new(WindowShape::MINUTE);
        let (mut clock, mut taken) = (0, Vec::new());
        for (step, amount, back) in steps {
            clock += step;
            let now = CounterTime(clock);
            match back.filter(|_| !taken.is_empty()) {
                Some(index) => {
                    let (number, amount) = taken.swap_remove(index.index(taken.len()));
                    let before = window.used(now);
                    window.give_back(now, number, amount);
                    let counts = number + 60 >= clock / 1_000;
                    let expected = if counts { before - amount } else { before };
                    prop_assert_eq!(window.used(now), expected);
                }
                None => taken.push((window.take(now, amount), amount)),
            }
            let sum: u64 = window.amounts(now).map(|(_, amount)| amount).sum();
            prop_assert_eq!(window.used(now), sum);
        }
    }
}
