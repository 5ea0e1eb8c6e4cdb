//! Long silences: clients are kept waiting in their own protocol, and what a provider sends to keep a
//! connection alive is neither silence nor an answer.
//!
//! `SLUICE_PROVE_SILENCE_SECONDS=600` makes them so long.

use std::time::Duration;

use sluice_domain::upstream::{Deadlines, Upstream};
use sluice_testkit::{FakeUpstream, Gate, HttpClient, RawEvent, Script, words};
use tokio::time::Instant;

use super::format::Format;
use super::pool::Pool;
use super::{close, size};
use crate::audit::all_records;
use crate::deployment::{Backend, Deployment, PATIENCE, Relay};

const WORDS: usize = 6;
/// A client hears nothing for so long at most, by the setting.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How often a provider says that it is still there.
const COMMENT: Duration = Duration::from_millis(100);
/// A provider that says nothing at all is given up after this. Long against the time between two
/// comments, so that a busy machine makes nobody silent.
const IDLE: Duration = Duration::from_millis(2_500);

fn silence() -> Duration {
    let seconds = size("SLUICE_PROVE_SILENCE_SECONDS", 6);
    Duration::from_secs(u64::try_from(seconds).unwrap())
}

/// Starts a relay that leads each format to an upstream with these deadlines.
async fn start(settings: impl Fn(&mut Deadlines) + Send + Sync) -> Relay {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set(
        "SLUICE_RELAY_KEEP_ALIVE_MS",
        KEEP_ALIVE.as_millis().to_string(),
    );
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "100");
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    let mut pool = Pool::of(&deployment).await;
    for format in [Format::Chat, Format::Message] {
        let name = model(format);
        let url = deployment.upstream.base_url();
        let set = |upstream: &mut Upstream| settings(&mut upstream.deadlines);
        let id = pool.upstream(name, format.kind(), &url, 1, set).await;
        pool.route(name, &[id]).await;
    }
    pool.close().await;
    deployment.start()
}

fn model(format: Format) -> &'static str {
    match format {
        Format::Chat => "chat",
        Format::Completion => "completion",
        Format::Message => "message",
    }
}

async fn begin(relay: &Relay, format: Format, streams: bool, name: &str) -> HttpClient {
    let client = HttpClient::connect(relay.address).await.unwrap();
    let patience = silence() + Duration::from_mins(1);
    let mut client = client.patience(patience);
    let request = format
        .request(model(format), streams, name)
        .key(relay.key());
    client.send(&request).await.unwrap();
    client
}

/// Whether it says nothing and keeps a client of the format waiting.
fn keeps_alive(format: Format, event: &RawEvent) -> bool {
    match format {
        Format::Chat | Format::Completion => event.is_comment(),
        Format::Message => event
            .raw
            .starts_with(b"event: ping\ndata: {\"type\": \"ping\"}\n\n"),
    }
}

/// Reads on until the provider has been silent for long enough. Returns how many signs of life came.
async fn sit_through(client: &mut HttpClient, format: Format, silence: Duration) -> usize {
    let began = Instant::now();
    let mut signs = 0;
    while began.elapsed() < silence {
        let event = client.next_event().await.unwrap().unwrap();
        assert!(keeps_alive(format, &event), "{format:?}: {:?}", event.raw);
        signs += 1;
    }
    signs
}

/// Reads the rest and returns the text that came in all of it.
async fn finish(mut client: HttpClient, format: Format, mut events: Vec<RawEvent>) -> String {
    let (rest, error) = client.read_events().await;
    assert!(error.is_none(), "{error:?}");
    events.extend(rest);
    let heard = format.hear(&events);
    assert!(heard.is_complete && heard.error.is_none(), "{heard:?}");
    heard.text
}

/// Lets providers of both formats be silent before the event at a position, and reads what the clients
/// hear of it.
async fn sit_through_both(relay: &Relay, events: impl Fn(Format) -> usize, script: &Script) {
    let silence = silence();
    let mut clients = Vec::new();
    let gate = Gate::new();
    for format in [Format::Chat, Format::Message] {
        let name = format!("{} {}", model(format), events(format));
        let waiting = script.clone().wait_at(events(format), &gate);
        relay.upstream().script_for_user(&name, waiting);
        let mut client = begin(relay, format, true, &name).await;
        let events = events(format);
        clients.push(tokio::spawn(async move {
            assert_eq!(client.read_head().await.unwrap().status, 200);
            let mut read = Vec::new();
            while read.len() < events {
                let event = client.next_event().await.unwrap().unwrap();
                if !keeps_alive(format, &event) {
                    read.push(event);
                }
            }
            let signs = sit_through(&mut client, format, silence).await;
            (client, format, read, signs)
        }));
    }
    let mut waited = Vec::new();
    for client in clients {
        waited.push(client.await.unwrap());
    }
    gate.open();
    for (client, format, read, signs) in waited {
        // At least one in each time that the setting allows to be silent, with room for a machine
        // that is busy.
        let due = usize::try_from(silence.as_secs() / (KEEP_ALIVE.as_secs() * 2)).unwrap();
        assert!(
            signs >= due,
            "{format:?}: {signs} signs of life in {silence:?}"
        );
        assert_eq!(finish(client, format, read).await, words::text(WORDS));
    }
}

