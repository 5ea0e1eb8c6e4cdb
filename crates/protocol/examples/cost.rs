//! Prints what the hot parts of this crate cost, in nanoseconds.
//!
//! `cargo run --release -p sluice-protocol --example cost`
#![expect(
    clippy::print_stdout,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "a measuring tool at the terminal, on real time, with sound input"
)]

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use sluice_domain::id::{RequestId, uuid_v7};
use sluice_domain::route::Endpoint;
use sluice_domain::time::UnixMillis;
use sluice_protocol::answer::{embeddings_to_base64, inspect};
use sluice_protocol::normal::Identity;
use sluice_protocol::request::{Changes, outline, rewrite};
use sluice_protocol::stream::{StreamInspector, StreamOptions};
use sluice_protocol::tokens;

/// Prints the fastest of many short runs of `work`, which other work on the machine disturbs least,
/// if the first argument is part of its name.
fn measure<T>(name: &str, mut work: impl FnMut() -> T) {
    if !std::env::args()
        .nth(1)
        .is_none_or(|wanted| name.contains(&wanted))
    {
        return;
    }
    let mut fastest = f64::INFINITY;
    let mut rounds = 1_u32;
    let mut runs = 0;
    while runs < 300 {
        let begin = Instant::now();
        for _ in 0..rounds {
            black_box(work());
        }
        let taken = begin.elapsed();
        if taken.as_micros() < 300 && runs == 0 {
            rounds *= 2;
            continue;
        }
        fastest = fastest.min(taken.as_secs_f64() * 1e9 / f64::from(rounds));
        runs += 1;
    }
    println!("{name:<48} {fastest:>10.0} ns");
}

/// What a parser would be asked for, to compare with.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "only parsed")]
struct Borrowed<'a> {
    model: &'a str,
    stream: Option<bool>,
    #[serde(borrow)]
    messages: Option<&'a serde_json::value::RawValue>,
}

/// A conversation about code: a backslash every thirty bytes or so.
fn conversation(bytes: usize, line: &str) -> String {
    let mut body = String::from(r#"{"messages":["#);
    let mut role = "user";
    while body.len() < bytes {
        let content = line.repeat(20);
        body += &[r#"{"role":""#, role, r#"","content":""#, &content, r#""},"#].concat();
        role = if role == "user" { "assistant" } else { "user" };
    }
    body.push_str(r#"{"role":"user","content":"go on"}],"model":"gpt-4o-mini","stream":true,"#);
    body.push_str(r#""temperature":0.7,"max_tokens":512}"#);
    body
}

fn main() {
    let code = r#"    let x = call(\"a\", 1);\n    if x { return; }\n"#;
    let small = conversation(60, &code[..20]);
    let large = conversation(64 * 1024, code);
    let prose = conversation(64 * 1024, "The quick brown fox jumps over the lazy dog. ");
    let chinese = conversation(64 * 1024, "敏捷的棕色狐狸跳过了懒狗。");
    let tools = {
        let tool = r#"{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"number"}}},"required":["a"]}}},"#;
        format!(
            r#"{{"model":"m","tools":[{}{{}}]}}"#,
            tool.repeat(64 * 1024 / tool.len())
        )
    };
    measure("serde_json borrowed, code", || {
        serde_json::from_str::<Borrowed<'_>>(black_box(&large)).unwrap()
    });
    for (name, body) in [
        ("code", &large),
        ("small", &small),
        ("prose", &prose),
        ("chinese", &chinese),
        ("tools", &tools),
    ] {
        let body = body.as_bytes();
        assert!(outline(body, Endpoint::ChatCompletions).is_ok());
        measure(&format!("outline, {name}, {} bytes", body.len()), || {
            outline(black_box(body), Endpoint::ChatCompletions).unwrap()
        });
    }
    let body = Bytes::from(large);
    let read = outline(&body, Endpoint::ChatCompletions).unwrap();
    let changes = Changes {
        model: Some("upstream-model"),
        ask_for_usage: true,
        no_obfuscation: true,
        ..Changes::default()
    };
    measure("rewrite, code", || {
        rewrite(black_box(&body), &read, &changes)
    });

    let options = StreamOptions {
        strip_usage: true,
        max_event_bytes: 1 << 20,
        choices: 1,
    };
    let identity = Identity {
        request_id: RequestId::from_uuid(uuid_v7(1, [1; 10])),
        created: UnixMillis(0),
        model: "m".into(),
    };
    for (name, member, content, normalizes) in [
        ("plain", "content", " brown", false),
        ("escaped", "content", "\\n\\n\\\"", false),
        ("compatible, in form", "content", " brown", true),
        ("compatible, written anew", "reasoning", " brown", true),
    ] {
        let inspector_of_kind = || {
            let mut inspector = StreamInspector::new(Endpoint::ChatCompletions, options);
            if normalizes {
                inspector.normalize(identity.clone());
            }
            inspector
        };
        let chunk = Bytes::from(format!(
            "data: {{\"id\":\"chatcmpl-8f14e45fceea167a5a36dedd4bea2543\",\"object\":\"chat.completion.chunk\",\
             \"created\":1763625600,\"model\":\"gpt-4o-mini-2024-07-18\",\"system_fingerprint\":\"fp_44709d6fcb\",\
             \"choices\":[{{\"index\":0,\"delta\":{{\"{member}\":\"{content}\"}},\"logprobs\":null,\
             \"finish_reason\":null}}],\"usage\":null}}\n\n"
        ));
        let mut inspector = inspector_of_kind();
        let mut pushed = 0;
        measure(
            &format!("stream event, {name}, {} bytes", chunk.len()),
            || {
                pushed += 1;
                if pushed == 1_000 {
                    inspector = inspector_of_kind();
                    pushed = 0;
                }
                inspector.push(chunk.clone()).unwrap()
            },
        );
    }

    let vector = vec!["-0.012345678"; 1536].join(",");
    let embeddings = Bytes::from(format!(
        r#"{{"object":"list","data":[{{"embedding":[{vector}],"index":0}}],"usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#
    ));
    measure(&format!("inspect, {} bytes", embeddings.len()), || {
        inspect(Endpoint::Embeddings, black_box(&embeddings))
    });
    measure("embeddings to base64", || {
        embeddings_to_base64(black_box(&embeddings))
    });

    let begin = Instant::now();
    tokens::preload();
    println!(
        "{:<48} {:>10} ns",
        "load o200k_base",
        begin.elapsed().as_nanos()
    );
    let text = prose;
    measure(&format!("count tokens, {} bytes", text.len()), || {
        tokens::count_text(black_box(&text))
    });
}
