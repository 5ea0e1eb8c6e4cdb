//! Window limits on the way of a request: what is asked, what is answered, and what is given back.
//!
//! A request meets two decisions. Before anything is known of the caller, those of its source
//! address and of the instance; whoever guesses keys is counted there. Once the body is read, one
//! decision of all limits of its key, user and tenant, all or nothing, before anything is held. What
//! was taken travels with the request as a [`WindowPass`].
//!
//! A request that no limit concerns pays for none of this: nothing is allocated, no lock is taken.
//!
//! Modules in reading order: `pass` (what a request has taken), `refusal` (what is said to those
//! that are over), `shown` (headers), `queue` (waiting instead of being refused), [`counting`] (where it is counted).

pub(crate) mod counting;
mod pass;
mod queue;
mod refusal;
mod shown;

use std::net::IpAddr;
use std::sync::Arc;

use sluice_domain::ports::Clock as _;
use sluice_domain::window::{
    IpBlock, WindowAnswer, WindowAsk, WindowDecision, WindowGroup, WindowKind, WindowLimit,
    WindowLimits, WindowRefusal, WindowStanding, WindowSubject,
};
use sluice_storage::windows::{Windows, WindowsStatus};
use tokio::time::Instant;

use crate::auth::Grant;
use crate::clock::SystemClock;
use crate::config::{LimitMode, LimitsConfig};
use crate::error::ApiError;
use crate::metrics::Metrics;

pub(crate) use self::pass::WindowPass;
pub(crate) use self::queue::QueueOutcome;
use self::queue::Queues;
use self::refusal::{crowded, refused};
pub(crate) use self::shown::{ShownLimits, header_names};

/// Decides about every request.
pub(crate) struct Gate {
    counters: Windows,
    source_ip: WindowLimits,
    ipv6_prefix: u8,
    /// What is counted of every request to the instance.
    instance: WindowLimits,
    /// What is counted of those that take tokens.
    instance_tokens: WindowLimits,
    queues: Arc<Queues>,
    clock: SystemClock,
    metrics: Arc<Metrics>,
}

/// What a request asks of the limits of its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The model, where it asks for one.
    pub(crate) model: Option<&'a str>,
    /// The most tokens that it may take; `None` where it takes none that count.
    pub(crate) tokens: Option<u64>,
}

impl Gate {
    /// Builds the gate of an instance.
    pub(crate) fn new(
        config: &LimitsConfig,
        counters: Windows,
        clock: SystemClock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = |most: u64, mode: LimitMode| {
            let limit = WindowLimit::new(most).ok()?;
            Some(match mode {
                LimitMode::Enforce => limit,
                LimitMode::DryRun => limit.dry_run(),
            })
        };
        let of_source = |most| limit(most, config.source_ip_mode);
        let of_instance = |most| limit(most, config.instance_mode);
        Self {
            counters,
            source_ip: WindowLimits {
                rps: of_source(config.source_ip_rps),
                rpm: of_source(config.source_ip_rpm),
                tpm: None,
                concurrency: of_source(config.source_ip_concurrency),
            },
            ipv6_prefix: config.ipv6_prefix,
            instance: WindowLimits {
                rps: of_instance(config.instance_rps),
                rpm: of_instance(config.instance_rpm),
                tpm: None,
                concurrency: of_instance(config.instance_concurrency),
            },
            instance_tokens: WindowLimits {
                tpm: of_instance(config.instance_tpm),
                ..WindowLimits::default()
            },
            queues: Arc::new(Queues::new(
                config.queue,
                config.max_queued,
                Arc::clone(&metrics),
            )),
            clock,
            metrics,
        }
    }

    /// Returns how the counters stand.
    pub(crate) fn status(&self) -> WindowsStatus {
        self.counters.status()
    }

    /// Counts a request whose caller is not known yet.
    ///
    /// # Errors
    /// 429 when its address, or the instance, has had too many.
    pub(crate) async fn enter(&self, ip: IpAddr) -> Result<WindowPass, ApiError> {
        if self.source_ip.is_empty() && self.instance.is_empty() {
            return Ok(WindowPass::default());
        }
        Box::pin(self.enter_counted(ip)).await
    }

    async fn enter_counted(&self, ip: IpAddr) -> Result<WindowPass, ApiError> {
        let mut pass = WindowPass::default();
        // The address first: what it is refused must not use up what all share.
        if !self.source_ip.is_empty() {
            let block = IpBlock::of(ip, self.ipv6_prefix);
            let mut asks = Vec::with_capacity(WindowKind::ALL.len());
            self.source_ip
                .ask(&WindowSubject::SourceIp(block), 0, &mut asks);
            self.take(WindowGroup::Ip(block), &asks, &mut pass).await?;
        }
        self.take_of_instance(self.instance, 0, &mut pass).await?;
        Ok(pass)
    }

    /// Counts a request against the limits of its key, user and tenant, and adds what it took to the
    /// pass. Where the settings allow, it waits for room.
    ///
    /// # Errors
    /// 429 when there is none; then nothing was taken of them.
    ///
    /// # Cancel safety
    /// Safe: what was taken is given back, and who waits leaves the queue.
    pub(crate) async fn admit(
        &self,
        pass: &mut WindowPass,
        grant: &Grant,
        asked: Asked<'_>,
    ) -> Result<(), ApiError> {
        if grant.limits().is_none() && self.instance_tokens.is_empty() {
            return Ok(());
        }
        Box::pin(self.admit_counted(pass, grant, asked)).await
    }

