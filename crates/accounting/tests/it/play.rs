//! Playing seeds.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::Rng;
use crate::world::{Plan, World};

/// How many seeds of each kind are played unless the environment says otherwise.
const SEEDS: u64 = 300;

#[expect(
    clippy::disallowed_methods,
    reason = "a test has no configuration but its environment"
)]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What one seed came to.
pub(crate) struct Played {
    pub(crate) world: Arc<World>,
    pub(crate) violation: Option<String>,
}

pub(crate) fn play(seed: u64, plan: fn(&Rng) -> Plan, is_traced: bool) -> Played {
    let rng = Rng::new(seed);
    let plan = plan(&rng);
    if is_traced {
        println!("seed {seed}: {plan:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(plan, rng, is_traced);
        let violation = world.play().await;
        Played { world, violation }
    })
}

/// Plays all seeds that are asked for; fails when one does.
pub(crate) fn play_all(
    kind: &str,
    plan: fn(&Rng) -> Plan,
    check: impl Fn(&World) -> Result<(), String>,
) {
    play_some(kind, plan, 1, check);
}

/// Plays one of `divisor` seeds that are asked for: for histories that are long.
pub(crate) fn play_some(
    kind: &str,
    plan: fn(&Rng) -> Plan,
    divisor: u64,
    check: impl Fn(&World) -> Result<(), String>,
) {
    let judge = |played: &Played| {
        played
            .violation
            .clone()
            .or_else(|| check(&played.world).err())
    };
    if let Some(seed) = setting("SLUICE_SIM_SEED") {
        let played = play(seed, plan, true);
        assert_eq!(judge(&played), None, "{kind}, seed {seed}");
        return;
    }
    let first = setting("SLUICE_SIM_FIRST").unwrap_or(0);
    let count = setting("SLUICE_SIM_SEEDS")
        .unwrap_or(SEEDS)
        .div_ceil(divisor);
    let mut sums = BTreeMap::<&str, i64>::new();
    let mut failed = Vec::new();
    for seed in first..first + count {
        let played = play(seed, plan, false);
        for (name, value) in played.world.log.figures.all() {
            let sum = sums.entry(name).or_default();
            *sum = if name.ends_with("_max") {
                value.max(*sum)
            } else {
                *sum + value
            };
        }
        if let Some(violation) = judge(&played) {
            println!("{kind}, seed {seed}: {violation}");
            failed.push(seed);
        }
    }
    println!("{kind}: {count} seeds, {sums:?}");
    assert!(
        failed.is_empty(),
        "{} of {count} seeds fail; play one with SLUICE_SIM_SEED={}",
        failed.len(),
        failed[0]
    );
}
