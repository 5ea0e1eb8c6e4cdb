//! The starts of an instance, as the file `boots` has them: one line each, the newest last.

use std::fmt;
use std::str::FromStr;

use sluice_domain::id::BootId;

/// Starts that are kept; older ones are of no use.
const KEPT: usize = 64;
const CLAIMED: &str = "claimed";
const PENDING: &str = "pending";

/// The starts in their order. One that is pending was written here before it claimed the instance
/// in the database; whether the claim arrived, nobody may know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Boots {
    starts: Vec<(BootId, &'static str)>,
}

impl Boots {
    /// Returns all starts that the database may know as the last one.
    pub(super) fn all(&self) -> Vec<BootId> {
        self.starts.iter().map(|(boot, _)| *boot).collect()
    }

    pub(super) fn begin(&mut self, boot: BootId) {
        self.starts.push((boot, PENDING));
        self.forget_old();
    }

    /// Notes a start as claimed. Earlier ones stay: the database may go back to them.
    pub(super) fn confirm(&mut self, boot: BootId) {
        match self.starts.iter_mut().find(|(known, _)| *known == boot) {
            Some((_, state)) => *state = CLAIMED,
            None => self.starts.push((boot, CLAIMED)),
        }
        self.forget_old();
    }

    /// Forgets the oldest starts, but never the last one that was claimed.
    fn forget_old(&mut self) {
        let last_claimed = self.starts.iter().rposition(|(_, state)| *state == CLAIMED);
        let surplus = self.starts.len().saturating_sub(KEPT);
        let mut place = 0;
        self.starts.retain(|_| {
            let is_kept = place >= surplus || Some(place) == last_claimed;
            place += 1;
            is_kept
        });
    }
}

impl fmt::Display for Boots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (boot, state) in &self.starts {
            writeln!(f, "{boot} {state}")?;
        }
        Ok(())
    }
}

impl FromStr for Boots {
    /// The number of the line that cannot be read, from 1.
    type Err = usize;

    fn from_str(text: &str) -> Result<Self, usize> {
        let mut boots = Self::default();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let (boot, state) = line.split_once(' ').ok_or(number)?;
            let boot: BootId = boot.parse().map_err(|_bad_id| number)?;
            let state = [CLAIMED, PENDING]
                .into_iter()
                .find(|known| *known == state)
                .ok_or(number)?;
            boots.starts.push((boot, state));
        }
        Ok(boots)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn boot(number: u128) -> BootId {
        BootId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn the_text_form_round_trips() {
        let mut boots = Boots::default();
        boots.begin(boot(1));
        boots.confirm(boot(1));
        boots.begin(boot(2));
        assert_eq!(boots.to_string().parse(), Ok(boots));
        assert_eq!("".parse(), Ok(Boots::default()));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        let good = format!("{} claimed\n", boot(1));
        for (text, line) in [
            (format!("{good}garbage\n"), 2),
            (format!("{} maybe\n", boot(1)), 1),
        ] {
            assert_eq!(text.parse::<Boots>(), Err(line), "{text}");
        }
    }

    #[test]
    fn the_newest_starts_and_the_last_claimed_one_are_kept() {
        let mut boots = Boots::default();
        boots.begin(boot(0));
        boots.confirm(boot(0));
        for number in 1..=200 {
            boots.begin(boot(number));
        }
        let all = boots.all();
        assert_eq!(all.len(), KEPT + 1);
        assert_eq!(all.first(), Some(&boot(0)));
        assert_eq!(all.last(), Some(&boot(200)));
    }
}
