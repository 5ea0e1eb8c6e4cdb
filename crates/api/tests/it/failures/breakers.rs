//! Breakers and budgets under many requests at once: one probe, no amplification, no poison, and the
//! last upstream is never given up.
//!
//! `SLUICE_PROVE_CALLERS=1000` makes it so many requests at a time.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::Value;
use sluice_domain::pool::{BreakerPolicy, SkipReason};
use sluice_domain::upstream::ProviderKind;
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{FakeUpstream, Gate, Request, Response, Script, Served, call, words};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pool::Pool;
use super::{attempts_told, close, end, passed_over, size};
use crate::audit::all_records;
use crate::deployment::{Backend, Deployment, PATIENCE, Relay, figure};

const SHARED: &str = "shared";
/// Long enough that nothing is over by itself.
const LONG: Duration = Duration::from_hours(1);

fn callers() -> usize {
    size("SLUICE_PROVE_CALLERS", 100)
}

fn deployment() -> Deployment {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    deployment
}

fn breaker(max_failures: u32, open_for: Duration) -> BreakerPolicy {
    BreakerPolicy {
        max_failures: NonZeroU32::new(max_failures).unwrap(),
        max_failure_percent: NonZeroU32::new(100).unwrap(),
        open_for,
    }
}

/// A request that no other is like.
fn request(model: &str, user: &str, key: &str) -> Request {
    let mut body = words::chat_request(model, 3);
    body["user"] = user.into();
    Request::post("/v1/chat/completions", &body).key(key)
}

async fn ask(relay: &Relay, user: &str) -> Response {
    let request = request(SHARED, user, relay.key());
    call(relay.address, &request).await.unwrap()
}

/// Sends so many requests at once.
fn ask_together(relay: &Relay, count: usize, name: &str) -> Vec<JoinHandle<Response>> {
    let send = |number| {
        let request = request(SHARED, &format!("{name} {number}"), relay.key());
        let address = relay.address;
        tokio::spawn(async move { call(address, &request).await.unwrap() })
    };
    (0..count).map(send).collect()
}

