use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use sluice_domain::id::RequestId;
use sluice_domain::id::uuid_v7;

use super::*;
use crate::stream::{DONE, StreamFinish, StreamInspector, StreamOptions};

fn identity() -> Identity {
    Identity {
        request_id: RequestId::from_uuid(uuid_v7(1, [7; 10])),
        created: UnixMillis(1_700_000_000_000),
        model: Arc::from("asked"),
    }
}

fn inspector(strip_usage: bool) -> StreamInspector {
    let options = StreamOptions {
        strip_usage,
        max_event_bytes: 1 << 20,
        choices: 1,
    };
    let mut inspector = StreamInspector::new(Endpoint::ChatCompletions, options);
    inspector.normalize(identity());
    inspector
}

/// What a client gets of a stream that comes in frames of so many bytes.
fn relayed(stream: &str, frame: usize, wants_usage: bool) -> String {
    let mut inspector = inspector(!wants_usage);
    let mut out = Vec::new();
    for frame in stream.as_bytes().chunks(frame.max(1)) {
        let step = inspector.push(Bytes::copy_from_slice(frame)).unwrap();
        out.extend_from_slice(&step.forward);
    }
    if inspector.finish() == StreamFinish::CompleteWithoutDone {
        out.extend_from_slice(&inspector.take_tail());
        out.extend_from_slice(DONE);
    }
    String::from_utf8(out).unwrap()
}

