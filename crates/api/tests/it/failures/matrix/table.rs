//! The table: what goes wrong at a provider, and what comes of it.

use std::ops::RangeInclusive;
use std::time::Duration;

use sluice_testkit::{ErrorShape, Quirk, Script};

use super::{CUT_AFTER, WORDS};
use crate::deployment::PATIENCE;
use crate::failures::format::Format;

/// What goes wrong, and what a client sees of it.
///
/// Each upstream has two keys. The first upstream is alone in its tier, the second one is behind it.
pub(super) struct Row {
    pub(super) fault: &'static str,
    pub(super) script: fn(Format, bool) -> Script,
    pub(super) applies: Applies,
    /// Whether the first upstream may not be silent for long.
    pub(super) is_hasty: bool,
    /// Whether the fault waits until the client has what stands before it.
    pub(super) waits: bool,
    /// The first attempt meets the fault.
    pub(super) once: Cell,
    /// Every attempt at the first upstream meets it.
    pub(super) always: Cell,
    /// Every attempt meets it.
    pub(super) everywhere: Cell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applies {
    Everywhere,
    Streams,
    ChatStreams,
    MessageStreams,
    Plain,
}

impl Applies {
    pub(super) fn to(self, format: Format, streams: bool) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Streams => streams,
            Self::ChatStreams => streams && format == Format::Chat,
            Self::MessageStreams => streams && format == Format::Message,
            Self::Plain => !streams,
        }
    }
}

/// Attempts at the first and at the second upstream.
type Seen = (usize, usize);

/// What comes of a request.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    /// The client has the whole answer.
    Whole(Seen),
    /// The client is answered with this status and code, and is told this.
    Refused(Seen, u16, &'static str, Advice),
    /// The client has what the first upstream said about the request: the status, and the code of a
    /// chat or the type of a message.
    Passed(u16, &'static str, &'static str),
    /// The client has the beginning of an answer, and an error event with the code of a chat or the
    /// type of a message.
    Broken(&'static str, &'static str),
    /// It is as with one fault.
    AsOnce,
}

/// What the client is told to do.
#[derive(Debug, Clone)]
pub(super) enum Advice {
    /// Not to repeat the request: `x-should-retry: false`.
    Stop,
    /// To wait so many seconds: `retry-after`.
    Wait(RangeInclusive<u64>),
}

use Advice::{Stop, Wait};
use Applies::{ChatStreams, Everywhere, MessageStreams, Plain, Streams};
use Cell::{AsOnce, Broken, Passed, Refused, Whole};

/// Nothing is known of the answer, and it may have been billed: one more is asked for, elsewhere.
const ONE_MORE: [Cell; 2] = [Whole((1, 1)), Whole((1, 1))];
/// The provider has said that it failed: the other key, both once more, the next tier.
const FAILED: [Cell; 2] = [Whole((2, 0)), Whole((3, 1))];
/// The key is at fault: the other key, the next tier.
const OF_KEY: [Cell; 2] = [Whole((2, 0)), Whole((2, 1))];

fn row(
    fault: &'static str,
    script: fn(Format, bool) -> Script,
    [once, always]: [Cell; 2],
    everywhere: Cell,
) -> Row {
    Row {
        fault,
        script,
        applies: Everywhere,
        is_hasty: false,
        waits: false,
        once,
        always,
        everywhere,
    }
}

/// The request is at fault: nobody else is asked.
fn passes(fault: &'static str, script: fn(Format, bool) -> Script, cell: Cell) -> Row {
    row(fault, script, [cell, AsOnce], AsOnce)
}

/// The answer has begun: nobody else is asked.
fn breaks(
    fault: &'static str,
    script: fn(Format, bool) -> Script,
    chat: &'static str,
    message: &'static str,
) -> Row {
    let only = [Broken(chat, message), AsOnce];
    row(fault, script, only, AsOnce).only(Streams)
}

impl Row {
    fn only(self, applies: Applies) -> Self {
        Self { applies, ..self }
    }

    fn waits(self) -> Self {
        Self {
            waits: true,
            ..self
        }
    }

    fn hasty(self) -> Self {
        Self {
            is_hasty: true,
            ..self
        }
    }
}

fn answer() -> Script {
    Script::new().words(WORDS)
}

/// The position of the event behind the words that a broken stream has.
fn cut(format: Format) -> usize {
    format.events_before() + CUT_AFTER
}

