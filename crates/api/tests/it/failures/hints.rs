//! How long a provider asks to wait is kept for the key that was told so, and for no other.
//!
//! `SLUICE_PROVE_LIMITS=1000` makes it so many limits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use sluice_domain::upstream::ProviderKind;
use sluice_testkit::{FakeUpstream, Request, Script, Served, call, words};
use tokio::time::Instant;

use super::pool::Pool;
use super::{close, size};
use crate::deployment::{Backend, Deployment, PATIENCE};

/// The time of the relay has no more than milliseconds, and the fake provider notes a head when it is
/// written.
const ROUNDING: Duration = Duration::from_millis(10);
/// The pause of a client between two requests.
const PACE: Duration = Duration::from_millis(20);
/// How often a client asks while a key rests for longer than the test takes.
const ASKS: usize = 30;

/// What a provider says with 429.
#[derive(Debug, Clone, Copy)]
enum Hint {
    /// The key rests for so long.
    For(u64, &'static [(&'static str, &'static str)]),
    /// The key rests until this time, which is told in a header.
    Until(&'static str, Form),
    /// The key rests for longer than the test takes.
    Long(&'static [(&'static str, &'static str)]),
}

#[derive(Debug, Clone, Copy)]
enum Form {
    HttpDate,
    Rfc3339,
    EpochSeconds,
}

use Form::{EpochSeconds, HttpDate, Rfc3339};
use Hint::{For, Long, Until};

const HINTS: &[Hint] = &[
    For(1_000, &[("retry-after", "1")]),
    For(1_200, &[("retry-after-ms", "1200")]),
    For(700, &[("retry-after-ms", "700"), ("retry-after", "1")]),
    For(900, &[("retry-after", "0.9")]),
    // OpenAI.
    For(
        800,
        &[
            ("x-ratelimit-reset-requests", "800ms"),
            ("x-ratelimit-remaining-requests", "0"),
        ],
    ),
    For(
        1_100,
        &[
            ("x-ratelimit-reset-tokens", "1.1s"),
            ("x-ratelimit-remaining-tokens", "0"),
        ],
    ),
    For(
        900,
        &[
            ("x-ratelimit-reset-requests", "6m0s"),
            ("x-ratelimit-remaining-requests", "99"),
            ("x-ratelimit-reset-tokens", "900ms"),
            ("x-ratelimit-remaining-tokens", "0"),
        ],
    ),
    // Azure and others: seconds.
    For(
        1_000,
        &[
            ("x-ratelimit-reset-requests", "1"),
            ("x-ratelimit-remaining-requests", "0"),
        ],
    ),
    For(1_000, &[("x-ratelimit-reset", "1")]),
    Until("retry-after", HttpDate),
    Until("x-ratelimit-reset-requests", EpochSeconds),
    Until("anthropic-ratelimit-requests-reset", Rfc3339),
    Until("anthropic-ratelimit-input-tokens-reset", Rfc3339),
    Long(&[("retry-after", "3600")]),
    Long(&[("x-ratelimit-reset-tokens", "6m0s")]),
    Long(&[
        ("x-ratelimit-reset-requests", "1h2m3.5s"),
        ("x-ratelimit-remaining-requests", "0"),
    ]),
    Long(&[("retry-after", "Fri, 31 Dec 2027 23:59:59 GMT")]),
];

/// A limit that a key was told of, and when it may be used again.
struct Told {
    script: Script,
    rest: Rest,
}

enum Rest {
    For(Duration),
    Until(Timestamp),
    Long,
}

impl Hint {
    fn tell(self) -> Told {
        let refusal = Script::refuse(429);
        let with = |headers: &[(&str, &str)]| {
            let add = |script: Script, (name, value): &(&str, &str)| script.header(name, value);
            headers.iter().fold(refusal.clone(), add)
        };
        match self {
            For(ms, headers) => Told {
                script: with(headers),
                rest: Rest::For(Duration::from_millis(ms)),
            },
            Long(headers) => Told {
                script: with(headers),
                rest: Rest::Long,
            },
            Until(name, form) => {
                // Whole seconds, of which one to two are still to come.
                let at = Timestamp::from_second(Timestamp::now().as_second() + 2).unwrap();
                let text = match form {
                    HttpDate => DateTimePrinter::new()
                        .timestamp_to_rfc9110_string(&at)
                        .unwrap(),
                    Rfc3339 => at.to_string(),
                    EpochSeconds => at.as_second().to_string(),
                };
                Told {
                    script: with(&[(name, text.as_str())]),
                    rest: Rest::Until(at),
                }
            }
        }
    }
}

/// An upstream with two keys, of which the first one is limited now and then.
struct Limited {
    model: String,
    hint: Hint,
    fake: Arc<FakeUpstream>,
    relay: SocketAddr,
    key: String,
    /// The time of day when the fake provider began to count.
    epoch: Timestamp,
}

impl Limited {
    fn key(&self, number: usize) -> String {
        format!("sk-{}-{number}", self.model)
    }

    async fn ask(&self) {
        let request = words::chat_request(&self.model, 2);
        let request = Request::post("/v1/chat/completions", &request).key(&self.key);
        let answer = call(self.relay, &request).await.unwrap();
        assert_eq!(answer.status(), 200, "{:?}: {}", self.hint, answer.json());
    }

    /// Limits the first key so often, each time as soon as it is used again.
    async fn run(self, rounds: usize) -> usize {
        let rounds = if matches!(self.hint, Long(_)) {
            1
        } else {
            rounds
        };
        for _ in 0..rounds {
            let told = self.hint.tell();
            self.fake.script_once_for_key(&self.key(0), told.script);
            let before = self.fake.served_for(&self.key(0)).len();
            let limited = self
                .until(|first| first.len() > before)
                .await
                .swap_remove(before);
            assert_eq!(limited.status, Some(429), "{:?}", self.hint);
            if matches!(told.rest, Rest::Long) {
                for _ in 0..ASKS {
                    self.ask().await;
                }
                assert_eq!(
                    self.fake.served_for(&self.key(0)).len(),
                    before + 1,
                    "{:?}",
                    self.hint
                );
                continue;
            }
            let again = self
                .until(|first| first.len() > before + 1)
                .await
                .swap_remove(before + 1);
            let (told_at, used_at) = (limited.head_at.unwrap(), again.received_at);
            let may_be_used_at = match told.rest {
                Rest::For(rest) => told_at + rest,
                Rest::Until(at) => {
                    Duration::try_from(at.duration_since(self.epoch)).unwrap_or_default()
                }
                Rest::Long => Duration::MAX,
            };
            assert!(
                used_at + ROUNDING >= may_be_used_at,
                "{:?}: used at {used_at:?} and not to be before {may_be_used_at:?}, told at {told_at:?}",
                self.hint
            );
            let meanwhile =
                |served: &Served| served.received_at > told_at && served.received_at < used_at;
            let sibling = self.fake.served_for(&self.key(1));
            assert!(
                sibling.iter().any(meanwhile),
                "{:?}: its sibling is used",
                self.hint
            );
        }
        rounds
    }

    /// Asks until what the first key was used for satisfies the test.
    async fn until(&self, is_reached: impl Fn(&[Served]) -> bool) -> Vec<Served> {
        let began = Instant::now();
        loop {
            let served = self.fake.served_for(&self.key(0));
            if is_reached(&served) {
                return served;
            }
            assert!(began.elapsed() < PATIENCE, "{:?}: {served:?}", self.hint);
            self.ask().await;
            tokio::time::sleep(PACE).await;
        }
    }
}

#[tokio::test]
async fn a_limited_key_rests_until_its_own_reset_in_whatever_form_that_is_told() {
    let rounds = size("SLUICE_PROVE_LIMITS", HINTS.len()).div_ceil(HINTS.len());
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    let mut pool = Pool::of(&deployment).await;
    let mut plans = Vec::new();
    for (number, hint) in HINTS.iter().enumerate() {
        let model = format!("hint-{number}");
        // One each, so that what was served for it stays short.
        let fake = Arc::new(FakeUpstream::start());
        let epoch = Timestamp::now() - fake.elapsed();
        fake.default_script(Script::new().words(1));
        let id = pool
            .upstream(&model, ProviderKind::OpenAi, &fake.base_url(), 2, |_| {})
            .await;
        pool.route(&model, &[id]).await;
        plans.push((model, *hint, fake, epoch));
    }
    pool.close().await;
    let relay = deployment.start();
    let runs: Vec<_> = plans
        .into_iter()
        .map(|(model, hint, fake, epoch)| {
            let limited = Limited {
                model,
                hint,
                fake,
                relay: relay.address,
                key: relay.key().to_owned(),
                epoch,
            };
            tokio::spawn(limited.run(rounds))
        })
        .collect();
    let mut limits = 0;
    for run in runs {
        limits += run.await.unwrap();
    }
    close(&relay).await;
    println!(
        "{limits} limits in {} forms, none used before its reset",
        HINTS.len()
    );
}
