//! The way of a request through keys, targets and tiers when something fails.

use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::pool::{Selection, SkipReason, UpstreamLimits};
use sluice_domain::upstream::Deadlines;
use sluice_testkit::{ErrorShape, FakeUpstream, Gate, Script};
use sluice_upstream_pool::{BreakerReport, ErrorClass, SendStage};
use tokio::time::Instant;

use crate::fleet::{Fleet, attempts, tenant, tried};

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_mins(10);

fn silent_after(first_event: Duration) -> Deadlines {
    Deadlines {
        first_event,
        ..Deadlines::default()
    }
}

#[tokio::test]
async fn a_limited_key_is_followed_by_the_next_and_left_alone_until_its_reset() {
    let up = FakeUpstream::start();
    up.script_for_key("sk-0-0", Script::refuse(429).retry_after(600));
    let ready = Fleet::of(&[(&up, 2)]).ready();
    for _ in 0..20 {
        ready.ask().await.unwrap();
    }
    assert_eq!(up.served_for("sk-0-0").len(), 1);
    assert_eq!(up.served_for("sk-0-1").len(), 20);
    let ended = ready.ended.lock();
    assert_eq!(ended.len(), 21, "each attempt is told");
    let limited = tried(&ended)
        .into_iter()
        .filter(|(_, error)| error.is_some());
    assert_eq!(
        limited.collect::<Vec<_>>(),
        attempts(&[(0, "rate_limited")])
    );
}

#[tokio::test]
async fn the_only_key_rests_as_long_as_it_is_told_and_so_does_the_client() {
    let up = FakeUpstream::start();
    up.default_script(Script::refuse(429).retry_after(90));
    let ready = Fleet::of(&[(&up, 1)]).ready();
    let error = ready.ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::RateLimited);
    assert_eq!(error.retry_after, Some(Duration::from_secs(90)));
    assert!(error.refusal.is_some());

    let error = ready.ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::RateLimited);
    assert!(error.attempts.is_empty() && error.stage == SendStage::NotSent);
    assert!(error.retry_after.unwrap() <= Duration::from_secs(90));
    let skipped = error.skipped.named();
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].reason, SkipReason::Cooldown);
    assert!(skipped[0].upstream_key_id.is_some());
    assert_eq!(up.served().len(), 1);
}

#[tokio::test]
async fn a_limit_without_a_hint_is_kept_for_a_moment() {
    let up = FakeUpstream::start();
    up.script(Script::refuse(429));
    let ready = Fleet::of(&[(&up, 1)]).ready();
    let error = ready.ask().await.unwrap_err();
    let rest = error.retry_after.unwrap();
    assert!(
        rest >= Duration::from_secs(1) && rest < Duration::from_secs(2),
        "{rest:?}"
    );
    tokio::time::sleep(rest).await;
    ready.ask().await.unwrap();
    assert_eq!(up.served().len(), 2);
}

#[tokio::test]
async fn of_several_rests_the_shortest_is_told() {
    let up = FakeUpstream::start();
    for (key, rest) in [("sk-0-0", 70), ("sk-0-1", 30), ("sk-0-2", 50)] {
        up.script_for_key(key, Script::refuse(429).retry_after(rest));
    }
    let ready = Fleet::of(&[(&up, 3)]).ready();
    for _ in 0..2 {
        let error = ready.ask().await.unwrap_err();
        let told = error.retry_after.unwrap();
        assert!(
            told <= Duration::from_secs(30) && told > Duration::from_secs(20),
            "{told:?}"
        );
    }
    assert_eq!(up.served().len(), 3);
}

#[tokio::test]
async fn when_all_keys_of_a_tier_rest_the_next_tier_serves() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(429).retry_after(600));
    let ready = Fleet::of(&[(&first, 2), (&second, 1)]).ready();
    let answer = ready.stream().await.unwrap();
    let expected = attempts(&[(0, "rate_limited"), (0, "rate_limited"), (1, "")]);
    assert_eq!(tried(&answer.attempts), expected);
    assert_eq!(answer.upstream_model().map(|m| &**m), Some("model-1"));
    let answer = ready.stream().await.unwrap();
    assert_eq!(tried(&answer.attempts), attempts(&[(1, "")]));
    assert_eq!(answer.skipped.named().len(), 2);
}

