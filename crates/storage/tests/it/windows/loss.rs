//! Redis slow, away, or back with nothing: what each instance does then.

use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::window::{InstanceRank, WindowAnswer, WindowGroup, WindowKind};
use sluice_storage::windows::{LocalReason, NodeMode, RedisLoss, RedisOptions};
use sluice_testkit::{Fault, Link, RedisCluster, RedisServer, faketime, redis_server};
use tokio::time::{Instant, sleep};

use super::fixture::{Kept, admitted, ask, dry, key, redis_options, refused, tenant, wait_until};

fn rank(rank: u32, instances: u32) -> InstanceRank {
    InstanceRank {
        instances: NonZeroU32::new(instances).unwrap(),
        rank,
    }
}

/// Instances that are told apart, on one server.
async fn instances(count: u32, options: &RedisOptions) -> Vec<Kept> {
    let mut all = Vec::new();
    for at in 0..count {
        let options = RedisOptions {
            boot_id: redis_options("redis://unused").boot_id,
            ..options.clone()
        };
        let kept = Kept::start(options, RedisLoss::Share);
        kept.windows.set_rank(rank(at, count));
        kept.wait_for_redis().await;
        all.push(kept);
    }
    all
}

#[tokio::test]
async fn instances_share_one_limit_in_redis() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let all = instances(3, &redis_options(&server.url())).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    let mut sum = 0;
    for instance in &all {
        sum += instance.admitted(group, &ask, 8).await;
    }
    assert_eq!(sum, 10);
}

#[tokio::test]
async fn without_redis_each_instance_has_its_share_and_the_rest_goes_to_the_first() {
    let Some(binary) = redis_server() else { return };
    let mut server = RedisServer::start(&binary);
    let all = instances(3, &redis_options(&server.url())).await;
    server.kill();
    let mut admitted = Vec::new();
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 5, 1));
    for (instance, share) in all.iter().zip([2, 2, 1]) {
        instance.wait_for_local().await;
        let answer = instance.decide(group, std::slice::from_ref(&ask)).await;
        let (_ticket, standings) = self::admitted(answer);
        assert_eq!(
            (standings[0].most, standings[0].remaining()),
            (5, share - 1)
        );
        admitted.push(1 + instance.admitted(group, &ask, 8).await);
    }
    assert_eq!(admitted, [2, 2, 1]);
}

#[tokio::test]
async fn a_share_of_nothing_admits_nothing() {
    let kept = Kept::start(redis_options("redis://127.0.0.1:1"), RedisLoss::Share);
    kept.windows.set_rank(rank(7, 10));
    let ask = ask(&key(), WindowKind::Rpm, 5, 1);
    assert_eq!(kept.admitted(tenant(), &ask, 3).await, 0);
}

#[tokio::test]
async fn what_was_admitted_in_redis_counts_against_the_share() {
    let Some(binary) = redis_server() else { return };
    let mut server = RedisServer::start(&binary);
    let all = instances(2, &redis_options(&server.url())).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    // The first has 3 of its 5, the second none of its own.
    assert_eq!(all[0].admitted(group, &ask, 3).await, 3);
    server.kill();
    for (instance, expected) in all.iter().zip([2, 5]) {
        instance.wait_for_local().await;
        assert_eq!(instance.admitted(group, &ask, 10).await, expected);
    }
}

