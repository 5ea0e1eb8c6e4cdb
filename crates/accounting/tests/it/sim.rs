//! A store in memory with scripted faults.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use sluice_domain::id::{BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UserId};
use sluice_domain::ports::{Clock, Guard, InstanceRow, LedgerStore, Posted, StoreError};
use sluice_domain::quota::{CounterBalance, Payer, Scope};
use sluice_domain::record::{Caller, NumberedRecord, OpenRequest, RequestEnd};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{LocalDay, Month, TimeZone, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};
use uuid::Uuid;

/// What happens to one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused before it begins.
    Unreachable,
    /// It commits, and the answer is lost.
    AnswerLost,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) instance: Option<InstanceRow>,
    pub(crate) posted: BTreeMap<i64, RequestId>,
    pub(crate) quarantined: BTreeMap<i64, RequestId>,
    pub(crate) used: HashMap<(Scope, Month), i64>,
    pub(crate) caps: HashMap<Scope, i64>,
    pub(crate) faults: VecDeque<Option<Fault>>,
    /// Requests that the database refuses for ever.
    pub(crate) poison: Vec<RequestId>,
    pub(crate) transactions: usize,
}

#[derive(Debug, Default)]
pub(crate) struct SimStore {
    pub(crate) state: Mutex<State>,
}

fn unavailable() -> StoreError {
    StoreError::Unavailable {
        source: "the connection was cut".into(),
    }
}

impl State {
    fn guard(&mut self, guard: Guard) -> Result<(), StoreError> {
        match &mut self.instance {
            Some(row) if row.boot_id == guard.boot_id && row.seq == guard.seq => {
                row.seq += 1;
                Ok(())
            }
            _ => Err(StoreError::Guard),
        }
    }
}

#[async_trait]
impl LedgerStore for SimStore {
    async fn claim_instance(
        &self,
        _instance_id: InstanceId,
        _last_boot: Option<BootId>,
        boot_id: BootId,
        _now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        let mut state = self.state.lock();
        let row = match state.instance {
            Some(row) => InstanceRow {
                boot_id,
                seq: row.seq + 1,
                ..row
            },
            None => InstanceRow {
                boot_id,
                seq: 0,
                posted_no: 0,
            },
        };
        state.instance = Some(row);
        Ok(row)
    }

    async fn find_instance(&self, _id: InstanceId) -> Result<Option<InstanceRow>, StoreError> {
        Ok(self.state.lock().instance)
    }

    async fn post_batch(
        &self,
        guard: Guard,
        records: &[NumberedRecord],
        _now: UnixMillis,
    ) -> Result<Posted, StoreError> {
        let mut state = self.state.lock();
        let fault = state.faults.pop_front().flatten();
        if fault == Some(Fault::Unreachable) {
            return Err(unavailable());
        }
        if records
            .iter()
            .any(|r| state.poison.contains(&r.record.open.request_id))
        {
            return Err(StoreError::Internal {
                source: "a row is refused".into(),
            });
        }
        state.guard(guard)?;
        state.transactions += 1;
        let mut counters = Vec::new();
        for record in records {
            let open = &record.record.open;
            assert!(
                state
                    .posted
                    .insert(record.post_no, open.request_id)
                    .is_none(),
                "number {} was used twice",
                record.post_no
            );
            for scope in open.payer.scopes() {
                *state.used.entry((scope, open.period)).or_default() +=
                    record.record.end.quota_tokens;
                counters.push((scope, open.period));
            }
        }
        let last = records.last().map_or(0, |r| r.post_no);
        if let Some(row) = &mut state.instance {
            assert_eq!(
                records[0].post_no,
                row.posted_no + 1,
                "a batch begins after the last one"
            );
            row.posted_no = last;
        }
        if fault == Some(Fault::AnswerLost) {
            return Err(unavailable());
        }
        let counters = counters
            .into_iter()
            .map(|(scope, month)| CounterBalance {
                scope,
                month,
                cap_tokens: state.caps.get(&scope).copied(),
                used_tokens: state.used[&(scope, month)],
            })
            .collect();
        Ok(Posted {
            inserted: records.len(),
            counters,
        })
    }

    async fn quarantine(
        &self,
        guard: Guard,
        record: &NumberedRecord,
        _reason: &str,
        _now: UnixMillis,
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let fault = state.faults.pop_front().flatten();
        if fault == Some(Fault::Unreachable) {
            return Err(unavailable());
        }
        state.guard(guard)?;
        let open = &record.record.open;
        state.quarantined.insert(record.post_no, open.request_id);
        for scope in open.payer.scopes() {
            *state.used.entry((scope, open.period)).or_default() += record.record.end.quota_tokens;
        }
        if let Some(row) = &mut state.instance {
            row.posted_no = record.post_no;
        }
        if fault == Some(Fault::AnswerLost) {
            Err(unavailable())
        } else {
            Ok(())
        }
    }

    async fn load_counters(
        &self,
        scopes: &[Scope],
        month: Month,
    ) -> Result<Vec<CounterBalance>, StoreError> {
        let state = self.state.lock();
        Ok(scopes
            .iter()
            .map(|scope| CounterBalance {
                scope: *scope,
                month,
                cap_tokens: state.caps.get(scope).copied(),
                used_tokens: state.used.get(&(*scope, month)).copied().unwrap_or(0),
            })
            .collect())
    }

    async fn heartbeat(&self, _guard: Guard, _now: UnixMillis) -> Result<(), StoreError> {
        Ok(())
    }
}

pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> UnixMillis {
        now()
    }
}

pub(crate) fn now() -> UnixMillis {
    UnixMillis(1_795_000_000_000)
}

pub(crate) fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(crate) fn payer() -> Payer {
    Payer {
        tenant_id: TenantId::from_uuid(id(1)),
        user_id: UserId::from_uuid(id(2)),
        key_id: ProxyKeyId::from_uuid(id(3)),
    }
}

pub(crate) fn open_request(n: u128) -> OpenRequest {
    OpenRequest {
        request_id: RequestId::from_uuid(id(1_000 + n)),
        payer: payer(),
        period: TimeZone::utc().period_of(now()).month,
        local_day: LocalDay(20_261_118),
        started_at: now(),
        endpoint: Endpoint::ChatCompletions,
        streams: false,
        requested_model: Arc::from("gpt-4o-mini"),
        caller: Caller {
            ip: None,
            user_agent: None,
        },
    }
}

pub(crate) fn end_with(tokens: i64) -> RequestEnd {
    RequestEnd {
        ending: Ending::Finished,
        stage: Stage::Relaying,
        status: 200,
        error_code: None,
        usage: TokenUsage {
            input: tokens,
            ..TokenUsage::default()
        },
        basis: Basis::Reported,
        quota_tokens: tokens,
        first_event_ms: Some(1),
        duration_ms: 2,
        attempts: smallvec::SmallVec::new(),
    }
}