#[tokio::test]
async fn a_failure_that_passes_is_not_seen() {
    for script in [
        Script::refuse(500),
        Script::refuse(503),
        Script::new().reset_before_head(),
        Script::new().close_before_head(),
        Script::html(200),
        Script::html(502),
        Script::new().error_at(0, ErrorShape::Object),
    ] {
        let up = FakeUpstream::start();
        let ready = Fleet::of(&[(&up, 1)]).ready();
        for streams in [false, true] {
            up.script(script.clone());
            let answer = if streams {
                ready.stream().await
            } else {
                ready.ask().await
            };
            let answer = answer.unwrap_or_else(|error| panic!("{script:?}: {error}"));
            assert_eq!(answer.attempts.len(), 2, "{script:?}");
            assert!(answer.attempts[0].error.is_some());
        }
        assert_eq!(*ready.begun.lock(), [0, 1, 0, 1]);
    }
}

#[tokio::test]
async fn an_upstream_that_fails_is_tried_as_often_as_allowed_and_then_the_next_tier() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(503));
    let ready = Fleet::of(&[(&first, 1), (&second, 1)]).ready();
    let answer = ready.ask().await.unwrap();
    let expected = attempts(&[(0, "status"), (0, "status"), (0, "status"), (1, "")]);
    assert_eq!(tried(&answer.attempts), expected);
    assert_eq!(*ready.begun.lock(), [0, 1, 2, 3]);
    assert_eq!(tried(&ready.ended.lock()), expected);
}

#[tokio::test]
async fn when_everything_fails_the_answer_that_says_most_is_told() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(429).retry_after(50));
    second.default_script(Script::refuse(500));
    let ready = Fleet::of(&[(&first, 1), (&second, 1)])
        .with_max_attempts(1)
        .ready();
    let error = ready.ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::RateLimited);
    assert_eq!(error.retry_after, Some(Duration::from_secs(50)));
    assert_eq!(
        tried(&error.attempts),
        attempts(&[(0, "rate_limited"), (1, "status")])
    );

    first.default_script(Script::refuse(401));
    second.default_script(Script::refuse(500));
    let ready = Fleet::of(&[(&first, 1), (&second, 1)])
        .with_max_attempts(1)
        .ready();
    let error = ready.ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Status);
    assert_eq!(error.refusal.unwrap().status, 500);
}

#[tokio::test]
async fn the_next_target_follows_at_once() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(500));
    let fleet = Fleet::of(&[(&first, 1), (&second, 1)]).in_one_tier();
    let ready = fleet.with_breaker(1_000, LONG).ready();
    let mut fastest = LONG;
    for _ in 0..30 {
        let begun = Instant::now();
        let answer = ready.ask().await.unwrap();
        if answer.attempts.len() == 2 {
            fastest = fastest.min(begun.elapsed());
        }
    }
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
}

#[tokio::test]
async fn a_silent_target_is_not_asked_twice() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::new().stall_before_head(PATIENCE));
    let fleet = Fleet::of(&[(&first, 3), (&second, 1)]);
    let ready = fleet
        .with_deadlines(silent_after(Duration::from_millis(150)))
        .ready();
    first.script(Script::new().first_event_delay(PATIENCE));
    for expected in [
        attempts(&[(0, "timeout"), (1, "")]),
        attempts(&[(0, "timeout"), (1, "")]),
    ] {
        // The deadline of the second one is short too.
        let answer = ready.stream().await.unwrap();
        assert_eq!(tried(&answer.attempts), expected);
    }
    let alone = Fleet::of(&[(&first, 3)]).with_deadlines(silent_after(Duration::from_millis(100)));
    let error = alone.ready().ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Timeout);
    assert_eq!(error.attempts.len(), 1);
}