    async fn admit_counted(
        &self,
        pass: &mut WindowPass,
        grant: &Grant,
        asked: Asked<'_>,
    ) -> Result<(), ApiError> {
        if let Some(tokens) = asked.tokens {
            self.take_of_instance(self.instance_tokens, tokens, pass)
                .await?;
        }
        let asks = asks_of(grant, asked);
        if asks.is_empty() {
            return Ok(());
        }
        let payer = grant.payer();
        let group = WindowGroup::Tenant(payer.tenant_id);
        let refuse = |refusal: &WindowRefusal| self.refuse(&asks, refusal, grant);
        let mut refusal = None;
        if self.queues.is_first(payer.key_id) {
            match self.decide(group, &asks, pass).await {
                Ok(()) => {
                    self.queues.note_taker(pass, payer.tenant_id);
                    return Ok(());
                }
                Err(found) if self.queues.is_worth_waiting(&asks, &found) => refusal = Some(found),
                Err(found) => return Err(refuse(&found)),
            }
        }
        let until = Instant::now() + self.queues.patience();
        let Some(mut turn) = self.queues.join(payer, until).await else {
            return Err(refusal.map_or_else(|| crowded(grant), |refusal| refuse(&refusal)));
        };
        loop {
            match self.decide(group, &asks, pass).await {
                Ok(()) => {
                    turn.admitted();
                    self.queues.note_taker(pass, payer.tenant_id);
                    return Ok(());
                }
                Err(refusal) if turn.wait(&asks, &refusal).await => {}
                Err(refusal) => return Err(refuse(&refusal)),
            }
        }
    }

    async fn take_of_instance(
        &self,
        limits: WindowLimits,
        tokens: u64,
        pass: &mut WindowPass,
    ) -> Result<(), ApiError> {
        if limits.is_empty() {
            return Ok(());
        }
        let mut asks = Vec::with_capacity(WindowKind::ALL.len());
        limits.ask(&WindowSubject::Instance, tokens, &mut asks);
        self.take(WindowGroup::Instance, &asks, pass).await
    }

    async fn take(
        &self,
        group: WindowGroup,
        asks: &[WindowAsk],
        pass: &mut WindowPass,
    ) -> Result<(), ApiError> {
        self.decide(group, asks, pass)
            .await
            .map_err(|refusal| self.refuse(asks, &refusal, None))
    }

    /// Takes what is asked, or nothing of it.
    async fn decide(
        &self,
        group: WindowGroup,
        asks: &[WindowAsk],
        pass: &mut WindowPass,
    ) -> Result<(), WindowRefusal> {
        match self.counters.decide(WindowDecision { group, asks }).await {
            WindowAnswer::Admitted { ticket, standings } => {
                self.count_admitted(asks, &standings);
                pass.add(ticket, ShownLimits::of(asks, &standings, self.clock.now()));
                Ok(())
            }
            WindowAnswer::Refused(refusal) => Err(refusal),
        }
    }

    fn count_admitted(&self, asks: &[WindowAsk], standings: &[WindowStanding]) {
        for (ask, standing) in asks.iter().zip(standings) {
            if ask.limit.dry_run && standing.is_over {
                self.metrics.windows.dry_run(&ask.key);
                tracing::debug!(
                    scope = ask.key.subject.scope().as_str(),
                    kind = ask.key.kind.as_str(),
                    limit = ask.limit.most(),
                    used = standing.used,
                    "a limit in dry run would have refused a request"
                );
            } else {
                self.metrics.windows.admitted(&ask.key);
            }
        }
    }

    fn refuse<'g>(
        &self,
        asks: &[WindowAsk],
        refusal: &WindowRefusal,
        grant: impl Into<Option<&'g Grant>>,
    ) -> ApiError {
        if let Some(ask) = asks.get(refusal.which) {
            self.metrics.windows.refused(&ask.key);
        }
        refused(asks, refusal, grant.into(), self.clock.now())
    }
}

/// Returns what a request asks of the limits of its key, user and tenant.
fn asks_of(grant: &Grant, asked: Asked<'_>) -> Vec<WindowAsk> {
    let Some(limits) = grant.limits() else {
        return Vec::new();
    };
    let payer = grant.payer();
    let mut asks = Vec::with_capacity(2 * WindowKind::ALL.len());
    let mut ask = |limits: &WindowLimits, subject: WindowSubject| {
        let tpm = limits.tpm.filter(|_| asked.tokens.is_some());
        let limits = WindowLimits { tpm, ..*limits };
        limits.ask(&subject, asked.tokens.unwrap_or(0), &mut asks);
    };
    ask(&limits.key, WindowSubject::ProxyKey(payer.key_id));
    if let Some((model, of_model)) = asked.model.and_then(|m| limits.models.get_key_value(m)) {
        let subject = WindowSubject::ProxyKeyModel(payer.key_id, Arc::clone(model));
        ask(of_model, subject);
    }
    ask(&limits.user, WindowSubject::User(payer.user_id));
    ask(&limits.tenant, WindowSubject::Tenant(payer.tenant_id));
    asks
}