async fn answers(calls: Vec<JoinHandle<Response>>) -> Vec<Response> {
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

/// 0 closed, 1 half open, 2 open.
async fn breaker_of(address: SocketAddr, upstream: &str) -> i64 {
    let name = format!("sluice_upstream_breaker_state{{upstream=\"{upstream}\"}}");
    figure(address, &name).await
}

async fn keys_of(address: SocketAddr, upstream: &str, state: &str) -> i64 {
    let name = format!("sluice_upstream_keys{{upstream=\"{upstream}\",state=\"{state}\"}}");
    figure(address, &name).await
}

fn of_users<'a>(served: &'a [Served], name: &'a str) -> impl Iterator<Item = &'a Served> {
    let is_theirs = move |served: &&Served| {
        let body: Value = served.json();
        body["user"]
            .as_str()
            .is_some_and(|user| user.starts_with(name))
    };
    served.iter().filter(is_theirs)
}

#[tokio::test]
async fn of_many_requests_at_once_exactly_one_probes_an_upstream_that_is_due() {
    const OPEN_FOR: Duration = Duration::from_millis(400);
    const FAILURES: u32 = 5;
    let callers = callers();
    let deployment = deployment();
    let second = FakeUpstream::start();
    let mut pool = Pool::of(&deployment).await;
    let mut upstreams = Vec::new();
    for (name, url) in [
        ("first", deployment.upstream.base_url()),
        ("second", second.base_url()),
    ] {
        let kind = ProviderKind::OpenAi;
        let settings = |upstream: &mut sluice_domain::upstream::Upstream| {
            upstream.retry.max_attempts = NonZeroU32::MIN;
            upstream.breaker = breaker(FAILURES, OPEN_FOR);
        };
        upstreams.push(pool.upstream(name, kind, &url, 2, settings).await);
    }
    pool.route(SHARED, &upstreams).await;
    pool.close().await;
    let relay = deployment.start();
    let first = relay.upstream();

    first.default_script(Script::refuse(500));
    for number in 0..FAILURES {
        let answer = ask(&relay, &format!("failure {number}")).await;
        assert_eq!((answer.status(), attempts_told(&answer)), (200, 2));
    }
    assert_eq!(breaker_of(relay.address, "first").await, 2);
    // The time of the breaker passes, with what chance may add to it.
    tokio::time::sleep(OPEN_FOR * 2).await;
    let gate = Gate::new();
    first.default_script(Script::new().wait_before_head(&gate));
    let calls = ask_together(&relay, callers, "caller");
    let others = |served: &[Served]| {
        of_users(served, "caller")
            .filter(|s| s.is_complete())
            .count()
    };
    let is_served = |served: &[Served]| others(served) >= callers - 1;
    second.wait_for(is_served, PATIENCE).await;
    assert_eq!(
        breaker_of(relay.address, "first").await,
        1,
        "the probe is under way"
    );
    gate.open();
    for answer in answers(calls).await {
        assert_eq!((answer.status(), attempts_told(&answer)), (200, 1));
    }
    assert_eq!(
        of_users(&first.served(), "caller").count(),
        1,
        "exactly one probes"
    );
    assert_eq!(others(&second.served()), callers - 1);

    assert_eq!(breaker_of(relay.address, "first").await, 0);
    assert_eq!(ask(&relay, "afterwards").await.status(), 200);
    assert_eq!(of_users(&first.served(), "afterwards").count(), 1);
    close(&relay).await;
    println!("1 probe of {callers} callers");
}

/// What is allowed of so many requests: a fifth more, and ten a second.
fn allowed(requests: usize, began: Instant) -> usize {
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    requests + requests / 5 + 10 * seconds + 10
}

#[tokio::test]
async fn clients_that_repeat_do_not_multiply_what_an_upstream_that_is_down_is_asked() {
    const REPEATS: usize = 3;
    let callers = callers();
    let deployment = deployment();
    let mut pool = Pool::of(&deployment).await;
    let url = deployment.upstream.base_url();
    let down = pool
        .upstream("down", ProviderKind::OpenAi, &url, 2, |_| {})
        .await;
    pool.route(SHARED, &[down]).await;
    pool.close().await;
    deployment.upstream.default_script(Script::refuse(503));
    let relay = deployment.start();
    let began = Instant::now();
    for round in 0..REPEATS {
        for answer in answers(ask_together(&relay, callers, &format!("round {round}"))).await {
            // Either it was tried here and shall not be repeated, or the client is told to wait.
            let stops = answer.header("x-should-retry") == Some("false");
            let waits = answer.header("retry-after").is_some();
            assert!(
                [502, 503].contains(&answer.status()) && stops != waits,
                "{}",
                answer.json()
            );
        }
    }
    let (asked, requests) = (relay.upstream().served().len(), callers * REPEATS);
    let most = allowed(requests, began);
    assert!(
        asked <= most,
        "{asked} attempts of {requests} requests, not {most}"
    );
    close(&relay).await;
    println!("{asked} attempts of {requests} requests, {most} allowed");
}

#[tokio::test]
async fn many_failures_at_once_are_repeated_within_the_budget_only() {
    let callers = callers() * 2;
    let deployment = deployment();
    let mut pool = Pool::of(&deployment).await;
    let url = deployment.upstream.base_url();
    // Nothing but the budget is in the way.
    let settings = |upstream: &mut sluice_domain::upstream::Upstream| {
        upstream.breaker = breaker(1_000_000, LONG);
    };
    let kind = ProviderKind::OpenAi;
    let failing = pool.upstream("failing", kind, &url, 1, settings).await;
    pool.route(SHARED, &[failing]).await;
    pool.close().await;
    let relay = deployment.start();
    let began = Instant::now();
    // So many successes that nothing is turned away because too little was accepted.
    for round in 0..3 {
        for answer in answers(ask_together(&relay, callers, &format!("good {round}"))).await {
            assert_eq!(answer.status(), 200);
        }
    }
    // All first attempts fail at the same time.
    let gate = Gate::new();
    let upstream = relay.upstream();
    upstream.default_script(Script::refuse(500).wait_before_head(&gate));
    let calls = ask_together(&relay, callers, "failing");
    let have_come = |served: &[Served]| of_users(served, "failing").count() == callers;
    upstream.wait_for(have_come, PATIENCE).await;
    gate.open();
    for answer in answers(calls).await {
        assert_eq!(answer.status(), 502, "{}", answer.json());
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    let (asked, requests) = (upstream.served().len(), callers * 4);
    let most = allowed(requests, began);
    assert!(
        asked <= most,
        "{asked} attempts of {requests} requests, not {most}"
    );
    let exhausted = "sluice_upstream_retry_budget_exhausted_total{upstream=\"failing\"}";
    assert!(
        figure(relay.address, exhausted).await > 0,
        "the budget was not tried"
    );
    close(&relay).await;
    println!("{asked} attempts of {requests} requests, {most} allowed");
}

#[tokio::test]
async fn a_request_that_breaks_its_upstream_takes_nothing_from_other_tenants() {
    let poisons = callers();
    let deployment = deployment();
    for arguments in [
        &["tenant", "create", "evil"][..],
        &["user", "create", "--tenant", "evil", "eve"],
    ] {
        deployment.run(arguments);
    }
    let issue = [
        "key", "issue", "--tenant", "evil", "--user", "eve", "--name", "k", "--quiet",
    ];
    let evil = deployment.run(&issue).trim().to_owned();
    let mut pool = Pool::of(&deployment).await;
    let url = deployment.upstream.base_url();
    let kinds = [
        ("refused", Script::refuse(500)),
        ("crashing", Script::new().reset_before_head()),
    ];
    for (name, script) in &kinds {
        let settings = |upstream: &mut sluice_domain::upstream::Upstream| {
            upstream.breaker.open_for = LONG;
        };
        let id = pool
            .upstream(name, ProviderKind::OpenAi, &url, 2, settings)
            .await;
        pool.route(name, &[id]).await;
        let poison = format!("poison {name}");
        deployment.upstream.script_for_user(&poison, script.clone());
    }
    pool.close().await;
    let relay = deployment.start();
    let address = relay.address;
    let mut calls = Vec::new();
    for (name, _) in &kinds {
        for lane in 0..8 {
            let poison = request(name, &format!("poison {name}"), &evil);
            let (name, key) = ((*name).to_owned(), relay.key().to_owned());
            calls.push(tokio::spawn(async move {
                for _ in 0..poisons.div_ceil(8) {
                    assert_ne!(call(address, &poison).await.unwrap().status(), 200);
                }
            }));
            calls.push(tokio::spawn(async move {
                for number in 0..poisons.div_ceil(8) {
                    let good = request(&name, &format!("good {lane} {number}"), &key);
                    let answer = call(address, &good).await.unwrap();
                    assert_eq!(answer.status(), 200, "{}", answer.json());
                }
            }));
        }
    }
    for call in calls {
        call.await.unwrap();
    }
    for (name, _) in &kinds {
        assert_eq!(breaker_of(address, name).await, 0, "{name}");
        assert_eq!(keys_of(address, name, "ready").await, 2, "{name}");
    }
    let served = relay.upstream().served();
    let (bad, good) = (
        of_users(&served, "poison").count(),
        of_users(&served, "good").count(),
    );
    assert_eq!(
        good,
        poisons.div_ceil(8) * 8 * kinds.len(),
        "each is asked once"
    );
    end(&relay).await;
    println!("{good} good requests served beside {bad} attempts of poison");
}

#[tokio::test]
async fn when_all_breakers_are_open_the_last_tier_is_probed_one_at_a_time_and_recovers_at_once() {
    let callers = callers();
    let deployment = deployment();
    let second = FakeUpstream::start();
    let mut pool = Pool::of(&deployment).await;
    let mut upstreams = Vec::new();
    for (name, url) in [
        ("first", deployment.upstream.base_url()),
        ("second", second.base_url()),
    ] {
        let settings = |upstream: &mut sluice_domain::upstream::Upstream| {
            upstream.breaker = breaker(2, LONG);
        };
        upstreams.push(
            pool.upstream(name, ProviderKind::OpenAi, &url, 2, settings)
                .await,
        );
    }
    pool.route(SHARED, &upstreams).await;
    pool.close().await;
    let relay = deployment.start();
    let first = relay.upstream();
    for fake in [first, &second] {
        fake.default_script(Script::refuse(500));
    }
    // Requests that differ, so that it is not one of them that is at fault.
    let began = Instant::now();
    let mut number = 0;
    while breaker_of(relay.address, "first").await != 2
        || breaker_of(relay.address, "second").await != 2
    {
        assert!(began.elapsed() < PATIENCE);
        assert_ne!(
            ask(&relay, &format!("failure {number}")).await.status(),
            200
        );
        number += 1;
    }

    let gate = Gate::new();
    second.default_script(Script::refuse(500).wait_before_head(&gate));
    let calls = ask_together(&relay, callers, "caller");
    let mut refused = 0;
    let mut waiting = Vec::new();
    for call in calls {
        // One waits at the gate; which one is not known.
        waiting.push(tokio::spawn(async move { call.await.unwrap() }));
    }
    let has_come = |served: &[Served]| of_users(served, "caller").count() > 0;
    second.wait_for(has_come, PATIENCE).await;
    let others = Instant::now();
    while waiting.iter().filter(|call| call.is_finished()).count() < callers - 1 {
        assert!(others.elapsed() < PATIENCE, "more than one waits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let probes = of_users(&second.served(), "caller").count();
    gate.open();
    for answer in answers(waiting).await {
        if answer.status() == 503 {
            assert_eq!(answer.json()["error"]["code"], "no_available_upstream");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=5).contains(&wait), "{wait}");
            refused += 1;
        } else {
            assert_eq!(
                (answer.status(), attempts_told(&answer)),
                (502, 1),
                "{}",
                answer.json()
            );
        }
    }
    assert_eq!((probes, refused), (1, callers - 1));
    assert_eq!(
        of_users(&first.served(), "caller").count(),
        0,
        "not the last tier"
    );

    // It is well again: the next request finds out, whatever is left of the time of its breaker.
    second.default_script(Script::new());
    let healed = Instant::now();
    assert_eq!(ask(&relay, "healed").await.status(), 200);
    let took = healed.elapsed();
    assert_eq!(breaker_of(relay.address, "second").await, 0);
    for answer in answers(ask_together(&relay, callers, "afterwards")).await {
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(of_users(&first.served(), "afterwards").count(), 0);
    close(&relay).await;
    let records = all_records(&relay.deployment).await;
    let refused: Vec<&StoredRecord> = records
        .iter()
        .filter(|record| record.status == 503)
        .collect();
    assert_eq!(refused.len(), callers - 1);
    for record in refused {
        assert!(
            record.attempts.is_empty() && record.quota_tokens == 0,
            "{record:?}"
        );
        assert!(passed_over(record, SkipReason::BreakerOpen), "{record:?}");
    }
    println!("1 probe of {callers} callers, recovered in {took:?}");
}
