//! What the lines say, as bytes.
//!
//! Every line about a request begins with its id, so that it can be told without reading the rest.
//! Words are small numbers that never change their meaning; the format's version stands in the
//! header of the segment.

use std::borrow::Cow;
use std::sync::Arc;

use sluice_domain::id::{
    BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UpstreamId, UpstreamKeyId, UserId,
};
use sluice_domain::pool::{SkipReason, SkippedTarget, SkippedTargets};
use sluice_domain::quota::{
    Amounts, CounterKey, HoldTerms, Lease, Payer, Scope, ScopeKind, ScopeSet,
};
use sluice_domain::record::{AttemptRecord, Caller, OpenRequest, RequestEnd, UsageRecord};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{LocalDay, Month, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};

use crate::journal::codec::{Put, Reader};
use crate::journal::line::{Kind, LineAbout};

/// The start of an attempt, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptStart {
    /// The request.
    pub request_id: RequestId,
    /// Which attempt of the request, from 0.
    pub n: u32,
    /// The upstream.
    pub upstream_id: UpstreamId,
    /// The upstream key; `None` where the upstream has none.
    pub upstream_key_id: Option<UpstreamKeyId>,
    /// The name of the model there.
    pub upstream_model: Arc<str>,
    /// When the attempt began.
    pub started_at: UnixMillis,
}

/// How far the answer of a request has been relayed: at least one event of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The request.
    pub request_id: RequestId,
    /// Tokens of output that were relayed.
    pub output_tokens: i64,
    /// Usage that the provider reported meanwhile.
    pub reported: Option<TokenUsage>,
}

/// A start of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) instance_id: InstanceId,
    pub(super) boot_id: BootId,
    pub(super) previous_boot: Option<BootId>,
}

/// What is known at the beginning of a segment; its leases may be spread over several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Which of `parts` lines this is, from 0.
    pub(super) part: u64,
    pub(super) parts: u64,
    pub(super) seq: i64,
    /// A transaction that was sent and whose answer is not known.
    pub(super) sent: Option<i64>,
    pub(super) posted_no: i64,
    /// The number of the first post of this segment.
    pub(super) next_post_no: i64,
    /// The oldest segment with a line that is still needed.
    pub(super) oldest: u64,
    pub(super) leases: Vec<Lease>,
}

/// A transaction that was sent, or that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) seq: i64,
    /// Of an answer only.
    pub(super) posted_no: i64,
    pub(super) leases: Vec<Lease>,
}

/// How many leases one line takes: each needs at most 57 bytes.
pub(super) const LEASES_PER_LINE: usize = 64;
/// The longest payload with leases, for the reservation of space.
pub(super) const MAX_LEASES_PAYLOAD: usize = 80 + LEASES_PER_LINE * 57;

/// Bytes set aside for the end of a request, beyond its open: some five attempts.
pub(super) const END_ROOM: usize = 512;
/// An error code is a word; a longer one is cut.
const MAX_ERROR_CODE: usize = 64;
/// The longest payload of an `Open`: one line takes it with an end.
pub(super) const MAX_OPEN: usize = 2048;

macro_rules! codes {
    ($($name:ident: $type:ty { $($variant:path = $code:literal),* $(,)? })*) => {$(
        mod $name {
            use super::*;

            pub(super) const fn code(value: $type) -> u8 {
                match value { $($variant => $code),* }
            }

            pub(super) const fn read(code: u8) -> Option<$type> {
                match code { $($code => Some($variant),)* _ => None }
            }
        }
    )*};
}

codes! {
    endpoint: Endpoint {
        Endpoint::ChatCompletions = 1,
        Endpoint::Completions = 2,
        Endpoint::Embeddings = 3,
        Endpoint::Messages = 4,
        Endpoint::CountTokens = 5,
    }
    ending: Ending {
        Ending::Finished = 1,
        Ending::ClientLeft = 2,
        Ending::UpstreamFailed = 3,
        Ending::Deadline = 4,
        Ending::Shutdown = 5,
        Ending::Panicked = 6,
        Ending::Crashed = 7,
    }
    basis: Basis {
        Basis::Reported = 1,
        Basis::Drained = 2,
        Basis::Counted = 3,
        Basis::Recovered = 4,
        Basis::Unknown = 5,
    }
    stage: Stage {
        Stage::Held = 1,
        Stage::Dispatched = 2,
        Stage::Relaying = 3,
    }
    skip_reason: SkipReason {
        SkipReason::Cooldown = 1,
        SkipReason::BreakerOpen = 2,
        SkipReason::Quarantined = 3,
        SkipReason::AtLimit = 4,
        SkipReason::Throttled = 5,
    }
    scope_kind: ScopeKind {
        ScopeKind::Tenant = 1,
        ScopeKind::User = 2,
        ScopeKind::Key = 3,
    }
}

