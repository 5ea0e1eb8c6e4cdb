//! What goes wrong at a provider × where × stream or not × dialect: what the client sees, how often each
//! upstream is asked, and what is recorded. One process, and upstreams of its own for each cell.

mod table;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;
use sluice_domain::id::UpstreamId;
use sluice_domain::upstream::Upstream;
use sluice_domain::usage::{Basis, Ending};
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{
    FakeUpstream, Gate, HttpClient, RawEvent, ResponseHead, Script, Served, words,
};

use self::table::{Advice, Cell, Row, rows};
use super::close;
use super::format::Format;
use super::pool::Pool;
use crate::audit::all_records;
use crate::deployment::{Backend, Deployment, PATIENCE, Relay};

/// Words of every answer, and those of a stream that breaks.
const WORDS: usize = 12;
const CUT_AFTER: usize = 5;
/// How long a hasty upstream may be silent. Such an upstream is never expected to answer.
const HASTY: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// The first attempt meets the fault.
    Once,
    /// Every attempt at the first upstream meets it.
    Always,
    /// The same, and the good upstream is in the same tier: either is asked first.
    Beside,
    /// Every attempt meets it.
    Everywhere,
}

const PLACEMENTS: [Placement; 4] = [
    Placement::Once,
    Placement::Always,
    Placement::Beside,
    Placement::Everywhere,
];

/// One cell of the table, and its request.
struct Try {
    /// Names the request, the model and the upstreams.
    name: String,
    what: String,
    format: Format,
    streams: bool,
    placement: Placement,
    script: Script,
    is_hasty: bool,
    /// Opened when the client has what stands before the fault.
    gate: Gate,
    expected: Cell,
}

/// What the client saw.
struct Seen {
    head: ResponseHead,
    events: Vec<RawEvent>,
    body: Value,
}

fn tries() -> Vec<Try> {
    let mut tries = Vec::new();
    for row in rows() {
        for placement in PLACEMENTS {
            for format in [Format::Chat, Format::Message] {
                for streams in [false, true] {
                    let applies = row.applies.to(format, streams);
                    if let Some(expected) = row.cell(placement).filter(|_| applies) {
                        let number = tries.len();
                        tries.push(Try::of(
                            &row,
                            expected,
                            placement,
                            (format, streams),
                            number,
                        ));
                    }
                }
            }
        }
    }
    tries
}

#[tokio::test]
async fn whatever_fails_is_seen_asked_and_recorded_as_the_table_says() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    // Failures before the first event are answered with their status, however long that takes here.
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "60000");
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    let second = FakeUpstream::start();
    let tries = tries();
    prepare(&deployment, &second, &tries).await;
    let relay = deployment.start();
    let calls: Vec<_> = tries
        .iter()
        .map(|this| tokio::spawn(ask(this, &relay)))
        .collect();
    let mut seen = Vec::new();
    for call in calls {
        seen.push(call.await.unwrap());
    }
    close(&relay).await;

    let mut records: HashMap<String, Vec<StoredRecord>> = HashMap::new();
    for record in all_records(&relay.deployment).await {
        let model = record.requested_model.clone();
        records.entry(model).or_default().push(record);
    }
    let mut faults = String::new();
    for (this, seen) in tries.iter().zip(&seen) {
        let records = records.remove(&this.name).unwrap_or_default();
        let served = [
            relay.upstream().served_for_model(&this.name),
            second.served_for_model(&this.name),
        ];
        for fault in this.check(seen, &served, &records) {
            let _never_fails = writeln!(faults, "{}: {fault}", this.what);
        }
    }
    assert!(records.is_empty(), "nobody's: {records:?}");
    assert!(faults.is_empty(), "of {} cells:\n{faults}", tries.len());
    println!("{} cells of {} faults", tries.len(), rows().len());
}

/// Adds the upstreams and the routes of all cells, and tells the providers what to do.
async fn prepare(deployment: &Deployment, second: &FakeUpstream, tries: &[Try]) {
    let first = &deployment.upstream;
    let mut pool = Pool::of(deployment).await;
    // What serves well is the same for all.
    let mut good: HashMap<&str, UpstreamId> = HashMap::new();
    for (name, format) in [
        ("good-chat", Format::Chat),
        ("good-message", Format::Message),
    ] {
        let url = second.base_url();
        let id = pool.upstream(name, format.kind(), &url, 2, |_| {}).await;
        good.insert(name, id);
    }
    for this in tries {
        let kind = this.format.kind();
        let settings = |upstream: &mut Upstream| {
            if this.is_hasty {
                upstream.deadlines.first_event = HASTY;
                upstream.deadlines.idle = HASTY;
            }
        };
        let (name, url) = (format!("{}-1", this.name), first.base_url());
        let tier_1 = pool.upstream(&name, kind, &url, 2, settings).await;
        let tier_2 = if this.placement == Placement::Everywhere {
            let (name, url) = (format!("{}-2", this.name), second.base_url());
            pool.upstream(&name, kind, &url, 2, settings).await
        } else if this.format == Format::Message {
            good["good-message"]
        } else {
            good["good-chat"]
        };
        if this.placement == Placement::Beside {
            pool.route_in_tiers(&this.name, &[&[tier_1, tier_2]]).await;
        } else {
            pool.route(&this.name, &[tier_1, tier_2]).await;
        }
        let script = this.script.clone();
        match this.placement {
            Placement::Once => first.script_once_for_model(&this.name, script),
            Placement::Always | Placement::Beside => first.script_for_model(&this.name, script),
            Placement::Everywhere => {
                second.script_for_model(&this.name, script.clone());
                first.script_for_model(&this.name, script)
            }
        };
    }
    pool.close().await;
    for fake in [first, second] {
        fake.default_script(Script::new().words(WORDS));
    }
}

