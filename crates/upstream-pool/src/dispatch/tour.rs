//! The way of one request through keys, targets and tiers.

use std::mem;
use std::time::Duration;

use sluice_domain::id::UpstreamId;
use sluice_domain::pool::{Selection, SkipReason, SkippedTarget, SkippedTargets, TargetUse};
use sluice_domain::record::AttemptRecord;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Call;
use super::advice::Advice;
use crate::attempt::Failure;
use crate::error::{Attempts, DispatchError, ErrorClass, SendStage};
use crate::health::pass::{Blame, FailedAttempt, Pass, Refused};
use crate::health::shared::Shared;
use crate::health::{Approach, Asking, Obstacle};
use crate::routing::choice::{Choice, Draw, Judge, Tier, mix};
use crate::routing::plan::{Lane, Member, PlannedTarget, RoutePlan};

/// Most attempts of one request, wherever they go.
const MAX_ATTEMPTS: usize = 16;
/// The pause before a repetition is random, at first up to this; each further one doubles that.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What one request has tried, and what comes next.
///
/// The order is: another key of the same target, another target of the tier, the same again after a
/// pause, the next tier; at last, where only breakers stand in the way, whoever is the least bad.
/// What was sent and not answered is sent once more only: to another upstream, if any may be asked.
pub(super) struct Tour<'a> {
    plan: &'a RoutePlan,
    call: &'a Call<'a>,
    asking: Asking<'a>,
    /// A number that is the same for all requests of whoever asks.
    asker: u64,
    begun: Instant,
    /// The present, looked at anew whenever something was waited for, and the same as health counts it.
    at: Instant,
    now: Duration,
    uses: TargetUse,
    visits: SmallVec<[Visit; 2]>,
    tried: SmallVec<[Tried; 2]>,
    /// Which lanes may be chosen now.
    wanted: Wanted,
    /// Where another key may do better.
    stay: Option<(usize, usize)>,
    /// Who is not looked at while somebody else may be asked.
    avoided: Option<UpstreamId>,
    /// The upstream that did not answer and may have done the work all the same.
    unanswered_by: Option<UpstreamId>,
    is_over: bool,
    attempts: Attempts,
    skipped: SkippedTargets,
    advice: Advice,
}

/// What a request has to do with one upstream.
#[derive(Debug)]
struct Visit {
    upstream_id: UpstreamId,
    attempts: u32,
    /// Whether it failed, so that asking it again is a repetition.
    has_failed: bool,
    /// Whether no other key is worth a try because no connection came about.
    is_unreachable: bool,
    /// Whether it is not asked again.
    is_closed: bool,
}

/// A lane that was tried.
#[derive(Debug)]
struct Tried {
    tier: usize,
    upstream_id: UpstreamId,
    choice: Choice,
    uses: TargetUse,
    /// Whether trying it again may help.
    may_repeat: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    New,
    Tried,
}

/// The next attempt.
pub(super) struct Step<'a> {
    tier: usize,
    choice: Choice,
    target: &'a PlannedTarget,
    approach: Approach,
    /// How long to wait before it.
    pub(super) pause: Duration,
}

impl<'a> Tour<'a> {
    pub(super) fn new(plan: &'a RoutePlan, call: &'a Call<'a>) -> Self {
        let asker = match plan.selection {
            Selection::Weighted | Selection::LeastLatency => 0,
            Selection::StickyKey => fold(call.payer.key_id.as_uuid().as_u64_pair()),
            Selection::StickyUser => fold(call.payer.user_id.as_uuid().as_u64_pair()),
        };
        let begun = Instant::now();
        Self {
            plan,
            call,
            asking: Asking::new(call.payer.tenant_id, call.body, call.token_bound),
            asker,
            begun,
            at: begun,
            now: Duration::ZERO,
            uses: TargetUse::Any,
            visits: SmallVec::new(),
            tried: SmallVec::new(),
            wanted: Wanted::New,
            stay: None,
            avoided: None,
            unanswered_by: None,
            is_over: false,
            attempts: Attempts::new(),
            skipped: SkippedTargets::default(),
            advice: Advice::default(),
        }
    }