fn chunks(stream: &str) -> Vec<Value> {
    stream
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

fn stream(chunks: &[Value]) -> String {
    let events: String = chunks
        .iter()
        .map(|chunk| event(&chunk.to_string()))
        .collect();
    events + "data: [DONE]\n\n"
}

/// A chunk as OpenAI sends it, with one choice.
fn chunk(delta: &Value, finish: &Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

/// The helper of the SDK for Python.
fn python(chunks: &[Value]) -> Result<Value, String> {
    let mut choices: Vec<Value> = Vec::new();
    let mut usage = Value::Null;
    for chunk in chunks {
        for key in ["id", "model", "object"] {
            chunk[key].as_str().ok_or(format!("no {key}"))?;
        }
        chunk["created"].as_i64().ok_or("no created")?;
        usage = chunk.get("usage").cloned().unwrap_or_default();
        for choice in chunk["choices"].as_array().ok_or("no choices")? {
            let index = choice["index"].as_u64().ok_or("no index")?;
            let index = usize::try_from(index).unwrap();
            let delta = choice["delta"].as_object().ok_or("no delta")?;
            match choices.get_mut(index) {
                Some(known) => {
                    accumulate(known["message"].as_object_mut().unwrap(), delta)?;
                    if !choice["finish_reason"].is_null() {
                        known["finish_reason"] = choice["finish_reason"].clone();
                    }
                }
                None => choices.insert(
                    index,
                    json!({"message": delta, "finish_reason": choice["finish_reason"]}),
                ),
            }
        }
    }
    Ok(json!({"choices": choices, "usage": usage}))
}

fn accumulate(all: &mut Map<String, Value>, delta: &Map<String, Value>) -> Result<(), String> {
    for (key, new) in delta {
        let Some(known) = all.get_mut(key).filter(|known| !known.is_null()) else {
            all.insert(key.clone(), new.clone());
            continue;
        };
        if key == "index" || key == "type" {
            *known = new.clone();
            continue;
        }
        match (known, new) {
            (Value::String(known), Value::String(new)) => known.push_str(new),
            (Value::Object(known), Value::Object(new)) => accumulate(known, new)?,
            (Value::Array(known), Value::Array(new)) if known.is_empty() => {
                known.extend(new.clone());
            }
            (Value::Array(known), Value::Array(new)) => {
                for item in new {
                    let index = item["index"].as_u64().ok_or("no index of a call")?;
                    match known.get_mut(usize::try_from(index).unwrap()) {
                        Some(known) => {
                            accumulate(known.as_object_mut().unwrap(), item.as_object().unwrap())?;
                        }
                        None => known.push(item.clone()),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The helper of the SDK for Node.
fn node(chunks: &[Value]) -> Result<Value, String> {
    let mut choices: Vec<Value> = Vec::new();
    let mut usage = Value::Null;
    for chunk in chunks {
        if let Some(new) = chunk.get("usage") {
            usage = new.clone();
        }
        for choice in chunk["choices"]
            .as_array()
            .ok_or("choices is not iterable")?
        {
            let index = usize::try_from(choice["index"].as_u64().ok_or("no index")?).unwrap();
            while choices.len() <= index {
                choices.push(json!({"finish_reason": null, "message": {}}));
            }
            let known = &mut choices[index];
            if let Some(reason) = choice["finish_reason"].as_str().filter(|r| !r.is_empty()) {
                known["finish_reason"] = reason.into();
            }
            let Some(delta) = choice["delta"].as_object() else {
                continue;
            };
            let message = known["message"].as_object_mut().unwrap();
            for (key, new) in delta {
                match (key.as_str(), new) {
                    ("role", Value::String(role)) => {
                        message.insert("role".into(), role.clone().into());
                    }
                    ("content", Value::String(text)) => {
                        let before = message.get("content").and_then(Value::as_str);
                        let all = before.unwrap_or_default().to_owned() + text;
                        message.insert("content".into(), all.into());
                    }
                    ("tool_calls", Value::Array(items)) => {
                        let calls = message.entry("tool_calls").or_insert_with(|| json!([]));
                        add_calls(calls.as_array_mut().unwrap(), items)?;
                    }
                    _ => {}
                }
            }
        }
    }
    for choice in &choices {
        if choice["finish_reason"].is_null() {
            return Err("missing finish_reason".into());
        }
        if choice["message"]["role"].is_null() {
            return Err("missing role".into());
        }
        for call in choice["message"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            for missing in [&call["id"], &call["type"], &call["function"]["name"]] {
                if missing.is_null() {
                    return Err(format!("something is missing in {call}"));
                }
            }
        }
    }
    Ok(json!({"choices": choices, "usage": usage}))
}

fn add_calls(calls: &mut Vec<Value>, items: &[Value]) -> Result<(), String> {
    for item in items {
        let index = item["index"].as_u64().ok_or("no index of a call")?;
        let index = usize::try_from(index).unwrap();
        while calls.len() <= index {
            calls.push(json!({}));
        }
        let call = &mut calls[index];
        for key in ["id", "type"] {
            if let Some(text) = item[key].as_str().filter(|text| !text.is_empty()) {
                call[key] = text.into();
            }
        }
        let Some(function) = item["function"].as_object() else {
            continue;
        };
        if call["function"].is_null() {
            call["function"] = json!({"name": "", "arguments": ""});
        }
        if let Some(name) = function
            .get("name")
            .and_then(Value::as_str)
            .filter(|n| !n.is_empty())
        {
            call["function"]["name"] = name.into();
        }
        if let Some(text) = function.get("arguments").and_then(Value::as_str) {
            let all = call["function"]["arguments"].as_str().unwrap().to_owned() + text;
            call["function"]["arguments"] = all.into();
        }
    }
    Ok(())
}

/// What a model says in one choice.
#[derive(Debug, Clone)]
struct Said {
    reasoning: Vec<String>,
    content: Vec<String>,
    calls: Vec<SaidCall>,
}

#[derive(Debug, Clone)]
struct SaidCall {
    name: &'static str,
    /// The pieces of a JSON object.
    arguments: Vec<String>,
}

impl SaidCall {
    fn text(&self) -> String {
        self.arguments.concat()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Right,
    Never,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    Right,
    Never,
    Always,
    AnotherEach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indexes {
    Right,
    Zero,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UsageHabit {
    Right,
    Always,
    BeforeTheFinish,
    Never,
}

/// How a server writes it.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each habit is one of its own"
)]
struct Habits {
    role: When,
    call_ids: Ids,
    call_names: When,
    call_types: When,
    call_indexes: Indexes,
    whole_calls: bool,
    calls_in_one_chunk: bool,
    arguments_as_object: bool,
    finish: When,
    empty_reason: bool,
    stop_with_calls: bool,
    usage: UsageHabit,
    envelope: When,
    null_delta: bool,
    null_choices: bool,
    reasoning: &'static str,
    has_done: bool,
}

const RIGHT: Habits = Habits {
    role: When::Right,
    call_ids: Ids::Right,
    call_names: When::Right,
    call_types: When::Right,
    call_indexes: Indexes::Right,
    whole_calls: false,
    calls_in_one_chunk: false,
    arguments_as_object: false,
    finish: When::Right,
    empty_reason: false,
    stop_with_calls: false,
    usage: UsageHabit::Right,
    envelope: When::Right,
    null_delta: false,
    null_choices: false,
    reasoning: "",
    has_done: true,
};

const USAGE: &str = r#"{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}"#;

struct Writer<'a> {
    habits: &'a Habits,
    chunks: Vec<Value>,
}

impl Writer<'_> {
    fn envelope(&self) -> Map<String, Value> {
        let number = self.chunks.len();
        let value = match self.habits.envelope {
            When::Right => {
                json!({"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m"})
            }
            When::Never if number.is_multiple_of(2) => {
                json!({"id": "", "model": null, "created": 0})
            }
            When::Never => json!({}),
            When::Always => json!({"id": format!("c{number}"), "object": "chat.completion",
                "created": 5.5 + f64::from(u8::try_from(number % 9).unwrap()), "model": format!("m{number}")}),
        };
        value.as_object().unwrap().clone()
    }

    fn push(&mut self, choices: &Value, usage: &Value) {
        let mut chunk = self.envelope();
        chunk.insert("choices".into(), choices.clone());
        if !usage.is_null() {
            chunk.insert("usage".into(), usage.clone());
        }
        self.chunks.push(chunk.into());
    }

    fn delta(&mut self, index: usize, mut delta: Map<String, Value>, finish: &Value) {
        let is_first = !self.chunks.iter().any(|chunk| {
            let choices = chunk["choices"].as_array();
            choices
                .into_iter()
                .flatten()
                .any(|choice| choice["index"] == index)
        });
        if self.habits.role == When::Always || (self.habits.role == When::Right && is_first) {
            delta.insert("role".into(), "assistant".into());
        }
        let is_null = delta.is_empty() && self.habits.null_delta;
        let delta = if is_null { Value::Null } else { delta.into() };
        let finish = if finish.is_null() && self.habits.empty_reason {
            json!("")
        } else {
            finish.clone()
        };
        let usage = if self.habits.usage == UsageHabit::Always {
            serde_json::from_str(USAGE).unwrap()
        } else {
            Value::Null
        };
        self.push(
            &json!([{"index": index, "delta": delta, "finish_reason": finish}]),
            &usage,
        );
    }

    fn call(&self, number: usize, call: &SaidCall, piece: usize, last: usize) -> Value {
        let habits = self.habits;
        let mut item = Map::new();
        match habits.call_indexes {
            Indexes::Right => drop(item.insert("index".into(), number.into())),
            Indexes::Zero => drop(item.insert("index".into(), 0.into())),
            Indexes::None => {}
        }
        let is_first = piece == 0;
        match habits.call_ids {
            Ids::Right if is_first => drop(item.insert("id".into(), format!("id{number}").into())),
            Ids::Always => drop(item.insert("id".into(), format!("id{number}").into())),
            Ids::AnotherEach if is_first => {
                drop(item.insert("id".into(), format!("id{number}").into()));
            }
            Ids::AnotherEach => {
                drop(item.insert("id".into(), format!("id{number}-{piece}").into()));
            }
            Ids::Right | Ids::Never => {}
        }
        if habits.call_types == When::Always || (habits.call_types == When::Right && is_first) {
            item.insert("type".into(), "function".into());
        }
        let mut function = Map::new();
        // Another id and the name in each piece: nobody could tell where a call begins.
        let names = habits.call_ids != Ids::AnotherEach && habits.call_names == When::Always;
        if is_first || names {
            function.insert("name".into(), call.name.into());
        }
        let text: String = call.arguments[piece..=last].concat();
        let arguments =
            if habits.arguments_as_object && piece == 0 && last + 1 == call.arguments.len() {
                serde_json::from_str(&text).unwrap()
            } else {
                json!(text)
            };
        function.insert("arguments".into(), arguments);
        item.insert("function".into(), function.into());
        item.into()
    }

    fn calls(&mut self, index: usize, calls: &[SaidCall]) {
        let habits = self.habits;
        let is_whole =
            habits.whole_calls || habits.calls_in_one_chunk || habits.arguments_as_object;
        let mut all = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            if is_whole {
                all.push(self.call(number, call, 0, call.arguments.len() - 1));
                continue;
            }
            for piece in 0..call.arguments.len() {
                all.push(self.call(number, call, piece, piece));
            }
        }
        let size = if habits.calls_in_one_chunk {
            all.len().max(1)
        } else {
            1
        };
        for items in all.chunks(size) {
            let delta = json!({"tool_calls": items});
            self.delta(index, delta.as_object().unwrap().clone(), &Value::Null);
        }
    }
}

fn written(answer: &[Said], habits: &Habits) -> String {
    let mut writer = Writer {
        habits,
        chunks: Vec::new(),
    };
    let usage: Value = serde_json::from_str(USAGE).unwrap();
    let text = |key: &str, text: &str| json!({key: text}).as_object().unwrap().clone();
    for (index, said) in answer.iter().enumerate() {
        if habits.role == When::Right {
            writer.delta(index, text("content", ""), &Value::Null);
        }
        for piece in &said.reasoning {
            let mut delta = Map::new();
            for name in ["reasoning", "reasoning_content"] {
                if habits.reasoning.is_empty() || habits.reasoning == name {
                    delta.extend(text(name, piece));
                }
            }
            writer.delta(index, delta, &Value::Null);
        }
        for piece in &said.content {
            writer.delta(index, text("content", piece), &Value::Null);
        }
        writer.calls(index, &said.calls);
    }
    if habits.null_choices {
        writer.push(&Value::Null, &Value::Null);
    }
    if habits.usage == UsageHabit::BeforeTheFinish {
        writer.push(&json!([]), &usage);
    }
    let times = match habits.finish {
        When::Never => 0,
        When::Right => 1,
        When::Always => 2,
    };
    for (index, said) in answer.iter().enumerate() {
        let reason = if said.calls.is_empty() || habits.stop_with_calls {
            "stop"
        } else {
            "tool_calls"
        };
        for _ in 0..times {
            writer.delta(index, Map::new(), &json!(reason));
        }
    }
    if habits.usage == UsageHabit::Right {
        writer.push(&json!([]), &usage);
    }
    let text = stream(&writer.chunks);
    if habits.has_done || times == 0 {
        text
    } else {
        text.replace("data: [DONE]\n\n", "")
    }
}

#[track_caller]
fn check(answer: &[Said], habits: &Habits, seen: &Value, name: &str) {
    let choices = seen["choices"].as_array().unwrap();
    assert_eq!(choices.len(), answer.len(), "{name}");
    for (choice, said) in choices.iter().zip(answer) {
        let message = &choice["message"];
        assert_eq!(message["role"], "assistant", "{name}");
        let content = message["content"].as_str().unwrap_or_default();
        assert_eq!(content, said.content.concat(), "{name}");
        if name == "python" && !said.reasoning.is_empty() {
            for key in ["reasoning", "reasoning_content"] {
                assert_eq!(message[key], said.reasoning.concat(), "{name} {key}");
            }
        }
        let calls = message["tool_calls"]
            .as_array()
            .map_or(&[][..], |calls| calls);
        assert_eq!(calls.len(), said.calls.len(), "{name}: {message}");
        for (number, (call, said)) in calls.iter().zip(&said.calls).enumerate() {
            assert_eq!(call["function"]["name"], said.name, "{name}");
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let object = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(object(arguments), object(&said.text()), "{name}");
            assert_eq!(call["type"], "function", "{name}");
            let id = call["id"].as_str().unwrap();
            if habits.call_ids == Ids::Never {
                assert!(id.starts_with("call_") && id.len() <= 40, "{name}: {id}");
            } else {
                assert_eq!(id, format!("id{number}"), "{name}");
            }
        }
        let reason = if said.calls.is_empty() {
            "stop"
        } else {
            "tool_calls"
        };
        assert_eq!(choice["finish_reason"], reason, "{name}");
    }
    if habits.usage != UsageHabit::Never {
        assert_eq!(seen["usage"]["total_tokens"], 8, "{name}");
    }
}

fn text() -> impl Strategy<Value = String> {
    select(vec![
        "a",
        " b",
        "ä",
        "\"",
        "\\",
        "\n",
        "assistant",
        "{",
        "stop",
        "€ and more",
    ])
    .prop_map(str::to_owned)
}

fn said_call() -> impl Strategy<Value = SaidCall> {
    let name = select(vec!["f", "look_up", "name"]);
    let value = prop::collection::vec(text(), 0..3);
    (
        name,
        value,
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    )
        .prop_map(|(name, value, cuts)| {
            let text = json!({"key": value.concat(), "list": [1, {}]}).to_string();
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces = cuts
                .windows(2)
                .map(|cut| chars[cut[0]..cut[1]].iter().collect());
            SaidCall {
                name,
                arguments: pieces.collect(),
            }
        })
}

fn said() -> impl Strategy<Value = Said> {
    let texts = |least: usize| prop::collection::vec(text(), least..5);
    // The helper for Python fails when a later choice speaks first.
    (texts(0), texts(1), prop::collection::vec(said_call(), 0..4)).prop_map(
        |(reasoning, content, calls)| Said {
            reasoning,
            content,
            calls,
        },
    )
}

fn when() -> impl Strategy<Value = When> {
    select(vec![When::Right, When::Never, When::Always])
}

fn habits() -> impl Strategy<Value = Habits> {
    let calls = (
        select(vec![Ids::Right, Ids::Never, Ids::Always, Ids::AnotherEach]),
        when().prop_map(|when| {
            if when == When::Never {
                When::Right
            } else {
                when
            }
        }),
        when(),
        select(vec![Indexes::Right, Indexes::Zero, Indexes::None]),
        any::<[bool; 3]>(),
    );
    let ends = (
        when(),
        any::<[bool; 2]>(),
        select(vec![
            UsageHabit::Right,
            UsageHabit::Always,
            UsageHabit::BeforeTheFinish,
            UsageHabit::Never,
        ]),
    );
    let others = (
        when(),
        when(),
        any::<[bool; 3]>(),
        select(vec!["", "reasoning", "reasoning_content"]),
    );
    (calls, ends, others).prop_map(|(calls, ends, others)| Habits {
        role: others.0,
        call_ids: calls.0,
        call_names: calls.1,
        call_types: calls.2,
        call_indexes: calls.3,
        whole_calls: calls.4[0],
        calls_in_one_chunk: calls.4[1],
        arguments_as_object: calls.4[2],
        finish: ends.0,
        empty_reason: ends.1[0],
        stop_with_calls: ends.1[1],
        usage: ends.2,
        envelope: others.1,
        null_delta: others.2[0],
        null_choices: others.2[1],
        reasoning: others.3,
        has_done: others.2[2],
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_a_server_does_both_helpers_read_what_the_model_said(
        answer in prop::collection::vec(said(), 1..3),
        habits in habits(),
        frame in 1_usize..400,
    ) {
        let sent = written(&answer, &habits);
        let got = relayed(&sent, frame, true);
        let read = chunks(&got);
        for (name, seen) in [("python", python(&read)), ("node", node(&read))] {
            match seen {
                Ok(seen) => check(&answer, &habits, &seen, name),
                Err(error) => prop_assert!(false, "{}: {}\n{}\n{}", name, error, sent, got),
            }
        }
        let with_usage = read.iter().filter(|chunk| chunk["usage"].is_object()).count();
        for index in 0..answer.len() {
            let choices = read.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
            let finished = |choice: &&Value| choice["index"] == index && choice["finish_reason"].is_string();
            prop_assert_eq!(choices.filter(finished).count(), 1);
        }
        prop_assert_eq!(with_usage, usize::from(habits.usage != UsageHabit::Never));
        for key in ["id", "created", "model", "object"] {
            prop_assert!(read.iter().all(|chunk| chunk[key] == read[0][key]), "{}", key);
        }
        prop_assert!(got.ends_with("data: [DONE]\n\n"));
        prop_assert_eq!(relayed(&got, frame, true), got);
        let without = relayed(&sent, frame, false);
        prop_assert!(!without.contains("total_tokens"));
    }

    #[test]
    fn a_stream_in_form_passes_as_it_came(
        answer in prop::collection::vec(said(), 1..3),
        frame in 1_usize..400,
    ) {
        let sent = written(&answer, &RIGHT);
        prop_assert_eq!(relayed(&sent, frame, true), sent);
    }

    #[test]
    fn what_makes_no_sense_is_brought_into_form_once_and_stays_so(
        chunks in prop::collection::vec(nonsense(), 0..6),
        frame in 1_usize..400,
    ) {
        let once = relayed(&stream(&chunks), frame, true);
        prop_assert_eq!(relayed(&once, frame, true), once);
    }
}

/// Chunks with any of the known members anywhere, of any type.
fn nonsense() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        (-1..3_i64).prop_map(Value::from),
        select(vec!["", "a", "stop", "{}", "{", "}"]).prop_map(Value::from),
    ];
    let call = any_of(&["index", "id", "type"], leaf.clone());
    let function = any_of(&["name", "arguments"], leaf.clone());
    let call = (call, prop::option::of(function)).prop_map(|(mut call, function)| {
        if let Some(function) = function {
            call["function"] = function;
        }
        call
    });
    let calls = prop::collection::vec(call, 0..3).prop_map(Value::from);
    let delta = any_of(
        &["role", "content", "reasoning", "reasoning_content"],
        leaf.clone(),
    );
    let delta = (delta, prop::option::of(calls)).prop_map(|(mut delta, calls)| {
        if let Some(calls) = calls {
            delta["tool_calls"] = calls;
        }
        delta
    });
    let choice = any_of(&["index", "finish_reason"], leaf.clone());
    let choice = (choice, prop_oneof![delta, Just(Value::Null)]).prop_map(|(mut choice, delta)| {
        choice["delta"] = delta;
        choice
    });
    let choices = prop_oneof![
        4 => prop::collection::vec(prop_oneof![4 => choice, 1 => Just(Value::Null)], 0..3).prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    let usage = prop_oneof![
        3 => Just(Value::Null),
        1 => Just(json!({"prompt_tokens": 1, "completion_tokens": 1}))
    ];
    (any_of(&["id", "created", "model"], leaf), choices, usage).prop_map(
        |(mut chunk, choices, usage)| {
            chunk["choices"] = choices;
            chunk["usage"] = usage;
            chunk
        },
    )
}

fn any_of(
    keys: &'static [&'static str],
    value: impl Strategy<Value = Value> + Clone,
) -> impl Strategy<Value = Value> {
    prop::collection::vec(prop::option::of(value), keys.len()).prop_map(|values| {
        let members = keys.iter().zip(values);
        let members = members.filter_map(|(key, value)| Some(((*key).to_owned(), value?)));
        Value::Object(members.collect())
    })
}

#[test]
fn a_chunk_that_nobody_changes_is_not_copied() {
    let mut inspector = inspector(true);
    let first = chunk(&json!({"role": "assistant", "content": "x"}), &Value::Null);
    for frame in [first, chunk(&json!({"content": "a"}), &Value::Null)] {
        let frame = Bytes::from(event(&frame.to_string()));
        let step = inspector.push(frame.clone()).unwrap();
        assert_eq!(step.forward.as_ptr(), frame.as_ptr());
    }
}

#[test]
fn only_the_members_that_deviate_are_written_anew() {
    let sent = r#"data: {"id":"c", "object":"chat.completion.chunk","created":5,"model":"m","x":1e30,"choices":[{"index":0,"delta":{"content":"\ud83d \u00e4"},"logprobs":{"a": 0.10},"finish_reason":""}]}"#;
    let got = relayed(&format!("{sent}\n\ndata: [DONE]\n\n"), 4_096, false);
    assert_eq!(
        got.lines().next().unwrap(),
        r#"data: {"id":"c","object":"chat.completion.chunk","created":5,"model":"m","x":1e30,"choices":[{"index":0,"delta":{"content":"\ud83d \u00e4","role":"assistant"},"logprobs":{"a": 0.10},"finish_reason":null}]}"#
    );
}

#[test]
fn data_in_several_lines_is_written_in_one() {
    let sent = "data: {\"x\":{\"a\":1,\ndata: \"b\":2},\"choices\":[{\"delta\":{\"content\":\"a\"},\ndata: \"finish_reason\":\"stop\"}]}\n\n";
    let got = relayed(sent, 4_096, false);
    let chunk = &chunks(&got)[0];
    assert_eq!(chunk["choices"][0]["delta"]["content"], "a");
    assert_eq!(chunk["x"], json!({"a": 1, "b": 2}));
    let is_data = |line: &str| line.is_empty() || line.starts_with("data: ");
    assert!(got.lines().all(is_data), "{got}");
    assert!(got.ends_with("data: [DONE]\n\n"), "{got}");
}

#[test]
fn a_frame_is_forgotten_when_its_index_means_another_call() {
    let call = |id: Option<&str>, arguments: &str| {
        let mut call = json!({"index": 0, "function": {"arguments": arguments}});
        if let Some(id) = id {
            call["id"] = id.into();
            call["function"]["name"] = "f".into();
        }
        chunk(&json!({"tool_calls": [call]}), &Value::Null)
    };
    let sent = stream(&[
        call(Some("a"), ""),
        call(None, "{\"x\":"),
        call(None, "[1,"),
        call(None, "2]}"),
        call(Some("b"), ""),
        call(None, "{\"y\":"),
        call(None, "[1,"),
        call(None, "2]}"),
    ]);
    let seen = node(&chunks(&relayed(&sent, 70, false))).unwrap();
    let calls = &seen["choices"][0]["message"]["tool_calls"];
    assert_eq!(calls[0]["function"]["arguments"], "{\"x\":[1,2]}");
    assert_eq!(calls[1]["function"]["arguments"], "{\"y\":[1,2]}");
}

#[test]
fn usage_that_comes_last_does_not_wait_and_nothing_follows_it() {
    let stop = chunk(&json!({"role": "assistant"}), &json!("stop"));
    let mut usage = chunk(&json!({}), &Value::Null);
    usage["choices"] = json!([]);
    usage["usage"] = serde_json::from_str(USAGE).unwrap();
    let mut late = stop.clone();
    late["choices"][0]["index"] = json!(1);
    let sent = [&stop, &usage]
        .map(|chunk| event(&chunk.to_string()))
        .concat();
    let mut inspector = inspector(false);
    let step = inspector.push(Bytes::from(sent.clone())).unwrap();
    assert_eq!(step.forward, sent);
    let step = inspector.push(event(&stop.to_string()).into()).unwrap();
    assert_eq!(step.forward, "");
    // Another choice after all: the usage comes again behind it.
    let got = relayed(&stream(&[stop, usage, late]), 4_096, true);
    let read = chunks(&got);
    assert_eq!(read.len(), 4);
    assert_eq!(python(&read).unwrap()["usage"]["total_tokens"], 8);
    assert_eq!(relayed(&got, 4_096, true), got);
}

#[test]
fn calls_without_arguments_in_one_chunk_are_apart() {
    let call = |name: &str| json!({"function": {"name": name, "arguments": ""}});
    let delta = json!({"tool_calls": [call("f"), call("g"), {"function": {"arguments": "{}"}}]});
    let sent = stream(&[chunk(&delta, &Value::Null)]);
    for seen in [python, node].map(|helper| helper(&chunks(&relayed(&sent, 4_096, false)))) {
        let seen = seen.unwrap();
        let calls = seen["choices"][0]["message"]["tool_calls"]
            .as_array()
            .unwrap();
        let read: Vec<_> = calls
            .iter()
            .map(|call| (&call["function"]["name"], &call["function"]["arguments"]))
            .collect();
        assert_eq!(
            read,
            [(&json!("f"), &json!("")), (&json!("g"), &json!("{}"))]
        );
    }
}

#[test]
fn an_answer_in_one_piece_is_brought_into_form_too() {
    let normalized = |answer: &Value| {
        let bytes = answer.to_string();
        let normal = normalize_answer(Endpoint::ChatCompletions, bytes.as_bytes(), &identity());
        normal.map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let right = json!({"id": "c", "object": "chat.completion", "created": 5, "model": "m",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": null,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]});
    assert_eq!(normalized(&right), None);
    let mut wrong = right.clone();
    wrong["choices"][0]["finish_reason"] = json!("stop");
    wrong["choices"][0]["message"]["tool_calls"][0] =
        json!({"function": {"name": "f", "arguments": {"a": [1]}}});
    wrong["choices"][0]["message"]["reasoning"] = json!("so");
    let normal = normalized(&wrong).unwrap();
    let choice = &normal["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["reasoning_content"], "so");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"], "{\"a\":[1]}");
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(normalized(&normal), None);

    let bare =
        normalized(&json!({"choices": [{"message": {"content": "x"}, "finish_reason": ""}]}))
            .unwrap();
    assert_eq!(bare["choices"][0]["message"]["role"], "assistant");
    assert_eq!(bare["choices"][0]["finish_reason"], "stop");
    assert_eq!(bare["model"], "asked");
    assert_eq!(
        normalized(&json!({"choices": null})).unwrap()["choices"],
        json!([])
    );
    let embeddings = normalize_answer(Endpoint::Embeddings, b"{}", &identity());
    assert_eq!(embeddings, None);
}