#[tokio::test]
async fn a_request_that_was_sent_and_not_answered_is_sent_once_more_and_no_third_time() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::new().reset_before_head());
    second.default_script(Script::new().close_before_head());
    let ready = Fleet::of(&[(&first, 3), (&second, 3)]).ready();
    let error = ready.ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Reset);
    assert_eq!(first.served().len() + second.served().len(), 2);
}

#[tokio::test]
async fn a_request_that_was_not_answered_goes_to_another_upstream_and_not_to_another_key() {
    for script in [
        Script::new().reset_before_head(),
        Script::new().close_before_head(),
        Script::new().cut_at(0),
    ] {
        let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
        first.default_script(script.clone());
        for fleet in [
            Fleet::of(&[(&first, 3), (&second, 1)]),
            Fleet::of(&[(&first, 3), (&second, 1)]).in_one_tier(),
        ] {
            let ready = fleet.ready();
            for _ in 0..4 {
                ready
                    .ask()
                    .await
                    .unwrap_or_else(|error| panic!("{script:?}: {error}"));
            }
        }
        assert!(!first.served().is_empty(), "{script:?}");
    }
}

#[tokio::test]
async fn where_nobody_else_may_be_asked_the_same_upstream_is_asked_once_more() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.script(Script::new().reset_before_head());
    second.script_for_key("sk-1-0", Script::refuse(429).retry_after(600));
    let ready = Fleet::of(&[(&first, 2), (&second, 1)]).ready();
    let answer = ready.ask().await.unwrap();
    let expected = attempts(&[(0, "reset"), (1, "rate_limited"), (0, "")]);
    assert_eq!(tried(&answer.attempts), expected);
}

#[tokio::test]
async fn the_total_deadline_is_over_all_attempts() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(500).head_delay(Duration::from_secs(2)));
    second.default_script(Script::new().stall_before_head(PATIENCE));
    let deadlines = Deadlines {
        total: Duration::from_secs(3),
        ..Deadlines::default()
    };
    let ready = Fleet::of(&[(&first, 1), (&second, 1)])
        .with_max_attempts(1)
        .with_deadlines(deadlines)
        .ready();
    let begun = Instant::now();
    let error = ready.ask().await.unwrap_err();
    assert!(begun.elapsed() >= Duration::from_secs(3));
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(
        tried(&error.attempts).last(),
        attempts(&[(1, "timeout")]).last()
    );
    // What the first one took is missing here.
    assert!(error.attempts[1].head_ms < 2_000, "{:?}", error.attempts[1]);
}

#[tokio::test]
async fn what_the_caller_did_wrong_passes_at_once_and_never_counts() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    let filtered =
        r#"{"error":{"message":"m","type":"x","param":"prompt","code":"content_filter"}}"#;
    let ready = Fleet::of(&[(&first, 1), (&second, 1)]).ready();
    for script in [
        Script::refuse(400),
        Script::refuse(404),
        Script::refuse(413),
        Script::refuse(422),
        Script::body(400, "application/json", filtered),
        Script::body(403, "application/json", filtered),
    ] {
        first.default_script(script);
        for _ in 0..3 {
            let error = ready.ask().await.unwrap_err();
            assert_eq!(error.class, ErrorClass::CallerFault);
            assert_eq!(error.attempts.len(), 1);
            assert!(error.refusal.is_some());
        }
    }
    first.default_script(Script::new());
    let answer = ready.ask().await.unwrap();
    assert_eq!(tried(&answer.attempts), attempts(&[(0, "")]));
    assert_eq!(second.served().len(), 0);
}

