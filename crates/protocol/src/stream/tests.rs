use proptest::prelude::*;

use super::*;
use crate::tokens::count_text;

const OPTIONS: StreamOptions = StreamOptions {
    strip_usage: true,
    max_event_bytes: 1 << 20,
    choices: 1,
};

const CONTENT: &str = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}],\"usage\":null}\n\n";
const STOP: &str =
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}}\n\n";
const END: &str = "data: [DONE]\n\n";

fn inspector() -> StreamInspector {
    StreamInspector::new(Endpoint::ChatCompletions, OPTIONS)
}

fn usage(input: i64, output: i64) -> TokenUsage {
    TokenUsage {
        input,
        output,
        ..TokenUsage::default()
    }
}

/// What a whole stream came to.
#[derive(Debug, PartialEq)]
struct Relayed {
    forward: String,
    events: u32,
    ending: Option<StreamEnding>,
    finish: StreamFinish,
    usage: Option<TokenUsage>,
    output: OutputText,
}

#[track_caller]
fn relay_with(options: StreamOptions, frames: &[&[u8]]) -> Relayed {
    let mut inspector = StreamInspector::new(Endpoint::ChatCompletions, options);
    let (mut forward, mut count, mut ending) = (Vec::new(), 0, None);
    for frame in frames {
        let step = inspector.push(Bytes::copy_from_slice(frame)).unwrap();
        assert!(
            step.forward.is_empty()
                || step.forward.ends_with(b"\n\n")
                || step.forward.ends_with(b"\n\r\n"),
            "only whole events are forwarded"
        );
        forward.extend_from_slice(&step.forward);
        count += step.events;
        if step.ending.is_some() {
            assert_eq!(ending, None, "a stream ends once");
            ending = step.ending;
        }
    }
    Relayed {
        forward: String::from_utf8(forward).unwrap(),
        events: count,
        ending,
        finish: inspector.finish(),
        usage: inspector.usage(),
        output: inspector.take_output(),
    }
}

#[track_caller]
fn relay(frames: &[&str]) -> Relayed {
    let frames: Vec<&[u8]> = frames.iter().map(|frame| frame.as_bytes()).collect();
    relay_with(OPTIONS, &frames)
}

fn error(event: &Relayed) -> (&str, &str, Option<&str>) {
    match event.ending.as_ref().unwrap() {
        StreamEnding::Failed(error) => (&error.message, &error.kind, error.code.as_deref()),
        StreamEnding::Done | StreamEnding::FailedInItsWords => panic!("the stream ended well"),
    }
}

#[test]
fn a_sound_stream_passes_and_is_read() {
    let relayed = relay(&[CONTENT, CONTENT, STOP, USAGE, END]);
    assert_eq!(relayed.forward, [CONTENT, CONTENT, STOP, END].concat());
    assert_eq!(relayed.events, 3);
    assert_eq!(relayed.ending, Some(StreamEnding::Done));
    assert_eq!(relayed.finish, StreamFinish::Complete);
    assert_eq!(relayed.usage, Some(usage(5, 7)));
    assert_eq!(relayed.output.count(), count_text("HelloHello"));
}

#[test]
fn a_frame_of_whole_clean_events_is_not_copied() {
    let frame = Bytes::from(
        [
            CONTENT,
            ": ping\n\n",
            STOP,
            "data: {\"choices\":[]}\r\n\r\n",
        ]
        .concat(),
    );
    let step = inspector().push(frame.clone()).unwrap();
    assert_eq!(
        (step.forward.as_ptr(), step.forward.len()),
        (frame.as_ptr(), frame.len())
    );
    assert_eq!(step.events, 3);
}

#[test]
fn usage_at_the_edge_of_a_frame_is_cut_off_without_a_copy() {
    let frame = Bytes::from([USAGE, END].concat());
    let step = inspector().push(frame.clone()).unwrap();
    assert_eq!(step.forward, END);
    assert_eq!(step.forward.as_ptr(), frame[USAGE.len()..].as_ptr());
}

#[test]
fn part_of_an_event_is_held_back() {
    let mut inspector = inspector();
    let (head, tail) = CONTENT.split_at(30);
    let step = inspector
        .push(Bytes::from([CONTENT, head].concat()))
        .unwrap();
    assert_eq!(step.forward, CONTENT);
    let step = inspector.push(Bytes::from(tail)).unwrap();
    assert_eq!((step.forward, step.events), (Bytes::from(CONTENT), 1));
}

