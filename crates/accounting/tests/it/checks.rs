//! What must be true after every commit, and at the end.

use std::collections::BTreeMap;

use sluice_accounting::journal::Replay;
use sluice_domain::id::RequestId;
use sluice_domain::ports::{InstanceRow, InstanceState};
use sluice_domain::quota::{Amounts, CounterKey};
use sluice_domain::usage::{Basis, Ending};

use crate::store::{Row, State};
use crate::world::{Phase, Request};

fn sums<'a>(
    parts: impl Iterator<Item = (CounterKey, Amounts)> + 'a,
) -> BTreeMap<CounterKey, Amounts> {
    let mut sums = BTreeMap::<CounterKey, Amounts>::new();
    for (key, amount) in parts {
        let sum = sums.entry(key).or_default();
        *sum = sum.plus(amount);
    }
    sums
}

/// The identities of the tables: they hold in every committed state.
pub(crate) fn check_state(state: &State, may_exceed: bool) -> Result<(), String> {
    let leases = sums(state.leases.iter().map(|((_, key), held)| (*key, *held)));
    let rows = state.records.values().chain(state.quarantine.values());
    let charges = sums(rows.flat_map(|row| row.counters().map(|key| (key, row.record.charge()))));
    let exposures = sums(state.exposures.iter().map(|((_, key), left)| (*key, *left)));
    for (key, counter) in &state.counters {
        let of = |sums: &BTreeMap<CounterKey, Amounts>| sums.get(key).copied().unwrap_or_default();
        if counter.held != of(&leases) {
            return Err(format!(
                "held of {key:?}: {counter:?}, leases {:?}",
                of(&leases)
            ));
        }
        let facts = of(&charges).plus(of(&exposures));
        if counter.used != facts {
            return Err(format!("used of {key:?}: {counter:?}, facts {facts:?}"));
        }
        let sum = counter.used.plus(counter.held);
        if !sum.fits(counter.peak.amounts().plus(counter.over.max(Amounts::ZERO))) {
            return Err(format!("the cap of {key:?} is exceeded: {counter:?}"));
        }
        if !may_exceed && !counter.over.fits(Amounts::ZERO) {
            return Err(format!("over without an event: {key:?} {counter:?}"));
        }
    }
    if let Some(((id, key), held)) = state
        .leases
        .iter()
        .find(|(_, held)| !Amounts::ZERO.fits(**held))
    {
        return Err(format!("{id} has a lease of {held:?} of {key:?}"));
    }
    for (id, instance) in &state.instances {
        let posted: Vec<i64> = state
            .origins
            .keys()
            .chain(state.quarantine.keys())
            .filter(|(owner, _)| owner == id)
            .map(|(_, post_no)| *post_no)
            .collect();
        let mut sorted = posted.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(1..=instance.posted_no) {
            return Err(format!(
                "numbers up to {} of {id}: {sorted:?}",
                instance.posted_no
            ));
        }
        let leases = state.row(*id).map(|row| row.leases).unwrap_or_default();
        if instance.state != InstanceState::Live && !leases.is_empty() {
            return Err(format!("{id} is {} and has {leases:?}", instance.state));
        }
        let exposed = state
            .exposures
            .iter()
            .any(|((owner, _), left)| owner == id && !left.is_zero());
        if instance.state == InstanceState::Closed && exposed {
            return Err(format!("{id} is closed and exposed"));
        }
    }
    let negative = state
        .exposures
        .values()
        .any(|left| !Amounts::ZERO.fits(*left));
    if negative {
        return Err("a negative exposure".to_owned());
    }
    for row in state.records.values() {
        let (charge, bound) = (row.record.charge(), row.record.open.hold.bound);
        let is_excess_fair = row.record.excess().zip(
            charge.zip(bound, |c, b| i64::from(c == b)),
            |excess, full| i64::from(excess > 0 && full == 0),
        );
        if !Amounts::ZERO.fits(charge) || !charge.fits(bound) || !is_excess_fair.is_zero() {
            return Err(format!("charge {charge:?} of {:?}", row.record));
        }
    }
    Ok(())
}

/// A start without the database may spend what the journal says, so that is at most what the database
/// has. While one of them knows of posts that the other does not, the two are not comparable.
pub(crate) fn check_journal(replay: &Replay, row: &InstanceRow) -> Result<(), String> {
    if row.state != InstanceState::Live || row.posted_no != replay.posted_no {
        return Ok(());
    }
    let of = |key: &CounterKey| {
        let lease = row.leases.iter().find(|lease| lease.key == *key);
        lease.map(|lease| lease.held).unwrap_or_default()
    };
    match replay.leases.iter().find(|l| !l.held.fits(of(&l.key))) {
        Some(lease) => Err(format!(
            "{lease:?}, where the database has {:?}",
            of(&lease.key)
        )),
        None => Ok(()),
    }
}

/// Returns what became of a request: its record, or what was set aside for it.
pub(crate) fn find(state: &State, id: RequestId) -> Option<&Row> {
    state.records.get(&id).or_else(|| {
        let mut rows = state.quarantine.values();
        rows.find(|row| row.record.open.request_id == id)
    })
}

/// What must be true when every instance came back, handed everything in and was stopped.
pub(crate) fn check_end(
    state: &State,
    requests: &BTreeMap<RequestId, Request>,
) -> Result<(), String> {
    for (key, counter) in &state.counters {
        if !counter.held.is_zero() {
            return Err(format!("held of {key:?} at the end: {counter:?}"));
        }
    }
    if let Some(((_, key), left)) = state.exposures.iter().find(|(_, left)| !left.is_zero()) {
        return Err(format!("{left:?} of {key:?} stay exposed"));
    }
    for (id, request) in requests {
        check_request(request, find(state, *id))
            .map_err(|what| format!("{id} {what}: {request:?}"))?;
    }
    let known = state.records.keys().find(|id| !requests.contains_key(id));
    known.map_or(Ok(()), |id| Err(format!("a record of nobody: {id}")))
}

fn check_request(request: &Request, row: Option<&Row>) -> Result<(), String> {
    let Some(row) = row else {
        let needs_record = matches!(request.phase, Phase::Open | Phase::Ended | Phase::Answered);
        return if needs_record && !request.may_be_missing {
            Err("has no record".to_owned())
        } else {
            Ok(())
        };
    };
    let record = &row.record;
    let charge = record.charge();
    let tell = || format!("has the wrong record {:?}", record.end);
    let is_exact = request
        .end
        .is_some_and(|(ending, owed)| record.end.ending == ending && charge == owed);
    match request.phase {
        Phase::Refused => Err("was refused and has a record".to_owned()),
        Phase::Waiting | Phase::Left if charge.is_zero() => Ok(()),
        Phase::Waiting | Phase::Left => Err(tell()),
        Phase::Answered if !request.may_be_cut => is_exact.then_some(()).ok_or_else(tell),
        _ if is_exact => Ok(()),
        _ if record.end.ending == Ending::Crashed && record.end.basis == Basis::Recovered => {
            let known = request
                .progress
                .iter()
                .rposition(|(_, written_at)| written_at.is_some());
            let is_possible = request.progress[known.unwrap_or(0)..]
                .iter()
                .any(|(owed, _)| charge == Amounts::tokens(*owed))
                || known.is_none() && charge.is_zero();
            is_possible.then_some(()).ok_or_else(tell)
        }
        // A handler whose process dies may still have dropped its hold before.
        _ => Err(tell()),
    }
}
