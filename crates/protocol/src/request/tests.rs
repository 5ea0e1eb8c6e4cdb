use std::fmt::Write;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn chat(body: &str) -> Result<Outline<'_>, OutlineError> {
    outline(body.as_bytes(), Endpoint::ChatCompletions)
}

#[test]
fn a_chat_request_is_outlined() {
    let body = r#" {"messages":[{"role":"user","content":"}\" model"}],"model":"gpt-4o","stream":true,
        "stream_options":{"include_usage":true,"x":[1]},"max_tokens":5,"n":2,"top_k":1} "#;
    let outline = chat(body).unwrap();
    assert_eq!(outline.model, "gpt-4o");
    assert_eq!(&body[outline.model_range.clone()], "\"gpt-4o\"");
    assert!(outline.streams);
    let options = outline.stream_options.unwrap();
    assert_eq!(&body[options.range], r#"{"include_usage":true,"x":[1]}"#);
    assert_eq!(&body[options.include_usage_range.unwrap()], "true");
    assert!(options.include_usage && !options.sets_obfuscation);
    assert_eq!(outline.max_output_tokens, Some(5));
    assert_eq!(outline.choices, 2);
    assert_eq!(&body[..outline.insert_at], " {");
}

#[test]
fn what_is_absent_or_null_has_its_default() {
    for body in [
        r#"{"model":"m"}"#,
        r#"{"model":"m","stream":null,"max_tokens":null,"n":null,"max_completion_tokens":null}"#,
    ] {
        let outline = chat(body).unwrap();
        assert!(!outline.streams);
        assert_eq!((outline.max_output_tokens, outline.choices), (None, 1));
        assert_eq!(outline.stream_options, None);
    }
}