    /// Returns what is to be tried next; `None` when nothing is left.
    pub(super) fn next(&mut self) -> Option<Step<'a>> {
        loop {
            if self.is_over || self.attempts.len() >= MAX_ATTEMPTS {
                return None;
            }
            let (tier, choice, is_forced) = self.find()?;
            let target = self.tier(tier)?.targets.get(choice.target)?;
            let member = &target.member;
            let total = member.prepared.deadlines.total;
            let visit = self.visit(member.prepared.id);
            let (has_failed, attempts) = (visit.has_failed, visit.attempts);
            let is_repeated = self.wanted == Wanted::Tried;
            let approach = match attempts {
                0 if is_forced => Approach::Forced,
                0 => Approach::First,
                _ => Approach::Again,
            };
            let luck = member.health.shared.luck();
            let pause = if is_repeated {
                pause(attempts, luck)
            } else {
                Duration::ZERO
            };
            if self.at - self.begun + pause >= total
                || (has_failed && !member.health.withdraw(self.now))
            {
                self.visit(member.prepared.id).is_closed = true;
                continue;
            }
            return Some(Step {
                tier,
                choice,
                target,
                approach,
                pause,
            });
        }
    }

    /// Takes leave for the attempt; `None` when something has come in its way meanwhile.
    pub(super) fn begin(&mut self, step: &Step<'a>) -> Option<(Lane<'a>, Pass)> {
        let member = &step.target.member;
        let upstream_id = member.prepared.id;
        let health = member.keys.get(step.choice.key)?;
        let key = member.prepared.keys.get(step.choice.key)?;
        if !step.pause.is_zero() {
            self.look_at_clock(&member.health.shared);
        }
        let pass = Pass::begin(
            &member.health,
            health,
            &self.asking,
            step.approach,
            self.now,
        );
        match pass {
            Ok(pass) => {
                self.visit(upstream_id).attempts += 1;
                let lane = Lane {
                    upstream: &member.prepared,
                    key,
                    model: step.target.model(self.call.model),
                    attempt: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
                };
                Some((lane, pass))
            }
            Err(Refused::Upstream(obstacle)) => {
                self.visit(upstream_id).is_closed = true;
                self.advice.was_refused(obstacle);
                self.skip(member, None, obstacle);
                None
            }
            Err(Refused::Key(obstacle)) => {
                self.advice.was_refused(obstacle);
                self.skip(member, Some(step.choice.key), obstacle);
                self.remember(step, false);
                None
            }
        }
    }

    fn look_at_clock(&mut self, shared: &Shared) {
        self.at = Instant::now();
        self.now = shared.at(self.at);
    }

    /// Returns when the attempt begins for which leave was taken last.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Returns when everything is over, if the request ends at this upstream.
    pub(super) fn due(&self, lane: &Lane<'_>) -> Instant {
        self.begun + lane.upstream.deadlines.total
    }

    /// Notes an attempt that has ended.
    pub(super) fn record(&mut self, record: AttemptRecord) {
        (self.call.attempt_ended)(&record);
        self.attempts.push(record);
    }

    /// Takes in a failure, and decides what it means for what comes next.
    pub(super) fn failed(&mut self, step: &Step<'a>, pass: Pass, mut failure: Box<Failure>) {
        let (class, stage) = (failure.class, failure.stage);
        let failed = FailedAttempt {
            class,
            stage,
            retry_after: failure.retry_after,
        };
        failure.retry_after = pass.fail(failed, &self.asking).or(failure.retry_after);
        let blame = class.blame();
        self.remember(
            step,
            blame == Blame::Upstream && class != ErrorClass::Timeout,
        );
        let visit = self.visit(step.target.member.prepared.id);
        visit.has_failed |= blame == Blame::Upstream;
        visit.is_unreachable |= class == ErrorClass::Connect;
        // What was silent once would cost the same time again, and what our configuration names wrongly
        // is wrong for every key.
        visit.is_closed |= matches!(class, ErrorClass::Timeout | ErrorClass::Misconfigured);
        self.stay = (!visit.is_unreachable).then_some((step.tier, step.choice.target));
        match class {
            ErrorClass::ContextLength => {
                self.stay = None;
                self.is_over = self.uses == TargetUse::ContextLength
                    || self.plan.tiers(TargetUse::ContextLength).is_empty();
                self.uses = TargetUse::ContextLength;
            }
            ErrorClass::CallerFault | ErrorClass::Internal => self.is_over = true,
            _ => {}
        }
        // A request that was sent and not answered may have been served and billed: one more is
        // sent and no third.
        let is_served_perhaps = blame == Blame::Upstream && stage != SendStage::NotSent;
        self.is_over |= self.unanswered_by.is_some() && is_served_perhaps;
        let is_unanswered = matches!(
            class,
            ErrorClass::Timeout | ErrorClass::Reset | ErrorClass::Cut
        );
        if is_served_perhaps && is_unanswered {
            self.unanswered_by = Some(step.target.member.prepared.id);
        }
        self.advice.failed(failure);
    }

    fn tier(&self, index: usize) -> Option<&'a Tier> {
        self.plan.tiers(self.uses).get(index)
    }

    /// Finds the next lane. The last part tells whether breakers are to be passed.
    fn find(&mut self) -> Option<(usize, Choice, bool)> {
        let tiers = self.plan.tiers(self.uses);
        let shared = shared(tiers)?;
        if self.attempts.is_empty() {
            self.now = shared.at(self.at);
        } else {
            self.look_at_clock(shared);
        }
        self.advice.look_again();
        if let Some(unanswered_by) = self.unanswered_by {
            // Keys share their upstream: what broke one attempt may well break the last one.
            self.avoided = Some(unanswered_by);
            let found = self.find_in_tiers(tiers);
            self.avoided = None;
            if let Some((index, choice)) = found {
                self.stay = None;
                return Some((index, choice, false));
            }
        }
        self.wanted = Wanted::New;
        if let Some((index, target)) = self.stay.take()
            && let Some(tier) = tiers.get(index)
        {
            let draw = self.draw();
            if let Some(choice) = tier.with_key(target, draw, self) {
                return Some((index, choice, false));
            }
        }
        if let Some((index, choice)) = self.find_in_tiers(tiers) {
            return Some((index, choice, false));
        }
        self.wanted = Wanted::New;
        let last = tiers.len().checked_sub(1)?;
        let choice = self.least_bad(tiers.get(last)?)?;
        Some((last, choice, true))
    }

    fn find_in_tiers(&mut self, tiers: &[Tier]) -> Option<(usize, Choice)> {
        for (index, tier) in tiers.iter().enumerate() {
            self.wanted = Wanted::New;
            if let Some(choice) = tier.choose(self.plan.selection, self.asker, self) {
                return Some((index, choice));
            }
            self.wanted = Wanted::Tried;
            if let Some(choice) = self.repeatable(index, tier) {
                return Some((index, choice));
            }
        }
        None
    }

    fn draw(&self) -> Draw {
        match self.plan.selection {
            Selection::Weighted | Selection::LeastLatency => Draw::InTurn,
            Selection::StickyKey | Selection::StickyUser => Draw::OfAsker(self.asker),
        }
    }

    /// Finds the lane of a tier that is worth another try and was tried first.
    fn repeatable(&mut self, index: usize, tier: &Tier) -> Option<Choice> {
        let uses = self.uses;
        let choices: SmallVec<[Choice; 2]> = self
            .tried
            .iter()
            .filter(|tried| tried.tier == index && tried.uses == uses && tried.may_repeat)
            .map(|tried| tried.choice)
            .collect();
        choices.into_iter().find(|choice| {
            let member = tier
                .targets
                .get(choice.target)
                .map(|target| &*target.member);
            member.is_some_and(|member| self.may_ask(member) && self.may_use(*choice, member))
        })
    }

    /// Finds the lane of the last tier where nothing but breakers stands in the way and whose time
    /// comes first.
    fn least_bad(&self, tier: &Tier) -> Option<Choice> {
        let mut best: Option<(Duration, Choice)> = None;
        for (target, planned) in tier.targets.iter().enumerate() {
            let member = &planned.member;
            let mut visits = self.visits.iter();
            if visits.any(|visit| {
                visit.upstream_id == member.prepared.id && (visit.attempts > 0 || visit.is_closed)
            }) || self.is_elsewhere(member)
            {
                continue;
            }
            let Some(upstream) = breaker_wait(member.health.obstacle(&self.asking, self.now))
            else {
                continue;
            };
            for (key, health) in member.keys.iter().enumerate() {
                let choice = Choice { target, key };
                if self.tried.iter().any(|tried| tried.choice == choice) {
                    continue;
                }
                let obstacle = health.obstacle(self.asking.tokens(), self.now);
                let Some(wait) = breaker_wait(obstacle).map(|wait| wait.max(upstream)) else {
                    continue;
                };
                if best.is_none_or(|(shortest, _)| wait < shortest) {
                    best = Some((wait, choice));
                }
            }
        }
        best.map(|(_, choice)| choice)
    }

    /// Returns whether the request is for another upstream alone.
    fn is_elsewhere(&self, member: &Member) -> bool {
        let pinned = self.call.pinned;
        pinned.is_some_and(|name| *name != *member.prepared.name)
    }

    fn visit(&mut self, upstream_id: UpstreamId) -> &mut Visit {
        let known = self
            .visits
            .iter()
            .position(|visit| visit.upstream_id == upstream_id);
        let index = known.unwrap_or_else(|| {
            self.visits.push(Visit {
                upstream_id,
                attempts: 0,
                has_failed: false,
                is_unreachable: false,
                is_closed: false,
            });
            self.visits.len() - 1
        });
        &mut self.visits[index]
    }

    fn remember(&mut self, step: &Step<'_>, may_repeat: bool) {
        let (tier, uses) = (step.tier, self.uses);
        self.tried
            .retain(|tried| (tried.tier, tried.choice, tried.uses) != (tier, step.choice, uses));
        self.tried.push(Tried {
            tier,
            upstream_id: step.target.member.prepared.id,
            choice: step.choice,
            uses,
            may_repeat,
        });
    }

    fn skip(&mut self, member: &Member, key: Option<usize>, obstacle: Obstacle) {
        let key = key.and_then(|key| member.prepared.keys.get(key));
        self.skipped.add(SkippedTarget {
            upstream_id: member.prepared.id,
            upstream_key_id: key.and_then(|key| key.id),
            reason: obstacle.reason,
        });
    }

    /// Returns the attempts and what was passed over, at the end of a request that was served.
    pub(super) fn into_notes(mut self) -> (Attempts, SkippedTargets) {
        (mem::take(&mut self.attempts), mem::take(&mut self.skipped))
    }

    /// Returns what the client is told.
    pub(super) fn into_error(mut self) -> Box<DispatchError> {
        let advice = mem::take(&mut self.advice);
        let (attempts, skipped) = self.into_notes();
        advice.into_error(attempts, skipped)
    }
}

