use std::num::NonZeroU32;

use proptest::prelude::*;

use super::super::evidence::tests::source;
use super::*;

fn policy() -> BreakerPolicy {
    BreakerPolicy::default()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Fails `count` attempts of different requests.
fn fail(breaker: &mut Breaker, count: u64, now: Duration) -> Option<Verdict> {
    (0..count)
        .map(|n| {
            let ticket = breaker.begin(now)?;
            Some(breaker.fail(ticket, source(1, n), &policy(), now, 0.0))
        })
        .last()
        .flatten()
}

fn opened() -> Breaker {
    let mut breaker = Breaker::new();
    assert_eq!(fail(&mut breaker, 5, at(0)), Some(Verdict::Opened(at(60))));
    breaker
}

#[test]
fn failures_in_a_row_open_it() {
    let mut breaker = Breaker::new();
    assert_eq!(fail(&mut breaker, 4, at(0)), Some(Verdict::Counted));
    let ticket = breaker.begin(at(0)).unwrap();
    assert!(!breaker.succeed(ticket, at(0)), "it was closed already");
    assert_eq!(fail(&mut breaker, 4, at(0)), Some(Verdict::Counted));
    assert_eq!(fail(&mut breaker, 1, at(0)), Some(Verdict::Opened(at(60))));
    assert_eq!(breaker.begin(at(59)), None);
    assert_eq!(breaker.wait(at(59)), Some(at(1)));
}

#[test]
fn a_rate_of_failures_opens_it_once_there_are_enough_attempts() {
    let mut breaker = Breaker::new();
    for n in 0..19 {
        let ticket = breaker.begin(at(n)).unwrap();
        if n % 2 == 0 {
            let verdict = breaker.fail(ticket, source(1, n), &policy(), at(n), 0.0);
            assert_eq!(verdict, Verdict::Counted, "{n}");
        } else {
            breaker.succeed(ticket, at(n));
        }
    }
    let ticket = breaker.begin(at(19)).unwrap();
    let verdict = breaker.fail(ticket, source(1, 19), &policy(), at(19), 0.0);
    assert_eq!(verdict, Verdict::Opened(at(60)));
}

#[test]
fn exactly_one_attempt_probes_and_its_success_closes_it() {
    let mut breaker = opened();
    let probe = breaker.begin(at(60)).unwrap();
    assert_eq!(breaker.begin(at(60)), None);
    assert_eq!(breaker.begin_forced(at(60)), None);
    assert!(breaker.succeed(probe, at(61)));
    assert_eq!(breaker.state(), State::Closed);
    assert!(breaker.begin(at(61)).is_some());
}

#[test]
fn every_failed_probe_doubles_the_time_up_to_ten_times() {
    let mut breaker = opened();
    let mut now = at(60);
    let mut times = Vec::new();
    for _ in 0..6 {
        let probe = breaker.begin(now).unwrap();
        let Verdict::Opened(time) = breaker.fail(probe, source(1, 1), &policy(), now, 0.0) else {
            panic!("it stays open");
        };
        times.push(time.as_secs());
        now += time;
    }
    assert_eq!(times, [120, 240, 480, 600, 600, 600]);
    let probe = breaker.begin(now).unwrap();
    breaker.succeed(probe, now);
    assert_eq!(
        fail(&mut breaker, 5, now),
        Some(Verdict::Opened(at(60))),
        "it begins anew"
    );
}

#[test]
fn luck_prolongs_and_never_shortens() {
    let mut breaker = Breaker::new();
    for n in 0..5 {
        let ticket = breaker.begin(at(0)).unwrap();
        let verdict = breaker.fail(ticket, source(1, n), &policy(), at(0), 1.0);
        if n == 4 {
            assert_eq!(verdict, Verdict::Opened(at(72)));
        }
    }
}

#[test]
fn a_probe_whose_client_left_leaves_the_next_one_to_probe() {
    let mut breaker = opened();
    let probe = breaker.begin(at(60)).unwrap();
    breaker.abandon(probe);
    assert!(breaker.begin(at(60)).is_some());
}

#[test]
fn a_probe_that_came_too_early_changes_nothing_when_it_fails() {
    let mut breaker = opened();
    let probe = breaker.begin_forced(at(10)).unwrap();
    assert_eq!(breaker.begin_forced(at(10)), None, "one at a time");
    let verdict = breaker.fail(probe, source(1, 1), &policy(), at(11), 0.0);
    assert_eq!(
        (verdict, breaker.wait(at(11))),
        (Verdict::Counted, Some(at(49)))
    );
    let probe = breaker.begin_forced(at(12)).unwrap();
    assert!(breaker.succeed(probe, at(13)));
}

#[test]
fn what_began_before_it_opened_does_not_count_afterwards() {
    let mut breaker = Breaker::new();
    let old: Vec<Ticket> = (0..10).map(|_| breaker.begin(at(0)).unwrap()).collect();
    fail(&mut breaker, 5, at(1));
    let probe = breaker.begin(at(61)).unwrap();
    assert!(!breaker.succeed(old[0], at(61)), "only the probe closes it");
    breaker.succeed(probe, at(61));
    for ticket in &old[1..] {
        let verdict = breaker.fail(*ticket, source(2, 7), &policy(), at(61), 0.0);
        assert_eq!(verdict, Verdict::Counted);
    }
    assert_eq!(breaker.failures(), 0);
}

#[test]
fn one_request_that_fails_again_and_again_opens_nothing() {
    let mut breaker = Breaker::new();
    for n in 1..=1_000 {
        let ticket = breaker.begin(at(0)).unwrap();
        let verdict = breaker.fail(ticket, source(1, 1), &policy(), at(0), 0.0);
        // Once held back, it is one failure already.
        let expected = if n >= 5 && n % 4 == 1 {
            Verdict::HoldBack { is_sure: false }
        } else {
            Verdict::Counted
        };
        assert_eq!(verdict, expected, "{n}");
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn requests_that_are_repeated_as_often_as_failures_are_allowed_open_it_together() {
    for max_failures in 1..=3 {
        let policy = BreakerPolicy {
            max_failures: NonZeroU32::new(max_failures).unwrap(),
            ..policy()
        };
        let mut breaker = Breaker::new();
        let mut request = |body| {
            let attempts = (0..3).map_while(|_| {
                let ticket = breaker.begin(at(0))?;
                Some(breaker.fail(ticket, source(1, body), &policy, at(0), 0.0))
            });
            attempts.last()
        };
        let first = request(1);
        assert_eq!(
            first,
            Some(Verdict::HoldBack { is_sure: false }),
            "{max_failures}"
        );
        let second = request(2);
        assert_eq!(second, Some(Verdict::Opened(at(60))), "{max_failures}");
    }
}

#[test]
fn a_request_that_fails_while_others_succeed_is_surely_at_fault() {
    let mut breaker = Breaker::new();
    let mut verdicts = Vec::new();
    for n in 0..20 {
        let ticket = breaker.begin(at(0)).unwrap();
        if n % 4 == 0 {
            breaker.succeed(ticket, at(0));
        } else {
            verdicts.push(breaker.fail(ticket, source(1, 1), &policy(), at(0), 0.0));
        }
    }
    assert_eq!(verdicts.pop(), Some(Verdict::HoldBack { is_sure: true }));
}

#[test]
fn what_says_nothing_about_failures_counts_nothing_and_closes_after_a_probe() {
    let mut breaker = Breaker::new();
    fail(&mut breaker, 4, at(0));
    let ticket = breaker.begin(at(0)).unwrap();
    assert!(!breaker.pass_over(ticket));
    assert_eq!(breaker.failures(), 4);
    fail(&mut breaker, 1, at(0));
    let probe = breaker.begin(at(60)).unwrap();
    assert!(breaker.pass_over(probe));
}

/// What may happen to a breaker.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    Force,
    /// Ends one of the attempts under way.
    End(usize, End),
    Wait(u64),
}

#[derive(Debug, Clone, Copy)]
enum End {
    Success,
    Failure(u64),
    PassedOver,
    Abandoned,
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![
        Just(End::Success),
        (0..3_u64).prop_map(End::Failure),
        (0..3_u64).prop_map(End::Failure),
        Just(End::PassedOver),
        Just(End::Abandoned),
    ];
    prop_oneof![
        4 => Just(Step::Begin),
        1 => Just(Step::Force),
        4 => (any::<usize>(), end).prop_map(|(which, end)| Step::End(which, end)),
        1 => (0..100_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn there_is_never_more_than_one_probe_and_always_a_way_back(
        steps in prop::collection::vec(step(), 0..300),
        max_failures in 1..6_u32,
    ) {
        let policy = BreakerPolicy {
            max_failures: NonZeroU32::new(max_failures).unwrap(),
            ..policy()
        };
        let mut breaker = Breaker::new();
        let mut now = at(0);
        let mut open: Vec<Ticket> = Vec::new();
        for step in steps {
            match step {
                Step::Begin => {
                    let may_pass = match breaker.state() {
                        State::Closed => true,
                        State::Open { until } => until <= now,
                        State::HalfOpen { .. } => false,
                    };
                    let ticket = breaker.begin(now);
                    prop_assert_eq!(ticket.is_some(), may_pass);
                    open.extend(ticket);
                }
                Step::Force => {
                    let is_half_open = matches!(breaker.state(), State::HalfOpen { .. });
                    let ticket = breaker.begin_forced(now);
                    prop_assert_eq!(ticket.is_none(), is_half_open);
                    open.extend(ticket);
                }
                Step::End(_, _) if open.is_empty() => {}
                Step::End(which, end) => {
                    let ticket = open.swap_remove(which % open.len());
                    match end {
                        End::Success => drop(breaker.succeed(ticket, now)),
                        End::PassedOver => drop(breaker.pass_over(ticket)),
                        End::Abandoned => breaker.abandon(ticket),
                        End::Failure(body) => {
                            let verdict = breaker.fail(ticket, source(1, body), &policy, now, 0.5);
                            if let Verdict::Opened(time) = verdict {
                                prop_assert!(time <= policy.open_for * 10);
                            }
                        }
                    }
                }
                Step::Wait(seconds) => now += at(seconds),
            }
            let probes = open
                .iter()
                .filter(|t| t.probe.is_some() && t.generation == breaker.generation)
                .count();
            let is_half_open = matches!(breaker.state(), State::HalfOpen { .. });
            prop_assert_eq!(probes, usize::from(is_half_open));
        }
        for ticket in open {
            breaker.abandon(ticket);
        }
        prop_assert!(breaker.begin_forced(now).is_some());
    }
}