/// Reads the request that an `Open`, `Attempt`, `Progress` or `Post` is about.
pub(super) fn request_of(payload: &[u8]) -> Option<RequestId> {
    Reader::new(payload).uuid().map(RequestId::from_uuid)
}

/// Returns what a line is about; `None` when its payload is malformed.
pub(super) fn about(kind: Kind, payload: &[u8]) -> Option<LineAbout> {
    match kind {
        Kind::Start | Kind::Checkpoint | Kind::Sent | Kind::Ack | Kind::WentBack => {
            Some(LineAbout::none(kind))
        }
        Kind::Open | Kind::Attempt | Kind::Post => {
            Some(LineAbout::request(kind, request_of(payload)?))
        }
        Kind::Progress => {
            let progress = decode_progress(payload)?;
            Some(LineAbout {
                is_report: progress.reported.is_some(),
                ..LineAbout::request(kind, progress.request_id)
            })
        }
    }
}

/// Returns how long the payload of an `Open` is at most.
pub(super) fn open_len(open: &OpenRequest) -> usize {
    const FIXED: usize = 150;
    let user_agent = open.caller.user_agent.as_ref().map_or(0, |ua| ua.len());
    FIXED + open.requested_model.len() + user_agent
}

pub(super) fn put_open(out: &mut Vec<u8>, open: &OpenRequest) {
    out.put_uuid(open.request_id.as_uuid());
    out.put_uuid(open.payer.tenant_id.as_uuid());
    out.put_uuid(open.payer.user_id.as_uuid());
    out.put_uuid(open.payer.key_id.as_uuid());
    out.put_int(open.period.as_number().into());
    out.put_int(open.local_day.0.into());
    out.put_int(open.started_at.0);
    out.put_byte(endpoint::code(open.endpoint));
    out.put_byte(open.streams.into());
    out.put_text(&open.requested_model);
    put_amounts(out, open.hold.bound);
    out.put_byte(open.hold.leased.bits());
    out.put_int(open.hold.input_estimate);
    out.put_ip(open.caller.ip);
    out.put_option(open.caller.user_agent.as_deref(), Put::put_text);
}

fn read_open(reader: &mut Reader<'_>) -> Option<OpenRequest> {
    Some(OpenRequest {
        request_id: RequestId::from_uuid(reader.uuid()?),
        payer: Payer {
            tenant_id: TenantId::from_uuid(reader.uuid()?),
            user_id: UserId::from_uuid(reader.uuid()?),
            key_id: ProxyKeyId::from_uuid(reader.uuid()?),
        },
        period: Month::from_number(reader.int()?.try_into().ok()?)?,
        local_day: LocalDay(reader.int()?.try_into().ok()?),
        started_at: UnixMillis(reader.int()?),
        endpoint: endpoint::read(reader.byte()?)?,
        streams: reader.flag()?,
        requested_model: reader.text()?,
        hold: HoldTerms {
            bound: read_amounts(reader)?,
            leased: ScopeSet::from_bits(reader.byte()?),
            input_estimate: reader.int()?,
        },
        caller: Caller {
            ip: reader.ip()?,
            user_agent: reader.option(Reader::text)?,
        },
    })
}

pub(super) fn decode_open(payload: &[u8]) -> Option<OpenRequest> {
    let mut reader = Reader::new(payload);
    let open = read_open(&mut reader)?;
    reader.finish(open)
}

pub(super) fn put_attempt(out: &mut Vec<u8>, attempt: &AttemptStart) {
    out.put_uuid(attempt.request_id.as_uuid());
    out.put_uint(attempt.n.into());
    out.put_uuid(attempt.upstream_id.as_uuid());
    out.put_option(attempt.upstream_key_id, |out, id| {
        out.put_uuid(id.as_uuid());
    });
    out.put_text(&attempt.upstream_model);
    out.put_int(attempt.started_at.0);
}

pub(super) fn decode_attempt(payload: &[u8]) -> Option<AttemptStart> {
    let mut reader = Reader::new(payload);
    let attempt = AttemptStart {
        request_id: RequestId::from_uuid(reader.uuid()?),
        n: reader.uint()?.try_into().ok()?,
        upstream_id: UpstreamId::from_uuid(reader.uuid()?),
        upstream_key_id: reader.option(Reader::uuid)?.map(UpstreamKeyId::from_uuid),
        upstream_model: reader.text()?,
        started_at: UnixMillis(reader.int()?),
    };
    reader.finish(attempt)
}

