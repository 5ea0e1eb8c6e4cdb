//! How long an upstream key rests after a limit signal.

use std::time::Duration;

/// The rest after the first signal without a hint; each further one in a row doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest rest without a hint.
const LONGEST_GUESS: Duration = Duration::from_mins(1);
/// The shortest rest: some providers say `0` and mean it as little as others mean their limits.
const SHORTEST: Duration = Duration::from_millis(100);
/// Nobody rests longer than a day on the word of a header.
const LONGEST: Duration = Duration::from_hours(24);

/// The rest of one upstream key.
#[derive(Debug, Default)]
pub(crate) struct Cooldown {
    until: Duration,
    /// Limit signals since the last success.
    signals: u32,
}

impl Cooldown {
    /// Begins or prolongs the rest after a limit signal, and returns how long it is. `luck` is
    /// random, from 0 to 1: a guess is prolonged by it, what the provider says is taken as it is.
    pub(crate) fn rest(&mut self, hint: Option<Duration>, now: Duration, luck: f64) -> Duration {
        let pause = match hint {
            Some(hint) => hint.clamp(SHORTEST, LONGEST),
            None => FIRST
                .saturating_mul(1_u32.checked_shl(self.signals).unwrap_or(u32::MAX))
                .min(LONGEST_GUESS)
                .mul_f64(1.0 + 0.2 * luck.clamp(0.0, 1.0)),
        };
        self.signals = self.signals.saturating_add(1);
        self.until = self.until.max(now.saturating_add(pause));
        self.until.saturating_sub(now)
    }

    /// Returns how long the key still rests; `None` when it does not.
    pub(crate) fn wait(&self, now: Duration) -> Option<Duration> {
        self.until.checked_sub(now).filter(|wait| !wait.is_zero())
    }

    /// Notes that the key was served. What had begun before the rest does not end it.
    pub(crate) const fn served(&mut self) {
        self.signals = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_hint_is_kept_to_the_end() {
        let mut cooldown = Cooldown::default();
        assert_eq!(cooldown.rest(Some(at(20)), at(100), 1.0), at(20));
        assert_eq!(cooldown.wait(at(119)), Some(at(1)));
        assert_eq!(cooldown.wait(at(120)), None);
    }

    #[test]
    fn a_shorter_hint_does_not_shorten_a_rest() {
        let mut cooldown = Cooldown::default();
        cooldown.rest(Some(at(60)), at(0), 0.0);
        assert_eq!(cooldown.rest(Some(at(1)), at(1), 0.0), at(59));
        cooldown.served();
        assert_eq!(cooldown.wait(at(59)), Some(at(1)));
    }

    #[test]
    fn without_a_hint_it_doubles_up_to_a_minute_until_a_success() {
        let mut cooldown = Cooldown::default();
        let mut rests = |now: u64| cooldown.rest(None, at(now), 0.0).as_secs();
        let seen: Vec<u64> = (1..9).map(|n| rests(n * 1_000)).collect();
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 60, 60]);
        cooldown.served();
        assert_eq!(cooldown.rest(None, at(10_000), 0.0), at(1));
    }

    #[test]
    fn a_rest_is_between_a_moment_and_a_day() {
        assert_eq!(Cooldown::default().rest(Some(at(0)), at(0), 0.0), SHORTEST);
        assert_eq!(
            Cooldown::default().rest(Some(Duration::MAX), at(5), 0.0),
            LONGEST
        );
    }
}
