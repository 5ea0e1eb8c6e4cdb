use proptest::prelude::*;
use sluice_domain::id::{
    BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UpstreamId, UpstreamKeyId, UserId,
};
use sluice_domain::quota::ScopeSet;
use smallvec::SmallVec;
use uuid::Uuid;

use super::*;
use crate::journal::line::line_len;

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn amounts() -> impl Strategy<Value = Amounts> {
    any::<(i64, i64)>().prop_map(|(tokens, nano)| Amounts { tokens, nano })
}

fn usage() -> impl Strategy<Value = TokenUsage> {
    any::<[i64; 5]>().prop_map(|n| TokenUsage {
        input: n[0],
        cached_input: n[1],
        cache_write_input: n[2],
        output: n[3],
        reasoning_output: n[4],
    })
}

fn month() -> impl Strategy<Value = Month> {
    (1970..9999, 1..13).prop_map(|(year, month)| Month::from_number(year * 100 + month).unwrap())
}

prop_compose! {
    fn open()(
        ids in (uuid(), uuid(), uuid(), uuid()),
        period in month(),
        numbers in any::<(i32, i64, i64, u8, bool)>(),
        endpoint in prop::sample::select(vec![
            Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Embeddings,
            Endpoint::Messages, Endpoint::CountTokens,
        ]),
        model in ".{0,60}",
        bound in amounts(),
        ip in any::<Option<std::net::IpAddr>>(),
        user_agent in prop::option::of(".{0,60}"),
    ) -> OpenRequest {
        OpenRequest {
            request_id: RequestId::from_uuid(ids.0),
            payer: Payer {
                tenant_id: TenantId::from_uuid(ids.1),
                user_id: UserId::from_uuid(ids.2),
                key_id: ProxyKeyId::from_uuid(ids.3),
            },
            period,
            local_day: LocalDay(numbers.0),
            started_at: UnixMillis(numbers.1),
            endpoint,
            streams: numbers.4,
            requested_model: model.into(),
            hold: HoldTerms {
                bound,
                leased: ScopeSet::from_bits(numbers.3),
                input_estimate: numbers.2,
            },
            caller: Caller { ip, user_agent: user_agent.map(Arc::from) },
        }
    }
}

prop_compose! {
    fn attempt_record()(
        upstream in uuid(),
        key in prop::option::of(uuid()),
        model in ".{0,40}",
        status in any::<Option<u16>>(),
        error in prop::option::of("[a-z_]{1,30}"),
        times in any::<(i64, i64)>(),
    ) -> AttemptRecord {
        AttemptRecord {
            upstream_id: UpstreamId::from_uuid(upstream),
            upstream_key_id: key.map(UpstreamKeyId::from_uuid),
            upstream_model: model.into(),
            status,
            error: error.map(Cow::Owned),
            started_at: UnixMillis(times.0),
            head_ms: times.1,
        }
    }
}

fn skipped_targets(all: Vec<(Uuid, Option<Uuid>, u8)>) -> SkippedTargets {
    let mut skipped = SkippedTargets::default();
    for (upstream, key, reason) in all {
        skipped.add(SkippedTarget {
            upstream_id: UpstreamId::from_uuid(upstream),
            upstream_key_id: key.map(UpstreamKeyId::from_uuid),
            reason: skip_reason::read(reason).unwrap(),
        });
    }
    skipped
}

prop_compose! {
    fn record()(
        open in open(),
        ending in (1_u8..=7).prop_map(|code| ending::read(code).unwrap()),
        basis in (1_u8..=5).prop_map(|code| basis::read(code).unwrap()),
        stage in (1_u8..=3).prop_map(|code| stage::read(code).unwrap()),
        error_code in prop::option::of("[a-z_]{1,64}"),
        usage in usage(),
        owed in amounts(),
        numbers in any::<(u16, Option<i64>, i64)>(),
        attempts in prop::collection::vec(attempt_record(), 0..4),
        skipped in prop::collection::vec((uuid(), prop::option::of(uuid()), 1_u8..=5), 0..20),
    ) -> UsageRecord {
        UsageRecord {
            open,
            end: RequestEnd {
                ending,
                stage,
                status: numbers.0,
                error_code: error_code.map(Cow::Owned),
                usage,
                basis,
                owed,
                first_event_ms: numbers.1,
                duration_ms: numbers.2,
                attempts: SmallVec::from_vec(attempts),
                skipped: skipped_targets(skipped),
            },
        }
    }
}

fn bytes(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes);
    bytes
}

