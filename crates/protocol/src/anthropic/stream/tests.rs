use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tokens::count_text;

const LIMIT: usize = 1 << 20;

const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"content\":[],\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":20,\"cache_read_input_tokens\":30,\"output_tokens\":1}}}\n\n";
const END: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":25,\"output_tokens_details\":{\"thinking_tokens\":7}}}\n\n";
const STOPPED: &str = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

fn delta(index: usize, kind: &str, member: &str, text: &str) -> String {
    let data = json!({
        "type": "content_block_delta",
        "index": index,
        "delta": {"type": kind, member: text},
    });
    format!("event: content_block_delta\ndata: {data}\n\n")
}

fn text_delta(text: &str) -> String {
    delta(0, "text_delta", "text", text)
}

/// What a client is sent, and what was read, of a stream in pieces of one size.
#[derive(Debug, PartialEq)]
struct Seen {
    forwarded: String,
    events: u32,
    ending: Option<StreamEnding>,
    finish: StreamFinish,
    usage: Option<TokenUsage>,
    so_far: Option<TokenUsage>,
    output: i64,
}

fn see(stream: &[u8], size: usize) -> Seen {
    let mut inspector = MessageInspector::new(LIMIT);
    let (mut forwarded, mut events, mut ending) = (Vec::new(), 0, None);
    for piece in stream.chunks(size) {
        let step = inspector.push(Bytes::copy_from_slice(piece)).unwrap();
        forwarded.extend_from_slice(&step.forward);
        events += step.events;
        ending = ending.or(step.ending);
    }
    let finish = inspector.finish();
    Seen {
        forwarded: String::from_utf8(forwarded).unwrap(),
        events,
        ending,
        finish,
        usage: inspector.usage(),
        so_far: inspector.usage_so_far(),
        output: inspector.output().count(),
    }
}

fn see_whole(stream: &str) -> Seen {
    see(stream.as_bytes(), stream.len())
}

#[test]
fn a_whole_stream_passes_as_it_came_and_its_usage_is_read() {
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    let comment = ": hello\n\n";
    let stream = [
        START,
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
        ping,
        comment,
        &text_delta("Hello world"),
        "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
        "event: not_yet_known\nid: 4\ndata: what, ever\n\n",
        END,
        STOPPED,
    ]
    .concat();
    let seen = see_whole(&stream);
    assert_eq!(seen.forwarded, stream);
    assert_eq!(seen.events, 6, "pings, comments and the stop do not count");
    assert_eq!(seen.ending, Some(StreamEnding::Done));
    assert_eq!(seen.finish, StreamFinish::Complete);
    let usage = TokenUsage {
        input: 60,
        cached_input: 30,
        cache_write_input: 20,
        output: 25,
        reasoning_output: 7,
    };
    assert_eq!((seen.usage, seen.so_far), (Some(usage), Some(usage)));
    assert_eq!(seen.output, count_text("Hello world"));
}

#[test]
fn text_thinking_and_calls_of_tools_are_counted_and_signatures_are_not() {
    let stream = [
        START,
        &delta(0, "thinking_delta", "thinking", "Hello world"),
        &delta(0, "signature_delta", "signature", "AAAAAAAAAAAAAAAAAAAAAAAA"),
        &delta(1, "text_delta", "text", "Guten \"Morgen\""),
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"look\",\"input\":{}}}\n\n",
        &delta(2, "input_json_delta", "partial_json", ""),
        &delta(2, "input_json_delta", "partial_json", "{\"a\":"),
        &delta(2, "input_json_delta", "partial_json", "1}"),
    ]
    .concat();
    let seen = see_whole(&stream);
    let texts = ["Hello world", "Guten \"Morgen\"", "look{\"a\":1}"];
    assert_eq!(seen.output, texts.map(count_text).iter().sum::<i64>());
}

#[test]
fn a_stream_that_breaks_has_no_usage_of_the_whole_but_what_is_known() {
    let stream = [
        START,
        &text_delta("one"),
        &text_delta(" two"),
        &text_delta(" three"),
    ]
    .concat();
    let seen = see_whole(&stream);
    assert_eq!((seen.usage, seen.finish), (None, StreamFinish::Truncated));
    let known = seen.so_far.unwrap();
    assert_eq!((known.input, known.cached_input, known.output), (60, 30, 3));
    let early = see_whole(START).so_far.unwrap();
    assert_eq!((early.input, early.output), (60, 1));
    assert_eq!(see_whole(&text_delta("one")).so_far, None);
}