#[tokio::test]
async fn a_request_that_is_too_long_goes_to_the_larger_model_and_to_nothing_else() {
    let too_long = r#"{"error":{"message":"m","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#;
    let fakes: Vec<FakeUpstream> = (0..3).map(|_| FakeUpstream::start()).collect();
    fakes[0].default_script(Script::body(400, "application/json", too_long));
    let fleet = || Fleet::of(&[(&fakes[0], 2), (&fakes[1], 1), (&fakes[2], 1)]);
    let ready = fleet().with_last_for_long_requests().ready();
    let answer = ready.ask().await.unwrap();
    assert_eq!(
        tried(&answer.attempts),
        attempts(&[(0, "context_length"), (2, "")])
    );
    assert_eq!(answer.upstream_model().map(|m| &**m), Some("model-2"));

    // The same without an honest status: as the whole answer, or as the first event.
    let as_anthropic = r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 2 tokens > 1 maximum"}}"#;
    for body in [too_long, as_anthropic] {
        let ready = fleet().with_last_for_long_requests().ready();
        fakes[0].default_script(Script::body(200, "application/json", body));
        let answer = ready.ask().await.unwrap();
        let expected = attempts(&[(0, "context_length"), (2, "")]);
        assert_eq!(tried(&answer.attempts), expected, "{body}");
        fakes[0].default_script(Script::events([format!("data: {body}\n\n")]));
        let answer = ready.stream().await.unwrap();
        assert_eq!(tried(&answer.attempts), expected, "{body}");
    }
    let asked = fakes[2].served().len();

    // The larger one is for such requests only.
    fakes[0].default_script(Script::refuse(429).retry_after(600));
    fakes[1].default_script(Script::refuse(429).retry_after(600));
    let error = fleet()
        .with_last_for_long_requests()
        .ready()
        .ask()
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::RateLimited);
    assert_eq!(fakes[2].served().len(), asked);

    // Without one the client is told.
    fakes[0].default_script(Script::body(400, "application/json", too_long));
    let error = fleet().ready().ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::ContextLength);
    assert_eq!(error.attempts.len(), 1);
    assert_eq!(
        error.refusal.unwrap().fault.code.as_deref(),
        Some("context_length_exceeded")
    );
}

#[tokio::test]
async fn a_key_that_may_not_use_one_model_goes_on_serving_the_others() {
    let forbidden = [
        r#"{"type":"error","error":{"type":"permission_error","message":"m"}}"#,
        r#"{"error":{"message":"m","type":"invalid_request_error","code":"model_not_found"}}"#,
    ];
    for body in forbidden {
        let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
        let refusal = Script::body(403, "application/json", body);
        first.script_for_key("sk-0-0", refusal.clone());
        let mut fleet = Fleet::of(&[(&first, 2), (&second, 1)]);
        let ready = fleet.ready();
        for _ in 0..4 {
            let answer = ready.ask().await.unwrap();
            assert_eq!(
                tried(&answer.attempts).last(),
                Some(&(0, None)),
                "another key"
            );
        }
        assert!(first.served_for("sk-0-0").len() > 1, "it is asked again");
        assert_eq!(second.served().len(), 0);

        // Where no key may, another target serves, and nothing is held against anyone.
        first.script_for_key("sk-0-1", refusal);
        let answer = ready.ask().await.unwrap();
        assert_eq!(
            tried(&answer.attempts),
            attempts(&[(0, "forbidden"), (0, "forbidden"), (1, "")])
        );
        for report in &fleet.health.report()[0].keys {
            let state = (report.quarantine, report.cooldown, report.failures);
            assert_eq!(state, (None, None, 0));
        }
        fleet.route.targets.truncate(1);
        let error = fleet.ready().ask().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Forbidden);

        first.script_for_key("sk-0-0", Script::new());
        first.script_for_key("sk-0-1", Script::new());
        let answer = ready.ask().await.unwrap();
        assert_eq!(tried(&answer.attempts), attempts(&[(0, "")]));
    }
}

#[tokio::test]
async fn a_limit_in_disguise_is_kept_as_long_as_it_says() {
    let up = FakeUpstream::start();
    let limited = r#"{"error":{"type":"requests","code":"rate_limit_exceeded","message":"m"}}"#;
    up.script(Script::body(200, "application/json", limited).retry_after(90));
    let error = Fleet::of(&[(&up, 1)]).ready().ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::RateLimited);
    assert_eq!(error.retry_after, Some(Duration::from_secs(90)));
}

