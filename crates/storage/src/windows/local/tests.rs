use std::net::IpAddr;

use sluice_domain::id::{ProxyKeyId, TenantId, uuid_v7};
use sluice_domain::window::{IpBlock, WindowSubject};
use tokio::time::advance;

use super::*;

fn tenant(number: u64) -> WindowGroup {
    WindowGroup::Tenant(TenantId::from_uuid(uuid_v7(number, [1; 10])))
}

fn key(number: u64, kind: WindowKind, most: u64) -> WindowAsk {
    WindowAsk {
        key: WindowKey {
            subject: WindowSubject::ProxyKey(ProxyKeyId::from_uuid(uuid_v7(number, [2; 10]))),
            kind,
        },
        limit: WindowLimit::new(most).unwrap(),
        amount: 1,
    }
}

fn address(number: u32) -> (WindowGroup, WindowAsk) {
    let block = IpBlock::of(IpAddr::from(number.to_be_bytes()), 64);
    let ask = WindowAsk {
        key: WindowKey {
            subject: WindowSubject::SourceIp(block),
            kind: WindowKind::Rpm,
        },
        limit: WindowLimit::new(1).unwrap(),
        amount: 1,
    };
    (WindowGroup::Ip(block), ask)
}

fn ticket(windows: &LocalWindows, group: WindowGroup, ask: &WindowAsk) -> Option<WindowTicket> {
    let asks = std::slice::from_ref(ask);
    match windows.decide_now(WindowDecision { group, asks }) {
        WindowAnswer::Admitted { ticket, .. } => Some(ticket),
        WindowAnswer::Refused(_) => None,
    }
}

fn is_admitted(windows: &LocalWindows, group: WindowGroup, ask: &WindowAsk) -> bool {
    ticket(windows, group, ask).is_some()
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_until_its_minute_and_a_second_are_over() {
    let windows = LocalWindows::new(10);
    let (group, ask) = (tenant(1), key(1, WindowKind::Rpm, 2));
    advance(Duration::from_millis(999)).await;
    assert!(is_admitted(&windows, group, &ask));
    assert!(is_admitted(&windows, group, &ask));
    advance(Duration::from_millis(59_001)).await;
    assert!(!is_admitted(&windows, group, &ask), "at 60.000 s");
    advance(Duration::from_millis(999)).await;
    assert!(!is_admitted(&windows, group, &ask), "at 60.999 s");
    advance(Duration::from_millis(1)).await;
    assert!(is_admitted(&windows, group, &ask), "at 61.000 s");
}

#[tokio::test(start_paused = true)]
async fn a_correction_after_the_window_is_no_credit() {
    let windows = LocalWindows::new(10);
    let group = tenant(1);
    let mut tokens = key(1, WindowKind::Tpm, 100);
    tokens.amount = 90;
    let mut early = ticket(&windows, group, &tokens).unwrap();
    advance(Duration::from_secs(61)).await;
    let _late = ticket(&windows, group, &tokens).unwrap();
    early.correct(0);
    tokens.amount = 11;
    assert!(!is_admitted(&windows, group, &tokens));
}

#[tokio::test(start_paused = true)]
async fn counters_that_count_nothing_are_dropped() {
    let windows = LocalWindows::new(1_000);
    for number in 0..500 {
        assert!(is_admitted(
            &windows,
            tenant(number),
            &key(number, WindowKind::Rpm, 1)
        ));
    }
    let held = ticket(&windows, tenant(1), &key(1, WindowKind::Concurrency, 1)).unwrap();
    windows.sweep();
    assert_eq!(windows.len(), 501);
    advance(Duration::from_secs(61)).await;
    windows.sweep();
    assert_eq!(windows.len(), 1, "a slot in use stays");
    drop(held);
    advance(Duration::from_millis(1)).await;
    windows.sweep();
    assert!(windows.is_empty());
    assert_eq!(windows.displaced(), 0);
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_and_slots_in_use_stay() {
    let windows = LocalWindows::new(200);
    let held: Vec<_> = (0..20)
        .map(|number| {
            ticket(
                &windows,
                tenant(number),
                &key(number, WindowKind::Concurrency, 1),
            )
        })
        .collect();
    for number in 0..20_000 {
        advance(Duration::from_millis(1)).await;
        assert!(is_admitted(
            &windows,
            tenant(number),
            &key(number, WindowKind::Rpm, 1)
        ));
        // A shard may have nothing that can go yet; together they keep the bound nearly.
        assert!(windows.len() <= 200 + SHARDS, "{} counters", windows.len());
    }
    assert!(windows.displaced() > 0);
    for number in 0..20 {
        let slot = key(number, WindowKind::Concurrency, 1);
        assert!(
            !is_admitted(&windows, tenant(number), &slot),
            "its slot is in use"
        );
    }
    drop(held);
    for number in 0..20 {
        let slot = key(number, WindowKind::Concurrency, 1);
        assert!(is_admitted(&windows, tenant(number), &slot));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_addresses_does_not_displace_tenants() {
    let windows = LocalWindows::new(100);
    for number in 0..50 {
        assert!(is_admitted(
            &windows,
            tenant(number),
            &key(number, WindowKind::Rpm, 1)
        ));
    }
    for number in 0..10_000 {
        advance(Duration::from_millis(1)).await;
        let (group, ask) = address(number);
        assert!(is_admitted(&windows, group, &ask));
    }
    for number in 0..50 {
        assert!(!is_admitted(
            &windows,
            tenant(number),
            &key(number, WindowKind::Rpm, 1)
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_longest_ago_goes_first() {
    let windows = LocalWindows::new(SHARDS * 4);
    let busy = key(0, WindowKind::Rpm, 1);
    assert!(is_admitted(&windows, tenant(0), &busy));
    for number in 1..20_000 {
        advance(Duration::from_millis(1)).await;
        assert!(is_admitted(
            &windows,
            tenant(number),
            &key(number, WindowKind::Rpm, 1)
        ));
        assert!(!is_admitted(&windows, tenant(0), &busy), "after {number}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_told_of_slots_has_an_order() {
    let windows = LocalWindows::new(10);
    let (group, ask) = (tenant(1), key(1, WindowKind::Concurrency, 5));
    let asks = [ask.clone()];
    let decision = WindowDecision { group, asks: &asks };
    let first = windows.prepare(decision);
    let second = windows.prepare(decision);
    let state = |prepared: &taken::Prepared<'_>| match prepared.parts[0] {
        Part::Slots { used, version } => (used, version),
        Part::Window { .. } => panic!(),
    };
    let ((one, early), (two, late)) = (state(&first), state(&second));
    assert_eq!((one, two), (1, 2));
    assert!(early < late);
    drop(first);
    let takings = second.admit();
    let (used, latest) = windows.slots_to_tell(group, &ask.key).unwrap();
    assert_eq!(used, 1);
    assert!(late < latest);
    assert_eq!(windows.take_changed().len(), 1);
    drop(LocalEnd::new(windows.clone(), group, takings));
}