pub(super) fn put_progress(out: &mut Vec<u8>, progress: &Progress) {
    out.put_uuid(progress.request_id.as_uuid());
    out.put_int(progress.output_tokens);
    out.put_option(progress.reported, put_usage);
}

pub(super) fn decode_progress(payload: &[u8]) -> Option<Progress> {
    let mut reader = Reader::new(payload);
    let progress = Progress {
        request_id: RequestId::from_uuid(reader.uuid()?),
        output_tokens: reader.int()?,
        reported: reader.option(read_usage)?,
    };
    reader.finish(progress)
}

/// How much of what explains a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// All of it.
    Whole,
    /// The last so many attempts, and nothing of what was passed over.
    LastAttempts(usize),
}

/// Writes a record with a part of what explains it.
pub(super) fn put_record(out: &mut Vec<u8>, record: &UsageRecord, detail: Detail) {
    put_open(out, &record.open);
    let end = &record.end;
    out.put_byte(ending::code(end.ending));
    out.put_byte(stage::code(end.stage));
    out.put_uint(end.status.into());
    out.put_option(end.error_code.as_deref(), |out, code| {
        out.put_text(&code[..code.floor_char_boundary(MAX_ERROR_CODE)]);
    });
    put_usage(out, end.usage);
    out.put_byte(basis::code(end.basis));
    put_amounts(out, end.owed);
    out.put_option(end.first_event_ms, Put::put_int);
    out.put_int(end.duration_ms);
    let (attempts, skipped) = match detail {
        Detail::Whole => (end.attempts.len(), Some(&end.skipped)),
        Detail::LastAttempts(attempts) => (attempts, None),
    };
    let attempts = &end.attempts[end.attempts.len().saturating_sub(attempts)..];
    out.put_uint(attempts.len() as u64);
    for attempt in attempts {
        out.put_uuid(attempt.upstream_id.as_uuid());
        out.put_option(attempt.upstream_key_id, |out, id| {
            out.put_uuid(id.as_uuid());
        });
        out.put_text(&attempt.upstream_model);
        out.put_option(attempt.status, |out, status| out.put_uint(status.into()));
        out.put_option(attempt.error.as_deref(), Put::put_text);
        out.put_int(attempt.started_at.0);
        out.put_int(attempt.head_ms);
    }
    put_skipped(out, skipped);
}

/// One byte where nothing was passed over.
fn put_skipped(out: &mut Vec<u8>, skipped: Option<&SkippedTargets>) {
    let named = skipped.map_or(&[][..], SkippedTargets::named);
    out.put_uint(named.len() as u64);
    for target in named {
        out.put_uuid(target.upstream_id.as_uuid());
        out.put_option(target.upstream_key_id, |out, id| {
            out.put_uuid(id.as_uuid());
        });
        out.put_byte(skip_reason::code(target.reason));
    }
    if !named.is_empty() {
        out.put_uint(skipped.map_or(0, SkippedTargets::more).into());
    }
}

fn read_skipped(reader: &mut Reader<'_>) -> Option<SkippedTargets> {
    let mut named = Vec::new();
    for _ in 0..reader.uint()? {
        named.push(SkippedTarget {
            upstream_id: UpstreamId::from_uuid(reader.uuid()?),
            upstream_key_id: reader.option(Reader::uuid)?.map(UpstreamKeyId::from_uuid),
            reason: skip_reason::read(reader.byte()?)?,
        });
    }
    if named.is_empty() {
        return Some(SkippedTargets::default());
    }
    let more = reader.uint()?.try_into().ok()?;
    Some(SkippedTargets::from_parts(named, more))
}

pub(super) fn decode_record(payload: &[u8]) -> Option<UsageRecord> {
    let mut reader = Reader::new(payload);
    let open = read_open(&mut reader)?;
    let mut end = RequestEnd {
        ending: ending::read(reader.byte()?)?,
        stage: stage::read(reader.byte()?)?,
        status: reader.uint()?.try_into().ok()?,
        error_code: reader.option(read_word)?,
        usage: read_usage(&mut reader)?,
        basis: basis::read(reader.byte()?)?,
        owed: read_amounts(&mut reader)?,
        first_event_ms: reader.option(Reader::int)?,
        duration_ms: reader.int()?,
        ..RequestEnd::abandoned()
    };
    for _ in 0..reader.uint()? {
        end.attempts.push(AttemptRecord {
            upstream_id: UpstreamId::from_uuid(reader.uuid()?),
            upstream_key_id: reader.option(Reader::uuid)?.map(UpstreamKeyId::from_uuid),
            upstream_model: reader.text()?,
            status: reader.option(|reader| reader.uint()?.try_into().ok())?,
            error: reader.option(read_word)?,
            started_at: UnixMillis(reader.int()?),
            head_ms: reader.int()?,
        });
    }
    end.skipped = read_skipped(&mut reader)?;
    reader.finish(UsageRecord { open, end })
}