#[tokio::test]
async fn a_refused_key_is_not_used_until_it_is_changed() {
    let up = FakeUpstream::start();
    up.script_for_key("sk-0-0", Script::refuse(401));
    let mut fleet = Fleet::of(&[(&up, 2)]);
    let ready = fleet.ready();
    for _ in 0..10 {
        ready.ask().await.unwrap();
    }
    assert_eq!(up.served_for("sk-0-0").len(), 1);
    // A table is rebuilt whenever anything changes; this key did not.
    fleet.route.targets[0].weight = 5;
    fleet.keys[1].0.weight = 3;
    let ready = fleet.ready();
    for _ in 0..10 {
        ready.ask().await.unwrap();
    }
    assert_eq!(up.served_for("sk-0-0").len(), 1);
    assert_eq!(
        fleet.health.report()[0].keys[0].quarantine,
        Some(ErrorClass::Auth)
    );
    fleet.keys[0].1 = secrecy::SecretString::from("sk-new");
    let ready = fleet.ready();
    for _ in 0..10 {
        ready.ask().await.unwrap();
    }
    assert!(!up.served_for("sk-new").is_empty());
}

#[tokio::test]
async fn a_key_without_funds_is_used_again_when_its_row_changes() {
    for script in [
        Script::refuse(402),
        Script::insufficient_quota(),
        Script::refuse(403),
    ] {
        let up = FakeUpstream::start();
        up.script(script.clone());
        let mut fleet = Fleet::of(&[(&up, 1)]);
        let ready = fleet.ready();
        for _ in 0..3 {
            let error = ready.ask().await.unwrap_err();
            assert!(
                matches!(error.class, ErrorClass::Auth | ErrorClass::Funds),
                "{script:?}"
            );
        }
        assert_eq!(up.served().len(), 1, "{script:?}");
        fleet.keys[0].0.weight += 1;
        fleet.ready().ask().await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_was_switched_off_and_on_begins_anew() {
    let up = FakeUpstream::start();
    up.script_for_key("sk-0-0", Script::refuse(401));
    let mut fleet = Fleet::of(&[(&up, 2)]);
    let ready = fleet.ready();
    for _ in 0..4 {
        ready.ask().await.unwrap();
    }
    let key = fleet.keys.remove(0);
    fleet.ready();
    fleet.keys.insert(0, key);
    up.script_for_key("sk-0-0", Script::new());
    let ready = fleet.ready();
    for _ in 0..4 {
        ready.ask().await.unwrap();
    }
    assert!(up.served_for("sk-0-0").len() > 1);
}

#[tokio::test]
async fn an_upstream_whose_breaker_is_open_is_passed_over_and_probed_when_its_time_comes() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(500));
    let open_for = Duration::from_millis(400);
    let fleet = Fleet::of(&[(&first, 1), (&second, 1)])
        .with_max_attempts(1)
        .with_breaker(5, open_for);
    let ready = fleet.ready();
    for _ in 0..5 {
        ready.ask().await.unwrap();
    }
    let opened = Instant::now();
    assert_eq!(fleet.health.report()[0].breaker, BreakerReport::Open);
    first.default_script(Script::new());
    let mut passed_over = 0;
    while ready.ask().await.unwrap().attempts[0].upstream_id != fleet.upstreams[0].id {
        passed_over += 1;
        assert!(opened.elapsed() < PATIENCE);
    }
    assert!(
        opened.elapsed() + Duration::from_millis(50) >= open_for,
        "{:?}",
        opened.elapsed()
    );
    assert!(passed_over > 0);
    assert_eq!(first.served().len(), 6);
    assert_eq!(fleet.health.report()[0].breaker, BreakerReport::Closed);
}

#[tokio::test]
async fn of_many_callers_at_once_exactly_one_probes() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    first.default_script(Script::refuse(500));
    let open_for = Duration::from_millis(50);
    let fleet = Fleet::of(&[(&first, 1), (&second, 1)])
        .with_max_attempts(1)
        .with_breaker(5, open_for);
    let ready = fleet.ready();
    for _ in 0..5 {
        ready.ask().await.unwrap();
    }
    let gate = Gate::new();
    first.default_script(Script::new().wait_before_head(&gate));
    tokio::time::sleep(open_for * 2).await;
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let ready = ready.clone();
            tokio::spawn(async move { ready.ask().await.unwrap().attempts.len() })
        })
        .collect();
    second.wait_for_ends(5 + 299, PATIENCE).await;
    assert_eq!(first.served().len(), 6);
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), 1);
    }
}

