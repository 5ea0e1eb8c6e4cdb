//! An answer that breaks off never looks complete, wherever and however it breaks off.
//!
//! `SLUICE_PROVE_POSITIONS=200` makes it so many positions.

use std::fmt::Write as _;

use sluice_domain::id::UpstreamId;
use sluice_domain::upstream::ProviderKind;
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{FakeUpstream, Quirk, Request, Response, Script, call, words};
use tokio::task::JoinHandle;

use super::format::{Format, Heard};
use super::pool::Pool;
use super::{close, size};
use crate::audit::all_records;
use crate::deployment::{Backend, Deployment, Relay};
use crate::sdk::{Sdk, claude_sdks, sdks};

const FORMATS: [Format; 3] = [Format::Chat, Format::Completion, Format::Message];
/// Requests at a time.
const TOGETHER: usize = 200;
/// The fake provider is told by the model what to do, so there are many of them; these lead all models
/// that begin so to one upstream.
const STREAMS: [&str; 2] = ["stream-chat-*", "stream-message-*"];

fn positions() -> usize {
    size("SLUICE_PROVE_POSITIONS", 12)
}

fn deployment() -> Deployment {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "60000");
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    deployment
}

/// How an answer breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Cut,
    Reset,
    /// A clean end, too early.
    End,
    /// A clean end in the middle of an event.
    Half,
}

const BREAKS: [Break; 4] = [Break::Cut, Break::Reset, Break::End, Break::Half];

impl Break {
    fn of_stream(self, script: Script, at: usize) -> Script {
        match self {
            Self::Cut => script.cut_at(at),
            Self::Reset => script.reset_at(at),
            Self::End => script.end_at(at),
            Self::Half => script.half_event_at(at),
        }
    }

    /// Breaks a plain answer off after so many of its bytes.
    fn of_document(self, script: Script, bytes: usize, length: usize) -> Script {
        match self {
            Self::Cut => script.cut_at(0).after_bytes(bytes),
            Self::Reset => script.reset_at(0).after_bytes(bytes),
            Self::End => script.with(Quirk::Chunked).end_at(0).after_bytes(bytes),
            Self::Half => {
                let missing = i64::try_from(length - bytes).unwrap();
                script.with(Quirk::ContentLengthOff(-missing))
            }
        }
    }
}

fn format_of(case: &str) -> Format {
    match case.split('_').next() {
        Some("completion") => Format::Completion,
        Some("message") => Format::Message,
        _ => Format::Chat,
    }
}

fn pattern(format: Format) -> &'static str {
    match format {
        Format::Chat | Format::Completion => "stream-chat",
        Format::Message => "stream-message",
    }
}

/// Adds the upstreams of all streams.
async fn add_streams(pool: &mut Pool, deployment: &Deployment) {
    for (model, format) in STREAMS.iter().zip([Format::Chat, Format::Message]) {
        let url = deployment.upstream.base_url();
        let name = model.trim_end_matches("-*");
        let id = pool.upstream(name, format.kind(), &url, 1, |_| {}).await;
        pool.route(model, &[id]).await;
    }
}

/// Adds an upstream of its own for a model: what fails again and again is left alone.
async fn add_upstream(pool: &mut Pool, deployment: &Deployment, kind: ProviderKind, model: &str) {
    let url = deployment.upstream.base_url();
    let id: UpstreamId = pool.upstream(model, kind, &url, 1, |_| {}).await;
    pool.route(model, &[id]).await;
}

/// Returns how long a plain answer is, as bytes before an end that is not there.
async fn length_of(fake: &FakeUpstream, format: Format, script: &Script) -> usize {
    fake.script_once_for_model("measured", script.clone());
    let request = format.request("measured", false, "measured");
    // The number in the id of an answer is longer later on.
    call(fake.address(), &request).await.unwrap().body.len()
}

struct Asked {
    what: String,
    format: Format,
    how: Break,
    /// Words that the provider has written as whole events.
    written: usize,
    /// Whether everything came but what says so.
    is_complete: bool,
    answer: JoinHandle<Response>,
}

fn ask(relay: &Relay, format: Format, model: &str) -> JoinHandle<Response> {
    let request: Request = format
        .request(model, model.starts_with("stream"), model)
        .key(relay.key());
    let address = relay.address;
    tokio::spawn(async move { call(address, &request).await.unwrap() })
}

