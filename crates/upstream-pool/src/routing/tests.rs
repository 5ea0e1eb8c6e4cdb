use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::SecretString;
use sluice_domain::id::{RouteId, TenantId, UpstreamId, UpstreamKeyId, uuid_v7};
use sluice_domain::pool::{Selection, TargetUse};
use sluice_domain::route::{Endpoint, Protocol, Route, Target};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::ProviderKind;

use super::choice::{Choice, Judge};
use super::*;
use crate::client::Origin;

fn uuid(n: u8) -> uuid::Uuid {
    uuid_v7(u64::from(n) + 1, [n; 10])
}

pub(super) fn tenant(n: u8) -> TenantId {
    TenantId::from_uuid(uuid(n))
}

pub(super) fn upstream(n: u8) -> Upstream {
    Upstream::new(
        UpstreamId::from_uuid(uuid(n)),
        format!("up-{n}").parse().unwrap(),
        ProviderKind::OpenAi,
        Some("https://api.example.com/v1".parse().unwrap()),
        UnixMillis(0),
    )
}

pub(super) fn key(n: u8, upstream: u8, weight: u32) -> (UpstreamKey, SecretString) {
    let key = UpstreamKey {
        weight,
        ..UpstreamKey::new(
            UpstreamKeyId::from_uuid(uuid(n)),
            UpstreamId::from_uuid(uuid(upstream)),
            format!("key-{n}").parse().unwrap(),
            UnixMillis(0),
        )
    };
    (key, SecretString::from(format!("sk-secret-{n}")))
}

pub(super) fn target(tier: u32, weight: u32, upstream: u8, model: Option<&str>) -> Target {
    Target {
        tier,
        weight,
        upstream_model: model.map(str::to_owned),
        ..Target::new(UpstreamId::from_uuid(uuid(upstream)))
    }
}

pub(super) fn route(n: u8, tenant_id: Option<TenantId>, model: &str) -> Route {
    Route {
        tenant_id,
        ..Route::new(
            RouteId::from_uuid(uuid(n)),
            model.to_owned(),
            vec![target(0, 1, 1, None)],
            UnixMillis(i64::from(n) * 1_000),
        )
    }
}

fn input(routes: Vec<Route>) -> RoutingInput {
    RoutingInput {
        upstreams: vec![upstream(1)],
        keys: vec![key(1, 1, 1)],
        routes,
    }
}

#[track_caller]
fn build(input: RoutingInput) -> RoutingTable {
    let (table, problems) = RoutingTable::build(input, &HealthRegistry::new());
    assert_eq!(problems, []);
    table
}

fn found(table: &RoutingTable, tenant_id: TenantId, model: &str) -> Option<RouteId> {
    table
        .find_route(tenant_id, model)
        .map(|plan| plan.route_id())
}

/// Lets everything be asked.
struct Anything;

impl Judge for Anything {
    fn may_ask(&mut self, _: &Member) -> bool {
        true
    }

