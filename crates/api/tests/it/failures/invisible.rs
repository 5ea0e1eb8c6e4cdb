//! Whatever fails before the first event of an answer is not seen by the client, while one key is good.
//!
//! `SLUICE_PROVE_FAILURES=1000` makes it so many failures.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::upstream::Upstream;
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{ErrorShape, FakeUpstream, Request, Response, Script, Served, call, words};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::format::Format;
use super::pool::Pool;
use super::{attempts_told, close, size};
use crate::audit::all_records;
use crate::deployment::{Backend, Deployment, PATIENCE, Relay};

const WORDS: usize = 6;
/// How long an upstream that fails may be silent.
const HASTY: Duration = Duration::from_millis(700);
/// Requests at a time.
const TOGETHER: usize = 40;

/// Where the first tier leads.
const FAILING: &str = "failing";
const FLAPPING: &str = "flapping";
const ABSENT: &str = "absent";

fn faults() -> Vec<Script> {
    let answer = || Script::new().words(WORDS);
    vec![
        Script::refuse(500),
        Script::new().reset_before_head(),
        Script::refuse(503),
        answer().cut_at(0),
        Script::html(502),
        Script::new().stall_before_head(PATIENCE),
        Script::html(200),
        Script::new().close_before_head(),
        Script::refuse(529),
        answer().error_at(0, ErrorShape::Object),
        answer().stall_at(0, PATIENCE),
        answer().garbage_at(0),
        answer().reset_at(0),
        Script::refuse(429).header("retry-after-ms", "100"),
        answer().half_event_at(0),
    ]
}

/// A request and what its client saw.
struct Asked {
    name: String,
    format: Format,
    streams: bool,
    answer: JoinHandle<Response>,
}

#[tokio::test]
async fn failures_before_the_first_event_are_not_seen_while_one_key_is_good() {
    let failures = size("SLUICE_PROVE_FAILURES", 60);
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "60000");
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    let good = FakeUpstream::start();
    prepare(&deployment, &good).await;
    let relay = deployment.start();
    let first = relay.upstream();

    let faults = faults();
    let began = Instant::now();
    let mut asked: Vec<(Asked, Response)> = Vec::new();
    while failed(first) < failures {
        let round: Vec<Asked> = (0..TOGETHER)
            .map(|number| {
                let number = asked.len() + number;
                // Every other one meets no fault, and every sixth one nobody.
                let way = match number % 6 {
                    1 | 3 => FAILING,
                    5 => ABSENT,
                    _ => FLAPPING,
                };
                let name = format!("{way} {number}");
                if !number.is_multiple_of(4) {
                    let fault = &faults[number * 7 % faults.len()];
                    first.script_for_user(&name, fault.clone());
                }
                let format = if number.is_multiple_of(3) {
                    Format::Message
                } else {
                    Format::Chat
                };
                ask(&relay, way, name, format, number % 5 < 3)
            })
            .collect();
        for mut this in round {
            let answer = (&mut this.answer).await.unwrap();
            asked.push((this, answer));
        }
        assert!(
            began.elapsed() < PATIENCE * 10,
            "{} failures",
            failed(first)
        );
    }
    let took = began.elapsed();
    close(&relay).await;

    let mut records: HashMap<String, Vec<StoredRecord>> = HashMap::new();
    for record in all_records(&relay.deployment).await {
        let name = record.user_agent.clone().unwrap_or_default();
        records.entry(name).or_default().push(record);
    }
    let served = by_user([first.served(), good.served()].concat());
    for (this, answer) in &asked {
        let none = Vec::new();
        let served = served.get(&this.name).unwrap_or(&none);
        let records = records.remove(&this.name).unwrap_or_default();
        this.check(answer, served, &records);
    }
    assert!(records.is_empty(), "nobody's: {records:?}");
    for (name, at_all) in [(FAILING, 1), (FLAPPING, 2)] {
        let requests = asked
            .iter()
            .filter(|(this, _)| this.name.starts_with(name))
            .count();
        let of_upstream = |served: &&Served| served.model.as_deref() == Some(name);
        let attempts = first.served().iter().filter(of_upstream).count();
        // One upstream for each format.
        let seconds = usize::try_from(took.as_secs()).unwrap() + 1;
        let allowed = requests + requests / 5 + 2 * (10 * seconds + 10);
        assert!(
            attempts <= allowed,
            "{name}: {attempts} attempts of {requests} requests"
        );
        assert!(attempts >= at_all, "{name} was not asked");
    }
    println!(
        "{} requests, {} failures, none seen, in {took:?}",
        asked.len(),
        failed(first)
    );
}