/// Neither type has an equality, which would be of no use elsewhere.
fn text(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

proptest! {
    #[test]
    fn an_open_survives_and_is_no_longer_than_was_reserved(open in open()) {
        let bytes = bytes(|out| put_open(out, &open));
        prop_assert!(bytes.len() <= open_len(&open));
        prop_assert_eq!(request_of(&bytes), Some(open.request_id));
        prop_assert_eq!(text(&decode_open(&bytes).unwrap()), text(&open));
        for cut in 0..bytes.len() {
            prop_assert!(decode_open(&bytes[..cut]).is_none());
        }
    }

    #[test]
    fn a_record_survives(record in record()) {
        let bytes = bytes(|out| put_record(out, &record, Detail::Whole));
        prop_assert_eq!(request_of(&bytes), Some(record.open.request_id));
        prop_assert_eq!(text(&decode_record(&bytes).unwrap()), text(&record));
    }

    #[test]
    fn a_record_without_attempts_fits_into_its_slot(record in record()) {
        let open = bytes(|out| put_open(out, &record.open)).len();
        let post = bytes(|out| put_record(out, &record, Detail::LastAttempts(0))).len();
        prop_assert!(post <= open + END_ROOM);
    }

    #[test]
    fn attempts_and_progress_survive(
        ids in (uuid(), uuid(), prop::option::of(uuid())),
        model in ".{0,40}",
        n: u32,
        numbers: (i64, i64),
        reported in prop::option::of(usage()),
    ) {
        let attempt = AttemptStart {
            request_id: RequestId::from_uuid(ids.0),
            n,
            upstream_id: UpstreamId::from_uuid(ids.1),
            upstream_key_id: ids.2.map(UpstreamKeyId::from_uuid),
            upstream_model: model.into(),
            started_at: UnixMillis(numbers.0),
        };
        prop_assert_eq!(decode_attempt(&bytes(|out| put_attempt(out, &attempt))), Some(attempt));
        let progress = Progress {
            request_id: RequestId::from_uuid(ids.0),
            output_tokens: numbers.1,
            reported,
        };
        let read = decode_progress(&bytes(|out| put_progress(out, &progress)));
        prop_assert_eq!(read, Some(progress));
    }

    #[test]
    fn starts_checkpoints_and_notes_survive_and_fit_into_a_line(
        ids in (uuid(), uuid(), prop::option::of(uuid())),
        numbers: [i64; 3],
        sent: Option<i64>,
        unsigned: [u64; 3],
        leases in prop::collection::vec(
            (uuid(), uuid(), month(), amounts(), 1_u8..=3),
            0..=LEASES_PER_LINE,
        ),
    ) {
        let start = Start {
            instance_id: InstanceId::from_uuid(ids.0),
            boot_id: BootId::from_uuid(ids.1),
            previous_boot: ids.2.map(BootId::from_uuid),
        };
        prop_assert_eq!(decode_start(&bytes(|out| put_start(out, &start))), Some(start));
        let leases: Vec<Lease> = leases
            .into_iter()
            .map(|(tenant, id, month, held, kind)| Lease {
                key: CounterKey {
                    tenant_id: TenantId::from_uuid(tenant),
                    scope: Scope { kind: scope_kind::read(kind).unwrap(), id },
                    month,
                },
                held,
            })
            .collect();
        let note = Note { seq: numbers[0], posted_no: numbers[1], leases: leases.clone() };
        let encoded = bytes(|out| put_note(out, note.seq, note.posted_no, &note.leases));
        prop_assert!(encoded.len() <= MAX_LEASES_PAYLOAD);
        prop_assert_eq!(decode_note(&encoded), Some(note));
        let checkpoint = Checkpoint {
            part: unsigned[0],
            parts: unsigned[1],
            seq: numbers[0],
            sent,
            posted_no: numbers[1],
            next_post_no: numbers[2],
            oldest: unsigned[2],
            leases,
        };
        let encoded = bytes(|out| put_checkpoint(out, &checkpoint));
        prop_assert!(encoded.len() <= MAX_LEASES_PAYLOAD);
        prop_assert_eq!(decode_checkpoint(&encoded), Some(checkpoint));
    }

    #[test]
    fn any_payload_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_open(&bytes);
        decode_record(&bytes);
        decode_attempt(&bytes);
        decode_progress(&bytes);
        decode_start(&bytes);
        decode_checkpoint(&bytes);
        decode_note(&bytes);
    }
}

#[test]
fn the_numbers_of_words_never_change() {
    macro_rules! table {
        ($name:ident: $($word:literal = $code:literal),*) => {
            $(
                assert_eq!($name::read($code).map(|value| value.to_string()).as_deref(), Some($word));
                assert_eq!($name::code($name::read($code).unwrap()), $code);
            )*
            let used: &[u8] = &[$($code),*];
            for code in 0..=u8::MAX {
                assert_eq!($name::read(code).is_some(), used.contains(&code));
            }
        };
    }
    table!(endpoint: "chat_completions" = 1, "completions" = 2, "embeddings" = 3, "messages" = 4,
        "count_tokens" = 5);
    table!(ending: "finished" = 1, "client_left" = 2, "upstream_failed" = 3, "deadline" = 4,
        "shutdown" = 5, "panicked" = 6, "crashed" = 7);
    table!(basis: "reported" = 1, "drained" = 2, "counted" = 3, "recovered" = 4, "unknown" = 5);
    table!(scope_kind: "tenant" = 1, "user" = 2, "key" = 3);
    let stages = [Stage::Held, Stage::Dispatched, Stage::Relaying];
    assert_eq!(stages.map(stage::code), [1, 2, 3]);
    assert_eq!(
        [0, 1, 2, 3, 4].map(stage::read),
        [
            None,
            Some(Stage::Held),
            Some(Stage::Dispatched),
            Some(Stage::Relaying),
            None
        ]
    );
}

#[test]
fn a_longer_error_code_is_cut_between_characters() {
    let mut record = UsageRecord {
        open: crate::journal::tests::fixture::open_request(1),
        end: RequestEnd::abandoned(),
    };
    record.end.error_code = Some(Cow::Owned("ä".repeat(40)));
    let read = decode_record(&bytes(|out| {
        put_record(out, &record, Detail::LastAttempts(0));
    }))
    .unwrap();
    assert_eq!(read.end.error_code, Some(Cow::Owned("ä".repeat(32))));
}

#[test]
fn typical_lines_are_short() {
    let record = crate::journal::tests::fixture::record(u128::MAX);
    let open = line_len(bytes(|out| put_open(out, &record.open)).len());
    let post = line_len(bytes(|out| put_record(out, &record, Detail::LastAttempts(1))).len());
    assert!(open <= 220, "{open}");
    assert!(post <= 330, "{post}");
}