/// Sends the request of a cell and reads the whole answer.
fn ask(this: &Try, relay: &Relay) -> impl Future<Output = Seen> + use<> {
    let request = this.format.request(&this.name, this.streams, &this.name);
    let (request, address) = (request.key(relay.key()), relay.address);
    let (format, gate) = (this.format, this.gate.clone());
    async move {
        let client = HttpClient::connect(address).await.unwrap();
        let mut client = client.patience(PATIENCE);
        client.send(&request).await.unwrap();
        let head = client.read_head().await.unwrap();
        let type_of = head.headers.get("content-type").unwrap_or_default();
        if type_of.starts_with("text/event-stream") {
            let mut events = Vec::new();
            while let Some(event) = client.next_event().await.unwrap() {
                events.push(event);
                if format.hear(&events).text.len() >= words::text(CUT_AFTER).len() {
                    gate.open();
                }
            }
            let body = Value::Null;
            return Seen { head, events, body };
        }
        let body = client.read_body().await.unwrap();
        Seen {
            head,
            events: Vec::new(),
            body: serde_json::from_slice(&body).unwrap(),
        }
    }
}

impl Row {
    /// Returns what comes of a fault there; `None` where it is not tried.
    fn cell(&self, placement: Placement) -> Option<Cell> {
        let cell = match (placement, &self.always) {
            (Placement::Once, _) => &self.once,
            (Placement::Always, always) => always,
            // A sibling is asked before anybody is asked again.
            (Placement::Beside, Cell::Whole((first, second))) => {
                return Some(Cell::Whole(((*first).min(2), *second)));
            }
            (Placement::Beside, _) => return None,
            (Placement::Everywhere, _) => &self.everywhere,
        };
        Some(match cell {
            Cell::AsOnce => self.once.clone(),
            cell => cell.clone(),
        })
    }
}

impl Try {
    fn of(
        row: &Row,
        expected: Cell,
        placement: Placement,
        (format, streams): (Format, bool),
        number: usize,
    ) -> Self {
        let shape = if streams { "stream" } else { "plain" };
        let (script, gate) = ((row.script)(format, streams), Gate::new());
        Self {
            name: format!("cell-{number}"),
            what: format!("{} {placement:?}, {format:?} {shape}", row.fault),
            format,
            streams,
            placement,
            script: if row.waits {
                script.strike_after(&gate)
            } else {
                script
            },
            gate,
            is_hasty: row.is_hasty,
            expected,
        }
    }

    /// Returns what is not as it should be.
    fn check(
        &self,
        seen: &Seen,
        served: &[Vec<Served>; 2],
        records: &[StoredRecord],
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |what: &str, found: String, expected: String| {
            if found != expected {
                faults.push(format!("{what} is {found}, not {expected}"));
            }
        };
        let [record] = records else {
            return vec![format!("{} records", records.len())];
        };
        let attempts = match &self.expected {
            Cell::Whole(seen) | Cell::Refused(seen, ..) => *seen,
            Cell::Passed(..) | Cell::Broken(..) | Cell::AsOnce => (1, 0),
        };
        let asked = (served[0].len(), served[1].len());
        let is_second_first = self.placement == Placement::Beside && asked == (0, 1);
        let attempts = if is_second_first { asked } else { attempts };
        check(
            "the number of attempts",
            format!("{asked:?}"),
            format!("{attempts:?}"),
        );
        let told = seen.head.headers.get("x-sluice-attempts").unwrap_or("none");
        let all = attempts.0 + attempts.1;
        check("x-sluice-attempts", told.to_owned(), all.to_string());
        check(
            "the recorded attempts",
            record.attempts.len().to_string(),
            all.to_string(),
        );
        // Nobody goes back from the second tier to the first.
        let Some(last) = served[1].last().or(served[0].last()) else {
            return faults;
        };
        self.check_client(seen, &mut check);
        self.check_record(record, last, &mut check);
        faults
    }