#[test]
fn usage_stays_for_a_client_that_asked_for_it() {
    let options = StreamOptions {
        strip_usage: false,
        ..OPTIONS
    };
    let relayed = relay_with(
        options,
        &[CONTENT.as_bytes(), USAGE.as_bytes(), END.as_bytes()],
    );
    assert_eq!(relayed.forward, [CONTENT, USAGE, END].concat());
    assert_eq!(relayed.usage, Some(usage(5, 7)));
}

#[test]
fn only_the_chunk_that_is_nothing_but_usage_is_removed() {
    let azure =
        "data: {\"choices\":[],\"created\":0,\"id\":\"\",\"prompt_filter_results\":[{}]}\n\n";
    let on_chunk = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":0}}\n\n";
    let null = "data: {\"choices\":[],\"usage\":null}\n\n";
    let relayed = relay(&[azure, on_chunk, null, STOP, END]);
    assert_eq!(relayed.forward, [azure, on_chunk, null, STOP, END].concat());
    assert_eq!(relayed.usage, Some(usage(1, 0)));
    for other in [
        "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":0}}\n\n",
        "data: {\"choices\":null,\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":0}}\n\n",
    ] {
        let relayed = relay(&[other]);
        assert_eq!(
            (relayed.forward.as_str(), relayed.usage),
            ("", Some(usage(1, 0))),
            "{other}"
        );
    }
}

#[test]
fn of_several_usages_the_last_one_counts_and_zero_is_usage() {
    let each = |input: i64| {
        format!(
            "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{input},\"completion_tokens\":0}}}}\n\n"
        )
    };
    assert_eq!(
        relay(&[&each(3), &each(9), &each(0)]).usage,
        Some(usage(0, 0))
    );
    assert_eq!(relay(&[&each(3), &each(-1)]).usage, Some(usage(3, 0)));
    assert_eq!(relay(&[CONTENT, STOP, END]).usage, None);
}

#[test]
fn what_breaks_clients_is_removed() {
    let dirty = [
        "\u{feff}: welcome\n\n",
        "id: 7\nevent: message\nretry: 1000\ndata: {\"choices\":[]}\n\n",
        "data:\n\n",
        "data: \n\n",
        "event: ping\n\n",
        "retry: 1000\n\n",
        ": note\nid: 8\n\n",
        "unknown: 1\ndata: {\"a\":1,\ndata: \"b\":2}\n\n",
        "data: {\"c\":3}\r\r",
        ":\n\n",
        "id: 9\ndata: [DONE]\n\n",
    ];
    let clean = ": welcome\n\ndata: {\"choices\":[]}\n\n: note\n\ndata: {\"a\":1,\ndata: \"b\":2}\n\ndata: {\"c\":3}\n\n:\n\ndata: [DONE]\n\n";
    let relayed = relay(&[&dirty.concat()]);
    assert_eq!(relayed.forward, clean);
    assert_eq!(
        (relayed.events, relayed.finish),
        (3, StreamFinish::Complete)
    );
    assert_eq!(relay(&dirty).forward, clean);
}

#[test]
fn comments_are_forwarded_and_are_no_events() {
    let relayed = relay(&[": keep-alive\n\n", ": OPENROUTER PROCESSING\n\n", ":\n\n"]);
    assert_eq!(
        relayed.forward,
        ": keep-alive\n\n: OPENROUTER PROCESSING\n\n:\n\n"
    );
    assert_eq!(
        (relayed.events, relayed.finish),
        (0, StreamFinish::Truncated)
    );
}