#[tokio::test]
async fn a_stream_that_breaks_off_anywhere_ends_in_an_error_event() {
    let positions = positions();
    let deployment = deployment();
    let mut pool = Pool::of(&deployment).await;
    add_streams(&mut pool, &deployment).await;
    pool.close().await;
    let relay = deployment.start();
    let mut tries = Vec::new();
    for format in FORMATS {
        let words = positions.saturating_sub(format.events_before() + 2).max(1);
        let last = format.events_before() + words + 2;
        for (at, how) in (1..=last).flat_map(|at| BREAKS.map(|how| (at, how))) {
            tries.push((format, words, at, how));
        }
    }
    let (mut broken, mut complete, mut faults) = (0, 0, String::new());
    for batch in tries.chunks(TOGETHER) {
        let asked: Vec<Asked> = batch
            .iter()
            .map(|&(format, words, at, how)| {
                let model = format!("{}-{format:?}-{at}-{how:?}", pattern(format));
                let script = how.of_stream(Script::new().words(words), at);
                relay.upstream().script_for_model(&model, script);
                let is_complete = match format {
                    // A choice has said why it ended, and nothing is cut in the middle.
                    Format::Chat | Format::Completion => {
                        how == Break::End && at > format.events_before() + words
                    }
                    // The stop has said its name.
                    Format::Message => {
                        how == Break::Half && at == format.events_before() + words + 2
                    }
                };
                Asked {
                    what: format!("{format:?} {how:?} at {at}"),
                    format,
                    how,
                    written: at.saturating_sub(format.events_before()).min(words),
                    is_complete,
                    answer: ask(&relay, format, &model),
                }
            })
            .collect();
        for Asked {
            what,
            format,
            how,
            written,
            is_complete,
            answer,
        } in asked
        {
            let answer = answer.await.unwrap();
            let heard = match answer.status() {
                200 => format.hear(&answer.events()),
                _ => Heard::default(),
            };
            let ends = (heard.is_complete, heard.error.is_some());
            let is_fine = heard.text == words::text(written)
                && ends == (is_complete, !is_complete)
                && !heard.goes_on;
            // A reset takes back what the relay has not read yet, up to everything.
            let is_taken_back = how == Break::Reset
                && words::text(written).starts_with(&heard.text)
                && (ends == (false, true) || answer.status() == 502)
                && !heard.goes_on;
            if !is_fine && !is_taken_back {
                let body = String::from_utf8_lossy(&answer.body);
                let _never_fails = writeln!(faults, "{what}: {ends:?} {body}");
            }
            broken += usize::from(!is_complete);
            complete += usize::from(is_complete);
        }
    }
    assert!(faults.is_empty(), "{faults}");
    close(&relay).await;
    let records = all_records(&relay.deployment).await;
    let failed = |record: &&StoredRecord| record.ending == "upstream_failed";
    assert_eq!(
        (records.len(), records.iter().filter(failed).count()),
        (tries.len(), broken)
    );
    println!("{broken} streams broken off, {complete} that were complete without their end");
}

#[tokio::test]
async fn an_answer_in_one_piece_that_breaks_off_anywhere_is_no_answer() {
    const WORDS: usize = 12;
    let positions = positions();
    let deployment = deployment();
    let mut pool = Pool::of(&deployment).await;
    let mut tries = Vec::new();
    for format in FORMATS {
        let script = Script::new().words(WORDS);
        let length = length_of(&deployment.upstream, format, &script).await;
        for (number, how) in (0..positions).flat_map(|number| BREAKS.map(|how| (number, how))) {
            let bytes = (length - 1) * number / positions.saturating_sub(1).max(1);
            let model = format!("plain-{format:?}-{number}-{how:?}").to_lowercase();
            add_upstream(&mut pool, &deployment, format.kind(), &model).await;
            let script = how.of_document(script.clone(), bytes, length);
            deployment.upstream.script_for_model(&model, script);
            tries.push((
                format,
                model,
                format!("{format:?} {how:?} after {bytes} of {length} bytes"),
            ));
        }
    }
    pool.close().await;
    let relay = deployment.start();
    for batch in tries.chunks(TOGETHER) {
        let asked: Vec<_> = batch
            .iter()
            .map(|(format, model, _)| ask(&relay, *format, model))
            .collect();
        for (answer, (format, _, what)) in asked.into_iter().zip(batch) {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 502, "{what}: {:?}", answer.body);
            assert_eq!(format.code(&answer.json()), "upstream_error", "{what}");
            assert_eq!(answer.header("x-should-retry"), Some("false"), "{what}");
        }
    }
    close(&relay).await;
    let records = all_records(&relay.deployment).await;
    assert_eq!(records.len(), tries.len());
    assert!(
        records
            .iter()
            .all(|record| record.quota_tokens == 0 && record.ending == "upstream_failed")
    );
    println!(
        "{} answers in one piece broken off, none taken for one",
        tries.len()
    );
}

