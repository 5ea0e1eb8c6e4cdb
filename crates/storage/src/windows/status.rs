//! What is known of the window counters, for health and metrics.

use std::time::Duration;

/// Where decisions are made, by server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeMode {
    /// In Redis, for all instances together.
    Redis,
    /// By each instance for itself.
    Local(LocalReason),
}

/// Why Redis is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalReason {
    /// There is no connection.
    NotConnected,
    /// It does not answer in time.
    Slow,
    /// It answers with errors.
    Failed,
    /// It may have lost what it counted; that is waited out.
    Forgetful,
    /// Its clock has jumped ahead; that is waited out.
    ClockJumped,
}

impl LocalReason {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::Slow => "slow",
            Self::Failed => "failed",
            Self::Forgetful => "forgetful",
            Self::ClockJumped => "clock_jumped",
        }
    }
}

impl NodeMode {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Local(_) => "local",
        }
    }
}

/// How one server stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its address, or the service that sentinels name.
    pub server: String,
    /// Where the decisions of its part are made.
    pub mode: NodeMode,
    /// How long that has been so.
    pub since: Duration,
    /// The last error, which may be long over.
    pub last_error: Option<String>,
    /// How often it was tried whether it is back.
    pub probes: u64,
    /// What is wrong with how it is set up.
    pub warnings: Vec<String>,
}

/// How window counters stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WindowsStatus {
    /// The servers; none where all is counted in process.
    pub nodes: Vec<NodeStatus>,
    /// How many counters this process has.
    pub counters: usize,
    /// How many had to make room while they still counted. Each may have let more pass than its
    /// limit allows.
    pub displaced: u64,
    /// Decisions that were made in process although Redis is set up.
    pub local_decisions: u64,
    /// Decisions that were made in Redis.
    pub redis_decisions: u64,
    /// Corrections that could not be sent. What was too much stays counted; what was too little
    /// does not count.
    pub lost_corrections: u64,
}
