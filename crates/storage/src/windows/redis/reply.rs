//! What the script of a decision answers.

use std::time::Duration;

use redis::Value;
use sluice_domain::window::{WindowAsk, WindowKind, WindowStanding};

use crate::windows::local::SLOT_WAIT;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Admitted {
        server_ms: u64,
        marker: String,
        standings: Vec<WindowStanding>,
        /// The bucket that each counter was taken from.
        buckets: Vec<u64>,
    },
    Refused {
        server_ms: u64,
        which: usize,
        standings: Vec<WindowStanding>,
        retry_after: Duration,
    },
    /// What was counted is lost.
    Forgetful { server_ms: u64 },
}

impl Reply {
    /// Reads what the script returns; `None` for anything else.
    pub(super) fn read(value: &Value, asks: &[WindowAsk]) -> Option<Self> {
        let Value::Array(values) = value else {
            return None;
        };
        let [Value::Int(status), server_ms, third, counters @ ..] = values.as_slice() else {
            return None;
        };
        let server_ms = number(server_ms)?;
        if matches!(status, 2 | 3) {
            return Some(Self::Forgetful { server_ms });
        }
        let is_admitted = match status {
            0 => false,
            1 => true,
            _ => return None,
        };
        if counters.len() != asks.len() * 4 {
            return None;
        }
        let mut standings = Vec::with_capacity(asks.len());
        let mut last = Vec::with_capacity(asks.len());
        for (ask, counter) in asks.iter().zip(counters.chunks_exact(4)) {
            let [used, resets_in, is_over, last_number] = counter else {
                return None;
            };
            standings.push(WindowStanding {
                most: ask.limit.most(),
                used: number(used)?,
                resets_in: Duration::from_millis(number(resets_in)?),
                is_over: number(is_over)? == 1,
            });
            last.push(number(last_number)?);
        }
        if is_admitted {
            let Value::BulkString(marker) = third else {
                return None;
            };
            return Some(Self::Admitted {
                server_ms,
                marker: String::from_utf8(marker.clone()).ok()?,
                standings,
                buckets: last,
            });
        }
        let (which, retry_after) = asks
            .iter()
            .zip(&standings)
            .zip(&last)
            .enumerate()
            .filter(|(_, ((ask, standing), _))| standing.is_over && !ask.limit.dry_run)
            .map(|(at, ((ask, _), wait))| {
                let wait = match ask.key.kind {
                    WindowKind::Concurrency => SLOT_WAIT,
                    _ => Duration::from_millis(*wait),
                };
                (at, wait)
            })
            // The first of equals.
            .reduce(|longest, next| if next.1 > longest.1 { next } else { longest })?;
        Some(Self::Refused {
            server_ms,
            which,
            standings,
            retry_after,
        })
    }

    pub(super) const fn server_ms(&self) -> u64 {
        match self {
            Self::Admitted { server_ms, .. }
            | Self::Refused { server_ms, .. }
            | Self::Forgetful { server_ms } => *server_ms,
        }
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