#[test]
fn an_error_event_of_each_shape_ends_the_stream_and_is_not_forwarded() {
    for (event, expected) in [
        (
            "data: {\"error\":{\"message\":\"no\",\"type\":\"server_error\",\"param\":null,\"code\":\"c\"}}\n\n",
            ("no", "server_error", Some("c")),
        ),
        (
            "data: {\"error\":{\"message\":\"no\",\"code\":502},\"choices\":[]}\n\n",
            ("no", "server_error", Some("502")),
        ),
        (
            "data: {\"error\":\"text\"}\n\n",
            ("text", "server_error", None),
        ),
        (
            "data: {\"object\":\"error\",\"message\":\"no\",\"type\":\"BadRequestError\",\"param\":null,\"code\":400}\n\n",
            ("no", "BadRequestError", Some("400")),
        ),
        (
            "event: error\ndata: {\"type\":\"error\",\"message\":\"no\"}\n\n",
            ("no", "server_error", None),
        ),
        (
            "event: error\ndata: {\"message\":\"no\",\"code\":1}\n\n",
            ("no", "server_error", Some("1")),
        ),
        (
            "event: error\ndata: {\"error\":{\"message\":\"no\",\"type\":\"overloaded_error\"}}\n\n",
            ("no", "overloaded_error", None),
        ),
        (
            "event: error\ndata: plain\n\n",
            ("plain", "server_error", None),
        ),
        (
            "event: error\n\n",
            (
                "the upstream broke the stream with an error",
                "server_error",
                None,
            ),
        ),
        (
            "data: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"no\"}}\n\n",
            ("no", "api_error", None),
        ),
        (
            "data: {\"choices\":5,\"error\":{\"message\":\"no\"}}\n\n",
            ("no", "server_error", None),
        ),
        (
            "data: <html>\n\n",
            (
                "the upstream sent an event that is not JSON",
                "server_error",
                None,
            ),
        ),
        (
            "data: {\"choices\":[{\n\n",
            (
                "the upstream sent an event that is not JSON",
                "server_error",
                None,
            ),
        ),
    ] {
        let relayed = relay(&[&[CONTENT, event, CONTENT, END].concat(), STOP, END]);
        assert_eq!(error(&relayed), expected, "{event}");
        assert_eq!(relayed.forward, CONTENT, "{event}");
        assert_eq!(relayed.finish, StreamFinish::Truncated, "{event}");
        assert_eq!(relayed.output.count(), 1, "{event}");
    }
}

#[test]
fn an_error_that_is_null_or_says_nothing_is_none() {
    for event in [
        "data: {\"choices\":[],\"error\":null}\n\n",
        "data: {\"choices\":[],\"error\":false}\n\n",
        "data: {\"choices\":[],\"error\":{}}\n\n",
        "data: {\"choices\":[],\"object\":\"chat.completion.chunk\",\"error\":\"\"}\n\n",
    ] {
        let relayed = relay(&[event]);
        assert_eq!((relayed.forward.as_str(), relayed.ending), (event, None));
    }
}

#[test]
fn the_end_of_the_bytes_is_judged_by_what_was_seen() {
    for (frames, finish) in [
        (vec![CONTENT, STOP, END], StreamFinish::Complete),
        (vec![CONTENT, END], StreamFinish::Complete),
        (vec![CONTENT, STOP], StreamFinish::CompleteWithoutDone),
        (
            vec![CONTENT, STOP, USAGE],
            StreamFinish::CompleteWithoutDone,
        ),
        (
            vec![CONTENT, STOP, ": ping\n"],
            StreamFinish::CompleteWithoutDone,
        ),
        // `[DONE]` without its blank line.
        (
            vec![CONTENT, STOP, "data: [DONE]"],
            StreamFinish::CompleteWithoutDone,
        ),
        (
            vec![CONTENT, "data:[DONE]\r\n"],
            StreamFinish::CompleteWithoutDone,
        ),
        (vec![CONTENT, STOP, "data: [DO"], StreamFinish::Truncated),
        (vec![CONTENT, STOP, "da"], StreamFinish::Truncated),
        (
            vec![CONTENT, STOP, "data: {\"choices\":[],\"us"],
            StreamFinish::Truncated,
        ),
        (vec![CONTENT], StreamFinish::Truncated),
        (
            vec![CONTENT, &STOP[..STOP.len() - 1]],
            StreamFinish::Truncated,
        ),
        (
            vec!["data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"\"}]}\n\n"],
            StreamFinish::Truncated,
        ),
        (vec![""], StreamFinish::Truncated),
    ] {
        assert_eq!(relay(&frames).finish, finish, "{frames:?}");
    }
}

