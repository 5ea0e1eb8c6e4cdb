//! What a request has taken of window limits.

use std::sync::Arc;

use sluice_domain::id::TenantId;
use sluice_domain::window::WindowTicket;
use smallvec::SmallVec;

use super::queue::Queues;
use super::shown::ShownLimits;

/// What a request has taken; nothing where no limit concerns it.
///
/// Dropped as it is, it gives back slots and tokens, as for a request of which nothing was sent:
/// whoever sends it ends the pass with [`spent`](Self::spent) or [`unknown`](Self::unknown). Requests
/// stay counted in any case.
#[derive(Debug, Default)]
#[must_use = "slots and tokens are given back when it is dropped"]
pub(crate) struct WindowPass(Option<Box<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    tickets: SmallVec<[WindowTicket; 4]>,
    shown: ShownLimits,
    /// Those who wait for what this gives back.
    waiting: Option<(Arc<Queues>, TenantId)>,
    /// Whether the tokens stay as estimated.
    keeps_tokens: bool,
}

impl WindowPass {
    /// Adds what a decision took.
    pub(super) fn add(&mut self, ticket: WindowTicket, shown: ShownLimits) {
        let taken = self.0.get_or_insert_default();
        taken.tickets.push(ticket);
        taken.shown.tighten(shown);
    }

    /// Notes who is to be told when it is given back.
    pub(super) fn tell(&mut self, queues: &Arc<Queues>, tenant: TenantId) {
        if let Some(taken) = &mut self.0 {
            taken.waiting = Some((Arc::clone(queues), tenant));
        }
    }

    /// Returns how the limits stood, for the headers of the answer.
    pub(crate) fn shown(&self) -> Option<ShownLimits> {
        self.0.as_ref().map(|taken| taken.shown)
    }

    /// Ends it with the tokens that the request used. Only the first end counts.
    pub(crate) fn spent(mut self, tokens: u64) {
        if let Some(taken) = &mut self.0 {
            for ticket in &mut taken.tickets {
                ticket.correct(tokens);
            }
        }
    }

    /// Ends it for a request that was sent and whose tokens nobody knows: they stay as estimated.
    pub(crate) fn unknown(mut self) {
        if let Some(taken) = &mut self.0 {
            taken.keeps_tokens = true;
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.keeps_tokens {
            // Without effect where they were corrected already.
            for ticket in &mut self.tickets {
                ticket.correct(0);
            }
        }
        self.tickets.clear();
        if let Some((queues, tenant)) = &self.waiting {
            queues.freed(*tenant);
        }
    }
}