/// Silence until the relay has given up. What stands before it is written at once.
fn stall(at: usize) -> Script {
    answer().coalesce(WORDS).stall_at(at, PATIENCE)
}

fn failing(format: Format, shape: ErrorShape) -> Script {
    answer().error_at(cut(format), shape)
}

fn length_off(by: i64) -> Script {
    answer().with(Quirk::ContentLengthOff(by))
}

fn chunks_end() -> Script {
    answer().with(Quirk::Chunked).end_at(1)
}

fn only_done() -> Script {
    Script::events(["data: [DONE]\n\n"])
}

fn redirect() -> Script {
    Script::html(302).header("location", "/v2/chat/completions")
}

const INVALID: &str = "invalid_request_error";
const TOO_LONG: &str = "context_length_exceeded";

/// A refusal because of the request. Anthropic has no codes; what is too long is told by its words.
fn invalid(format: Format, status: u16, code: &str) -> Script {
    let message = "prompt is too long: 9 tokens > 8 maximum";
    let message = if code == TOO_LONG { message } else { "no" };
    let error = match format {
        Format::Message => format!(r#"{{"type":"{INVALID}","message":"{message}"}}"#),
        Format::Chat | Format::Completion => {
            format!(r#"{{"type":"{INVALID}","message":"{message}","param":null,"code":"{code}"}}"#)
        }
    };
    let body = format!(r#"{{"type":"error","error":{error}}}"#);
    Script::body(status, "application/json", body)
}

/// An error in spite of a status of success: the whole body, or the first event of a stream.
fn in_disguise(format: Format, streams: bool) -> Script {
    let data =
        r#"{"type":"error","error":{"type":"api_error","message":"no","code":"internal_error"}}"#;
    match (streams, format) {
        (false, _) => Script::body(200, "application/json", data),
        (true, Format::Message) => Script::events([format!("event: error\ndata: {data}\n\n")]),
        (true, _) => Script::events([format!("data: {data}\n\n")]),
    }
}

/// Every fault. One line each, so that they can be compared.
#[rustfmt::skip]
pub(super) fn rows() -> Vec<Row> {
    let upstream_error = |seen| Refused(seen, 502, "upstream_error", Stop);
    let auth_error = |seen| Refused(seen, 502, "upstream_auth_error", Stop);
    let overloaded = |seen| Refused(seen, 503, "upstream_overloaded", Stop);
    let timeout = |seen| Refused(seen, 504, "upstream_timeout", Stop);
    let limited = |wait| Refused((2, 2), 429, "rate_limit_exceeded", Wait(wait));
    vec![
        // Before anything of an answer: the name, the fault, met once or always at the first upstream,
        // and met everywhere.
        row("429 with a hint", |_, _| Script::refuse(429).retry_after(50), OF_KEY, limited(20..=50)),
        row("429 without a hint", |_, _| Script::refuse(429), OF_KEY, limited(1..=2)),
        row("401", |_, _| Script::refuse(401), OF_KEY, auth_error((2, 2))),
        row("403", |_, _| Script::refuse(403), OF_KEY, auth_error((2, 2))),
        row("402", |_, _| Script::refuse(402), OF_KEY, auth_error((2, 2))),
        row("no money", |_, _| Script::insufficient_quota(), OF_KEY, auth_error((2, 2))),
        row("408", |_, _| Script::refuse(408), FAILED, upstream_error((3, 3))),
        row("500", |_, _| Script::refuse(500), FAILED, upstream_error((3, 3))),
        row("503", |_, _| Script::refuse(503), FAILED, upstream_error((3, 3))),
        row("529", |_, _| Script::refuse(529), FAILED, overloaded((3, 3))),
        row("502 as a page", |_, _| Script::html(502), FAILED, upstream_error((3, 3))),
        row("a page with 200", |_, _| Script::html(200), FAILED, upstream_error((3, 3))),
        row("a page with 404", |_, _| Script::html(404), FAILED, upstream_error((3, 3))),
        row("a redirect", |_, _| redirect(), FAILED, upstream_error((3, 3))),
        row("an error with 200", in_disguise, FAILED, upstream_error((3, 3))),
        row("no JSON with 200", |_, _| answer().garbage_at(0), FAILED, upstream_error((3, 3))),
        row("nothing but the end", |_, _| only_done(), FAILED, upstream_error((3, 3))).only(ChatStreams),
        row("a close", |_, _| answer().close_before_head(), ONE_MORE, upstream_error((1, 1))),
        row("a reset", |_, _| answer().reset_before_head(), ONE_MORE, upstream_error((1, 1))),
        row("silence", |_, _| answer().stall_before_head(PATIENCE), ONE_MORE, timeout((1, 1))).hasty(),
        row("a slow start", |_, _| answer().first_event_delay(SLOW), [Whole((1, 0)), AsOnce], AsOnce),

        // What is wrong with the request: the status, the code of a chat, the type of a message.
        passes("400", |f, _| invalid(f, 400, "bad"), Passed(400, "bad", INVALID)),
        passes("413", |f, _| invalid(f, 413, "bad"), Passed(413, "bad", INVALID)),
        passes("422", |f, _| invalid(f, 422, "bad"), Passed(422, "bad", INVALID)),
        passes("404", |f, _| invalid(f, 404, "model_not_found"), Passed(404, "model_not_found", INVALID)),
        passes("too long", |f, _| invalid(f, 400, TOO_LONG), Passed(400, TOO_LONG, INVALID)),
        passes("a content filter", |f, _| invalid(f, 400, "content_filter"), Passed(400, "content_filter", INVALID)),

        // After the head, before the first event.
        row("a cut before the first event", |_, _| answer().cut_at(0), ONE_MORE, upstream_error((1, 1))),
        row("a reset before the first event", |_, _| answer().reset_at(0), ONE_MORE, upstream_error((1, 1))),
        row("an end before the first event", |_, _| answer().end_at(0), ONE_MORE, upstream_error((1, 1))),
        row("half of the first event", |_, _| answer().half_event_at(0), ONE_MORE, upstream_error((1, 1))),
        row("silence before the first event", |_, _| stall(0), ONE_MORE, timeout((1, 1))).hasty(),
        row("comments before the first event", |_, _| stall(0).keep_alive(SLOW), ONE_MORE, timeout((1, 1)))
            .only(Streams).hasty(),

        // In the middle of an answer in one piece, of which the client has nothing yet.
        row("a cut document", |_, _| answer().cut_at(1), ONE_MORE, upstream_error((1, 1))).only(Plain),
        row("a reset document", |_, _| answer().reset_at(1), ONE_MORE, upstream_error((1, 1))).only(Plain),
        row("a stalled document", |_, _| stall(1), ONE_MORE, timeout((1, 1))).only(Plain).hasty(),
        row("a length that is too long", |_, _| length_off(20), ONE_MORE, upstream_error((1, 1))).only(Plain),
        row("a length that is too short", |_, _| length_off(-1), FAILED, upstream_error((3, 3))).only(Plain),
        row("chunks that end too soon", |_, _| chunks_end(), FAILED, upstream_error((3, 3))).only(Plain),

        // In the middle of a stream: the code of a chat, and that of a message.
        breaks("a cut stream", |f, _| answer().cut_at(cut(f)), "upstream_error", "upstream_error"),
        breaks("a reset stream", |f, _| answer().reset_at(cut(f)), "upstream_error", "upstream_error").waits(),
        breaks("an early end", |f, _| answer().end_at(cut(f)), "upstream_error", "upstream_error"),
        breaks("half an event", |f, _| answer().half_event_at(cut(f)), "upstream_error", "upstream_error"),
        breaks("a cut event", |f, _| answer().cut_at(cut(f)).after_half_event(), "upstream_error", "upstream_error"),
        breaks("a stalled stream", |f, _| stall(cut(f)), "upstream_timeout", "upstream_timeout").hasty(),
        breaks("no JSON in a stream", |f, _| answer().garbage_at(cut(f)), "upstream_error", "upstream_error"),
        breaks("an error event", |f, _| failing(f, ErrorShape::Object), "internal_error", "overloaded_error"),
        breaks("vLLM's error event", |f, _| failing(f, ErrorShape::FlatThenDone), "500", "overloaded_error"),

        // At the end of a stream: what a chat lacks it has said before, a message has not.
        row("no `[DONE]`", |_, _| answer().with(Quirk::NoDone), [Whole((1, 0)), AsOnce], AsOnce).only(ChatStreams),
        row("no stop", |_, _| answer().with(Quirk::NoDone), [Broken("", "upstream_error"), AsOnce], AsOnce)
            .only(MessageStreams),
    ]
}

/// Slower than the others, and soon enough.
const SLOW: Duration = Duration::from_millis(100);
