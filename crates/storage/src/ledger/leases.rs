//! Leases: taken, returned, and set anew after the database went back.

use std::collections::BTreeMap;

use sluice_domain::id::InstanceId;
use sluice_domain::ports::{
    Guard, InstanceRow, LeaseChange, LeasePolicy, LockedCounter, PostMode, StoreError,
};
use sluice_domain::quota::{Amounts, CounterKey, Lease};
use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use super::counters::Counter;
use super::guard::Numbers;
use crate::error::{Failure, internal};

statements! {
    // Posts leave empty rows behind, and months pass.
    DELETE_EMPTY_LEASES = "DELETE FROM leases \
        WHERE instance_id = $1 AND held_tokens = 0 AND held_nano = 0";
}

bulks! {
    /// Takes only what there is room for, in both units; a row that does not fit is not changed.
    MOVE_HELD = "WITH moved (counter_id, tokens, nano, is_recalled) AS (VALUES ",
        4,
        ") UPDATE counters SET held_tokens = counters.held_tokens + moved.tokens, \
            held_nano = counters.held_nano + moved.nano, recall = moved.is_recalled \
        FROM moved WHERE counters.counter_id = moved.counter_id \
            AND (moved.tokens <= 0 OR counters.cap_tokens IS NULL \
                OR counters.used_tokens + counters.held_tokens + moved.tokens <= counters.cap_tokens) \
            AND (moved.nano <= 0 OR counters.cap_nano IS NULL \
                OR counters.used_nano + counters.held_nano + moved.nano <= counters.cap_nano)";
    /// Whatever the caps say; what is beyond the highest one is counted.
    FORCE_HELD = "WITH moved (counter_id, tokens, nano) AS (VALUES ",
        3,
        ") UPDATE counters SET held_tokens = counters.held_tokens + moved.tokens, \
            held_nano = counters.held_nano + moved.nano, \
            over_tokens = CASE WHEN counters.used_tokens + counters.held_tokens + moved.tokens \
                    - counters.peak_cap_tokens > counters.over_tokens \
                THEN counters.used_tokens + counters.held_tokens + moved.tokens \
                    - counters.peak_cap_tokens ELSE counters.over_tokens END, \
            over_nano = CASE WHEN counters.used_nano + counters.held_nano + moved.nano \
                    - counters.peak_cap_nano > counters.over_nano \
                THEN counters.used_nano + counters.held_nano + moved.nano \
                    - counters.peak_cap_nano ELSE counters.over_nano END \
        FROM moved WHERE counters.counter_id = moved.counter_id";
}

/// A counter whose lease changes.
struct Change {
    counter_id: Uuid,
    delta: Amounts,
    recall: bool,
}

/// Applies what a policy decided to the counters; returns what changes in the database.
fn apply(counters: &mut [Counter], changes: &[LeaseChange]) -> Result<Vec<Change>, StoreError> {
    if changes.len() != counters.len() {
        return Err(internal(
            "a policy decided on other counters than it was asked for",
        ));
    }
    let mut changed = Vec::new();
    for (counter, change) in counters.iter_mut().zip(changes) {
        let recall = change.recall.unwrap_or(counter.recall);
        if change.delta.is_zero() && recall == counter.recall {
            continue;
        }
        let held = counter.leased.plus(change.delta);
        if !Amounts::ZERO.fits(held) {
            return Err(internal("more was given back than was leased"));
        }
        let balance = &mut counter.balance;
        balance.held = balance.held.plus(change.delta);
        counter.recall = recall;
        counter.lease(held, counter.in_flight);
        changed.push(Change {
            counter_id: counter.id,
            delta: change.delta,
            recall,
        });
    }
    Ok(changed)
}

on_both! {
    pub(crate) async fn move_leases(
        &mut self,
        guard: Guard,
        keys: &[CounterKey],
        policy: &LeasePolicy<'_>,
        now: UnixMillis,
    ) -> Result<Vec<LockedCounter>, Failure> {
        let instance = guard.instance_id;
        self.pass_guard(guard, PostMode::Live, Numbers::default(), 0, now).await?;
        let mut counters = self.lock_counters(instance, keys, now).await?;
        let live = self.count_live(instance, now).await?;
        let rows: Vec<LockedCounter> = counters.iter().map(Counter::locked).collect();
        let before: Vec<Amounts> = counters.iter().map(|counter| counter.leased).collect();
        let changed = apply(&mut counters, &policy(&rows, live))?;
        let moved = self
            .execute_bulk(&MOVE_HELD, &changed, |arguments, change| {
                row!(
                    arguments,
                    change.counter_id,
                    change.delta.tokens,
                    change.delta.nano,
                    change.recall,
                )
            })
            .await?;
        if moved != changed.len() {
            return Err(internal("a policy took more than there is room for").into());
        }
        let mut leases = counters.clone();
        let mut was = before.iter();
        leases.retain(|counter| was.next() != Some(&counter.leased));
        self.write_leases(instance, &leases).await?;
        Ok(counters.iter().map(Counter::locked).collect())
    }

    pub(crate) async fn resync(
        &mut self,
        guard: Guard,
        leases: &[Lease],
        now: UnixMillis,
    ) -> Result<InstanceRow, Failure> {
        let instance = guard.instance_id;
        self.pass_resync(guard, now).await?;
        // Leases that the instance does not know are none.
        let stored = self.list_leases(instance).await?.into_iter();
        let mut wanted: BTreeMap<CounterKey, Amounts> =
            stored.map(|lease| (lease.key, Amounts::ZERO)).collect();
        wanted.extend(leases.iter().map(|lease| (lease.key, lease.held)));
        let keys: Vec<CounterKey> = wanted.keys().copied().collect();
        let mut counters = self.lock_counters(instance, &keys, now).await?;
        let mut changed = Vec::with_capacity(counters.len());
        for (counter, held) in counters.iter_mut().zip(wanted.into_values()) {
            let delta = held.minus(counter.leased);
            changed.push(Change { counter_id: counter.id, delta, recall: counter.recall });
            counter.lease(held, held);
        }
        let moved = self
            .execute_bulk(&FORCE_HELD, &changed, |arguments, change| {
                row!(arguments, change.counter_id, change.delta.tokens, change.delta.nano)
            })
            .await?;
        if moved != changed.len() {
            return Err(internal("a counter vanished while it was locked").into());
        }
        self.write_leases(instance, &counters).await?;
        let found = self.find_instance(instance).await?;
        Ok(found.ok_or_else(|| internal("an instance vanished while it was locked"))?)
    }

    /// Makes the leases of an instance what the counters say, and forgets empty ones.
    pub(super) async fn write_leases(
        &mut self,
        instance: InstanceId,
        counters: &[Counter],
    ) -> Result<(), Failure> {
        self.execute_part(Self::set_leases(instance, counters)).await?;
        if counters.iter().any(|counter| counter.leased.is_zero()) {
            sql!(DELETE_EMPTY_LEASES, instance.as_uuid()).execute(&mut *self.conn).await?;
        }
        Ok(())
    }
}