#[test]
fn what_follows_a_report_is_not_in_it() {
    let mut stream = [START, END].concat();
    assert!(see_whole(&stream).usage.is_some());
    stream.push_str(&text_delta("more"));
    assert_eq!(see_whole(&stream).usage, None);
    stream.push_str(END);
    assert!(see_whole(&stream).usage.is_some());
}

#[test]
fn parts_of_json_that_are_cut_anywhere_are_not_taken_for_tokens() {
    let pieces: String = (0..40)
        .map(|_| delta(0, "input_json_delta", "partial_json", "a"))
        .collect();
    let known = see_whole(&format!("{START}{pieces}")).so_far.unwrap();
    assert_eq!(known.output, 1);
}

#[test]
fn an_error_that_clients_understand_passes_as_it_is() {
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"},\"x\":1}\n\n";
    let seen = see_whole(&format!("{START}{error}{STOPPED}"));
    assert_eq!(seen.forwarded, format!("{START}{error}"));
    assert_eq!(seen.ending, Some(StreamEnding::FailedInItsWords));
    assert_eq!(seen.finish, StreamFinish::Truncated);
    // A client skips what has no name, or another one.
    let unnamed = error.replace("event: error\n", "");
    let seen = see_whole(&format!("{START}{unnamed}"));
    assert_eq!(seen.forwarded, format!("{START}{error}"));
}

#[test]
fn an_error_of_another_shape_is_left_to_the_caller() {
    for error in [
        "event: error\ndata: {\"error\":\"boom\"}\n\n",
        "event: error\ndata: boom\n\n",
        "event: error\n\n",
        "event: message_stop_of_another_kind\ndata: {\"type\":\"error\"}\n\n",
    ] {
        let seen = see_whole(&format!("{START}{error}"));
        assert_eq!(seen.forwarded, START, "{error}");
        assert!(
            matches!(seen.ending, Some(StreamEnding::Failed(_))),
            "{error}"
        );
    }
}

#[test]
fn garbage_where_something_known_should_stand_fails() {
    for event in [
        "event: content_block_delta\ndata: {not json\n\n",
        "data: hello\n\n",
        "event: message_delta\ndata: 5\n\n",
    ] {
        let seen = see_whole(&format!("{START}{event}{STOPPED}"));
        assert_eq!(seen.forwarded, START, "{event}");
        assert!(
            matches!(seen.ending, Some(StreamEnding::Failed(_))),
            "{event}"
        );
    }
}

#[test]
fn an_event_without_a_name_is_given_the_one_that_it_says() {
    let bare = |event: &str| event.split_once('\n').unwrap().1.to_owned();
    let stream = [START, &text_delta("Hello"), END, STOPPED].concat();
    let without: String = [START, &text_delta("Hello"), END, STOPPED]
        .map(bare)
        .concat();
    let seen = see_whole(&format!("{}data: [DONE]\n\n", without.replace(STOPPED, "")));
    assert_eq!(seen.forwarded, stream);
    assert_eq!(seen.ending, Some(StreamEnding::Done));
    // What is no name makes no lines of its own.
    let odd = "data: {\"type\":\"x\\ndata: y\"}\n\n";
    assert_eq!(see_whole(odd).forwarded, odd);
}

#[test]
fn half_a_surrogate_pair_and_odd_members_break_nothing() {
    let odd = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":-1,\"delta\":{\"text\":\"Hello \\ud83e world\"}}\n\n";
    let usage = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":\"\\ud83e\",\"usage\":{\"output_tokens\":4}}\n\n";
    let stream = [START, odd, usage, STOPPED].concat();
    let seen = see_whole(&stream);
    assert_eq!(seen.forwarded, stream);
    assert!(seen.output > 2);
    assert_eq!(seen.usage.unwrap().output, 4);
}

#[test]
fn nothing_is_read_beyond_the_stop() {
    let seen = see_whole(&format!("{START}{STOPPED}{}", text_delta("more")));
    assert_eq!(seen.forwarded, format!("{START}{STOPPED}"));
    assert_eq!(seen.output, 0);
}

