//! What a request used, how that is known, how it ended, and what the tenant is charged.

use crate::words;

/// Tokens by class, as facts.
///
/// # Units
/// Tokens. `cached_input` and `cache_write_input` are part of `input`; `reasoning_output` is part of
/// `output`. Providers that report otherwise are brought into this form where they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// All input.
    pub input: i64,
    /// Input served from the provider's prompt cache.
    pub cached_input: i64,
    /// Input written to the provider's prompt cache.
    pub cache_write_input: i64,
    /// All output.
    pub output: i64,
    /// Output spent on reasoning.
    pub reasoning_output: i64,
}

impl TokenUsage {
    /// Returns input plus output, never beyond the largest amount the ledger holds.
    pub fn total(&self) -> i64 {
        self.input.saturating_add(self.output).min(MAX_AMOUNT)
    }
}

/// The largest amount that a record or counter holds: 2^62.
pub const MAX_AMOUNT: i64 = 1 << 62;

/// How a record's tokens are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Basis {
    /// The provider's own numbers.
    Reported,
    /// The provider's own numbers, read on after the client had left.
    Drained,
    /// Counted here with a tokenizer.
    Counted,
    /// Rebuilt from the journal after a crash.
    Recovered,
    /// Nobody knows.
    Unknown,
}

words!(Basis, "reported, drained, counted, recovered, unknown", {
    Basis::Reported => "reported",
    Basis::Drained => "drained",
    Basis::Counted => "counted",
    Basis::Recovered => "recovered",
    Basis::Unknown => "unknown",
});

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The answer was read to its end.
    Finished,
    /// The client left or stopped reading.
    ClientLeft,
    /// The upstream refused, failed, cut, or ended without its terminal event.
    UpstreamFailed,
    /// A deadline passed.
    Deadline,
    /// The instance was stopped.
    Shutdown,
    /// A defect of ours.
    Panicked,
    /// The process died; the record was rebuilt from the journal.
    Crashed,
}

words!(Ending, "finished, client_left, upstream_failed, deadline, shutdown, panicked, crashed", {
    Ending::Finished => "finished",
    Ending::ClientLeft => "client_left",
    Ending::UpstreamFailed => "upstream_failed",
    Ending::Deadline => "deadline",
    Ending::Shutdown => "shutdown",
    Ending::Panicked => "panicked",
    Ending::Crashed => "crashed",
});

/// How far a request had come when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Nothing was sent to an upstream.
    Held,
    /// Sent; no event of the answer was relayed.
    Dispatched,
    /// At least one event of the answer was relayed.
    Relaying,
}

/// Which tokens the tenant owes; the table of endings as a function.
///
/// | ended by | held | dispatched | relaying |
/// | --- | --- | --- | --- |
/// | finished | – | reported, else counted | same |
/// | client left | 0 | input | input and output read |
/// | upstream failed, deadline, shutdown, panic, crash | 0 | 0 | input and output relayed |
///
/// Usage that the provider reported wins wherever anything is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Nothing.
    Nothing,
    /// The input alone.
    Input,
    /// Input and output.
    InputAndOutput,
}

/// Returns what the tenant owes for a request that ended so.
pub const fn charge(ending: Ending, stage: Stage) -> Owed {
    match (ending, stage) {
        (Ending::Finished, _) | (_, Stage::Relaying) => Owed::InputAndOutput,
        (Ending::ClientLeft, Stage::Dispatched) => Owed::Input,
        (_, Stage::Held | Stage::Dispatched) => Owed::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_endings() {
        use Ending::*;
        use Owed::*;
        use Stage::*;
        for (ending, held, dispatched, relaying) in [
            (ClientLeft, Nothing, Input, InputAndOutput),
            (UpstreamFailed, Nothing, Nothing, InputAndOutput),
            (Deadline, Nothing, Nothing, InputAndOutput),
            (Shutdown, Nothing, Nothing, InputAndOutput),
            (Panicked, Nothing, Nothing, InputAndOutput),
            (Crashed, Nothing, Nothing, InputAndOutput),
        ] {
            assert_eq!(charge(ending, Held), held, "{ending}");
            assert_eq!(charge(ending, Dispatched), dispatched, "{ending}");
            assert_eq!(charge(ending, Relaying), relaying, "{ending}");
        }
        assert_eq!(charge(Finished, Dispatched), InputAndOutput);
    }
}