#[tokio::test]
async fn what_was_admitted_without_redis_is_added_when_it_is_back() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let links = [Link::start(server.address()), Link::start(server.address())];
    let options = redis_options(&server.url());
    let mut all = Vec::new();
    for (at, link) in links.iter().enumerate() {
        let url = format!("redis://{}", link.address());
        let kept = Kept::start(
            RedisOptions {
                prefix: options.prefix.clone(),
                ..redis_options(&url)
            },
            RedisLoss::Share,
        );
        kept.windows.set_rank(rank(u32::try_from(at).unwrap(), 2));
        kept.wait_for_redis().await;
        all.push(kept);
    }
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    assert_eq!(all[0].admitted(group, &ask, 2).await, 2);
    links[0].cut();
    all[0].wait_for_local().await;
    // Its half is 5, of which it had 2.
    assert_eq!(all[0].admitted(group, &ask, 10).await, 3);
    // The server knows only of 2 so far.
    assert_eq!(all[1].admitted(group, &ask, 4).await, 4);
    links[0].restore();
    all[0].wait_for_redis().await;
    // 2 + 3 + 4 are known now, so one is left for both.
    assert_eq!(all[0].admitted(group, &ask, 5).await, 1);
    assert_eq!(all[1].admitted(group, &ask, 5).await, 0);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_not_counted_on_before_all_has_left_the_window() {
    let Some(binary) = redis_server() else { return };
    let mut server = RedisServer::start(&binary);
    let options = RedisOptions {
        memory: Duration::from_secs(3),
        ..redis_options(&server.url())
    };
    let all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    assert_eq!(all[0].admitted(group, &ask, 10).await, 10);
    server.restart();
    let back = Instant::now();
    for instance in &all {
        instance.wait_for_local().await;
    }
    // The first has more than its share, the second has all of its own.
    assert_eq!(all[0].admitted(group, &ask, 10).await, 0);
    assert_eq!(all[1].admitted(group, &ask, 10).await, 5);
    // One that has just started and knows nothing is told as well.
    let late = Kept::start(options, RedisLoss::Share);
    late.windows.set_rank(rank(2, 3));
    wait_until("it waits", || {
        let nodes = late.windows.status().nodes;
        nodes
            .iter()
            .all(|node| node.mode == NodeMode::Local(LocalReason::Forgetful))
    })
    .await;
    for instance in all.iter().chain([&late]) {
        instance.wait_for_redis().await;
    }
    assert!(
        back.elapsed() >= Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_was_emptied_is_not_counted_on() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let options = RedisOptions {
        // Longer than the test: whether it is over does not depend on the machine.
        memory: Duration::from_mins(1),
        ..redis_options(&server.url())
    };
    // The key of the server itself is as after its first minute.
    let first = Kept::start(
        RedisOptions {
            memory: Duration::from_millis(100),
            ..options.clone()
        },
        RedisLoss::Share,
    );
    first.wait_for_redis().await;
    drop(first);
    let all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    assert_eq!(all[0].admitted(group, &ask, 10).await, 10);
    server.command(&["FLUSHALL"]);
    // At once, by the marker that is gone: not even the first decision is admitted.
    assert_eq!(all[0].admitted(group, &ask, 10).await, 0);
    // The others learn it from Redis.
    assert_eq!(all[1].admitted(group, &ask, 10).await, 5);
    for instance in &all {
        instance.wait_for_local().await;
    }
}

#[tokio::test]
async fn a_counter_that_was_evicted_stops_its_group_for_all() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let options = RedisOptions {
        memory: Duration::from_secs(4),
        ..redis_options(&server.url())
    };
    let all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    assert_eq!(all[0].admitted(group, &ask, 10).await, 10);
    let WindowGroup::Tenant(id) = group else {
        panic!()
    };
    let meta = format!("{}:w1:{{tenant:{id}}}", options.prefix);
    assert_eq!(server.command(&["DEL", &meta]), "1");
    assert_eq!(all[0].admitted(group, &ask, 10).await, 0);
    assert_eq!(all[1].admitted(group, &ask, 10).await, 5, "its share");
    let others = super::fixture::ask(&key(), WindowKind::Rpm, 10, 1);
    assert_eq!(
        all[1].admitted(tenant(), &others, 10).await,
        10,
        "others go on"
    );
}

#[tokio::test]
async fn deny_refuses_everything_that_has_a_limit() {
    let kept = Kept::start(redis_options("redis://127.0.0.1:1"), RedisLoss::Deny);
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 5, 1));
    let refusal = refused(kept.decide(group, &[dry(ask.clone()), ask.clone()]).await);
    assert_eq!(refusal.which, 1);
    assert_eq!(refusal.retry_after, Duration::from_secs(1));
    drop(admitted(kept.decide(group, &[dry(ask)]).await));
}

#[tokio::test]
async fn the_limits_of_the_instance_never_leave_it() {
    let kept = Kept::start(redis_options("redis://127.0.0.1:1"), RedisLoss::Deny);
    kept.windows.set_rank(rank(0, 4));
    let subject = sluice_domain::window::WindowSubject::Instance;
    let ask = ask(&subject, WindowKind::Rpm, 8, 1);
    assert_eq!(kept.admitted(WindowGroup::Instance, &ask, 10).await, 8);
}

