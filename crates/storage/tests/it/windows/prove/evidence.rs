//! What the processes were told, and when.

use std::collections::BTreeMap;

use sluice_domain::window::WindowKind;

use super::member::asks;

/// One decision: it was made between two times, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Told {
    from: i64,
    to: i64,
    is_admitted: bool,
}

/// All decisions, by group.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    told: BTreeMap<u8, Vec<Told>>,
    redis_decisions: u64,
    local_decisions: u64,
    has_minutes: bool,
}

fn length_ns(kind: WindowKind) -> i64 {
    let shape = kind.shape().unwrap();
    i64::try_from(shape.width_ms * shape.before).unwrap() * 1_000_000
}

impl Evidence {
    pub(super) fn new(has_minutes: bool) -> Self {
        Self {
            has_minutes,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, report: &str) {
        for line in report.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["decisions", redis, local] = words[..] {
                self.redis_decisions += redis.parse::<u64>().unwrap();
                self.local_decisions += local.parse::<u64>().unwrap();
                continue;
            }
            let [group, from, to, admitted] = words[..] else {
                panic!("{line}");
            };
            self.told
                .entry(group.parse().unwrap())
                .or_default()
                .push(Told {
                    from: from.parse().unwrap(),
                    to: to.parse().unwrap(),
                    is_admitted: admitted == "1",
                });
        }
    }

    pub(super) fn local_decisions(&self) -> u64 {
        self.local_decisions
    }

    pub(super) fn redis_decisions(&self) -> u64 {
        self.redis_decisions
    }

    pub(super) fn print(&self, what: &str) {
        let times = self.told.values().flatten();
        let first = times.clone().map(|told| told.from).min().unwrap_or(0);
        let last = times.map(|told| told.to).max().unwrap_or(0);
        println!(
            "{what}: {} decisions in Redis and {} here, in {:.1} s",
            self.redis_decisions,
            self.local_decisions,
            f64::from(i32::try_from((last - first) / 1_000_000).unwrap()) / 1_000.0
        );
        for (group, told) in &self.told {
            let admitted = told.iter().filter(|told| told.is_admitted).count();
            for ask in asks(*group, self.has_minutes).1 {
                println!(
                    "  group {group}: {} {}: {} asked, {admitted} admitted, largest window {}",
                    ask.key.kind,
                    ask.limit.most(),
                    told.len(),
                    ask.amount * largest(told, length_ns(ask.key.kind)),
                );
            }
        }
    }

    /// No window of the true time has more than so many times the limit.
    pub(super) fn check_limits(&self, times: u64) {
        for (group, told) in &self.told {
            for ask in asks(*group, self.has_minutes).1 {
                let largest = ask.amount * largest(told, length_ns(ask.key.kind));
                let most = times * ask.limit.most();
                assert!(
                    largest <= most,
                    "group {group}: {largest} of {most} in one {}",
                    ask.key.kind
                );
                assert!(largest > 0, "group {group} was asked");
            }
        }
    }

    /// Nobody was refused where there was room for longer than a bucket.
    pub(super) fn check_room(&self) {
        for (group, told) in &self.told {
            let (_, asks) = asks(*group, self.has_minutes);
            let [ask] = asks.as_slice() else { continue };
            let shape = ask.key.kind.shape().unwrap();
            let memory =
                length_ns(ask.key.kind) + i64::try_from(shape.width_ms).unwrap() * 1_000_000;
            let mut admitted: Vec<Told> = told
                .iter()
                .copied()
                .filter(|told| told.is_admitted)
                .collect();
            admitted.sort_unstable_by_key(|told| told.to);
            for refused in told.iter().filter(|told| !told.is_admitted) {
                // All that may have counted when this was decided.
                let first = admitted.partition_point(|told| told.to < refused.from - memory);
                let counted = admitted[first..]
                    .iter()
                    .filter(|told| told.from <= refused.to)
                    .count();
                assert!(
                    counted >= usize::try_from(ask.limit.most()).unwrap(),
                    "group {group} was refused with {counted} of {}",
                    ask.limit.most()
                );
            }
        }
    }
}

/// The most decisions that were surely admitted within one window. Each was made at some time
/// between its two: only those count whose times both lie in the window.
fn largest(told: &[Told], length_ns: i64) -> u64 {
    let admitted = told.iter().filter(|told| told.is_admitted);
    let mut from: Vec<i64> = admitted.clone().map(|told| told.from).collect();
    let mut to: Vec<i64> = admitted.map(|told| told.to).collect();
    from.sort_unstable();
    to.sort_unstable();
    let most = from.iter().map(|start| {
        let ended = to.partition_point(|end| *end < start + length_ns);
        let begun_before = from.partition_point(|begun| begun < start);
        ended.saturating_sub(begun_before)
    });
    u64::try_from(most.max().unwrap_or(0)).unwrap()
}

#[test]
fn more_than_a_limit_is_found() {
    let at = |from: i64, to: i64| Told {
        from,
        to,
        is_admitted: true,
    };
    let told = [
        at(0, 10),
        at(5, 900),
        at(990, 999),
        at(998, 1_002),
        at(1_500, 1_501),
    ];
    assert_eq!(largest(&told, 1_000), 3);
}
