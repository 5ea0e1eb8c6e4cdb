//! The starts of an instance, as the file `boots` has them: one line each, the newest last.

use std::fmt;
use std::str::FromStr;

use sluice_domain::id::BootId;

/// Starts that are kept; older ones are of no use.
const KEPT: usize = 16;
const CLAIMED: &str = "claimed";
const PENDING: &str = "pending";

/// The starts. Only the newest can be pending.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Boots {
    claimed: Vec<BootId>,
    pending: Option<BootId>,
}

impl Boots {
    /// Returns the start that was written but not confirmed.
    pub(super) fn pending(&self) -> Option<BootId> {
        self.pending
    }

    /// Returns the newest start that was confirmed.
    pub(super) fn last_claimed(&self) -> Option<BootId> {
        self.claimed.last().copied()
    }

    pub(super) fn begin(&mut self, boot: BootId) {
        self.pending = Some(boot);
    }

    /// Notes a start as claimed. A second time changes nothing.
    pub(super) fn confirm(&mut self, boot: BootId) {
        self.pending = None;
        if self.last_claimed() != Some(boot) {
            self.claimed.push(boot);
        }
        let surplus = self.claimed.len().saturating_sub(KEPT);
        self.claimed.drain(..surplus);
    }
}

impl fmt::Display for Boots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for boot in &self.claimed {
            writeln!(f, "{boot} {CLAIMED}")?;
        }
        if let Some(boot) = self.pending {
            writeln!(f, "{boot} {PENDING}")?;
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
            match state {
                CLAIMED if boots.pending.is_none() => boots.claimed.push(boot),
                PENDING if boots.pending.is_none() => boots.pending = Some(boot),
                _ => return Err(number),
            }
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
        let pending = format!("{} pending\n", boot(2));
        for (text, line) in [
            (format!("{good}garbage\n"), 2),
            (format!("{good}{pending}{good}"), 3),
            (format!("{} maybe\n", boot(1)), 1),
        ] {
            assert_eq!(text.parse::<Boots>(), Err(line), "{text}");
        }
    }

    #[test]
    fn only_the_newest_starts_are_kept() {
        let mut boots = Boots::default();
        for number in 0..40 {
            boots.begin(boot(number));
            boots.confirm(boot(number));
        }
        assert_eq!(boots.claimed.len(), KEPT);
        assert_eq!(boots.last_claimed(), Some(boot(39)));
    }
}
