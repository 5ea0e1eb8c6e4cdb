//! Whether the clock of a server has jumped ahead of ours.

use sluice_domain::window::CounterTime;

/// How far a clock may be ahead of what was seen before it counts as a jump. Steps below this are
/// what networks and the setting of clocks make.
const TOLERANCE_MS: i64 = 250;

/// Compares a server's clock with the clock of this process, which only runs.
///
/// A clock that jumps ahead ends every window too early. One that goes back is no danger: the
/// counters wait until it is where it was.
#[derive(Debug, Default)]
pub(super) struct ClockWatch {
    /// The largest lead of the server's clock over ours that is certain.
    lead_ms: Option<i64>,
}

impl ClockWatch {
    /// Takes in a time that the server told between two times of ours. Returns whether its clock has
    /// jumped ahead since it was seen last.
    pub(super) fn observe(
        &mut self,
        sent: CounterTime,
        received: CounterTime,
        server_ms: u64,
    ) -> bool {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let least = signed(server_ms).saturating_sub(signed(received.0));
        let most = signed(server_ms).saturating_sub(signed(sent.0));
        let Some(lead) = self.lead_ms else {
            self.lead_ms = Some(most);
            return false;
        };
        self.lead_ms = Some(lead.max(least));
        least > lead.saturating_add(TOLERANCE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> CounterTime {
        CounterTime(ms)
    }

    #[test]
    fn a_jump_ahead_is_seen_once() {
        let mut watch = ClockWatch::default();
        assert!(!watch.observe(at(10), at(11), 1_000_000));
        assert!(!watch.observe(at(1_010), at(1_011), 1_001_000));
        assert!(watch.observe(at(2_010), at(2_011), 1_007_000));
        assert!(!watch.observe(at(3_010), at(3_011), 1_008_000));
    }

    #[test]
    fn an_answer_that_took_long_is_no_jump() {
        let mut watch = ClockWatch::default();
        assert!(!watch.observe(at(10), at(11), 1_000_000));
        assert!(!watch.observe(at(20), at(30_020), 1_000_010));
        assert!(!watch.observe(at(20), at(30_020), 1_030_010));
    }

    #[test]
    fn a_clock_that_goes_back_and_comes_back_is_no_jump() {
        let mut watch = ClockWatch::default();
        assert!(!watch.observe(at(10), at(11), 1_000_000));
        assert!(!watch.observe(at(1_010), at(1_011), 996_000));
        assert!(!watch.observe(at(2_010), at(2_011), 1_002_000));
    }
}