/// Leads three models to upstreams that fail and, behind them, to one that does not.
async fn prepare(deployment: &Deployment, good: &FakeUpstream) {
    let absent = {
        let gone = FakeUpstream::start();
        gone.base_url()
    };
    let mut pool = Pool::of(deployment).await;
    let mut targets: HashMap<&str, Vec<(Format, _, _)>> = HashMap::new();
    for format in [Format::Chat, Format::Message] {
        let kind = format.kind();
        let behind = format!("good-{kind:?}").to_lowercase();
        let behind = pool
            .upstream(&behind, kind, &good.base_url(), 1, |_| {})
            .await;
        for way in [FAILING, FLAPPING, ABSENT] {
            let name = format!("{way}-{kind:?}").to_lowercase();
            let url = if way == ABSENT {
                absent.clone()
            } else {
                deployment.upstream.base_url()
            };
            let settings = |upstream: &mut Upstream| {
                upstream.deadlines.first_event = HASTY;
                upstream.deadlines.idle = HASTY;
                upstream.breaker.open_for = Duration::from_millis(100);
                if way == FAILING {
                    // It is asked again and again.
                    upstream.breaker.max_failures = NonZeroU32::new(1_000_000).unwrap();
                    upstream.breaker.max_failure_percent = NonZeroU32::new(100).unwrap();
                }
            };
            let id = pool.upstream(&name, kind, &url, 2, settings).await;
            targets.entry(way).or_default().push((format, id, behind));
        }
    }
    for (way, targets) in targets {
        // Each protocol has its own half of the route.
        let (front, behind): (Vec<_>, Vec<_>) = targets
            .iter()
            .map(|(_, front, behind)| (*front, *behind))
            .unzip();
        pool.route_in_tiers(way, &[&front, &behind]).await;
    }
    pool.close().await;
    for fake in [&deployment.upstream, good] {
        fake.default_script(Script::new().words(WORDS));
    }
}

fn ask(relay: &Relay, way: &str, name: String, format: Format, streams: bool) -> Asked {
    let request = format.request(way, streams, &name);
    let request: Request = request.key(relay.key()).header("user-agent", &name);
    let address = relay.address;
    let answer = tokio::spawn(async move { call(address, &request).await.unwrap() });
    Asked {
        name,
        format,
        streams,
        answer,
    }
}

fn failed(fake: &FakeUpstream) -> usize {
    let has_failed = |served: &&Served| served.status != Some(200) || !served.is_complete();
    fake.served().iter().filter(has_failed).count()
}

fn by_user(served: Vec<Served>) -> HashMap<String, Vec<Served>> {
    let mut by_user: HashMap<String, Vec<Served>> = HashMap::new();
    for served in served {
        let body = served.json();
        let user = body.get("user").unwrap_or(&body["metadata"]["user_id"]);
        let user = user.as_str().unwrap_or_default().to_owned();
        by_user.entry(user).or_default().push(served);
    }
    by_user
}

impl Asked {
    fn check(&self, answer: &Response, served: &[Served], records: &[StoredRecord]) {
        let name = &self.name;
        let body = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status(), 200, "{name}: {body}");
        if self.streams {
            let heard = self.format.hear(&answer.events());
            assert!(
                heard.is_complete && !heard.goes_on && heard.error.is_none(),
                "{name}: {body}"
            );
            assert_eq!(heard.text, words::text(WORDS), "{name}");
        } else {
            assert_eq!(
                self.format.text(&answer.json()),
                words::text(WORDS),
                "{name}"
            );
        }
        let [record] = records else {
            panic!("{name}: {} records", records.len());
        };
        let whole: Vec<&Served> = served
            .iter()
            .filter(|s| s.reported.is_some() && s.is_complete())
            .collect();
        let [whole] = whole[..] else {
            panic!("{name}: answered {} times: {served:?}", whole.len());
        };
        assert_eq!(
            (&*record.ending, &*record.basis),
            ("finished", "reported"),
            "{name}"
        );
        assert_eq!(Some(record.usage), whole.reported, "{name}");
        assert_eq!(record.quota_tokens, record.usage.total(), "{name}");
        let told = attempts_told(answer);
        assert_eq!(record.attempts.len(), told, "{name}");
        if !name.starts_with(ABSENT) {
            assert_eq!(served.len(), told, "{name}");
        }
    }
}
