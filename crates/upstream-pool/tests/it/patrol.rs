//! Probes without a request.

use std::time::Duration;

use sluice_domain::pool::ProbeInterval;
use sluice_testkit::{FakeUpstream, Script};
use sluice_upstream_pool::{BreakerReport, ProbeFinding, UpstreamReport};

use crate::fleet::Fleet;

const PATIENCE: Duration = Duration::from_mins(1);
/// Longer than any test.
const LONG: Duration = Duration::from_mins(10);

fn probed(fakes: &[(&FakeUpstream, usize)]) -> Fleet {
    let mut fleet = Fleet::of(fakes).with_breaker(2, LONG).with_max_attempts(1);
    for upstream in &mut fleet.upstreams {
        upstream.probe_every = ProbeInterval::new(Duration::from_secs(1));
    }
    fleet
}

fn count(report: &UpstreamReport, found: ProbeFinding) -> u64 {
    let mut counts = report.counts.probes.iter();
    counts
        .find(|(of, _)| *of == found)
        .map_or(0, |(_, count)| *count)
}

/// Returns whether the breaker is open and the next request may find out.
fn is_due(report: &UpstreamReport) -> bool {
    report.breaker == BreakerReport::Open && report.next_probe.is_none()
}

#[tokio::test]
async fn a_quiet_upstream_is_asked_for_its_models_with_each_key_in_turn() {
    let up = FakeUpstream::start();
    let fleet = probed(&[(&up, 2)]);
    let patrol = fleet.patrol();
    let served = up.wait_for(|served| served.len() >= 2, PATIENCE).await;
    for (served, key) in served.iter().zip(["sk-0-0", "sk-0-1"]) {
        assert_eq!(
            (&*served.method, &*served.target, served.key.as_deref()),
            ("GET", "/v1/models", Some(key))
        );
    }
    fleet
        .until(|report| count(report, ProbeFinding::Well) >= 2)
        .await;
    drop(patrol);
    // One may have been sent before; another one cannot be. The time of another upstream tells.
    let (after, other) = (up.served().len(), FakeUpstream::start());
    let _patrol = probed(&[(&other, 1)]).patrol();
    other.wait_for(|served| served.len() >= 3, PATIENCE).await;
    assert!(up.served().len() <= after + 1, "it goes on");
}

#[tokio::test]
async fn nothing_is_probed_unless_it_is_set() {
    let (quiet, probed_too) = (FakeUpstream::start(), FakeUpstream::start());
    let mut fleet = probed(&[(&quiet, 1), (&probed_too, 1)]);
    fleet.upstreams[0].probe_every = None;
    let _patrol = fleet.patrol();
    probed_too
        .wait_for(|served| served.len() >= 2, PATIENCE)
        .await;
    assert_eq!(quiet.served().len(), 0);
}

#[tokio::test]
async fn a_key_that_is_refused_is_not_shown_again() {
    let up = FakeUpstream::start();
    up.script_once_for_key("sk-0-0", Script::refuse(401));
    let fleet = probed(&[(&up, 2)]).with_max_attempts(2);
    fleet.ready().ask().await.unwrap();
    assert_eq!(up.served_for("sk-0-0").len(), 1);
    let _patrol = fleet.patrol();
    up.wait_for(
        |all| all.iter().filter(|s| s.method == "GET").count() >= 3,
        PATIENCE,
    )
    .await;
    assert_eq!(up.served_for("sk-0-0").len(), 1);
}

#[tokio::test]
async fn probes_open_the_breaker_of_a_dead_upstream_and_hasten_its_return_but_a_request_decides() {
    let up = FakeUpstream::start();
    let fleet = probed(&[(&up, 1)]);
    let ready = fleet.ready();
    let _patrol = fleet.patrol();
    fleet
        .until(|report| report.probe == Some(ProbeFinding::Well))
        .await;

    up.script_for_path("/models", Script::refuse(503));
    let report = fleet
        .until(|report| report.breaker == BreakerReport::Open)
        .await;
    assert_eq!(count(&report, ProbeFinding::Failing), 2);
    assert_eq!(report.counts.openings, 1);
    assert!(report.next_probe.unwrap() > LONG / 2);

    up.script_for_path("/models", Script::new());
    let report = fleet.until(is_due).await;
    assert_eq!(
        report.breaker,
        BreakerReport::Open,
        "a probe closes nothing"
    );
    ready.ask().await.unwrap();
    let report = fleet.health.report().remove(0);
    assert_eq!(report.breaker, BreakerReport::Closed);
}

#[tokio::test]
async fn a_list_that_works_all_the_time_says_nothing_about_requests_that_fail() {
    let up = FakeUpstream::start();
    up.script_for_path("/chat/completions", Script::refuse(500));
    let fleet = probed(&[(&up, 1)]);
    let ready = fleet.ready();
    for _ in 0..2 {
        ready.ask().await.unwrap_err();
    }
    let _patrol = fleet.patrol();
    let report = fleet
        .until(|report| count(report, ProbeFinding::Well) >= 2)
        .await;
    assert_eq!(report.breaker, BreakerReport::Open);
    assert!(report.next_probe.unwrap() > LONG / 2, "{report:?}");
    assert!(report.keys[0].next_probe.unwrap() > LONG / 2, "{report:?}");
}

#[tokio::test]
async fn after_an_outage_that_requests_and_probes_have_seen_the_next_request_is_let_through() {
    let up = FakeUpstream::start();
    up.default_script(Script::refuse(500));
    let fleet = probed(&[(&up, 1)]);
    let ready = fleet.ready();
    for _ in 0..2 {
        ready.ask().await.unwrap_err();
    }
    let _patrol = fleet.patrol();
    fleet
        .until(|report| report.probe == Some(ProbeFinding::Failing))
        .await;
    up.default_script(Script::new());
    let report = fleet.until(is_due).await;
    assert_eq!(report.keys[0].next_probe, None, "its key too");
    ready.ask().await.unwrap();
    let report = fleet.health.report().remove(0);
    let of_key = report.keys[0].breaker;
    assert_eq!(
        (report.breaker, of_key),
        (BreakerReport::Closed, BreakerReport::Closed)
    );
}

#[tokio::test]
async fn a_list_that_is_none_opens_nothing() {
    let up = FakeUpstream::start();
    for refusal in [Script::refuse(404), Script::refuse(401), Script::html(200)] {
        let fleet = probed(&[(&up, 1)]);
        up.script_for_path("/models", refusal);
        let _patrol = fleet.patrol();
        let report = fleet
            .until(|report| count(report, ProbeFinding::Unclear) >= 3)
            .await;
        assert_eq!(report.breaker, BreakerReport::Closed);
        assert_eq!(report.keys[0].quarantine, None);
    }
}
