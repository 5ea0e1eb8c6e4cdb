//! How much of a counter an instance takes: a pure function of locked rows.
//!
//! Far from the cap a lease bridges minutes; near it, it is exactly what is asked for. One formula,
//! no modes: `max(queued, min(goal, room / (100 × instances)))`.

use sluice_domain::ports::{LeaseChange, LockedCounter};
use sluice_domain::quota::Amounts;

/// What a lease beyond what is asked for takes of the room, at most, divided among the instances.
const ROOM_SHARES: i64 = 100;

/// What one request is short of. The places are those of the counters that are locked.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    /// Place of the counter, what is missing there, and the whole bound.
    pub(crate) parts: smallvec::SmallVec<[WantPart; 3]>,
}

/// What one request is short of in one counter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantPart {
    pub(crate) place: usize,
    /// What the lease lacks.
    pub(crate) missing: Amounts,
    /// What would be held.
    pub(crate) bound: Amounts,
    /// Charges of this instance that the database has not taken in.
    pub(crate) unposted: Amounts,
}

/// What becomes of a want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its parts were taken.
    Granted,
    /// The cap of the counter at this place is used up to less than the bound.
    Spent { place: usize },
    /// There is room, but others hold it.
    Held { place: usize },
}

/// What is to be done with the locked counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decision {
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) changes: Vec<LeaseChange>,
    /// How much of each counter is leased ahead.
    pub(crate) aims: Vec<Amounts>,
    /// How many instances there are.
    pub(crate) live: u32,
}

/// How much of a counter should be free here, and how much is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ahead {
    pub(crate) goal: Amounts,
    pub(crate) free: Amounts,
}

/// Returns what one of `live` instances may lease ahead of what nobody holds.
pub(crate) fn share_of(room: Amounts, live: u32) -> Amounts {
    let shares = shares(live);
    room.max(Amounts::ZERO)
        .zip(Amounts::ZERO, |room, _| room / shares)
}

fn shares(live: u32) -> i64 {
    ROOM_SHARES.saturating_mul(i64::from(live.max(1)))
}

/// Decides first come, first served. `ahead` says what each lease should bridge.
pub(crate) fn decide(
    rows: &[LockedCounter],
    live: u32,
    wants: &[Want],
    ahead: &[Ahead],
) -> Decision {
    let mut taken = vec![Amounts::ZERO; rows.len()];
    let mut is_short = vec![false; rows.len()];
    let mut verdicts = Vec::with_capacity(wants.len());
    for want in wants {
        let verdict = judge(rows, &taken, want);
        match verdict {
            Verdict::Granted => {
                for part in &want.parts {
                    if let Some(sum) = taken.get_mut(part.place) {
                        *sum = sum.plus(part.missing);
                    }
                }
            }
            // In every scope at once: one after the other would outlast who waits.
            Verdict::Held { .. } => {
                for part in &want.parts {
                    if let Some(flag) = is_short.get_mut(part.place) {
                        *flag |= is_held(rows, &taken, part);
                    }
                }
            }
            Verdict::Spent { .. } => {}
        }
        verdicts.push(verdict);
    }
    let (mut changes, mut aims) = (Vec::new(), Vec::new());
    for (place, ((row, taken), is_short)) in rows.iter().zip(taken).zip(is_short).enumerate() {
        let Ahead { goal, free } = ahead.get(place).copied().unwrap_or_default();
        let free = free.max(Amounts::ZERO);
        let aim = goal.min(share_of(row.balance.room(), live));
        let is_reached = goal.minus(free).fits(aim.minus(free).max(Amounts::ZERO));
        let recall = if is_short {
            Some(true)
        } else if row.recall && is_reached && is_ample(row, shares(live)) {
            Some(false)
        } else {
            None
        };
        // Where somebody waits, nothing is taken ahead.
        let is_wanted_back = recall.unwrap_or(row.recall);
        let aim = if is_wanted_back { Amounts::ZERO } else { aim };
        let delta = taken.max(aim.minus(free));
        changes.push(LeaseChange { delta, recall });
        aims.push(aim);
    }
    Decision {
        verdicts,
        changes,
        aims,
        live,
    }
}

/// Returns whether there is so much room that some of it may be leased ahead, where there is a cap:
/// an instance that lacks nothing itself is no sign of that.
fn is_ample(row: &LockedCounter, shares: i64) -> bool {
    let (cap, room) = (row.balance.cap, row.balance.room());
    let is_ample = |cap: Option<i64>, room: i64| cap.is_none() || room >= shares;
    is_ample(cap.tokens, room.tokens) && is_ample(cap.nano, room.nano)
}