pub(super) fn put_start(out: &mut Vec<u8>, start: &Start) {
    out.put_uuid(start.instance_id.as_uuid());
    out.put_uuid(start.boot_id.as_uuid());
    out.put_option(start.previous_boot, |out, id| out.put_uuid(id.as_uuid()));
}

pub(super) fn decode_start(payload: &[u8]) -> Option<Start> {
    let mut reader = Reader::new(payload);
    let start = Start {
        instance_id: InstanceId::from_uuid(reader.uuid()?),
        boot_id: BootId::from_uuid(reader.uuid()?),
        previous_boot: reader.option(Reader::uuid)?.map(BootId::from_uuid),
    };
    reader.finish(start)
}

pub(super) fn put_checkpoint(out: &mut Vec<u8>, checkpoint: &Checkpoint) {
    out.put_uint(checkpoint.part);
    out.put_uint(checkpoint.parts);
    out.put_int(checkpoint.seq);
    out.put_option(checkpoint.sent, Put::put_int);
    out.put_int(checkpoint.posted_no);
    out.put_int(checkpoint.next_post_no);
    out.put_uint(checkpoint.oldest);
    put_leases(out, &checkpoint.leases);
}

pub(super) fn decode_checkpoint(payload: &[u8]) -> Option<Checkpoint> {
    let mut reader = Reader::new(payload);
    let checkpoint = Checkpoint {
        part: reader.uint()?,
        parts: reader.uint()?,
        seq: reader.int()?,
        sent: reader.option(Reader::int)?,
        posted_no: reader.int()?,
        next_post_no: reader.int()?,
        oldest: reader.uint()?,
        leases: read_leases(&mut reader)?,
    };
    reader.finish(checkpoint)
}

pub(super) fn put_note(out: &mut Vec<u8>, seq: i64, posted_no: i64, leases: &[Lease]) {
    out.put_int(seq);
    out.put_int(posted_no);
    put_leases(out, leases);
}

pub(super) fn decode_note(payload: &[u8]) -> Option<Note> {
    let mut reader = Reader::new(payload);
    let note = Note {
        seq: reader.int()?,
        posted_no: reader.int()?,
        leases: read_leases(&mut reader)?,
    };
    reader.finish(note)
}

fn put_leases(out: &mut Vec<u8>, leases: &[Lease]) {
    out.put_uint(leases.len() as u64);
    for lease in leases {
        out.put_uuid(lease.key.tenant_id.as_uuid());
        out.put_byte(scope_kind::code(lease.key.scope.kind));
        out.put_uuid(lease.key.scope.id);
        out.put_int(lease.key.month.as_number().into());
        put_amounts(out, lease.held);
    }
}

fn read_leases(reader: &mut Reader<'_>) -> Option<Vec<Lease>> {
    let mut leases = Vec::new();
    for _ in 0..reader.uint()? {
        leases.push(Lease {
            key: CounterKey {
                tenant_id: TenantId::from_uuid(reader.uuid()?),
                scope: Scope {
                    kind: scope_kind::read(reader.byte()?)?,
                    id: reader.uuid()?,
                },
                month: Month::from_number(reader.int()?.try_into().ok()?)?,
            },
            held: read_amounts(reader)?,
        });
    }
    Some(leases)
}

fn put_amounts(out: &mut Vec<u8>, amounts: Amounts) {
    out.put_int(amounts.tokens);
    out.put_int(amounts.nano);
}

fn read_amounts(reader: &mut Reader<'_>) -> Option<Amounts> {
    Some(Amounts {
        tokens: reader.int()?,
        nano: reader.int()?,
    })
}

fn put_usage(out: &mut Vec<u8>, usage: TokenUsage) {
    out.put_int(usage.input);
    out.put_int(usage.cached_input);
    out.put_int(usage.cache_write_input);
    out.put_int(usage.output);
    out.put_int(usage.reasoning_output);
}

fn read_usage(reader: &mut Reader<'_>) -> Option<TokenUsage> {
    Some(TokenUsage {
        input: reader.int()?,
        cached_input: reader.int()?,
        cache_write_input: reader.int()?,
        output: reader.int()?,
        reasoning_output: reader.int()?,
    })
}

fn read_word(reader: &mut Reader<'_>) -> Option<Cow<'static, str>> {
    Some(Cow::Owned(reader.str()?.to_owned()))
}

#[cfg(test)]
mod tests;