#[tokio::test]
async fn slots_of_an_instance_that_is_gone_are_free_again() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let options = RedisOptions {
        slots_expire: Duration::from_secs(2),
        ..redis_options(&server.url())
    };
    let mut all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Concurrency, 1, 1));
    let first = all.remove(0);
    let (ticket, _) = admitted(first.decide(group, std::slice::from_ref(&ask)).await);
    // As long as it lives, they are told again and again.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        refused(all[0].decide(group, std::slice::from_ref(&ask)).await);
        sleep(Duration::from_millis(50)).await;
    }
    // It ends without a word: nothing is given back.
    drop(first);
    std::mem::forget(ticket);
    let gone = Instant::now();
    while matches!(
        all[0].decide(group, std::slice::from_ref(&ask)).await,
        WindowAnswer::Refused(_)
    ) {
        assert!(gone.elapsed() < Duration::from_secs(30));
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn slots_that_were_given_back_are_free_for_others_soon() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let options = RedisOptions {
        // Longer than the test: they do not come back by expiry.
        slots_expire: Duration::from_mins(10),
        ..redis_options(&server.url())
    };
    let all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Concurrency, 1, 1));
    for turn in 0..10 {
        let (holder, other) = (&all[turn % 2], &all[(turn + 1) % 2]);
        let started = Instant::now();
        let ticket = loop {
            match holder.decide(group, std::slice::from_ref(&ask)).await {
                WindowAnswer::Admitted { ticket, .. } => break ticket,
                WindowAnswer::Refused(_) => {
                    assert!(started.elapsed() < Duration::from_secs(30), "turn {turn}");
                    sleep(Duration::from_millis(2)).await;
                }
            }
        };
        refused(other.decide(group, std::slice::from_ref(&ask)).await);
        drop(ticket);
    }
}

#[tokio::test]
async fn a_server_that_lost_the_scripts_is_given_them_again() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let kept = Kept::start(redis_options(&server.url()), RedisLoss::Share);
    kept.wait_for_redis().await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 3, 1));
    server.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(kept.admitted(group, &ask, 5).await, 3);
    let status = kept.windows.status();
    assert_eq!((status.redis_decisions, status.local_decisions), (5, 0));
}

#[tokio::test]
async fn a_replica_is_not_asked() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let kept = Kept::start(redis_options(&server.url()), RedisLoss::Share);
    kept.wait_for_redis().await;
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 3, 1));
    assert_eq!(kept.admitted(group, &ask, 5).await, 3);
    kept.wait_for_local().await;
    server.command(&["REPLICAOF", "NO", "ONE"]);
    kept.wait_for_redis().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_server_is_told() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start_with(
        &binary,
        &["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"],
    );
    let kept = Kept::start(redis_options(&server.url()), RedisLoss::Share);
    kept.wait_for_redis().await;
    let warnings = kept.windows.status().nodes[0].warnings.join("\n");
    assert!(warnings.contains("allkeys-lru"), "{warnings}");
}

#[tokio::test]
async fn a_slow_server_costs_little_and_is_probed_by_one_at_a_time() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let link = Link::start(server.address());
    let options = RedisOptions {
        deadline: Duration::from_millis(20),
        ..redis_options(&format!("redis://{}", link.address()))
    };
    let kept = Kept::start(options, RedisLoss::Share);
    kept.wait_for_redis().await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 1_000_000, 1));
    link.disturb(Fault::Latency(Duration::from_secs(1)));
    kept.admitted(group, &ask, 10).await;
    kept.wait_for_local().await;
    // From now on nobody waits: ten thousand decisions take less than one late answer would.
    let before = kept.windows.status();
    let started = Instant::now();
    assert_eq!(kept.admitted(group, &ask, 10_000).await, 10_000);
    assert!(started.elapsed() < Duration::from_secs(10));
    let after = kept.windows.status();
    assert_eq!(after.redis_decisions, before.redis_decisions);
    link.restore();
    let restored = Instant::now();
    kept.wait_for_redis().await;
    assert!(restored.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_is_not_counted_on_by_anyone() {
    let (Some(binary), Some(faketime)) = (redis_server(), faketime()) else {
        return;
    };
    let server = RedisServer::start_with_clock(&binary, &faketime);
    let options = RedisOptions {
        memory: Duration::from_secs(4),
        ..redis_options(&server.url())
    };
    let all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    assert_eq!(all[0].admitted(group, &ask, 10).await, 10);
    // All that was counted has left the window, by the clock of the server.
    server.set_clock("+70");
    wait_until("it is seen", || {
        all.iter().all(|instance| !instance.is_in_redis())
    })
    .await;
    let reasons = all
        .iter()
        .map(|instance| instance.windows.status().nodes[0].mode);
    assert!(
        reasons
            .into_iter()
            .any(|mode| mode == NodeMode::Local(LocalReason::ClockJumped))
    );
    assert_eq!(all[0].admitted(group, &ask, 10).await, 0);
    assert_eq!(all[1].admitted(group, &ask, 10).await, 5);
    for instance in &all {
        instance.wait_for_redis().await;
    }
}

#[tokio::test]
async fn a_clock_that_goes_back_frees_nothing() {
    let (Some(binary), Some(faketime)) = (redis_server(), faketime()) else {
        return;
    };
    let server = RedisServer::start_with_clock(&binary, &faketime);
    let options = redis_options(&server.url());
    let kept = Kept::start(options.clone(), RedisLoss::Share);
    kept.wait_for_redis().await;
    // As if it had been there for long: going back into its first time would be waited out.
    let name = format!("{}:w1:{{server}}:server", options.prefix);
    server.command(&["HSET", &name, "c", "0"]);
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rps, 10, 1));
    assert_eq!(kept.admitted(group, &ask, 10).await, 10);
    server.set_clock("-5");
    assert_eq!(kept.admitted(group, &ask, 10).await, 0);
    // The counter's clock stands until it is where it was.
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(kept.admitted(group, &ask, 10).await, 0);
    assert!(kept.is_in_redis());
}