#[tokio::test]
async fn a_client_is_kept_waiting_in_its_protocol_however_long_a_provider_thinks() {
    let relay = start(|deadlines| {
        deadlines.first_event = silence() * 3;
        deadlines.idle = silence() * 3;
    })
    .await;
    let script = Script::new().words(WORDS);
    // Both at a time: before anything is said, and in the middle.
    tokio::join!(
        sit_through_both(&relay, |_| 0, &script),
        sit_through_both(&relay, |format| format.events_before() + 2, &script),
    );
    close(&relay).await;
    let records = all_records(&relay.deployment).await;
    assert!(records.len() == 4 && records.iter().all(|record| record.ending == "finished"));
}

#[tokio::test]
async fn what_a_provider_sends_to_be_heard_is_no_silence() {
    let relay = start(|deadlines| deadlines.idle = IDLE).await;
    assert!(silence() > 2 * IDLE);
    let script = Script::new().words(WORDS).keep_alive(COMMENT);
    let streams = sit_through_both(&relay, |format| format.events_before() + 2, &script);
    // Blank lines before an answer in one piece, as DeepSeek sends them.
    let documents = async {
        let gate = Gate::new();
        let mut clients = Vec::new();
        for format in [Format::Chat, Format::Message] {
            let name = format!("{} whole", model(format));
            relay
                .upstream()
                .script_for_user(&name, script.clone().wait_at(0, &gate));
            clients.push((format, begin(&relay, format, false, &name).await));
        }
        tokio::time::sleep(silence()).await;
        gate.open();
        for (format, mut client) in clients {
            let head = client.read_head().await.unwrap();
            let body = client.read_body().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap();
            assert_eq!((head.status, format.text(&body)), (200, words::text(WORDS)));
        }
    };
    tokio::join!(streams, documents);
    close(&relay).await;
    let records = all_records(&relay.deployment).await;
    assert!(records.len() == 4 && records.iter().all(|record| record.attempts.len() == 1));
}

#[tokio::test]
async fn a_provider_that_only_keeps_the_connection_alive_has_not_answered() {
    const FIRST_EVENT: Duration = Duration::from_millis(1_500);
    /// Any of some is on time, on whatever machine.
    const TRIES: usize = 6;
    let relay = start(|deadlines| deadlines.first_event = FIRST_EVENT).await;
    let fake: &FakeUpstream = relay.upstream();
    let silent = Script::new()
        .stall_at(0, Duration::from_mins(5))
        .keep_alive(COMMENT);
    fake.default_script(silent);
    let mut clients = Vec::new();
    for number in 0..TRIES {
        let format = if number % 2 == 0 {
            Format::Chat
        } else {
            Format::Message
        };
        clients.push((
            format,
            begin(&relay, format, true, &number.to_string()).await,
        ));
    }
    for (format, mut client) in clients {
        assert_eq!(client.read_head().await.unwrap().status, 200);
        let (events, error) = client.read_events().await;
        let heard = format.hear(&events);
        assert!(error.is_none() && !heard.is_complete, "{events:?}");
        let said = heard.error.as_ref().map(|error| format.code(error));
        assert_eq!(
            said.as_deref(),
            Some("upstream_timeout"),
            "{format:?}: {events:?}"
        );
    }
    let served = fake.wait_for_ends(TRIES, PATIENCE).await;
    assert_eq!(served.len(), TRIES, "a silent upstream is not asked again");
    let given_up = |served: &sluice_testkit::Served| {
        served
            .peer_left_at()
            .unwrap()
            .saturating_sub(served.received_at)
    };
    let (soonest, latest) = (
        served.iter().map(given_up).min(),
        served.iter().map(given_up).max(),
    );
    let soonest = soonest.unwrap();
    assert!(
        soonest + Duration::from_millis(50) >= FIRST_EVENT,
        "{soonest:?}"
    );
    assert!(
        soonest <= FIRST_EVENT + Duration::from_secs(1),
        "{soonest:?}"
    );
    close(&relay).await;
    println!("given up after {soonest:?} to {latest:?}");
}