    fn check_client(&self, seen: &Seen, check: &mut impl FnMut(&str, String, String)) {
        let header = |name: &str| seen.head.headers.get(name);
        let heard = self.format.hear(&seen.events);
        let status = seen.head.status;
        let in_dialect = |status: u16| match (self.format, status) {
            (Format::Message, 503) => 529,
            (_, status) => status,
        };
        let of_dialect = |chat: &'static str, message: &'static str| match self.format {
            Format::Message => message,
            Format::Chat | Format::Completion => chat,
        };
        let text = if self.streams {
            heard.text.clone()
        } else {
            self.format.text(&seen.body)
        };
        let is_streamed = matches!(self.expected, Cell::Broken(..))
            || (self.streams && matches!(self.expected, Cell::Whole(_)));
        check(
            "being a stream",
            (!seen.events.is_empty()).to_string(),
            is_streamed.to_string(),
        );
        match &self.expected {
            Cell::Whole(_) | Cell::AsOnce => {
                check("the status", status.to_string(), "200".to_owned());
                check("the text", text, words::text(WORDS));
                check("the error", format!("{:?}", heard.error), "None".to_owned());
                let ends_well = !self.streams || (heard.is_complete && !heard.goes_on);
                check("a good end", ends_well.to_string(), "true".to_owned());
            }
            Cell::Broken(chat, message) => {
                check("the status", status.to_string(), "200".to_owned());
                let words = if chat.is_empty() { WORDS } else { CUT_AFTER };
                check("the text", text, words::text(words));
                let error = heard.error.unwrap_or_default();
                check(
                    "the code",
                    self.format.code(&error),
                    of_dialect(chat, message).to_owned(),
                );
                let ends = heard.is_complete || heard.goes_on;
                check(
                    "going on after the error",
                    ends.to_string(),
                    "false".to_owned(),
                );
            }
            Cell::Refused(_, expected, code, advice) => {
                check(
                    "the status",
                    status.to_string(),
                    in_dialect(*expected).to_string(),
                );
                check("the code", self.format.code(&seen.body), (*code).to_owned());
                let stop = header("x-should-retry").unwrap_or("none");
                let wait = header("retry-after");
                match advice {
                    Advice::Stop => {
                        check("x-should-retry", stop.to_owned(), "false".to_owned());
                        check("retry-after", format!("{wait:?}"), "None".to_owned());
                    }
                    Advice::Wait(range) => {
                        check("x-should-retry", stop.to_owned(), "none".to_owned());
                        let seconds = wait.and_then(|wait| wait.parse().ok()).unwrap_or(0);
                        if !range.contains(&seconds) {
                            check("retry-after", seconds.to_string(), format!("{range:?}"));
                        }
                    }
                }
            }
            Cell::Passed(expected, chat, message) => {
                check("the status", status.to_string(), expected.to_string());
                check(
                    "the code",
                    self.format.code(&seen.body),
                    of_dialect(chat, message).to_owned(),
                );
                check(
                    "retry-after",
                    format!("{:?}", header("retry-after")),
                    "None".to_owned(),
                );
            }
        }
    }

    fn check_record(
        &self,
        record: &StoredRecord,
        last: &Served,
        check: &mut impl FnMut(&str, String, String),
    ) {
        let is_late = self.is_hasty;
        let failed = if is_late {
            Ending::Deadline
        } else {
            Ending::UpstreamFailed
        };
        let counted = (last.input_tokens, i64::try_from(CUT_AFTER).unwrap());
        let (ending, basis, (input, output)) = match self.expected {
            Cell::Whole(_) | Cell::AsOnce => {
                let usage = last.reported.unwrap_or_default();
                (
                    Ending::Finished,
                    Basis::Reported,
                    (usage.input, usage.output),
                )
            }
            // The provider had reported everything before the stop was missing.
            Cell::Broken("", _) => {
                let usage = last.reported.unwrap_or_default();
                (failed, Basis::Reported, (usage.input, usage.output))
            }
            Cell::Broken(..) => (failed, Basis::Counted, counted),
            Cell::Refused(..) | Cell::Passed(..) => {
                let is_caller = matches!(self.expected, Cell::Passed(..));
                let ending = if is_caller {
                    Ending::UpstreamFailed
                } else {
                    failed
                };
                (ending, Basis::Unknown, (0, 0))
            }
        };
        check(
            "the ending",
            record.ending.clone(),
            ending.as_str().to_owned(),
        );
        check("the basis", record.basis.clone(), basis.as_str().to_owned());
        let usage = (record.usage.input, record.usage.output);
        check(
            "the usage",
            format!("{usage:?}"),
            format!("{:?}", (input, output)),
        );
        check(
            "the charge",
            record.quota_tokens.to_string(),
            (input + output).to_string(),
        );
        check(
            "the excess",
            record.excess.tokens.to_string(),
            "0".to_owned(),
        );
        let is_whole = ending == Ending::Finished;
        let errors: Vec<bool> = record.attempts.iter().map(|a| a.error.is_some()).collect();
        let mut expected = vec![true; record.attempts.len()];
        if let Some(last) = expected.last_mut() {
            *last = !is_whole;
        }
        check(
            "the failed attempts",
            format!("{errors:?}"),
            format!("{expected:?}"),
        );
        let last_model = record.attempts.last().map(|a| a.upstream_model.clone());
        check(
            "the model",
            format!("{last_model:?}"),
            format!("{:?}", last.model),
        );
    }
}