#[tokio::test]
async fn the_last_upstream_is_never_given_up() {
    // Nothing listens here until later.
    let port = FakeUpstream::start().port();
    let fleet = Fleet::at(&[(format!("http://127.0.0.1:{port}/v1"), 2)]).with_breaker(5, LONG);
    let ready = fleet.ready();
    for _ in 0..20 {
        ready.ask().await.unwrap_err();
    }
    assert_eq!(fleet.health.report()[0].breaker, BreakerReport::Open);
    let _healed = FakeUpstream::start_on(port);
    ready.ask().await.unwrap();
    assert_eq!(fleet.health.report()[0].breaker, BreakerReport::Closed);
}

#[tokio::test]
async fn a_forced_probe_that_is_refused_tells_why() {
    let up = FakeUpstream::start();
    up.default_script(Script::refuse(500));
    let fleet = Fleet::of(&[(&up, 1)])
        .with_max_attempts(1)
        .with_breaker(2, LONG);
    let ready = fleet.ready();
    ready.ask().await.unwrap_err();
    ready.ask().await.unwrap_err();
    assert_eq!(fleet.health.report()[0].breaker, BreakerReport::Open);
    up.default_script(Script::refuse(401));
    for _ in 0..2 {
        let error = ready.ask().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Auth);
    }
}

#[tokio::test]
async fn rests_and_quarantines_hold_also_for_the_last_upstream() {
    let up = FakeUpstream::start();
    up.script_for_key("sk-0-0", Script::refuse(401));
    up.script_for_key("sk-0-1", Script::refuse(429).retry_after(600));
    let ready = Fleet::of(&[(&up, 2)]).ready();
    for _ in 0..50 {
        let error = ready.ask().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::RateLimited);
    }
    assert_eq!(up.served().len(), 2);
}

#[tokio::test]
async fn one_request_that_fails_everywhere_takes_nothing_from_others() {
    let up = FakeUpstream::start();
    up.script_for_user("poison", Script::refuse(500));
    let fleet = Fleet::of(&[(&up, 1)]);
    let ready = fleet.ready();
    let poison: Vec<_> = (0..100)
        .map(|_| {
            let ready = ready.clone();
            tokio::spawn(async move { ready.send(&tenant(66), "poison", false).await.unwrap_err() })
        })
        .collect();
    for _ in 0..100 {
        ready.ask().await.unwrap();
    }
    for call in poison {
        call.await.unwrap();
    }
    assert_eq!(fleet.health.report()[0].breaker, BreakerReport::Closed);
    let poisoned = up
        .served()
        .iter()
        .filter(|served| served.status == Some(500))
        .count();
    assert!(poisoned < 200, "{poisoned} of 300");
}

#[tokio::test]
async fn a_flapping_upstream_with_a_good_one_behind_it_is_not_seen() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    let fleet = Fleet::of(&[(&first, 2), (&second, 1)]);
    let open_for = Duration::from_millis(30);
    let ready = fleet
        .with_breaker(5, open_for)
        .with_deadlines(silent_after(Duration::from_secs(5)))
        .ready();
    let faults = [
        Script::refuse(500),
        Script::new().reset_before_head(),
        Script::new().cut_at(0),
        Script::refuse(503),
    ];
    for n in 0..200 {
        if n % 3 != 0 {
            first.script(faults[n % faults.len()].clone());
        }
        let answer = if n % 2 == 0 {
            ready.ask().await
        } else {
            ready.stream().await
        };
        let body = answer.unwrap().body.collect(1 << 20).await.unwrap();
        assert!(!body.is_empty());
    }
}