impl Drop for Tour<'_> {
    fn drop(&mut self) {
        // Whoever has asked for the notes has them.
        if !self.skipped.is_empty() {
            (self.call.abandoned)(mem::take(&mut self.skipped));
        }
    }
}

impl Judge for Tour<'_> {
    fn may_ask(&mut self, member: &Member) -> bool {
        let id = member.prepared.id;
        if self.is_elsewhere(member) || self.avoided == Some(id) {
            return false;
        }
        if let Some(visit) = self.visits.iter().find(|visit| visit.upstream_id == id)
            && (visit.is_closed
                || (visit.is_unreachable && self.wanted == Wanted::New)
                || visit.attempts >= member.health.max_attempts())
        {
            return false;
        }
        let obstacle = member.health.obstacle(&self.asking, self.now);
        if let Some(obstacle) = obstacle {
            self.advice.saw(obstacle);
            self.skip(member, None, obstacle);
        }
        obstacle.is_none()
    }

    fn may_use(&mut self, choice: Choice, member: &Member) -> bool {
        let uses = self.uses;
        let is_tried = self.tried.iter().any(|tried| {
            tried.choice == choice && tried.uses == uses && tried.upstream_id == member.prepared.id
        });
        if is_tried && self.wanted == Wanted::New {
            return false;
        }
        let Some(key) = member.keys.get(choice.key) else {
            return false;
        };
        let obstacle = key.obstacle(self.asking.tokens(), self.now);
        if let Some(obstacle) = obstacle
            && !is_tried
        {
            self.advice.saw(obstacle);
            self.skip(member, Some(choice.key), obstacle);
        }
        obstacle.is_none()
    }

    fn now(&self) -> Duration {
        self.now
    }
}

fn shared(tiers: &[Tier]) -> Option<&Shared> {
    let target = tiers.first()?.targets.first()?;
    Some(&target.member.health.shared)
}

/// Returns how long a breaker stays open, zero without an obstacle; `None` when something else
/// stands in the way.
fn breaker_wait(obstacle: Option<Obstacle>) -> Option<Duration> {
    match obstacle {
        None => Some(Duration::ZERO),
        Some(obstacle) if obstacle.reason == SkipReason::BreakerOpen => {
            Some(obstacle.wait.unwrap_or_default())
        }
        Some(_) => None,
    }
}

/// Full jitter.
fn pause(attempts: u32, luck: f64) -> Duration {
    let doubled = 1_u32
        .checked_shl(attempts.saturating_sub(1))
        .unwrap_or(u32::MAX);
    PAUSE
        .saturating_mul(doubled)
        .min(LONGEST_PAUSE)
        .mul_f64(luck)
}

fn fold((high, low): (u64, u64)) -> u64 {
    mix(high ^ mix(low))
}
