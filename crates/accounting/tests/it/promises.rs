//! What the simulation shows.

use crate::play::{play, play_all, play_some};
use crate::world::{Plan, World};

#[test]
fn the_ledger_keeps_its_promises_when_anything_goes_wrong() {
    play_all("wild", Plan::wild, |_| Ok(()));
}

#[test]
fn nobody_is_refused_without_a_reason_when_nothing_goes_wrong() {
    play_all("calm", Plan::calm, |_| Ok(()));
}

#[test]
fn as_many_are_admitted_as_fit_and_none_is_refused_while_room_is_idle() {
    play_all("whole holds", Plan::whole_holds, World::check_whole_holds);
}

#[test]
fn an_outage_as_long_as_the_reserve_is_bridged_after_any_warm_up() {
    play_some("bridged", Plan::bridged, 10, |_| Ok(()));
}

#[test]
fn a_seed_plays_the_same_twice() {
    for seed in 0..20 {
        let hash = || play(seed, Plan::wild, false).world.log.hash();
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}
