//! Callers that were seen lately, so that their records share a row.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use quick_cache::unsync::Cache;
use sluice_domain::id::TenantId;
use sluice_domain::record::{Caller, NumberedRecord, OpenRequest};
use sluice_domain::time::LocalDay;

use super::guard::Poster;

/// How many callers are remembered.
const REMEMBERED: usize = 4_096;

/// Who called: of another instance, on another day or of another tenant it is another caller, so that
/// what is known of one can be erased by age and for one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    instance_no: i64,
    day: LocalDay,
    tenant_id: TenantId,
    ip: Option<IpAddr>,
    user_agent: Option<Arc<str>>,
}

/// The callers that were seen lately.
///
/// What is remembered need not be in the database, which may have gone back: a batch inserts all
/// callers that it names.
pub(crate) struct Callers(Mutex<Cache<Key, i64>>);

/// The callers of records.
#[derive(Debug, Default)]
pub(crate) struct Named<'r> {
    /// That of each record; `None` when nothing is known of it.
    pub(crate) ids: Vec<Option<i64>>,
    /// Each of them once.
    pub(crate) callers: Vec<(i64, &'r Caller)>,
}

impl Callers {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Cache::new(REMEMBERED)))
    }

    /// Names the callers of records: each by the origin of the first record that came with it, which
    /// is the origin of no other.
    pub(crate) fn name<'r>(&self, poster: Poster, records: &[&'r NumberedRecord]) -> Named<'r> {
        let mut known = self.0.lock();
        let mut named = Named::default();
        named.ids.reserve(records.len());
        // Neighbors often have the same caller, and comparing costs less than looking up.
        let mut last: Option<(&OpenRequest, i64)> = None;
        for numbered in records {
            let open = &numbered.record.open;
            if open.caller.ip.is_none() && open.caller.user_agent.is_none() {
                named.ids.push(None);
                continue;
            }
            let id = match last {
                Some((before, id)) if are_one(before, open) => id,
                _ => {
                    let key = Key {
                        instance_no: poster.no,
                        day: open.local_day,
                        tenant_id: open.payer.tenant_id,
                        ip: open.caller.ip,
                        user_agent: open.caller.user_agent.clone(),
                    };
                    let origin = poster.origin(numbered.post_no);
                    let id = known.get_or_insert_with(&key, || Ok::<_, Infallible>(origin));
                    let id = id.ok().flatten().copied().unwrap_or(origin);
                    named.callers.push((id, &open.caller));
                    id
                }
            };
            last = Some((open, id));
            named.ids.push(Some(id));
        }
        named.callers.sort_unstable_by_key(|(id, _)| *id);
        named.callers.dedup_by_key(|(id, _)| *id);
        named
    }
}

fn are_one(one: &OpenRequest, other: &OpenRequest) -> bool {
    one.caller == other.caller
        && one.payer.tenant_id == other.payer.tenant_id
        && one.local_day == other.local_day
}