#[tokio::test]
async fn repetitions_are_bounded_for_all_requests_together() {
    const REQUESTS: u64 = 600;
    let up = FakeUpstream::start();
    // Not so bad that a breaker opens, nor that requests are turned away.
    for n in 0..REQUESTS * 3 {
        up.script(if n % 11 % 2 == 0 && n % 11 < 10 {
            Script::refuse(500)
        } else {
            Script::new()
        });
    }
    let mut fleet = Fleet::of(&[(&up, 1)]).with_breaker(100_000, LONG);
    fleet.upstreams[0].breaker.max_failure_percent = NonZeroU32::new(100).unwrap();
    let ready = fleet.ready();
    let begun = Instant::now();
    for _ in 0..REQUESTS / 20 {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let ready = ready.clone();
                tokio::spawn(async move { ready.ask().await.is_ok() })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    }
    let allowed = REQUESTS * 6 / 5 + 10 * (begun.elapsed().as_secs() + 1) + 10;
    let served = up.served().len() as u64;
    assert!(served <= allowed, "{served}, not {allowed}");
    let counts = &fleet.health.report()[0].counts;
    assert_eq!(counts.retries, served - REQUESTS);
    assert!(counts.budget_exhausted > 0);
}

#[tokio::test]
async fn an_upstream_is_not_asked_beyond_its_own_limit() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    let gate = Gate::new();
    first.default_script(Script::new().wait_at(2, &gate));
    let mut fleet = Fleet::of(&[(&first, 1), (&second, 1)]);
    fleet.upstreams[0].limits = UpstreamLimits {
        concurrency: NonZeroU32::new(2),
        ..UpstreamLimits::default()
    };
    let ready = fleet.ready();
    let one = ready.stream().await.unwrap();
    let two = ready.stream().await.unwrap();
    let three = ready.stream().await.unwrap();
    assert_eq!(tried(&three.attempts), attempts(&[(1, "")]));
    assert_eq!(three.skipped.named()[0].reason, SkipReason::AtLimit);
    gate.open();
    drop((one, two));
    let four = ready.stream().await.unwrap();
    assert_eq!(tried(&four.attempts), attempts(&[(0, "")]));
}

#[tokio::test]
async fn a_client_that_leaves_says_nothing_about_the_upstream() {
    let up = FakeUpstream::start();
    up.default_script(Script::new().stall_before_head(PATIENCE));
    let fleet = Fleet::of(&[(&up, 1)]);
    let ready = fleet.ready();
    for n in 1..=10 {
        let call = tokio::spawn({
            let ready = ready.clone();
            async move { ready.ask().await }
        });
        up.wait_for(|served| served.len() == n, PATIENCE).await;
        call.abort();
        call.await.unwrap_err();
    }
    let report = &fleet.health.report()[0];
    assert_eq!(
        (report.breaker, report.failures),
        (BreakerReport::Closed, 0)
    );
    up.default_script(Script::new());
    ready.ask().await.unwrap();
}

#[tokio::test]
async fn the_faster_upstream_is_asked_more() {
    let (slow, fast) = (FakeUpstream::start(), FakeUpstream::start());
    slow.default_script(Script::new().head_delay(Duration::from_millis(150)));
    let mut fleet = Fleet::of(&[(&slow, 1), (&fast, 1)]).in_one_tier();
    fleet.route.selection = Selection::LeastLatency;
    let ready = fleet.ready();
    for _ in 0..30 {
        ready.ask().await.unwrap();
    }
    assert!(slow.served().len() < 10, "{} of 30", slow.served().len());
}

#[tokio::test]
async fn a_proxy_key_stays_with_its_target() {
    let (first, second) = (FakeUpstream::start(), FakeUpstream::start());
    let mut fleet = Fleet::of(&[(&first, 1), (&second, 1)]).in_one_tier();
    fleet.route.selection = Selection::StickyKey;
    let ready = fleet.ready();
    for _ in 0..10 {
        ready.ask().await.unwrap();
    }
    let served = [first.served().len(), second.served().len()];
    assert!(served == [10, 0] || served == [0, 10], "{served:?}");
    // When it is out the other one serves.
    let home = if served[0] > 0 { &first } else { &second };
    home.default_script(Script::refuse(429).retry_after(600));
    ready.ask().await.unwrap();
    ready.ask().await.unwrap();
    assert_eq!(first.served().len() + second.served().len(), 13);
}
