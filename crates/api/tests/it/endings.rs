//! One record for each request, whatever ends it, with the tokens that the provider counted.

use std::time::Duration;

use sluice_domain::usage::{Basis, Ending};
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{Gate, HttpClient, Quirk, Request, Script};

use crate::deployment::{
    Deployment, PATIENCE, Relay, chat, figure, on_both_databases, streamed_chat,
};

const PROMPT_WORDS: usize = 7;
const ANSWER_WORDS: usize = 12;
/// So soon an upstream is closed after its client has left.
const CLOSED_WITHIN: Duration = Duration::from_millis(200);
/// A machine that is busy makes any of some tries slow, but not so many.
const TRIES: usize = 30;
/// A model whose provider may not be silent for long.
const HASTY: &str = "hasty-model";

/// Sends a stream, reads `events` events of the answer, then leaves.
async fn leave_after(relay: &Relay, events: usize) {
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let request =
        Request::post("/v1/chat/completions", &streamed_chat(PROMPT_WORDS)).key(relay.key());
    client.send(&request).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 200);
    for _ in 0..events {
        client.next_event().await.unwrap().unwrap();
    }
}

/// Waits until the relay knows that its clients have left; who asks is one of them.
async fn wait_until_left(relay: &Relay) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while figure(relay.address, "sluice_connections").await > 1 {
        assert!(tokio::time::Instant::now() < deadline, "nobody left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Adds an upstream that wants streams read to their end, at the same fake provider.
fn with_draining_upstream(
    mut deployment: Deployment,
    settings: &[(&'static str, &str)],
) -> Deployment {
    let url = deployment.upstream.base_url();
    let create = ["upstream", "create", "drained", "--kind", "compatible"];
    let drains = ["--url", &url, "--allow-private", "--client-gone", "drain"];
    deployment.run(&[&create[..], &drains].concat());
    deployment.run(&["route", "create", "drained-model", "--to", "drained"]);
    for (name, value) in settings {
        deployment.set(name, *value);
    }
    deployment
}

/// Begins a stream there and reads some events, or does not even wait for the head.
async fn begin_drained(relay: &Relay, events: Option<usize>) -> HttpClient {
    let mut body = streamed_chat(PROMPT_WORDS);
    body["model"] = "drained-model".into();
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let request = Request::post("/v1/chat/completions", &body).key(relay.key());
    client.send(&request).await.unwrap();
    if let Some(events) = events {
        assert_eq!(client.read_head().await.unwrap().status, 200);
        for _ in 0..events {
            client.next_event().await.unwrap().unwrap();
        }
    }
    client
}

fn assert_record(record: &StoredRecord, ending: Ending, basis: Basis, input: i64, output: i64) {
    let seen = (
        &*record.ending,
        &*record.basis,
        record.usage.input,
        record.usage.output,
    );
    assert_eq!(
        seen,
        (ending.as_str(), basis.as_str(), input, output),
        "{record:?}"
    );
    let owes_nothing = record.usage.total() == 0;
    assert_eq!(
        record.quota_tokens,
        if owes_nothing { 0 } else { input + output },
        "{record:?}"
    );
}

on_both_databases! {
    async fn a_finished_answer_has_the_providers_numbers(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(ANSWER_WORDS).cached_tokens(3));
        let response = relay.post("/v1/chat/completions", &chat(PROMPT_WORDS)).await;
        assert_eq!(response.status(), 200, "{}", response.json());
        let record = relay.deployment.only_record().await;
        let served = relay.upstream().only_served();
        assert_record(&record, Ending::Finished, Basis::Reported, served.input_tokens, served.output_tokens);
        assert_eq!(record.usage.cached_input, 3);
        assert_eq!(record.attempts.len(), 1);
        assert_eq!(record.attempts[0].status, Some(200));
        assert_eq!(record.ip.as_deref(), Some("127.0.0.1"));
        assert_eq!(record.requested_model, "test-model");
        assert_eq!(record.status, 200);
    }

    async fn a_finished_stream_has_the_providers_numbers(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(ANSWER_WORDS));
        let response = relay.post("/v1/chat/completions", &streamed_chat(PROMPT_WORDS)).await;
        assert_eq!(response.status(), 200);
        let record = relay.deployment.only_record().await;
        let served = relay.upstream().only_served();
        assert_record(&record, Ending::Finished, Basis::Reported, served.input_tokens, served.output_tokens);
        assert!(record.streams);
        assert!(record.first_event_ms.is_some());
    }

    async fn tokens_are_counted_when_the_provider_reports_none(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(ANSWER_WORDS).with(Quirk::NoUsage));
        for request in [chat(PROMPT_WORDS), streamed_chat(PROMPT_WORDS)] {
            assert_eq!(relay.post("/v1/chat/completions", &request).await.status(), 200);
        }
        let records = relay.deployment.wait_for_records(2).await;
        let served = relay.upstream().served();
        for (record, served) in records.iter().zip(&served) {
            assert_record(record, Ending::Finished, Basis::Counted, served.input_tokens, served.output_tokens);
        }
    }

    async fn an_explicit_zero_is_zero(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(ANSWER_WORDS).with(Quirk::ZeroUsage));
        relay.post("/v1/chat/completions", &streamed_chat(PROMPT_WORDS)).await;
        assert_record(&relay.deployment.only_record().await, Ending::Finished, Basis::Reported, 0, 0);
    }

    async fn a_client_that_leaves_pays_what_was_read_until_then(deployment: Deployment) {
        let relay = deployment.start();
        let mut seen = 0;
        let mut fastest = Duration::MAX;
        // At the first event, in the middle, and after the last word: each time the provider waits
        // there, so that it has written what the client has read and nothing more.
        for events in [1, ANSWER_WORDS / 2, ANSWER_WORDS + 1].into_iter().cycle().take(TRIES) {
            let stall = Script::new().words(ANSWER_WORDS).stall_at(events, PATIENCE);
            relay.upstream().script(stall);
            leave_after(&relay, events).await;
            let left_at = relay.upstream().elapsed();
            seen += 1;
            let served = relay.upstream().wait_for_ends(seen, PATIENCE).await;
            let served = &served[seen - 1];
            let closed_after = served.peer_left_at().unwrap().saturating_sub(left_at);
            fastest = fastest.min(closed_after);
            let records = relay.deployment.wait_for_records(seen).await;
            let record = &records[seen - 1];
            assert_record(record, Ending::ClientLeft, Basis::Counted, served.input_tokens, served.output_tokens);
            assert_eq!(record.status, 499);
            if seen >= 3 && fastest < CLOSED_WITHIN {
                break;
            }
        }
        assert!(fastest < CLOSED_WITHIN, "upstream closed after {fastest:?} at best");
    }

    async fn a_client_that_leaves_before_the_first_event_pays_its_prompt(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().script(Script::new().stall_before_head(PATIENCE));
        let mut client = HttpClient::connect(relay.address).await.unwrap();
        let request = Request::post("/v1/chat/completions", &streamed_chat(PROMPT_WORDS)).key(relay.key());
        client.send(&request).await.unwrap();
        relay.upstream().wait_for(|served| served.len() == 1, PATIENCE).await;
        drop(client);
        let record = relay.deployment.only_record().await;
        let served = &relay.upstream().wait_for_ends(1, PATIENCE).await[0];
        assert_record(&record, Ending::ClientLeft, Basis::Counted, served.input_tokens, 0);
        assert_eq!(record.attempts.len(), 1, "the attempt under way is recorded");
    }

    async fn a_client_that_leaves_during_a_second_attempt_leaves_both_in_the_record(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().script(Script::refuse(500));
        relay.upstream().script(Script::new().stall_before_head(PATIENCE));
        let mut client = HttpClient::connect(relay.address).await.unwrap();
        let request = Request::post("/v1/chat/completions", &streamed_chat(PROMPT_WORDS)).key(relay.key());
        client.send(&request).await.unwrap();
        relay.upstream().wait_for(|served| served.len() == 2, PATIENCE).await;
        drop(client);
        let record = relay.deployment.only_record().await;
        let attempts: Vec<_> = record.attempts.iter().map(|a| (a.n, a.status, a.error.as_deref())).collect();
        assert_eq!(attempts, [(1, Some(500), Some("status")), (2, None, Some("client_left"))]);
    }

    async fn a_stream_is_read_to_its_end_without_its_client_where_its_upstream_wants_that(deployment: Deployment) {
        let relay = with_draining_upstream(deployment, &[]).start();
        // At the first event, in the middle, and before anything came.
        for (number, events) in [Some(1), Some(6), None].into_iter().enumerate() {
            let (slow, gate) = (Script::new().words(ANSWER_WORDS), Gate::new());
            relay.upstream().script(match events {
                Some(events) => slow.wait_at(events, &gate),
                None => slow.wait_before_head(&gate),
            });
            let client = begin_drained(&relay, events).await;
            relay.upstream().wait_for(|served| served.len() == number + 1, PATIENCE).await;
            drop(client);
            wait_until_left(&relay).await;
            gate.open();
            let records = relay.deployment.wait_for_records(number + 1).await;
            let served = &relay.upstream().wait_for_ends(number + 1, PATIENCE).await[number];
            assert!(served.is_complete(), "{number}");
            let record = &records[number];
            assert_record(record, Ending::ClientLeft, Basis::Drained, served.input_tokens, served.output_tokens);
            assert_eq!(served.output_tokens, i64::try_from(ANSWER_WORDS).unwrap());
            assert_eq!(record.status, 499);
        }
    }

    async fn reading_without_a_client_is_bounded(deployment: Deployment) {
        let short = [("SLUICE_RELAY_DRAIN_TIME_MS", "300")];
        let relay = with_draining_upstream(deployment, &short).start();
        relay.upstream().script(Script::new().words(ANSWER_WORDS).stall_at(4, PATIENCE));
        drop(begin_drained(&relay, Some(4)).await);
        let record = relay.deployment.only_record().await;
        let served = &relay.upstream().wait_for_ends(1, PATIENCE).await[0];
        // As if it had been closed at once, with what was read until then.
        assert_record(&record, Ending::ClientLeft, Basis::Counted, served.input_tokens, served.output_tokens);
    }

    async fn too_many_streams_without_clients_are_closed(deployment: Deployment) {
        let none = [("SLUICE_RELAY_MAX_DRAINS", "0")];
        let relay = with_draining_upstream(deployment, &none).start();
        let mut fastest = Duration::MAX;
        for number in 0..TRIES {
            relay.upstream().script(Script::new().words(ANSWER_WORDS).stall_at(4, PATIENCE));
            drop(begin_drained(&relay, Some(4)).await);
            let left_at = relay.upstream().elapsed();
            let served = &relay.upstream().wait_for_ends(number + 1, PATIENCE).await[number];
            fastest = fastest.min(served.peer_left_at().unwrap().saturating_sub(left_at));
            if fastest < CLOSED_WITHIN {
                break;
            }
        }
        assert!(fastest < CLOSED_WITHIN, "upstream closed after {fastest:?} at best");
    }

    async fn a_plain_answer_is_read_to_its_end_although_the_client_has_left(deployment: Deployment) {
        let relay = deployment.start();
        let gate = Gate::new();
        relay.upstream().script(Script::new().words(ANSWER_WORDS).wait_before_head(&gate));
        let mut client = HttpClient::connect(relay.address).await.unwrap();
        let request = Request::post("/v1/chat/completions", &chat(PROMPT_WORDS)).key(relay.key());
        client.send(&request).await.unwrap();
        relay.upstream().wait_for(|served| served.len() == 1, PATIENCE).await;
        drop(client);
        wait_until_left(&relay).await;
        gate.open();
        let record = relay.deployment.only_record().await;
        let served = &relay.upstream().wait_for_ends(1, PATIENCE).await[0];
        assert!(served.is_complete());
        assert_record(&record, Ending::ClientLeft, Basis::Drained, served.input_tokens, served.output_tokens);
    }

    async fn a_stream_that_breaks_in_the_middle_costs_what_was_relayed(deployment: Deployment) {
        let url = deployment.upstream.base_url();
        let hasty = ["upstream", "create", "hasty", "--kind", "compatible", "--idle-ms", "1500"];
        deployment.run(&[&hasty[..], &["--url", &url, "--allow-private"]].concat());
        deployment.run(&["route", "create", HASTY, "--to", "hasty"]);
        let relay = deployment.start();
        let scripts = [
            ("cut", Script::new().words(ANSWER_WORDS).cut_at(5), Ending::UpstreamFailed),
            ("reset", Script::new().words(ANSWER_WORDS).reset_at(5), Ending::UpstreamFailed),
            ("clean end", Script::new().words(ANSWER_WORDS).end_at(5), Ending::UpstreamFailed),
            ("half an event", Script::new().words(ANSWER_WORDS).half_event_at(5), Ending::UpstreamFailed),
            ("stall", Script::new().words(ANSWER_WORDS).stall_at(5, PATIENCE), Ending::Deadline),
        ];
        for (number, (name, script, ending)) in scripts.into_iter().enumerate() {
            relay.upstream().script(script);
            let mut request = streamed_chat(PROMPT_WORDS);
            if ending == Ending::Deadline {
                request["model"] = HASTY.into();
            }
            let response = relay.post("/v1/chat/completions", &request).await;
            assert_eq!(response.status(), 200, "{name}");
            let text = String::from_utf8(response.body.to_vec()).unwrap();
            assert!(!text.contains("[DONE]"), "{name} ends without [DONE]: {text}");
            let last = text.trim_end().rsplit("\n\n").next().unwrap();
            assert!(last.starts_with("data: {\"error\":{"), "{name} ends with an error event: {text}");
            let records = relay.deployment.wait_for_records(number + 1).await;
            let served = &relay.upstream().wait_for_ends(number + 1, PATIENCE).await[number];
            assert_record(&records[number], ending, Basis::Counted, served.input_tokens, served.output_tokens);
            assert!(served.output_tokens > 0, "{name}");
        }
    }

    async fn a_complete_answer_without_its_terminal_event_is_complete(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().script(Script::new().words(ANSWER_WORDS).with(Quirk::NoDone));
        let response = relay.post("/v1/chat/completions", &streamed_chat(PROMPT_WORDS)).await;
        let text = String::from_utf8(response.body.to_vec()).unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let served = relay.upstream().only_served();
        let record = relay.deployment.only_record().await;
        assert_record(&record, Ending::Finished, Basis::Reported, served.input_tokens, served.output_tokens);
    }

    async fn a_failed_upstream_costs_the_tenant_nothing(deployment: Deployment) {
        let relay = deployment.start();
        let scripts = [
            (Script::refuse(500), 502),
            (Script::refuse(400), 400),
            (Script::new().reset_before_head(), 502),
            (Script::new().close_before_head(), 502),
            (Script::html(200), 502),
            (Script::new().words(ANSWER_WORDS).cut_at(0), 502),
            // Last: the upstream key is not used after it.
            (Script::refuse(401), 502),
        ];
        let mut count = 0;
        for (script, status) in scripts {
            // No two are the same: one that fails again and again would be held back.
            for request in [chat(PROMPT_WORDS + count), streamed_chat(PROMPT_WORDS + count)] {
                relay.upstream().default_script(script.clone());
                let before = relay.upstream().served().len();
                let response = relay.post("/v1/chat/completions", &request).await;
                assert_eq!(response.status(), status, "{script:?} {}", String::from_utf8_lossy(&response.body));
                let attempts = relay.upstream().served().len() - before;
                assert!(attempts <= 3, "{script:?}");
                count += 1;
                let records = relay.deployment.wait_for_records(count).await;
                let record = &records[count - 1];
                assert_eq!(record.ending, Ending::UpstreamFailed.as_str(), "{script:?}");
                assert_eq!((record.quota_tokens, record.status), (0, i32::from(status)), "{script:?}");
                assert_eq!(record.attempts.len(), attempts, "{script:?}");
                assert!(record.attempts.iter().all(|attempt| attempt.error.is_some()), "{script:?}");
            }
        }
    }

    async fn the_rollups_are_the_sums_of_the_records(deployment: Deployment) {
        let relay = deployment.start();
        for words in 1..=20 {
            relay.upstream().script(Script::new().words(words));
            relay.post("/v1/chat/completions", &streamed_chat(words)).await;
        }
        let records = relay.deployment.wait_for_records(20).await;
        assert!(relay.stop());
        let expected: i64 = records.iter().map(|r| r.quota_tokens).sum();
        let (daily, monthly) = relay.deployment.rollups().await;
        assert_eq!((daily, monthly), ((20, expected), (20, expected)));
    }
}