#[test]
fn a_stop_without_its_blank_line_is_a_stop_and_half_an_event_is_none() {
    for (last, finish) in [
        (
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n",
            StreamFinish::CompleteWithoutDone,
        ),
        (
            "event: message_stop\ndata: {\"type\":\"message_stop\"}",
            StreamFinish::CompleteWithoutDone,
        ),
        ("event: message_stop", StreamFinish::CompleteWithoutDone),
        (
            "data: {\"type\":\"message_stop\"}",
            StreamFinish::CompleteWithoutDone,
        ),
        ("event: message_st", StreamFinish::Truncated),
        ("event: message_delta\ndata: {}", StreamFinish::Truncated),
        ("", StreamFinish::Truncated),
    ] {
        let stream = format!("{START}{END}{last}");
        let seen = see_whole(&stream);
        assert_eq!(seen.finish, finish, "{last:?}");
        assert_eq!(seen.forwarded, format!("{START}{END}"), "{last:?}");
    }
}

#[test]
fn an_event_beyond_the_limit_ends_the_stream() {
    let mut inspector = MessageInspector::new(200);
    let small = text_delta("a");
    let step = inspector.push(Bytes::from(small.clone())).unwrap();
    assert_eq!(step.forward, small);
    assert!(
        inspector
            .push(Bytes::from(text_delta(&"x".repeat(300))))
            .is_err()
    );
    assert_eq!(inspector.finish(), StreamFinish::Truncated);
}

/// The stream of the splits: it has everything, line ends of each kind included.
fn sample() -> String {
    [
        "\u{feff}",
        START,
        ": c\r\n\r\n",
        "event: ping\r\ndata: {\"type\": \"ping\"}\r\n\r\n",
        &text_delta("grüß 🦀"),
        "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\ndata: \"text\":\" world\"}}\n\n",
        "event: content_block_stop\rdata: {\"type\":\"content_block_stop\",\"index\":0}\r\r",
        END,
        STOPPED,
    ]
    .concat()
}

#[test]
fn a_stream_cut_at_any_byte_reads_the_same() {
    let stream = sample();
    let whole = see_whole(&stream);
    assert_eq!(whole.ending, Some(StreamEnding::Done));
    assert_eq!(whole.output, count_text("grüß 🦀 world"));
    for at in 1..stream.len() {
        let (first, second) = stream.as_bytes().split_at(at);
        let mut inspector = MessageInspector::new(LIMIT);
        let mut forwarded = Vec::new();
        for piece in [first, second] {
            let step = inspector.push(Bytes::copy_from_slice(piece)).unwrap();
            // Only whole events leave, so that an error may follow at any time.
            assert!(
                step.forward.is_empty() || ends_with_blank_line(&step.forward),
                "at {at}"
            );
            forwarded.extend_from_slice(&step.forward);
        }
        assert_eq!(
            String::from_utf8(forwarded).unwrap(),
            whole.forwarded,
            "at {at}"
        );
        assert_eq!(inspector.usage(), whole.usage, "at {at}");
    }
}

fn ends_with_blank_line(bytes: &[u8]) -> bool {
    [&b"\n\n"[..], b"\r\n\r\n", b"\r\r\n"]
        .iter()
        .any(|end| bytes.ends_with(end))
}

#[test]
fn a_stream_that_ends_at_any_byte_never_ends_well_before_its_stop() {
    let stream = sample();
    let stop = stream.find("event: message_stop").unwrap();
    for at in 0..=stop {
        let seen = see(&stream.as_bytes()[..at], 64);
        assert_eq!(
            (seen.ending, seen.finish),
            (None, StreamFinish::Truncated),
            "at {at}"
        );
    }
}

proptest! {
    #[test]
    fn the_size_of_frames_does_not_matter(
        pieces in prop::collection::vec(prop::sample::select(vec![
            START.to_owned(), END.to_owned(), STOPPED.to_owned(), text_delta("Hello"), text_delta(" \\\"x\\u00e4"),
            ": c\n\n".to_owned(), "event: ping\ndata: {}\n\n".to_owned(), "\n".to_owned(), "event: x\n\n".to_owned(),
            "data: {\"type\":\"content_block_stop\"}\r\n\r\n".to_owned(), "data: [DONE]\n\n".to_owned(),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\"}}\n\n".to_owned(),
            "id: 7\n".to_owned(), "data".to_owned(),
        ]), 0..12),
        size in 1_usize..40,
    ) {
        let stream = pieces.concat();
        if !stream.is_empty() {
            prop_assert_eq!(see(stream.as_bytes(), size), see_whole(&stream));
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_defect(bytes in prop::collection::vec(any::<u8>(), 1..300), size in 1_usize..50) {
        let mut inspector = MessageInspector::new(LIMIT);
        for piece in bytes.chunks(size) {
            if inspector.push(Bytes::copy_from_slice(piece)).is_err() {
                break;
            }
        }
        prop_assert_ne!(inspector.finish(), StreamFinish::Complete);
    }
}
