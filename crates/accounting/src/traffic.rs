//! How much is spent of a counter, and how much of it should be leased to bridge an outage.

use sluice_domain::quota::Amounts;
use sluice_domain::time::UnixMillis;

/// Over how long the traffic is measured at a time.
///
/// # Units
/// Milliseconds.
const WINDOW: i64 = 120_000;
/// Traffic that began later than this counts as if it had begun then.
///
/// # Units
/// Milliseconds.
const LEAST_MEASURED: i64 = 10_000;
/// Leases begin with this many times the first request, until the traffic is known.
const FIRST_LEASE: i64 = 32;

/// What was spent lately, and how much was held at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    /// Amount per [`WINDOW`], as far as whole windows are known: it rises at once and falls slowly.
    known: Amounts,
    /// When the window began that is under way; `None` before the first hold.
    since: Option<UnixMillis>,
    spent: Amounts,
    /// The largest sum of open holds seen lately.
    peak_open: Amounts,
}

impl Traffic {
    /// Takes in how much is open after a hold.
    pub(crate) fn note_open(&mut self, open: Amounts, now: UnixMillis) {
        self.since.get_or_insert(now);
        self.peak_open = self.peak_open.max(open);
    }

    /// Takes in a charge.
    pub(crate) fn note_spent(&mut self, charge: Amounts) {
        self.spent = self.spent.plus(charge);
    }

    /// Lets time pass.
    pub(crate) fn age(&mut self, now: UnixMillis, open: Amounts) {
        let Some(since) = self.since else { return };
        let elapsed = now.since(since);
        if elapsed < WINDOW {
            return;
        }
        let measured = per(std::mem::take(&mut self.spent), WINDOW, elapsed);
        let falling = self.known.zip(measured, |old, new| old / 2 + new / 2);
        self.known = measured.max(falling);
        self.peak_open = open;
        self.since = Some(now);
    }

    /// Returns what is spent in `reserve_ms` as fast as lately, with an eighth of it for what no
    /// measure foretells, and as much as was open at once: less than this should never be free.
    pub(crate) fn reserve(&self, now: UnixMillis, reserve_ms: i64) -> Amounts {
        per(self.recent(now, reserve_ms), 9, 8).plus(self.peak_open)
    }

    /// Returns how much should be free after a lease was taken: the reserve and another eighth, so
    /// that it lasts a while, or a little more than what is asked for first.
    pub(crate) fn goal(&self, asked: Amounts, now: UnixMillis, reserve_ms: i64) -> Amounts {
        let first = asked.zip(Amounts::ZERO, |a, _| a.saturating_mul(FIRST_LEASE));
        per(self.recent(now, reserve_ms), 10, 8)
            .plus(self.peak_open)
            .max(first)
    }

    fn recent(&self, now: UnixMillis, reserve_ms: i64) -> Amounts {
        let elapsed = self.since.map_or(0, |since| now.since(since));
        let current = per(self.spent, WINDOW, elapsed.max(LEAST_MEASURED));
        per(self.known.max(current), reserve_ms, WINDOW)
    }
}

/// Returns `amount * factor / divisor` of each unit.
fn per(amount: Amounts, factor: i64, divisor: i64) -> Amounts {
    amount.zip(Amounts::ZERO, |a, _| {
        let product = i128::from(a) * i128::from(factor) / i128::from(divisor.max(1));
        i64::try_from(product).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVE: i64 = 600_000;

    /// Spends 10 a second from one instant to another; returns the lowest and the highest reserve
    /// after the first 15 seconds, in seconds of that traffic.
    fn reserves(traffic: &mut Traffic, from: i64, until: i64) -> (i64, i64) {
        let (mut low, mut high) = (i64::MAX, 0);
        for second in from..until {
            let now = UnixMillis(second * 1_000);
            traffic.note_open(Amounts::ZERO, now);
            traffic.note_spent(Amounts::tokens(10));
            traffic.age(now, Amounts::ZERO);
            if second > from + 15 {
                let reserve = traffic.reserve(now, RESERVE).tokens / 10;
                (low, high) = (low.min(reserve), high.max(reserve));
            }
        }
        (low, high)
    }

    #[test]
    fn steady_traffic_is_known_after_some_seconds_and_does_not_swing() {
        let mut traffic = Traffic::default();
        let (low, high) = reserves(&mut traffic, 1_000, 2_000);
        assert!((670..=740).contains(&low), "{low}");
        assert!((670..=740).contains(&high), "{high}");
    }

    #[test]
    fn what_is_spent_no_more_fades_away() {
        let mut traffic = Traffic::default();
        reserves(&mut traffic, 1_000, 1_500);
        for window in 0..8 {
            traffic.age(UnixMillis((1_500 + window * 120) * 1_000), Amounts::ZERO);
        }
        let now = UnixMillis(2_460_000);
        assert!(traffic.reserve(now, RESERVE).tokens < 100);
    }

    #[test]
    fn a_first_request_is_leased_some_times_over() {
        let asked = Amounts::tokens(100);
        let goal = Traffic::default().goal(asked, UnixMillis(5_000), RESERVE);
        assert_eq!(goal, Amounts::tokens(3_200));
    }
}