/// Returns whether what is missing does not fit into what nobody holds.
fn is_held(rows: &[LockedCounter], taken: &[Amounts], part: &WantPart) -> bool {
    let (Some(row), Some(taken)) = (rows.get(part.place), taken.get(part.place)) else {
        return false;
    };
    let room = row.balance.room().minus(*taken);
    // Where nothing is missing, nothing is taken, whatever the room.
    let fits = |missing: i64, room: i64| missing == 0 || missing <= room;
    !(fits(part.missing.tokens, room.tokens) && fits(part.missing.nano, room.nano))
}

fn judge(rows: &[LockedCounter], taken: &[Amounts], want: &Want) -> Verdict {
    let mut held = None;
    for part in &want.parts {
        let Some(row) = rows.get(part.place) else {
            continue;
        };
        let unused = row.balance.unused().minus(part.unposted);
        if !part.bound.fits(unused) {
            return Verdict::Spent { place: part.place };
        }
        if is_held(rows, taken, part) {
            held.get_or_insert(part.place);
        }
    }
    held.map_or(Verdict::Granted, |place| Verdict::Held { place })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_domain::id::TenantId;
    use sluice_domain::quota::{Cap, CounterBalance, CounterKey, Scope, ScopeKind};
    use sluice_domain::time::Month;
    use uuid::Uuid;

    use super::*;

    fn row(cap: Option<i64>, used: i64, held: i64) -> LockedCounter {
        LockedCounter {
            balance: CounterBalance {
                key: CounterKey {
                    tenant_id: TenantId::from_uuid(Uuid::nil()),
                    scope: Scope {
                        kind: ScopeKind::Tenant,
                        id: Uuid::nil(),
                    },
                    month: Month::from_number(202_601).unwrap(),
                },
                cap: Cap {
                    tokens: cap,
                    nano: None,
                },
                used: Amounts::tokens(used),
                held: Amounts::tokens(held),
            },
            leased: Amounts::ZERO,
            recall: false,
        }
    }

    fn want(parts: &[(usize, i64, i64)]) -> Want {
        let parts = parts
            .iter()
            .map(|(place, missing, bound)| WantPart {
                place: *place,
                missing: Amounts::tokens(*missing),
                bound: Amounts::tokens(*bound),
                unposted: Amounts::ZERO,
            })
            .collect();
        Want { parts }
    }

    #[test]
    fn what_does_not_fit_in_one_scope_takes_nothing_in_the_others() {
        let rows = [row(Some(1_000), 0, 0), row(Some(50), 0, 0)];
        let wants = [want(&[(0, 100, 100), (1, 100, 100)])];
        let made = decide(&rows, 1, &wants, &[Ahead::default(); 2]);
        assert_eq!(made.verdicts, [Verdict::Spent { place: 1 }]);
        assert!(made.changes.iter().all(|change| change.delta.is_zero()));
    }

    #[test]
    fn room_that_others_hold_is_asked_back_and_room_that_is_used_is_not() {
        let wants = [want(&[(0, 100, 100)])];
        let made = decide(&[row(Some(100), 0, 40)], 1, &wants, &[Ahead::default()]);
        assert_eq!(made.verdicts, [Verdict::Held { place: 0 }]);
        assert_eq!(made.changes[0].recall, Some(true));
        let made = decide(&[row(Some(100), 1, 0)], 1, &wants, &[Ahead::default()]);
        assert_eq!(made.verdicts, [Verdict::Spent { place: 0 }]);
        assert_eq!(made.changes[0].recall, None);
    }

    #[test]
    fn far_from_the_cap_the_target_is_leased_and_near_it_what_is_asked_for() {
        let wants = [want(&[(0, 10, 10)])];
        let ahead = [Ahead {
            goal: Amounts::tokens(5_000),
            free: Amounts::ZERO,
        }];
        let lease = |row, live| decide(&[row], live, &wants, &ahead).changes[0].delta.tokens;
        assert_eq!(lease(row(None, 0, 0), 1), 5_000);
        assert_eq!(lease(row(Some(100_000), 0, 0), 1), 1_000);
        assert_eq!(lease(row(Some(100_000), 0, 0), 4), 250);
        assert_eq!(lease(row(Some(500), 0, 0), 1), 10);
    }

    #[test]
    fn what_was_charged_here_and_not_posted_counts_as_used() {
        let mut wants = [want(&[(0, 100, 100)])];
        wants[0].parts[0].unposted = Amounts::tokens(41);
        let made = decide(&[row(Some(200), 60, 140)], 1, &wants, &[Ahead::default()]);
        assert_eq!(made.verdicts, [Verdict::Spent { place: 0 }]);
        wants[0].parts[0].unposted = Amounts::tokens(40);
        let made = decide(&[row(Some(200), 60, 140)], 1, &wants, &[Ahead::default()]);
        assert_eq!(made.verdicts, [Verdict::Held { place: 0 }]);
    }

    #[test]
    fn what_is_free_already_counts_and_nothing_is_taken_ahead_where_somebody_waits() {
        let lease = |row, free| {
            let ahead = Ahead {
                goal: Amounts::tokens(5_000),
                free: Amounts::tokens(free),
            };
            decide(&[row], 1, &[], &[ahead]).changes[0]
        };
        let ample = row(Some(1_000_000), 0, 0);
        assert_eq!(lease(ample, 4_000).delta, Amounts::tokens(1_000));
        assert_eq!(lease(ample, 6_000).delta, Amounts::ZERO);
        assert_eq!(
            lease(row(Some(100_000), 0, 0), 990).delta,
            Amounts::tokens(10)
        );
        let recalled = |cap| LockedCounter {
            recall: true,
            ..row(Some(cap), 0, 0)
        };
        let found = lease(recalled(100_000), 0);
        assert_eq!((found.delta, found.recall), (Amounts::ZERO, None));
        let found = lease(recalled(1_000_000), 0);
        assert_eq!((found.delta.tokens, found.recall), (5_000, Some(false)));
    }

    #[test]
    fn a_request_that_fits_what_is_free_passes_a_lowered_cap() {
        let rows = [row(Some(10), 8, 50), row(Some(1_000), 0, 0)];
        // Nothing is missing in the first counter.
        let wants = [want(&[(0, 0, 2), (1, 2, 2)])];
        let made = decide(&rows, 1, &wants, &[Ahead::default(); 2]);
        assert_eq!(made.verdicts, [Verdict::Granted]);
        assert_eq!(made.changes[0].delta, Amounts::ZERO);
    }

    proptest! {
        #[test]
        fn no_cap_is_ever_exceeded_and_nothing_is_refused_that_fits(
            caps in prop::collection::vec((prop::option::of(0_i64..2_000), 0_i64..500, 0_i64..500), 3),
            asked in prop::collection::vec((0_usize..3, 0_usize..3, 1_i64..400, 0_i64..400), 0..20),
            goals in prop::collection::vec((0_i64..5_000, -500_i64..5_000), 3),
            live in 1_u32..5,
        ) {
            let rows: Vec<LockedCounter> =
                caps.iter().map(|(cap, used, held)| row(*cap, *used, *held)).collect();
            let wants: Vec<Want> = asked
                .iter()
                .map(|(a, b, bound, missing)| {
                    let missing = (*missing).min(*bound);
                    let mut parts = vec![(*a, missing, *bound)];
                    if a != b {
                        parts.push((*b, *bound, *bound));
                    }
                    want(&parts)
                })
                .collect();
            let ahead: Vec<Ahead> = goals
                .iter()
                .map(|(goal, free)| Ahead {
                    goal: Amounts::tokens(*goal),
                    free: Amounts::tokens(*free),
                })
                .collect();
            let made = decide(&rows, live, &wants, &ahead);
            for (place, (row, change)) in rows.iter().zip(&made.changes).enumerate() {
                prop_assert!(change.delta.tokens >= 0);
                let room = row.balance.room().max(Amounts::ZERO);
                prop_assert!(change.delta.fits(room), "place {}", place);
                let granted: i64 = wants
                    .iter()
                    .zip(&made.verdicts)
                    .filter(|(_, verdict)| **verdict == Verdict::Granted)
                    .flat_map(|(want, _)| &want.parts)
                    .filter(|part| part.place == place)
                    .map(|part| part.missing.tokens)
                    .sum();
                prop_assert!(change.delta.tokens >= granted, "what is granted is taken");
            }
            let refused = |want: &Want| want.parts.iter().all(|part| {
                let row = &rows[part.place];
                part.bound.fits(row.balance.unused())
                    && made.changes[part.place].delta.plus(part.missing).fits(row.balance.room())
            });
            for (want, verdict) in wants.iter().zip(&made.verdicts) {
                if *verdict != Verdict::Granted {
                    prop_assert!(!refused(want), "{:?} would have fitted", want);
                }
            }
        }
    }
}
