//! One record for each message, whatever ends it, with the right tokens.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::usage::{Basis, Ending};
use sluice_testkit::{ErrorShape, Gate, HttpClient, Quirk, Request, Script, call};

use super::{
    ANSWER_WORDS, PROMPT_WORDS, add_upstream, assert_record, message, post, request, start,
    streamed_message,
};
use crate::deployment::{PATIENCE, Relay, on_both_databases};

/// The start of the message, that of its block, and the ping that follows it.
const FRAME: usize = 3;

/// Sends a stream, reads `events` of the answer, then leaves.
async fn leave_after(relay: &Relay, body: &Value, events: usize) {
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    client
        .send(&request(relay, "/v1/messages", body))
        .await
        .unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 200);
    for _ in 0..events {
        client.next_event().await.unwrap().unwrap();
    }
}

on_both_databases! {
    async fn a_broken_answer_has_the_reported_input_and_what_was_written(deployment: Deployment) {
        let relay = start(deployment);
        // Two events stand before the words.
        let script = |at: usize| Script::new().words(ANSWER_WORDS).cached_tokens(3).cut_at(at);
        for at in [6, 2 + ANSWER_WORDS] {
            relay.upstream().script(script(at));
            assert_eq!(post(&relay, &streamed_message()).await.status(), 200);
        }
        let records = relay.deployment.wait_for_records(2).await;
        for (record, served) in records.iter().zip(relay.upstream().served()) {
            assert_record(record, Ending::UpstreamFailed, Basis::Counted, served.input_tokens, served.output_tokens);
            assert_eq!(record.usage.cached_input, 3);
        }
        assert_eq!(records[0].usage.output, 4);
    }

    async fn a_report_of_the_whole_counts_although_the_stop_is_missing(deployment: Deployment) {
        let relay = start(deployment);
        relay.upstream().script(Script::new().words(ANSWER_WORDS).reasoning_tokens(9).with(Quirk::NoDone));
        assert_eq!(post(&relay, &streamed_message()).await.status(), 200);
        let record = relay.deployment.only_record().await;
        let served = relay.upstream().only_served();
        assert_record(&record, Ending::UpstreamFailed, Basis::Reported, served.input_tokens, served.output_tokens + 9);
    }

    async fn tokens_are_counted_when_the_provider_reports_none(deployment: Deployment) {
        let relay = start(deployment);
        relay.upstream().default_script(Script::new().words(ANSWER_WORDS).with(Quirk::NoUsage));
        for request in [message(), streamed_message()] {
            assert_eq!(post(&relay, &request).await.status(), 200);
        }
        let records = relay.deployment.wait_for_records(2).await;
        for (record, served) in records.iter().zip(relay.upstream().served()) {
            assert_record(record, Ending::Finished, Basis::Counted, served.input_tokens, served.output_tokens);
        }
    }

    async fn a_client_that_leaves_pays_the_input_and_what_was_written(deployment: Deployment) {
        let relay = start(deployment);
        let gate = Gate::new();
        // It writes three words and waits.
        relay.upstream().script(Script::new().words(ANSWER_WORDS).cached_tokens(3).wait_at(2 + 3, &gate));
        leave_after(&relay, &streamed_message(), FRAME + 3).await;
        let served = relay.upstream().wait_for_ends(1, PATIENCE).await;
        assert!(served[0].peer_left_at().is_some(), "the provider is told");
        let record = relay.deployment.only_record().await;
        assert_record(&record, Ending::ClientLeft, Basis::Counted, served[0].input_tokens, 3);
        assert_eq!(record.usage.cached_input, 3, "the input was reported");
        assert_eq!(record.status, 499);
    }

    async fn a_drained_answer_has_the_providers_numbers(deployment: Deployment) {
        let url = deployment.upstream.base_url();
        add_upstream(&deployment, "drained", &url, &["--client-gone", "drain"]);
        deployment.run(&["route", "create", "claude-drained", "--to", "drained"]);
        let relay = start(deployment);
        let gate = Gate::new();
        relay.upstream().script(Script::new().words(ANSWER_WORDS).reasoning_tokens(2).wait_at(5, &gate));
        let mut body = streamed_message();
        body["model"] = "claude-drained".into();
        leave_after(&relay, &body, FRAME + 1).await;
        gate.open();
        let served = relay.upstream().wait_for_ends(1, PATIENCE).await;
        assert!(served[0].is_complete(), "{served:?}");
        let record = relay.deployment.only_record().await;
        assert_record(&record, Ending::ClientLeft, Basis::Drained, served[0].input_tokens, served[0].output_tokens + 2);
    }

    async fn a_crash_is_charged_the_reported_input_and_what_was_noted(deployment: Deployment) {
        let mut deployment = deployment;
        // Two notes are in the journal when it dies before the third.
        deployment.set("CRASH_AT", "progress.noting:3");
        let relay = start(deployment);
        let script = Script::new().words(2_000).cached_tokens(3).pace(Duration::from_millis(10));
        relay.upstream().script(script);
        let broken = request(&relay, "/v1/messages", &streamed_message());
        let mut client = HttpClient::connect(relay.address).await.unwrap().patience(PATIENCE);
        client.send(&broken).await.unwrap();
        assert_eq!(client.read_head().await.unwrap().status, 200);
        assert!(client.read_events().await.1.is_some(), "it died");
        let served = relay.upstream().wait_for_ends(1, PATIENCE).await.remove(0);

        let mut deployment = relay.deployment;
        // Which is no place.
        deployment.set("CRASH_AT", "");
        let relay = deployment.start();
        let record = relay.deployment.only_record().await;
        assert_eq!((&*record.ending, &*record.basis), ("crashed", "recovered"), "{record:?}");
        assert_eq!((record.usage.input, record.usage.cached_input), (served.input_tokens, 3));
        assert!((1..=served.output_tokens).contains(&record.usage.output), "{record:?}");
    }

    async fn near_the_end_of_a_quota_the_answer_is_limited(deployment: Deployment) {
        // The input is counted with a margin of some hundred tokens.
        let key = deployment.issue_key("small", &["--quota", "800"]);
        let relay = start(deployment);
        relay.upstream().default_script(Script::new().words(5));
        let mut body = message();
        body["max_tokens"] = json!(4_000);
        let post = async |body: &Value| {
            let request = Request::post("/v1/messages", body).header("x-api-key", &key);
            call(relay.address, &request).await.unwrap()
        };
        let response = post(&body).await;
        assert_eq!(response.status(), 200, "{}", response.json());
        let limit: i64 = response.header("x-sluice-max-output-tokens").unwrap().parse().unwrap();
        assert!((16..200).contains(&limit), "{limit}");
        assert_eq!(relay.upstream().only_served().json()["max_tokens"], limit);
        // With less than it may think, a message is refused by the provider: it is not even sent.
        body["thinking"] = json!({"type": "enabled", "budget_tokens": 1_024});
        let refused = post(&body).await;
        assert_eq!(refused.status(), 429);
        assert_eq!(relay.upstream().served().len(), 1);
    }
}

#[tokio::test]
async fn an_error_event_of_the_provider_is_recorded_as_its_failure() {
    let relay = super::relay();
    let script = Script::new().words(ANSWER_WORDS);
    relay
        .upstream()
        .script(script.error_at(2 + 4, ErrorShape::Object));
    assert_eq!(post(&relay, &streamed_message()).await.status(), 200);
    let record = relay.deployment.only_record().await;
    let input = i64::try_from(4 + PROMPT_WORDS).unwrap();
    assert_record(&record, Ending::UpstreamFailed, Basis::Counted, input, 4);
    assert_eq!(record.attempts[0].error.as_deref(), Some("status"));
}