#[tokio::test]
async fn a_new_master_is_found_by_sentinels_and_not_counted_on_at_first() {
    let Some(binary) = redis_server() else { return };
    let mut master = RedisServer::start(&binary);
    let port = master.address().port().to_string();
    let replica = RedisServer::start_with(&binary, &["--replicaof", "127.0.0.1", &port]);
    wait_until("the replica follows", || {
        replica
            .command(&["INFO", "replication"])
            .contains("master_link_status:up")
    })
    .await;
    let sentinel = RedisServer::start_sentinel(&binary, &master);
    wait_until("the sentinel knows the replica", || {
        sentinel
            .command(&["SENTINEL", "replicas", "main"])
            .contains(&replica.address().to_string())
    })
    .await;
    let options = RedisOptions {
        memory: Duration::from_secs(3),
        ..redis_options(&format!("redis-sentinel://{}/main", sentinel.address()))
    };
    let all = instances(2, &options).await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, 10, 1));
    assert_eq!(all[0].admitted(group, &ask, 10).await, 10);
    master.kill();
    for instance in &all {
        instance.wait_for_local().await;
    }
    wait_until("the new master is found", || {
        all.iter().all(|instance| {
            instance.windows.status().nodes[0].mode == NodeMode::Local(LocalReason::Forgetful)
        })
    })
    .await;
    for instance in &all {
        instance.wait_for_redis().await;
    }
    assert!(
        replica
            .command(&["INFO", "replication"])
            .contains("role:master")
    );
}

#[tokio::test]
async fn one_server_of_a_cluster_that_is_lost_leaves_the_others() {
    let Some(binary) = redis_server() else { return };
    let mut cluster = RedisCluster::start(&binary, 3);
    let kept = Kept::start(redis_options(&cluster.url()), RedisLoss::Share);
    kept.windows.set_rank(rank(0, 2));
    kept.wait_for_redis().await;
    cluster.servers()[1].kill();
    kept.wait_for_local().await;
    let mut admitted = Vec::new();
    for _ in 0..30 {
        let ask = ask(&key(), WindowKind::Rpm, 10, 1);
        admitted.push(kept.admitted(tenant(), &ask, 12).await);
    }
    // Its groups have a share; a cluster without a part of its slots serves the others no more
    // either, unless it is told to.
    assert!(admitted.contains(&5), "{admitted:?}");
    assert!(
        admitted.iter().all(|count| matches!(count, 5 | 10)),
        "{admitted:?}"
    );
    cluster.servers()[1].restart();
    kept.wait_for_redis().await;
}

#[tokio::test]
async fn slots_that_were_taken_without_redis_are_told_when_it_is_back() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let link = Link::start(server.address());
    let options = RedisOptions {
        slots_expire: Duration::from_secs(3),
        ..redis_options(&server.url())
    };
    let cut_off = Kept::start(
        RedisOptions {
            prefix: options.prefix.clone(),
            slots_expire: options.slots_expire,
            ..redis_options(&format!("redis://{}", link.address()))
        },
        RedisLoss::Share,
    );
    cut_off.wait_for_redis().await;
    let other = instances(1, &options).await;
    link.cut();
    cut_off.wait_for_local().await;
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Concurrency, 1, 1));
    let (_ticket, _) = admitted(cut_off.decide(group, std::slice::from_ref(&ask)).await);
    link.restore();
    cut_off.wait_for_redis().await;
    // It asks nothing more; the other learns of its slot all the same.
    let restored = Instant::now();
    while matches!(
        other[0].decide(group, std::slice::from_ref(&ask)).await,
        WindowAnswer::Admitted { .. }
    ) {
        assert!(restored.elapsed() < Duration::from_secs(30));
        sleep(Duration::from_millis(20)).await;
    }
}
