use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use secrecy::SecretString;
use sluice_domain::pool::TargetUse;

use super::super::plan::RoutePlan;
use super::super::tests::{key, route, target, tenant, upstream};
use super::super::{RoutingInput, RoutingTable};
use super::*;
use crate::health::registry::HealthRegistry;

/// Keeps some lanes out, and counts how often it was asked.
#[derive(Default)]
struct Out {
    upstreams: Vec<usize>,
    keys: Vec<(usize, usize)>,
    asked: usize,
}

impl Judge for Out {
    fn may_ask(&mut self, member: &Member) -> bool {
        self.asked += 1;
        let name = &*member.prepared.name;
        !self
            .upstreams
            .iter()
            .any(|n| name == format!("up-{}", n + 1))
    }

    fn may_use(&mut self, choice: Choice, _: &Member) -> bool {
        self.asked += 1;
        !self.keys.contains(&(choice.target, choice.key))
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// Plans a tier of targets with these weights, each at an upstream with keys of these weights.
fn plan(targets: &[(u32, Vec<u32>)]) -> Arc<RoutePlan> {
    let mut keys = Vec::new();
    let mut one = route(1, None, "m");
    one.targets.clear();
    for (number, (weight, key_weights)) in (1_u8..).zip(targets) {
        one.targets.push(target(0, *weight, number, None));
        for weight in key_weights {
            let n = u8::try_from(keys.len()).unwrap();
            keys.push(key(n, number, *weight));
        }
    }
    planned(one, keys, targets.len())
}

fn planned(
    route: sluice_domain::route::Route,
    keys: Vec<(sluice_domain::upstream::UpstreamKey, SecretString)>,
    upstreams: usize,
) -> Arc<RoutePlan> {
    let input = RoutingInput {
        upstreams: (1..=u8::try_from(upstreams).unwrap())
            .map(upstream)
            .collect(),
        keys,
        routes: vec![route],
    };
    let (table, problems) = RoutingTable::build(input, &HealthRegistry::new());
    assert_eq!(problems, []);
    table.find_route(tenant(1), "m").unwrap()
}

fn choose(plan: &RoutePlan, selection: Selection, asker: u64, out: &mut Out) -> Option<Choice> {
    plan.tiers(TargetUse::Any)[0].choose(selection, asker, out)
}

proptest! {
    #[test]
    fn shares_of_what_is_left_are_those_of_the_weights(
        weights in prop::collection::vec(1..20_u32, 2..8),
        is_out in prop::collection::vec(any::<bool>(), 8),
        of_keys in any::<bool>(),
        by_keys in any::<bool>(),
    ) {
        // Either one target with many keys, or many targets with one key each, which are out as a
        // whole or by their key.
        let plan = if of_keys {
            plan(&[(1, weights.clone())])
        } else {
            plan(&weights.iter().map(|w| (*w, vec![1])).collect::<Vec<_>>())
        };
        let mut out = Out::default();
        for index in (0..weights.len()).filter(|index| is_out[*index]) {
            if of_keys {
                out.keys.push((0, index));
            } else if by_keys {
                out.keys.push((index, 0));
            } else {
                out.upstreams.push(index);
            }
        }
        let left: u32 = (0..weights.len()).filter(|n| !is_out[*n]).map(|n| weights[n]).sum();
        let picks = 4_000;
        let mut counts = HashMap::<usize, u32>::new();
        for _ in 0..picks {
            let Some(choice) = choose(&plan, Selection::Weighted, 0, &mut out) else {
                prop_assert_eq!(left, 0);
                continue;
            };
            let index = if of_keys { choice.key } else { choice.target };
            prop_assert!(!is_out[index], "{} is out", index);
            *counts.entry(index).or_default() += 1;
        }
        for (index, weight) in weights.iter().enumerate().filter(|(n, _)| !is_out[*n]) {
            let share = f64::from(counts.get(&index).copied().unwrap_or(0)) / f64::from(picks);
            let fair = f64::from(*weight) / f64::from(left);
            prop_assert!((share - fair).abs() < 0.01, "{}: {} for {}", index, share, fair);
        }
    }
}

/// Plans one target with so many keys.
fn with_keys(count: u32) -> Arc<RoutePlan> {
    let keys = (0..count)
        .map(|n| {
            let (mut one, secret) = key(1, 1, 1 + n % 3);
            let id = uuid::Uuid::from_u128(u128::from(n) + 1);
            one.id = sluice_domain::id::UpstreamKeyId::from_uuid(id);
            (one, secret)
        })
        .collect();
    planned(route(1, None, "m"), keys, 1)
}

#[test]
fn a_thousand_keys_cost_no_more_steps_than_one() {
    let steps = |count: u32, out: &mut Out| {
        let plan = with_keys(count);
        for _ in 0..1_000 {
            choose(&plan, Selection::Weighted, 0, out).unwrap();
        }
        out.asked
    };
    let one = steps(1, &mut Out::default());
    assert_eq!(steps(1_000, &mut Out::default()), one);
    let mut a_few_out = Out {
        keys: (0..10).map(|key| (0, key * 100)).collect(),
        ..Out::default()
    };
    assert!(steps(1_000, &mut a_few_out) < one + one / 20);
}

#[test]
fn when_all_keys_but_one_are_out_it_is_found() {
    let plan = with_keys(1_000);
    let mut out = Out {
        keys: (0..1_000).filter(|n| *n != 777).map(|n| (0, n)).collect(),
        ..Out::default()
    };
    let choice = choose(&plan, Selection::Weighted, 0, &mut out);
    assert_eq!(
        choice,
        Some(Choice {
            target: 0,
            key: 777
        })
    );
    out.keys.push((0, 777));
    assert_eq!(choose(&plan, Selection::Weighted, 0, &mut out), None);
}

#[test]
fn an_asker_stays_and_askers_are_shared_out_by_weight() {
    let plan = plan(&[(19, vec![1, 1]), (1, vec![1])]);
    let mut out = Out::default();
    let mut of_canary = 0;
    for asker in 0..10_000 {
        let first = choose(&plan, Selection::StickyKey, asker, &mut out).unwrap();
        let again = choose(&plan, Selection::StickyKey, asker, &mut out).unwrap();
        assert_eq!(first, again);
        of_canary += u32::from(first.target == 1);
    }
    assert!((400..600).contains(&of_canary), "{of_canary} of 10,000");
}

#[test]
fn when_a_canary_grows_only_the_askers_move_that_it_takes_over() {
    let small = plan(&[(19, vec![1]), (1, vec![1])]);
    let large = plan(&[(17, vec![1]), (3, vec![1])]);
    let mut out = Out::default();
    for asker in 0..10_000 {
        let before = choose(&small, Selection::StickyUser, asker, &mut out).unwrap();
        let after = choose(&large, Selection::StickyUser, asker, &mut out).unwrap();
        assert!(
            before.target == 0 || after.target == 1,
            "{asker} moved back"
        );
    }
}

#[test]
fn an_asker_whose_target_is_out_goes_to_another_and_comes_back() {
    let plan = plan(&[(1, vec![1]), (1, vec![1]), (1, vec![1])]);
    let mut out = Out::default();
    for asker in 0..100 {
        let home = choose(&plan, Selection::StickyKey, asker, &mut out).unwrap();
        out.upstreams.push(home.target);
        let away = choose(&plan, Selection::StickyKey, asker, &mut out).unwrap();
        assert_ne!(away.target, home.target);
        out.upstreams.clear();
        assert_eq!(
            choose(&plan, Selection::StickyKey, asker, &mut out),
            Some(home)
        );
    }
}