    fn may_use(&mut self, _: Choice, _: &Member) -> bool {
        true
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

fn pick<'a>(plan: &'a RoutePlan, asked: &'a Arc<str>) -> Lane<'a> {
    let tier = &plan.tiers(TargetUse::Any)[0];
    let choice = tier.choose(plan.selection, 0, &mut Anything).unwrap();
    let target = &tier.targets[choice.target];
    Lane {
        upstream: &target.member.prepared,
        key: &target.member.prepared.keys[choice.key],
        model: target.model(asked),
        attempt: 0,
    }
}

fn id(n: u8) -> RouteId {
    RouteId::from_uuid(uuid(n))
}

#[test]
fn a_tenants_own_routes_win_and_exact_names_before_patterns() {
    let own = Some(tenant(1));
    let table = build(input(vec![
        route(1, None, "gpt-4o"),
        route(2, None, "gpt-*"),
        route(3, None, "*"),
        route(4, None, "gpt-4*"),
        route(5, own, "gpt-4*"),
        route(6, own, "gpt-4-turbo"),
    ]));
    assert_eq!(found(&table, tenant(2), "gpt-4o"), Some(id(1)));
    assert_eq!(found(&table, tenant(2), "gpt-4o-mini"), Some(id(4)));
    assert_eq!(found(&table, tenant(2), "gpt-5"), Some(id(2)));
    assert_eq!(found(&table, tenant(2), "claude"), Some(id(3)));
    assert_eq!(
        found(&table, tenant(1), "gpt-4o"),
        Some(id(5)),
        "own pattern before shared name"
    );
    assert_eq!(found(&table, tenant(1), "gpt-4-turbo"), Some(id(6)));
    assert_eq!(found(&table, tenant(1), "gpt-5"), Some(id(2)));
}

#[test]
fn without_a_match_nothing_is_found() {
    let table = build(input(vec![
        route(1, Some(tenant(1)), "a"),
        route(2, None, "ab*"),
    ]));
    assert_eq!(found(&table, tenant(2), "a"), None);
    assert_eq!(found(&table, tenant(1), "aa"), None);
    assert_eq!(found(&table, tenant(1), ""), None);
    assert_eq!(found(&table, tenant(1), "ab"), Some(id(2)));
}

#[test]
fn the_requested_name_is_passed_on_where_no_other_is_set() {
    let mut renamed = route(2, None, "alias");
    renamed.targets = vec![target(0, 1, 1, Some("real"))];
    let table = build(input(vec![
        route(1, None, "x*"),
        renamed,
        route(3, None, "same"),
    ]));
    for (asked, sent) in [("x-1", "x-1"), ("alias", "real"), ("same", "same")] {
        let plan = table.find_route(tenant(1), asked).unwrap();
        let asked = Arc::from(asked);
        assert_eq!(&**pick(&plan, &asked).info().upstream_model, sent);
        let targets: Vec<_> = plan.targets(&asked).map(|t| &**t.upstream_model).collect();
        assert_eq!(targets, [sent]);
    }
}

#[test]
fn models_are_listed_once_without_patterns_and_foreign_routes() {
    let table = build(input(vec![
        route(1, None, "b"),
        route(2, None, "a"),
        route(3, None, "p*"),
        route(4, Some(tenant(1)), "a"),
        route(5, Some(tenant(2)), "secret"),
    ]));
    let models = table.models(tenant(1));
    let ids: Vec<(&str, i64)> = models.iter().map(|m| (&*m.id, m.created)).collect();
    assert_eq!(ids, [("a", 4), ("b", 1)]);
    assert_eq!(models[0].owned_by, "openai");
}

#[test]
fn only_the_first_tier_is_picked_and_all_are_listed() {
    let mut tiered = route(1, None, "m");
    tiered.targets = vec![
        target(5, 9, 1, Some("second")),
        target(2, 1, 1, Some("first")),
    ];
    let table = build(input(vec![tiered]));
    let plan = table.find_route(tenant(1), "m").unwrap();
    let asked = Arc::from("m");
    for _ in 0..10 {
        assert_eq!(&**pick(&plan, &asked).info().upstream_model, "first");
    }
    let all: Vec<_> = plan.targets(&asked).map(|t| &**t.upstream_model).collect();
    assert_eq!(all, ["first", "second"]);
}

#[test]
fn uris_hosts_and_credentials_are_prepared() {
    let table = build(input(vec![route(1, None, "m")]));
    let plan = table.find_route(tenant(1), "m").unwrap();
    let asked = Arc::from("m");
    let lane = pick(&plan, &asked);
    let address = lane.upstream.address.as_ref().unwrap();
    assert_eq!(address.host, "api.example.com");
    assert_eq!(
        address
            .uri(Endpoint::ChatCompletions, false, "m")
            .unwrap()
            .to_string(),
        "/v1/chat/completions"
    );
    assert_eq!(address.uri(Endpoint::Messages, false, "m"), None);
    let base = "https://api.example.com".parse().unwrap();
    assert_eq!(Some(&address.origin), Origin::new(&base, false).as_ref());
    let headers = lane.key.headers.for_document();
    assert_eq!(headers["authorization"], "Bearer sk-secret-1");
    let printed = format!("{table:?} {plan:?}");
    assert!(!printed.contains("sk-secret"), "{printed}");
}

#[test]
fn an_anthropic_upstream_has_paths_and_a_credential_of_its_own() {
    for (base, below) in [
        ("https://api.example.com/v1", "/v1"),
        ("https://api.example.com", "/v1"),
        ("https://api.example.com/anthropic/", "/anthropic/v1"),
    ] {
        let mut claude = upstream(1);
        claude.kind = ProviderKind::Anthropic;
        claude.base_url = Some(base.parse().unwrap());
        let table = build(RoutingInput {
            upstreams: vec![claude],
            ..input(vec![route(1, None, "m")])
        });
        let plan = table.find_route(tenant(1), "m").unwrap();
        let asked = Arc::from("m");
        let lane = pick(&plan, &asked);
        let address = lane.upstream.address.as_ref().unwrap();
        let path = |endpoint, is_beta| address.uri(endpoint, is_beta, "m").unwrap().to_string();
        assert_eq!(path(Endpoint::Messages, false), format!("{below}/messages"));
        assert_eq!(
            path(Endpoint::CountTokens, true),
            format!("{below}/messages/count_tokens?beta=true")
        );
        assert_eq!(address.uri(Endpoint::ChatCompletions, false, "m"), None);
        let headers = lane.key.headers.for_document();
        assert_eq!(headers["x-api-key"], "sk-secret-1");
        assert!(headers["x-api-key"].is_sensitive() && !headers.contains_key("authorization"));
    }
}

#[test]
fn each_protocol_is_served_by_the_targets_that_speak_it() {
    let upstreams = || {
        let mut claude = upstream(2);
        claude.kind = ProviderKind::Anthropic;
        let mut demo = upstream(3);
        (demo.kind, demo.base_url) = (ProviderKind::Demo, None);
        vec![upstream(1), claude, demo]
    };
    let mut shown = route(4, None, "shown");
    shown.targets = vec![target(0, 1, 3, None)];
    let mut rest = route(5, None, "rest");
    rest.targets = vec![target(0, 1, 1, Some("a")), target(1, 1, 3, Some("demo"))];
    let mut both = route(1, None, "both");
    both.targets = vec![target(0, 1, 1, Some("a")), target(0, 3, 2, Some("b"))];
    let mut claude_alone = route(2, None, "claude");
    claude_alone.targets = vec![target(0, 1, 2, None)];
    let table = build(RoutingInput {
        upstreams: upstreams(),
        keys: vec![key(1, 1, 1), key(2, 2, 1)],
        routes: vec![both, claude_alone, route(3, None, "m"), shown, rest],
    });
    let models = |model: &str, protocol| {
        let plan = table.find_route(tenant(1), model)?.speaking(protocol)?;
        let asked: Arc<str> = Arc::from(model);
        let picked: Vec<String> = (0..6)
            .map(|_| pick(&plan, &asked).model.to_string())
            .collect();
        Some((picked, plan.targets(&asked).count()))
    };
    let six = |model: &str| Some((vec![model.to_owned(); 6], 1));
    assert_eq!(models("both", Protocol::OpenAi), six("a"));
    assert_eq!(models("both", Protocol::Anthropic), six("b"));
    assert_eq!(models("claude", Protocol::OpenAi), None);
    assert_eq!(models("claude", Protocol::Anthropic), six("claude"));
    assert_eq!(models("m", Protocol::Anthropic), None);
    // The built-in one speaks both.
    assert_eq!(models("shown", Protocol::OpenAi), six("shown"));
    assert_eq!(models("shown", Protocol::Anthropic), six("shown"));
    assert_eq!(models("rest", Protocol::OpenAi).unwrap().0, vec!["a"; 6]);
    assert_eq!(models("rest", Protocol::Anthropic), six("demo"));
    // What nothing can serve is answered with that, whatever the protocol.
    let nowhere = input(vec![Route {
        targets: vec![target(0, 1, 9, None)],
        ..route(1, None, "m")
    }]);
    let (table, _) = RoutingTable::build(nowhere, &HealthRegistry::new());
    let plan = table.find_route(tenant(1), "m").unwrap();
    assert!(!plan.speaking(Protocol::Anthropic).unwrap().is_usable());
}

#[test]
fn the_plan_of_a_protocol_keeps_what_the_route_says_and_what_is_known_of_its_upstreams() {
    let mut claude = upstream(2);
    claude.kind = ProviderKind::Anthropic;
    let longer = |upstream, model| Target {
        serves: TargetUse::ContextLength,
        ..target(0, 1, upstream, Some(model))
    };
    let mut both = route(1, None, "m");
    both.selection = Selection::StickyUser;
    both.targets = vec![
        target(0, 1, 1, None),
        target(1, 1, 2, None),
        longer(2, "m-long"),
    ];
    let mut long_only = route(2, None, "n");
    long_only.targets = vec![target(0, 1, 1, None), longer(2, "n-long")];
    let table = build(RoutingInput {
        upstreams: vec![upstream(1), claude],
        keys: vec![key(1, 1, 1), key(2, 2, 1)],
        routes: vec![both, long_only],
    });
    let whole = table.find_route(tenant(1), "m").unwrap();
    let speaking = |protocol| Arc::clone(&whole).speaking(protocol).unwrap();
    let (chats, messages) = (speaking(Protocol::OpenAi), speaking(Protocol::Anthropic));
    for plan in [&chats, &messages] {
        assert_eq!(plan.route_id(), whole.route_id());
        assert_eq!(plan.selection, Selection::StickyUser);
    }
    assert!(messages.leads_to("up-2") && !messages.leads_to("up-1"));
    assert!(chats.leads_to("up-1") && !chats.leads_to("up-2"));
    let longer = |plan: &RoutePlan| plan.tiers(TargetUse::ContextLength).len();
    assert_eq!((longer(&chats), longer(&messages)), (0, 1));
    let member = |plan: &RoutePlan, tier: usize| {
        Arc::clone(&plan.tiers(TargetUse::Any)[tier].targets[0].member)
    };
    assert!(Arc::ptr_eq(&member(&whole, 1), &member(&messages, 0)));
    assert!(Arc::ptr_eq(&member(&whole, 0), &member(&chats, 0)));
    // What only helps out has nobody to help among those that speak the same.
    let chats_alone = table.find_route(tenant(1), "n").unwrap();
    assert!(
        Arc::clone(&chats_alone)
            .speaking(Protocol::Anthropic)
            .is_none()
    );
    let chats = chats_alone.speaking(Protocol::OpenAi).unwrap();
    assert_eq!(longer(&chats), 0);
}

#[test]
fn what_cannot_be_used_is_reported_and_leaves_only_itself_out() {
    let mut off = upstream(2);
    off.state = EntityState::Disabled;
    let mut keyless_too = upstream(3);
    keyless_too.kind = ProviderKind::Anthropic;
    let keyless = upstream(4);
    let bad_secret = upstream(5);
    let mut foreign = upstream(6);
    foreign.tenant_id = Some(tenant(9));
    let mut nowhere = upstream(7);
    nowhere.base_url = None;
    let mut bad_key = key(5, 5, 1);
    bad_key.1 = SecretString::from("sk-with\nnewline");

    let mut wide = route(1, None, "m");
    wide.targets = (1..=8).map(|n| target(0, 1, n, None)).collect();
    let mut dead = route(2, Some(tenant(1)), "dead");
    dead.targets = vec![target(0, 1, 4, None)];
    let (table, problems) = RoutingTable::build(
        RoutingInput {
            upstreams: vec![
                upstream(1),
                off,
                keyless_too,
                keyless,
                bad_secret,
                foreign,
                nowhere,
            ],
            keys: vec![key(1, 1, 1), bad_key, key(6, 6, 1)],
            routes: vec![wide, dead, route(3, None, "dead"), route(4, None, "m")],
        },
        &HealthRegistry::new(),
    );

    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    for part in [
        "`up-3` has no usable key",
        "`up-4` has no usable key",
        "key `key-5` of upstream `up-5`",
        "`up-5` has no usable key",
        "`up-2`, which is disabled",
        "`up-6`, which belongs to another tenant",
        "`up-7` has no base URL",
        "which does not exist",
        "route `dead` has no target",
        "more than one active route for `m`",
    ] {
        assert_eq!(
            texts.iter().filter(|t| t.contains(part)).count(),
            1,
            "{part}: {texts:#?}"
        );
    }
    assert_eq!(problems.len(), 10, "{texts:#?}");
    assert!(!texts.concat().contains("sk-"), "{texts:#?}");

    let plan = table.find_route(tenant(1), "m").unwrap();
    assert_eq!(
        (plan.route_id(), plan.targets(&Arc::from("m")).count()),
        (id(1), 1)
    );
    let dead = table.find_route(tenant(1), "dead").unwrap();
    assert!(
        !dead.is_usable(),
        "a broken route of the tenant must not fall to a shared one"
    );
    assert_eq!(table.models(tenant(1)).len(), 1);
}

#[test]
fn a_compatible_server_may_have_no_key_but_not_only_disabled_ones() {
    let mut open = upstream(1);
    open.kind = ProviderKind::Compatible;
    let routes = vec![route(1, None, "m")];
    let keyless = RoutingInput {
        upstreams: vec![open.clone()],
        keys: Vec::new(),
        routes: routes.clone(),
    };
    let table = build(keyless);
    let plan = table.find_route(tenant(1), "m").unwrap();
    let asked = Arc::from("m");
    let headers = pick(&plan, &asked).key.headers.for_document();
    assert!(headers.contains_key("host") && !headers.contains_key("authorization"));

    let mut disabled = key(1, 1, 1);
    disabled.0.state = EntityState::Disabled;
    let (_, problems) = RoutingTable::build(
        RoutingInput {
            upstreams: vec![open],
            keys: vec![disabled],
            routes,
        },
        &HealthRegistry::new(),
    );
    assert!(
        matches!(problems[0], RoutingProblem::NoUsableKey { .. }),
        "{problems:?}"
    );
}

fn shares(plan: &RoutePlan, picks: usize) -> HashMap<(String, UpstreamKeyId), usize> {
    let asked = Arc::from("m");
    let mut counts = HashMap::new();
    for _ in 0..picks {
        let lane = pick(plan, &asked);
        *counts
            .entry((lane.model.to_string(), lane.key.id.unwrap()))
            .or_default() += 1;
    }
    counts
}

proptest! {
    #[test]
    fn the_share_of_a_target_and_key_is_the_product_of_their_weights(
        targets in prop::collection::vec((1_u32..8, 1_u8..4), 1..5),
        key_weights in prop::collection::vec((1_u8..4, 1_u32..6), 3..9),
        seed in any::<u8>(),
    ) {
        let keys: Vec<_> = (1_u8..4)
            .map(|n| (n, 1))
            .chain(key_weights)
            .enumerate()
            .map(|(n, (upstream, weight))| key(u8::try_from(n).unwrap(), upstream, weight))
            .collect();
        let mut shared = route(seed, None, "m");
        shared.targets = targets
            .iter()
            .enumerate()
            .map(|(n, &(weight, up))| target(0, weight, up, Some(&format!("model-{n}"))))
            .collect();
        let table = build(RoutingInput {
            upstreams: vec![upstream(1), upstream(2), upstream(3)],
            keys: keys.clone(),
            routes: vec![shared],
        });
        let plan = table.find_route(tenant(1), "m").unwrap();

        let weight_of = |up: u8| -> u32 {
            let id = UpstreamId::from_uuid(uuid(up));
            keys.iter().filter(|(k, _)| k.upstream_id == id).map(|(k, _)| k.weight).sum()
        };
        let total: u32 = targets.iter().map(|(weight, _)| weight).sum();
        let rounds: u32 = (1..=3).map(weight_of).product();
        let counts = shares(&plan, usize::try_from(total * rounds).unwrap());
        for (n, &(weight, up)) in targets.iter().enumerate() {
            let id = UpstreamId::from_uuid(uuid(up));
            for (k, _) in keys.iter().filter(|(k, _)| k.upstream_id == id) {
                let expected = u64::from(rounds) * u64::from(weight) * u64::from(k.weight)
                    / u64::from(weight_of(up));
                let count = counts.get(&(format!("model-{n}"), k.id)).copied().unwrap_or(0);
                prop_assert_eq!(count as u64, expected);
            }
        }
    }

    #[test]
    fn the_longest_pattern_wins(
        patterns in prop::collection::hash_set("[ab]{0,5}", 0..12),
        model in "[ab]{0,7}",
    ) {
        let patterns: Vec<String> = patterns.into_iter().collect();
        let routes = patterns
            .iter()
            .enumerate()
            .map(|(n, prefix)| route(u8::try_from(n).unwrap() + 1, None, &format!("{prefix}*")))
            .collect();
        let table = build(input(routes));
        let expected = patterns
            .iter()
            .enumerate()
            .filter(|(_, prefix)| model.starts_with(*prefix))
            .max_by_key(|(_, prefix)| prefix.len())
            .map(|(n, _)| id(u8::try_from(n).unwrap() + 1));
        prop_assert_eq!(found(&table, tenant(1), &model), expected);
    }
}
