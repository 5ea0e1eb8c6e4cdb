//! The choice of a target in a tier and of one of its keys, among those that may be asked.

use std::time::Duration;

use sluice_domain::pool::Selection;
use smallvec::SmallVec;

use super::plan::{Member, PlannedTarget};
use super::wheel::{Cursor, Wheel};
use crate::health::unit;

/// So many turns are taken before all entries are looked at. What is well is found in the first.
const TURNS: usize = 8;

/// The targets of one priority.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) targets: Box<[PlannedTarget]>,
    pub(super) wheel: Wheel,
    pub(super) cursor: Cursor,
}

/// A target of a tier and a key of its upstream, by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) target: usize,
    pub(crate) key: usize,
}

/// Says what may be asked.
pub(crate) trait Judge {
    /// Returns whether an upstream may be asked, with whichever key.
    fn may_ask(&mut self, member: &Member) -> bool;

    /// Returns whether a key of an upstream that may be asked may be used.
    fn may_use(&mut self, choice: Choice, member: &Member) -> bool;

    /// Returns the present, as health counts it.
    fn now(&self) -> Duration;
}

impl Tier {
    /// Chooses among what may be asked; `None` when that is nothing. `asker` tells who asks.
    ///
    /// The cost does not depend on the number of keys while most of them are well, and nothing is
    /// locked then. Among those that are left the shares stay those of their weights.
    pub(crate) fn choose(
        &self,
        selection: Selection,
        asker: u64,
        judge: &mut impl Judge,
    ) -> Option<Choice> {
        match selection {
            Selection::Weighted => self.in_turn(None, judge),
            Selection::LeastLatency => self.faster_of_two(judge),
            Selection::StickyKey | Selection::StickyUser => self.of_asker(asker, judge),
        }
    }

    fn in_turn(&self, except: Option<usize>, judge: &mut impl Judge) -> Option<Choice> {
        let mut out: SmallVec<[usize; 4]> = except.into_iter().collect();
        for _ in 0..TURNS {
            if out.len() == self.targets.len() {
                return None;
            }
            let target = self.wheel.at(self.cursor.next());
            if out.contains(&target) {
                continue;
            }
            if let Some(choice) = self.with_key(target, Draw::InTurn, judge) {
                return Some(choice);
            }
            out.push(target);
        }
        // All that can serve are known before one is drawn: drawing again for one that cannot would
        // prefer whoever comes after it.
        let mut left: SmallVec<[usize; 8]> = SmallVec::new();
        for (target, planned) in self.targets.iter().enumerate() {
            let member = &*planned.member;
            if !out.contains(&target)
                && judge.may_ask(member)
                && (0..member.keys.len()).any(|key| judge.may_use(Choice { target, key }, member))
            {
                left.push(target);
            }
        }
        let target = self.wheel.among(&left, self.cursor.next_fraction())?;
        self.with_key(target, Draw::InTurn, judge)
    }

    fn faster_of_two(&self, judge: &mut impl Judge) -> Option<Choice> {
        let first = self.in_turn(None, judge)?;
        let Some(second) = self.in_turn(Some(first.target), judge) else {
            return Some(first);
        };
        let now = judge.now();
        let cost = |choice: Choice| {
            let target = self.targets.get(choice.target);
            target.map_or(0.0, |target| target.member.health.cost(now))
        };
        Some(if cost(second) < cost(first) {
            second
        } else {
            first
        })
    }

    /// Chooses the same for the same asker: every target draws a lot that depends on both, and the
    /// best one wins. When targets come or go, only the askers of those move.
    ///
    /// # Source
    /// Weighted rendezvous hashing: C. Schindelhauer, G. Schomaker, "Weighted distributed hash
    /// tables", 2005: the logarithmic method.
    fn of_asker(&self, asker: u64, judge: &mut impl Judge) -> Option<Choice> {
        let mut lots: SmallVec<[(f64, usize); 8]> = self
            .targets
            .iter()
            .enumerate()
            .map(|(index, target)| {
                let luck = unit(mix(target.mark ^ mix(asker)));
                let weight = u32::try_from(self.wheel.weight(index)).unwrap_or(u32::MAX);
                (-(1.0 - luck).ln() / f64::from(weight), index)
            })
            .collect();
        lots.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        lots.into_iter()
            .find_map(|(_, target)| self.with_key(target, Draw::OfAsker(asker), judge))
    }

    /// Chooses a key of a target.
    pub(crate) fn with_key(
        &self,
        target: usize,
        draw: Draw,
        judge: &mut impl Judge,
    ) -> Option<Choice> {
        let planned = self.targets.get(target)?;
        let member = &*planned.member;
        if !judge.may_ask(member) {
            return None;
        }
        let wheel = &member.prepared.wheel;
        let count = member.keys.len();
        for turn in 0..TURNS.min(count) {
            let key = wheel.at(draw.turn(turn, &planned.keys));
            let choice = Choice { target, key };
            if judge.may_use(choice, member) {
                return Some(choice);
            }
        }
        if count == 1 {
            return None;
        }
        let left: SmallVec<[usize; 16]> = (0..count)
            .filter(|&key| judge.may_use(Choice { target, key }, member))
            .collect();
        let key = wheel.among(&left, draw.fraction(&planned.keys))?;
        Some(Choice { target, key })
    }
}

/// Where the turns among keys come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Draw {
    /// The next ones.
    InTurn,
    /// Always the same for the same asker.
    OfAsker(u64),
}

impl Draw {
    fn turn(self, number: usize, cursor: &Cursor) -> u64 {
        match self {
            Self::InTurn => cursor.next(),
            Self::OfAsker(asker) => mix(asker.wrapping_add(number as u64)),
        }
    }

    fn fraction(self, cursor: &Cursor) -> u64 {
        match self {
            Self::InTurn => cursor.next_fraction(),
            Self::OfAsker(asker) => mix(!asker),
        }
    }
}

/// Stirs the bits of a number, the same on every instance.
///
/// # Source
/// The finalizer of `SplitMix64`.
pub(crate) const fn mix(bits: u64) -> u64 {
    let z = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