#[test]
fn of_two_bounds_the_larger_one_counts_and_a_negative_one_is_no_bound() {
    let bound = |body| chat(body).unwrap().max_output_tokens;
    assert_eq!(
        bound(r#"{"model":"m","max_tokens":7,"max_completion_tokens":9}"#),
        Some(9)
    );
    assert_eq!(
        bound(r#"{"model":"m","max_tokens":9,"max_completion_tokens":7}"#),
        Some(9)
    );
    assert_eq!(
        bound(r#"{"model":"m","max_completion_tokens":7.0}"#),
        Some(7)
    );
    assert_eq!(bound(r#"{"model":"m","max_tokens":0}"#), Some(0));
    assert_eq!(bound(r#"{"model":"m","max_tokens":-1}"#), None);
    assert_eq!(
        bound(r#"{"model":"m","max_tokens":-1,"max_completion_tokens":9}"#),
        None
    );
    assert_eq!(
        bound(r#"{"model":"m","max_tokens":9,"max_completion_tokens":-1}"#),
        None
    );
}

#[test]
fn a_completions_request_generates_one_answer_per_prompt() {
    let choices = |body: &str| {
        outline(body.as_bytes(), Endpoint::Completions)
            .unwrap()
            .choices
    };
    assert_eq!(choices(r#"{"model":"m","prompt":"a"}"#), 1);
    assert_eq!(choices(r#"{"model":"m","prompt":[]}"#), 1);
    assert_eq!(choices(r#"{"model":"m","prompt":["a","b","c"],"n":2}"#), 6);
    assert_eq!(choices(r#"{"model":"m","prompt":[1,2,3],"n":2}"#), 2);
    assert_eq!(
        choices(r#"{"model":"m","prompt":[[1,2],[3]],"n":2,"best_of":5}"#),
        10
    );
}

#[test]
fn embeddings_ignore_what_only_chats_have() {
    let body = r#"{"model":"m","input":"x","encoding_format":"base64","stream":"yes","n":0}"#;
    let outline = outline(body.as_bytes(), Endpoint::Embeddings).unwrap();
    assert!(outline.wants_base64 && !outline.streams);
    assert!(
        !super::outline(
            br#"{"model":"m","encoding_format":"float"}"#,
            Endpoint::Embeddings
        )
        .unwrap()
        .wants_base64
    );
    assert!(
        !chat(r#"{"model":"m","encoding_format":"base64"}"#)
            .unwrap()
            .wants_base64
    );
}

#[test]
fn a_message_says_how_long_its_answer_may_be() {
    let message = |body: &'static str| outline(body.as_bytes(), Endpoint::Messages);
    let outline = message(
        r#"{"model":"m","max_tokens":1024,"stream":true,"n":"x","stream_options":7,"messages":[]}"#,
    );
    let outline = outline.unwrap();
    assert!(outline.streams && outline.stream_options.is_none());
    assert_eq!(
        (outline.max_output_tokens, outline.choices),
        (Some(1_024), 1)
    );
    for missing in [r#"{"model":"m"}"#, r#"{"model":"m","max_tokens":null}"#] {
        assert_eq!(
            message(missing).unwrap_err(),
            OutlineError::Missing("max_tokens")
        );
    }
    assert!(super::outline(br#"{"model":"m"}"#, Endpoint::CountTokens).is_ok());
}

#[test]
fn a_message_has_room_beyond_what_it_may_think() {
    let least = |thinking: &str| {
        let body = format!(r#"{{"model":"m","max_tokens":9000,"thinking":{thinking}}}"#);
        outline(body.as_bytes(), Endpoint::Messages)
            .unwrap()
            .least_output_tokens
    };
    assert_eq!(least(r#"{"type":"enabled","budget_tokens":1024}"#), 1_025);
    for none in [
        r#"{"type":"adaptive"}"#,
        r#"{"type":"enabled","budget_tokens":-5.5}"#,
        "null",
        "7",
    ] {
        assert_eq!(least(none), 0, "{none}");
    }
    let twice = br#"{"model":"m","max_tokens":1,"thinking":{"budget_tokens":1,"budget_tokens":2}}"#;
    assert_eq!(
        outline(twice, Endpoint::Messages).unwrap_err(),
        OutlineError::Duplicate("thinking.budget_tokens")
    );
}

#[test]
fn a_key_written_with_escapes_is_the_same_key() {
    assert_eq!(chat(r#"{"mod\u0065l":"m\u002d1"}"#).unwrap().model, "m-1");
    let error = chat(r#"{"model":"a","mod\u0065l":"b"}"#).unwrap_err();
    assert_eq!(error, OutlineError::Duplicate("model"));
}

#[test]
fn a_key_that_another_reader_takes_for_ours_is_refused() {
    for (key, known) in [
        ("Model", "model"),
        ("MAX_TOKENS", "max_tokens"),
        ("\u{17f}tream", "stream"),
        ("max_to\u{212a}ens", "max_tokens"),
    ] {
        let error = chat(&format!(r#"{{"model":"m","{key}":1}}"#)).unwrap_err();
        assert_eq!(error, OutlineError::Case(known));
        assert_eq!(error.code(), Some("unknown_parameter"));
    }
    assert!(chat(r#"{"model":"m","Mödel":1,"modell":2,"Messages":[]}"#).is_ok());
}

#[test]
fn every_refusal_names_its_parameter_and_code() {
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(201));
    let cases: [(&str, Option<&str>, Option<&str>, &str); 17] = [
        (
            "",
            None,
            None,
            "We could not parse the JSON body of your request: it is not an object",
        ),
        ("[]", None, None, "We could not parse"),
        (r#"{"model":"m",}"#, None, None, "We could not parse"),
        (
            "{}",
            Some("model"),
            Some("missing_required_parameter"),
            "you must provide a model parameter",
        ),
        (
            r#"{"model":""}"#,
            Some("model"),
            Some("missing_required_parameter"),
            "you must provide",
        ),
        (
            r#"{"model":null}"#,
            Some("model"),
            Some("missing_required_parameter"),
            "you must provide",
        ),
        (
            r#"{"model":5}"#,
            Some("model"),
            Some("invalid_type"),
            "Invalid type for 'model': expected a string, but got a number instead.",
        ),
        (
            &long,
            Some("model"),
            Some("invalid_value"),
            "Invalid value for 'model'",
        ),
        (
            r#"{"model":"\ud800"}"#,
            Some("model"),
            Some("invalid_value"),
            "Invalid value for 'model'",
        ),
        (
            r#"{"model":"m","stream":"true"}"#,
            Some("stream"),
            Some("invalid_type"),
            "Invalid type for 'stream': expected a boolean, but got a string",
        ),
        (
            r#"{"model":"m","max_tokens":"5"}"#,
            Some("max_tokens"),
            Some("invalid_type"),
            "Invalid type for 'max_tokens': expected an integer",
        ),
        (
            r#"{"model":"m","max_tokens":1.5}"#,
            Some("max_tokens"),
            Some("invalid_type"),
            "Invalid type for 'max_tokens': expected an integer, but got a decimal number",
        ),
        (
            r#"{"model":"m","max_completion_tokens":99999999999999999999}"#,
            Some("max_completion_tokens"),
            Some("invalid_value"),
            "Invalid value for 'max_completion_tokens'",
        ),
        (
            r#"{"model":"m","n":0}"#,
            Some("n"),
            Some("invalid_value"),
            "Invalid value for 'n': it must be at least 1.",
        ),
        (
            r#"{"model":"m","stream_options":[]}"#,
            Some("stream_options"),
            Some("invalid_type"),
            "Invalid type for 'stream_options': expected an object, but got an array",
        ),
        (
            r#"{"model":"m","stream_options":{"include_usage":1}}"#,
            Some("stream_options.include_usage"),
            Some("invalid_type"),
            "Invalid type for 'stream_options.include_usage'",
        ),
        (
            r#"{"model":"m","stream":true,"stream":false}"#,
            Some("stream"),
            Some("invalid_value"),
            "Invalid value: the parameter 'stream' is given more than once.",
        ),
    ];
    for (body, param, code, message) in cases {
        let error = chat(body).unwrap_err();
        assert_eq!((error.param(), error.code()), (param, code), "{body}");
        assert!(error.to_string().starts_with(message), "{body}: {error}");
    }
}

#[test]
fn a_stream_options_object_is_checked_inside() {
    let error = chat(r#"{"model":"m","stream_options":{"include_usage":true,}}"#).unwrap_err();
    assert!(
        matches!(error, OutlineError::Malformed { at: 52, .. }),
        "{error:?}"
    );
    let error =
        chat(r#"{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}"#);
    assert_eq!(
        error.unwrap_err(),
        OutlineError::Duplicate("stream_options.include_usage")
    );
}

#[track_caller]
fn rewritten(body: &str, changes: Changes<'_>) -> String {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let outline = outline(&body, Endpoint::ChatCompletions).unwrap();
    String::from_utf8(rewrite(&body, &outline, &changes).to_vec()).unwrap()
}

#[test]
fn a_body_without_changes_is_not_copied() {
    let body = Bytes::from_static(
        br#"{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":true}}"#,
    );
    let outline = outline(&body, Endpoint::ChatCompletions).unwrap();
    let changes = Changes {
        model: Some("m"),
        ask_for_usage: true,
        no_obfuscation: true,
        ..Changes::default()
    };
    assert_eq!(rewrite(&body, &outline, &changes).as_ptr(), body.as_ptr());
}

#[test]
fn the_model_is_replaced_and_nothing_else() {
    let changes = Changes {
        model: Some("up \"1\"\\ü\n"),
        ..Changes::default()
    };
    assert_eq!(
        rewritten(r#"{ "x" : 1.50, "model" : "m" ,"y":"\u00e4"} "#, changes),
        r#"{ "x" : 1.50, "model" : "up \"1\"\\ü\n" ,"y":"\u00e4"} "#
    );
}

#[test]
fn a_limit_of_the_output_replaces_every_one_there_is_or_is_added() {
    let limit = |member| Changes {
        max_output: Some(MaxOutput { tokens: 7, member }),
        ..Changes::default()
    };
    for (member, body, expected) in [
        (
            MaxOutputMember::MaxTokens,
            r#"{"model":"m"}"#,
            r#"{"max_tokens":7,"model":"m"}"#,
        ),
        (
            MaxOutputMember::MaxCompletionTokens,
            r#"{"model":"m"}"#,
            r#"{"max_completion_tokens":7,"model":"m"}"#,
        ),
        (
            MaxOutputMember::MaxCompletionTokens,
            r#"{"max_tokens": 500 ,"model":"m"}"#,
            r#"{"max_tokens": 7 ,"model":"m"}"#,
        ),
        (
            MaxOutputMember::MaxTokens,
            r#"{"model":"m","max_completion_tokens":null,"max_tokens":9}"#,
            r#"{"model":"m","max_completion_tokens":7,"max_tokens":7}"#,
        ),
    ] {
        assert_eq!(rewritten(body, limit(member)), expected);
    }
}

#[test]
fn stream_options_are_taken_out_with_their_comma_unless_the_client_chose_more() {
    let without = Changes {
        no_stream_options: true,
        max_output: Some(MaxOutput {
            tokens: 7,
            member: MaxOutputMember::MaxTokens,
        }),
        ..Changes::default()
    };
    for (body, expected) in [
        (
            r#"{ "stream_options" : {"include_usage":true} , "model":"m"}"#,
            r#"{"max_tokens":7, "model":"m"}"#,
        ),
        (
            r#"{"model":"m" , "stream_options":null,"stream":true}"#,
            r#"{"max_tokens":7,"model":"m","stream":true}"#,
        ),
        (
            r#"{"model":"m","stream_options":{} }"#,
            r#"{"max_tokens":7,"model":"m" }"#,
        ),
        (
            r#"{"model":"m","stream_options":{"x":1}}"#,
            r#"{"max_tokens":7,"model":"m","stream_options":{"x":1}}"#,
        ),
        (r#"{"model":"m"}"#, r#"{"max_tokens":7,"model":"m"}"#),
    ] {
        assert_eq!(rewritten(body, without), expected);
    }
}

#[test]
fn usage_is_asked_for_in_each_form_of_stream_options() {
    let both = Changes {
        ask_for_usage: true,
        no_obfuscation: true,
        ..Changes::default()
    };
    let usage = Changes {
        no_obfuscation: false,
        ..both
    };
    for (changes, body, expected) in [
        (
            both,
            r#"{"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true,"include_obfuscation":false},"model":"m","stream":true}"#,
        ),
        (
            usage,
            r#"{"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"model":"m","stream":true}"#,
        ),
        (
            usage,
            r#"{"stream_options":null,"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"model":"m","stream":true}"#,
        ),
        (
            usage,
            r#"{"stream_options":{},"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"model":"m","stream":true}"#,
        ),
        (
            usage,
            r#"{"stream_options":{"include_usage": false, "a":1},"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage": true, "a":1},"model":"m","stream":true}"#,
        ),
        (
            both,
            r#"{"stream_options":{"include_usage":null},"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_obfuscation":false,"include_usage":true},"model":"m","stream":true}"#,
        ),
        (
            both,
            r#"{"stream_options":{"include_obfuscation":true},"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true,"include_obfuscation":true},"model":"m","stream":true}"#,
        ),
        (
            both,
            r#"{"stream_options":{"include_usage":true},"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_obfuscation":false,"include_usage":true},"model":"m","stream":true}"#,
        ),
        (
            both,
            r#"{"model":"m","stream":false}"#,
            r#"{"model":"m","stream":false}"#,
        ),
    ] {
        assert_eq!(rewritten(body, changes), expected, "{body}");
    }
}

/// Values as clients send them, and as they should not.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        (-10..300_i64).prop_map(Json::from),
        (-1000.0..1000.0_f64).prop_map(Json::from),
        "[\"\\\\{}\\[\\],:a\u{e4}\u{1f600}\n]{0,80}".prop_map(Json::from),
        Just(Json::from("base64")),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::vec((any_key(), inner), 0..6)
                .prop_map(|m| Json::Object(m.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "model",
            "stream",
            "stream_options",
            "max_tokens",
            "max_completion_tokens",
            "n",
            "best_of",
            "prompt",
            "encoding_format",
            "include_usage",
            "include_obfuscation",
            "thinking",
            "budget_tokens",
            "messages",
            "temperature",
        ])
        .prop_map(str::to_owned),
        "[a-z\"\\\\\u{e4}\n ]{0,70}",
    ]
}

/// A body: mostly sound, with keys that may repeat, written with white space and escapes at will.
fn any_body() -> impl Strategy<Value = String> {
    let member = (any_key(), any_json(), any::<u8>());
    let model = ("[a-zA-Z0-9/:.\u{e4}\"-]{1,20}", 0..4_usize);
    (prop::collection::vec(member, 0..8), model).prop_map(|(members, (model, at))| {
        let mut parts: Vec<String> = members
            .into_iter()
            .map(|(key, value, style)| {
                let value = match style % 3 {
                    0 => serde_json::to_string_pretty(&value).unwrap(),
                    _ => value.to_string(),
                };
                let key = match style % 5 {
                    0 => escaped(&key),
                    _ => quote(&key),
                };
                format!(
                    "{key}{}:{value}",
                    [" ", "", "\r\n\t"][usize::from(style % 3)]
                )
            })
            .collect();
        parts.insert(at.min(parts.len()), format!("\"model\":{}", quote(&model)));
        format!(" {{{}}}\n", parts.join(" ,"))
    })
}

fn escaped(key: &str) -> String {
    let mut text = String::from("\"");
    for unit in key.encode_utf16() {
        text.push_str("\\u");
        write!(text, "{unit:04x}").unwrap();
    }
    text + "\""
}

const ENDPOINTS: [Endpoint; 5] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Messages,
    Endpoint::CountTokens,
];

/// What `serde_json` makes of the same body.
fn check_against_serde(body: &[u8], endpoint: Endpoint, read: &Result<Outline<'_>, OutlineError>) {
    let Ok(json) = serde_json::from_slice::<Json>(body) else {
        return;
    };
    let outline = match read {
        Ok(outline) => outline,
        Err(OutlineError::Malformed { reason, .. }) => {
            assert!(
                !json.is_object(),
                "{reason}: {}",
                String::from_utf8_lossy(body)
            );
            return;
        }
        // Judged by the tests above.
        Err(_) => return,
    };
    assert_eq!(json["model"], json!(outline.model));
    let range = outline.model_range.clone();
    assert_eq!(
        serde_json::from_slice::<String>(&body[range]).unwrap(),
        outline.model
    );
    if endpoint == Endpoint::Messages {
        assert_eq!(json["stream"].as_bool().unwrap_or(false), outline.streams);
        #[expect(
            clippy::cast_precision_loss,
            reason = "the generated numbers are compared loosely"
        )]
        let bound = outline.max_output_tokens.map(|bound| bound as f64);
        assert_eq!(
            bound,
            json["max_tokens"].as_f64().filter(|bound| *bound >= 0.0)
        );
        let budget = json["thinking"]["budget_tokens"].as_i64();
        let least = budget.map_or(0, |budget| budget.max(0).saturating_add(1));
        if !json["thinking"]["budget_tokens"].is_f64() {
            assert_eq!(outline.least_output_tokens, least);
        }
    } else if endpoint.can_stream() {
        assert_eq!(json["stream"].as_bool().unwrap_or(false), outline.streams);
        let options = outline.stream_options.as_ref();
        assert_eq!(json.get("stream_options").is_some(), options.is_some());
        let asked = json["stream_options"]["include_usage"]
            .as_bool()
            .unwrap_or(false);
        assert_eq!(asked, options.is_some_and(|options| options.include_usage));
        if let Some(options) = options {
            let range = options.range.clone();
            let inner: Json = serde_json::from_slice(&body[range]).unwrap();
            assert_eq!(inner, json["stream_options"]);
            assert_eq!(
                inner.get("include_obfuscation").is_some(),
                options.sets_obfuscation
            );
        }
        let whole = |key: &str| json[key].as_f64();
        #[expect(
            clippy::cast_precision_loss,
            reason = "the generated numbers are compared loosely"
        )]
        let bound = outline.max_output_tokens.map(|bound| bound as f64);
        let bounds = [whole("max_tokens"), whole("max_completion_tokens")];
        if bounds.iter().flatten().any(|bound| *bound < 0.0) {
            assert_eq!(bound, None);
        } else {
            assert_eq!(bound, bounds.into_iter().flatten().reduce(f64::max));
        }
        if endpoint == Endpoint::ChatCompletions {
            assert_eq!(json["n"].as_i64().unwrap_or(1), outline.choices);
        }
    } else if endpoint == Endpoint::Embeddings {
        assert_eq!(json["encoding_format"] == "base64", outline.wants_base64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_body_is_read_as_serde_json_reads_it(body in any_body(), endpoint in prop::sample::select(ENDPOINTS.as_slice())) {
        prop_assert!(serde_json::from_str::<Json>(&body).is_ok());
        let read = outline(body.as_bytes(), endpoint);
        check_against_serde(body.as_bytes(), endpoint, &read);
    }

    #[test]
    fn a_damaged_body_is_never_read_in_another_way(
        body in any_body(),
        endpoint in prop::sample::select(ENDPOINTS.as_slice()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, prop_oneof![any::<u8>(), prop::sample::select(b"\"\\{}[],: 0n\n".as_slice())]), 1..4),
    ) {
        let mut body = body.into_bytes();
        for (index, kind, byte) in damage {
            if body.is_empty() {
                break;
            }
            let at = index.index(body.len());
            match kind {
                0 => body.truncate(at),
                1 => body[at] = byte,
                2 => { body.remove(at); }
                _ => body.insert(at, byte),
            }
        }
        let read = outline(&body, endpoint);
        check_against_serde(&body, endpoint, &read);
    }

    #[test]
    fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        for endpoint in ENDPOINTS {
            check_against_serde(&body, endpoint, &outline(&body, endpoint));
        }
    }

    #[test]
    fn a_rewritten_body_differs_in_the_changed_values_only(body in any_body(), model in "[a-z\"\\\\]{1,9}", usage: bool, clear: bool, without: bool, limit in prop::option::of((0_i64..9_999, any::<bool>()))) {
        let body = Bytes::from(body);
        if let Ok(read) = outline(&body, Endpoint::ChatCompletions) {
            let max_output = limit.map(|(tokens, new)| MaxOutput {
                tokens,
                member: if new { MaxOutputMember::MaxCompletionTokens } else { MaxOutputMember::MaxTokens },
            });
            let changes = Changes { model: Some(&model), ask_for_usage: usage, no_obfuscation: clear, no_stream_options: without, max_output };
            let after = rewrite(&body, &read, &changes);
            let mut expected: Json = serde_json::from_slice(&body).unwrap();
            expected["model"] = json!(model);
            let has_others = read.stream_options.as_ref().is_some_and(|options| options.has_others);
            if without {
                if !has_others {
                    expected.as_object_mut().unwrap().remove("stream_options");
                }
            } else if read.streams {
                if (usage || clear) && expected["stream_options"].is_null() {
 expected["stream_options"] = json!({});
 }
                if usage {
                    expected["stream_options"]["include_usage"] = json!(true);
                }
                if clear && expected["stream_options"].get("include_obfuscation").is_none() {
                    expected["stream_options"]["include_obfuscation"] = json!(false);
                }
            }
            if let Some((tokens, new)) = limit {
                let members = ["max_tokens", "max_completion_tokens"];
                let there: Vec<&str> = members.into_iter().filter(|m| expected.get(m).is_some()).collect();
                let set = if there.is_empty() { vec![members[usize::from(new)]] } else { there };
                for member in set {
                    expected[member] = json!(tokens);
                }
            }
            prop_assert_eq!(serde_json::from_slice::<Json>(&after).unwrap(), expected);
            let again = outline(&after, Endpoint::ChatCompletions).unwrap();
            prop_assert_eq!(again.model, model.as_str());
        }
    }
}
