//! What an admitted decision took, and how it is given back.

use std::fmt;

/// Ends a ticket where its counters are kept.
pub trait TicketEnd: Send + Sync {
    /// Replaces the estimate of the tokens by what was used. Called at most once.
    fn correct(&mut self, tokens: u64);

    /// Gives back the slots. Called once, last.
    fn release(&mut self);
}

/// What an admitted decision took.
///
/// Slots of [`WindowKind::Concurrency`](super::WindowKind::Concurrency) are given back when it is
/// dropped. Requests stay counted. Tokens stay as estimated unless they are corrected
/// by [`correct`](Self::correct). None of it waits or fails: where the counters are elsewhere, it is sent later.
#[must_use = "slots are given back at once when the ticket is dropped"]
pub struct WindowTicket {
    end: Option<Box<dyn TicketEnd>>,
    is_corrected: bool,
}

impl WindowTicket {
    /// Wraps what ends the ticket.
    pub fn new(end: Box<dyn TicketEnd>) -> Self {
        Self {
            end: Some(end),
            is_corrected: false,
        }
    }

    /// Returns a ticket of which nothing is to be given back.
    pub const fn empty() -> Self {
        Self {
            end: None,
            is_corrected: false,
        }
    }

    /// Replaces the estimate of the tokens by what was used; only the first call counts.
    ///
    /// What was too much goes back to where it was taken from, unless that has left the window
    /// already: a correction never makes room in a later window. What was too little counts from
    /// now on, and may carry the counter above its limit. Zero voids the reservation.
    pub fn correct(&mut self, tokens: u64) {
        if self.is_corrected {
            return;
        }
        self.is_corrected = true;
        if let Some(end) = &mut self.end {
            end.correct(tokens);
        }
    }
}

impl Drop for WindowTicket {
    fn drop(&mut self) {
        if let Some(mut end) = self.end.take() {
            end.release();
        }
    }
}

impl fmt::Debug for WindowTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WindowTicket")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Ends(Arc<[AtomicU64; 3]>);

    impl TicketEnd for Ends {
        fn correct(&mut self, tokens: u64) {
            self.0[0].fetch_add(1, Ordering::Relaxed);
            self.0[1].store(tokens, Ordering::Relaxed);
        }
        fn release(&mut self) {
            self.0[2].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ticket_is_corrected_once_and_released_once() {
        let ends = Arc::<[AtomicU64; 3]>::default();
        let mut ticket = WindowTicket::new(Box::new(Ends(Arc::clone(&ends))));
        ticket.correct(7);
        ticket.correct(9);
        drop(ticket);
        let seen = ends.each_ref().map(|n| n.load(Ordering::Relaxed));
        assert_eq!(seen, [1, 7, 1]);
    }
}