#[test]
fn a_stream_without_its_end_is_whole_when_every_choice_has_ended() {
    let options = StreamOptions {
        choices: 2,
        ..OPTIONS
    };
    let second = STOP.replace("\"index\":0", "\"index\":1");
    // Half a surrogate pair: read in the other way.
    let unusual = second.replace("\"delta\":{}", r#""delta":{"content":"\ud83d"}"#);
    for (frames, finish) in [
        (vec![CONTENT, STOP], StreamFinish::Truncated),
        (vec![CONTENT, STOP, STOP], StreamFinish::Truncated),
        (
            vec![CONTENT, STOP, &second],
            StreamFinish::CompleteWithoutDone,
        ),
        (
            vec![CONTENT, &unusual, STOP],
            StreamFinish::CompleteWithoutDone,
        ),
        (vec![CONTENT, STOP, END], StreamFinish::Complete),
    ] {
        let bytes: Vec<&[u8]> = frames.iter().map(|frame| frame.as_bytes()).collect();
        assert_eq!(relay_with(options, &bytes).finish, finish, "{frames:?}");
    }
}

#[test]
fn a_completions_stream_has_its_text_and_reason_in_the_choice() {
    let mut inspector = StreamInspector::new(Endpoint::Completions, OPTIONS);
    let frame = "data: {\"object\":\"text_completion\",\"choices\":[{\"text\":\"Hello world\",\"index\":0,\"finish_reason\":\"length\"}]}\n\n";
    inspector.push(Bytes::from(frame)).unwrap();
    assert_eq!(inspector.finish(), StreamFinish::CompleteWithoutDone);
    assert_eq!(inspector.take_output().count(), 2);
    assert!(inspector.take_output().is_empty());
}

#[test]
fn nothing_is_forwarded_after_the_end() {
    let relayed = relay(&[
        &[CONTENT, END, CONTENT].concat(),
        CONTENT,
        "data: {\"error\":\"x\"}\n\n",
    ]);
    assert_eq!(relayed.forward, [CONTENT, END].concat());
    assert_eq!(
        (relayed.events, relayed.finish),
        (1, StreamFinish::Complete)
    );
}

#[test]
fn a_large_event_ends_the_stream_after_what_came_before_it() {
    let options = StreamOptions {
        max_event_bytes: 200,
        ..OPTIONS
    };
    let mut inspector = StreamInspector::new(Endpoint::ChatCompletions, options);
    let frame = [CONTENT, "data: ", &"x".repeat(300)].concat();
    assert_eq!(inspector.push(Bytes::from(frame)).unwrap().forward, CONTENT);
    let error = inspector.push(Bytes::from("x")).unwrap_err();
    assert_eq!(error, StreamError::EventTooLarge { limit_bytes: 200 });
    assert_eq!(inspector.finish(), StreamFinish::Truncated);
    assert_eq!(inspector.push(Bytes::from(CONTENT)).unwrap().forward, "");
}

#[test]
fn all_text_that_a_model_writes_is_counted() {
    let text = |choice: &str| {
        let mut inspector = inspector();
        let step = inspector
            .push(Bytes::from(format!("data: {{\"choices\":[{choice}]}}\n\n")))
            .unwrap();
        assert_eq!(step.ending, None);
        assert_eq!(step.events, 1);
        inspector.take_output()
    };
    let expected = text(r#"{"delta":{"content":"Hello \"world\""}}"#);
    assert_eq!(expected.count(), count_text("Hello \"world\""));
    for delta in [
        r#"{"role":"assistant","content":"Hello \"world\"","refusal":null,"tool_calls":null}"#,
        r#"{"reasoning_content":"Hello ","content":"\"world\""}"#,
        r#"{"reasoning":"Hello ","content":"\"world\""}"#,
        r#"{"reasoning":"Hello ","reasoning_content":"Hello ","content":"\"world\""}"#,
        r#"{"content":null,"refusal":"Hello \"world\""}"#,
        r#"{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"Hello ","arguments":"\"world\""}}]}"#,
        r#"{"tool_calls":[{"function":{"name":"Hello "}},{"custom":{"name":"\"wor","input":"ld\""}}]}"#,
        r#"{"function_call":{"name":"Hello ","arguments":"\"world\""}}"#,
        // What is not of the usual types is read as well.
        r#"{"content":[{"type":"text","text":"Hello "},{"type":"text","text":"\"world\""}]}"#,
    ] {
        assert_eq!(
            text(&format!("{{\"index\":0,\"delta\":{delta}}}")).count(),
            expected.count(),
            "{delta}"
        );
    }
    for choice in [
        "{}",
        r#"{"delta":null}"#,
        r#"{"delta":{}}"#,
        r#"{"content_filter_results":{}}"#,
        "5",
        "null",
    ] {
        assert!(text(choice).is_empty(), "{choice}");
    }
    let arguments = text(r#"{"delta":{"tool_calls":[{"function":{"arguments":{"a":1}}}]}}"#);
    assert_eq!(arguments.count(), count_text("{\"a\":1}"));
}

#[test]
fn a_character_that_was_cut_in_two_ends_no_stream() {
    let halves = [r"\ud83d", r"\ude00"].map(|half| {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{half} Hello\"}}}}]}}\n\n")
    });
    let relayed = relay(&[&halves[0], &halves[1], END]);
    assert_eq!(relayed.forward, [&halves[0], &halves[1], END].concat());
    assert_eq!(
        relayed.output.count(),
        count_text("\u{fffd} Hello\u{fffd} Hello")
    );
}

#[test]
fn what_we_emit_reads_back() {
    for event in [Bytes::from_static(KEEP_ALIVE), Bytes::from_static(DONE)] {
        let text = str::from_utf8(&event).unwrap();
        assert_eq!(relay(&[text]).forward, text);
    }
    let event = error_event("broke \"here\"\n", "server_error", Some("upstream_error"));
    assert_eq!(
        event,
        "data: {\"error\":{\"message\":\"broke \\\"here\\\"\\n\",\"type\":\"server_error\",\"param\":null,\"code\":\"upstream_error\"}}\n\n"
    );
    let relayed = relay(&[str::from_utf8(&event).unwrap()]);
    assert_eq!(
        error(&relayed),
        ("broke \"here\"", "server_error", Some("upstream_error"))
    );
    assert!(error_event("x", "y", None).ends_with(b"\"code\":null}}\n\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_stream_does_not_depend_on_its_frames(
        parts in prop::collection::vec(prop::sample::select(vec![
            CONTENT, CONTENT, CONTENT, STOP, USAGE, END, ": c\n\n", "id: 1\n\n", "\n", "data: {\"a\":\n", "data: 1}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"\u{e4}\u{1f600}\"}}]}\n\n", "event: x\n", "data: {\"error\":\"x\"}\n\n", "data:\n\n",
        ]), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        strip_usage: bool,
    ) {
        let options = StreamOptions { strip_usage, ..OPTIONS };
        let stream = parts.concat().into_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let frames: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
        let whole = relay_with(options, &[&stream]);
        let by_frames = relay_with(options, &frames);
        let by_bytes = relay_with(options, &stream.chunks(1).collect::<Vec<_>>());
        prop_assert_eq!(&by_frames, &whole);
        prop_assert_eq!(&by_bytes, &whole);
    }
}

#[test]
fn a_chunk_of_another_server_is_parsed_only_until_nothing_in_it_can_deviate() {
    let data = |delta: &str| {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","created":5,"model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#
        )
    };
    let begin = |id: &str| {
        data(&format!(
            r#"{{"tool_calls":[{{"index":0,"id":"{id}","type":"function","function":{{"name":"name","arguments":""}}}}]}}"#
        ))
    };
    let arguments = |text: &str| {
        data(&format!(
            r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":"{text}"}}}}]}}"#
        ))
    };
    let words = |text: &str| data(&format!(r#"{{"content":"{text}"}}"#));
    let first = data(r#"{"role":"assistant","content":"One"}"#);

    let mut inspector = inspector();
    inspector.normalize(Identity {
        request_id: sluice_domain::id::RequestId::from_uuid(sluice_domain::id::uuid_v7(1, [1; 10])),
        created: sluice_domain::time::UnixMillis(1),
        model: "m".into(),
    });
    let mut knows_after = |chunk: &str, next: &str| {
        let event = Bytes::from(format!("data: {chunk}\n\n"));
        inspector.push(event).unwrap();
        inspector.reader.find(next.as_bytes())
    };
    assert!(!knows_after(&first, &first), "its role would come twice");
    assert!(knows_after(&words("two"), &words("three")));
    assert!(
        !knows_after(&begin("a"), &begin("a")),
        "its id would come twice"
    );
    assert!(knows_after(&arguments("1"), &arguments("2")));
    assert!(
        !knows_after(&begin("b"), &arguments("3")),
        "its index means another call now"
    );
}