/// What an SDK is to call, and what must come of it.
struct Plan {
    sdk: Sdk,
    calls: Vec<(String, String)>,
    /// The words of a stream that break off, or all of them of a whole answer.
    expected: Vec<Expected>,
}

enum Expected {
    /// It raises, and has so many words; fewer after a reset.
    Raises(usize, Break),
    /// It has the whole answer.
    Whole(usize),
}

impl Plan {
    async fn of(sdk: Sdk, pool: &mut Pool, deployment: &Deployment, positions: usize) -> Self {
        let cases: &[&str] = if sdk.calls_messages() {
            &["message_stream", "message_helper", "message"]
        } else {
            &["chat_stream", "chat_helper", "completion_stream", "chat"]
        };
        let (mut calls, mut expected) = (Vec::new(), Vec::new());
        let fake = &deployment.upstream;
        let protocol = if sdk.calls_messages() { "m" } else { "c" };
        let sdk_name: String = sdk
            .name
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let sdk_name = format!("{protocol}-{sdk_name}");
        for case in cases {
            let format = format_of(case);
            let is_stream = case.contains("stream") || case.contains("helper");
            // Every position is one before the answer says why it ended.
            let words = positions.saturating_sub(format.events_before()).max(1);
            let answer = Script::new().words(words);
            let length = length_of(fake, format, &answer).await;
            for number in 1..=positions {
                let how = BREAKS[number % BREAKS.len()];
                let name = format!("{sdk_name}-{case}-{number}").replace('_', "-");
                let (model, script, written) = if is_stream {
                    let model = format!("{}-{name}", pattern(format));
                    let written = number.saturating_sub(format.events_before()).min(words);
                    (model, how.of_stream(answer.clone(), number), written)
                } else {
                    let bytes = (length - 1) * (number - 1) / positions;
                    add_upstream(pool, deployment, format.kind(), &name).await;
                    (name, how.of_document(answer.clone(), bytes, length), 0)
                };
                fake.script_for_model(&model, script);
                calls.push(((*case).to_owned(), model));
                expected.push(Expected::Raises(written, how));
            }
            let model = format!("{}-{sdk_name}-{case}-whole", pattern(format));
            fake.script_for_model(&model, answer);
            calls.push(((*case).to_owned(), model));
            expected.push(Expected::Whole(words));
        }
        Self {
            sdk,
            calls,
            expected,
        }
    }

    /// Makes all calls and returns how many raised.
    async fn run(&self, relay: &Relay) -> usize {
        let reports = self.sdk.call_many(relay, &self.calls).await;
        assert_eq!(reports.len(), self.calls.len(), "{}", self.sdk.name);
        let mut raised = 0;
        for ((report, expected), call) in reports.iter().zip(&self.expected).zip(&self.calls) {
            let shown = format!("{} {call:?}: {report}", self.sdk.name);
            let text = report["content"].as_str().unwrap_or_default();
            match expected {
                Expected::Whole(words) => {
                    assert!(report["error"].is_null(), "{shown}");
                    assert_eq!(text, words::text(*words), "{shown}");
                }
                Expected::Raises(words, how) => {
                    assert!(report["error"].is_object(), "looks complete: {shown}");
                    let written = words::text(*words);
                    let is_taken_back = *how == Break::Reset && written.starts_with(text);
                    assert!(is_taken_back || written == text, "{shown}");
                    assert_eq!(report["attempts"], 1, "{shown}");
                    raised += 1;
                }
            }
        }
        raised
    }
}

#[tokio::test]
async fn every_sdk_raises_wherever_an_answer_breaks_off() {
    let positions = positions();
    let deployment = deployment();
    let mut pool = Pool::of(&deployment).await;
    add_streams(&mut pool, &deployment).await;
    let mut plans = Vec::new();
    for sdk in sdks().into_iter().chain(claude_sdks()) {
        plans.push(Plan::of(sdk, &mut pool, &deployment, positions).await);
    }
    pool.close().await;
    let relay = deployment.start();
    for plan in &plans {
        let raised = plan.run(&relay).await;
        println!(
            "{}: {raised} of {} calls raised",
            plan.sdk.name,
            plan.calls.len()
        );
    }
    close(&relay).await;
    // None was called again: a second call would be a second record.
    let calls: usize = plans.iter().map(|plan| plan.calls.len()).sum();
    assert_eq!(all_records(&relay.deployment).await.len(), calls);
}
