//! Window limits as they are set: for a tenant, a user, a proxy key, and for one model on a key.
//!
//! How they are counted is in [`window`](crate::window).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::quota::Scope;
use crate::window::{WindowKind, WindowLimit, WindowLimits};

/// What a limit is set for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitTarget {
    /// Whose requests it counts.
    pub scope: Scope,
    /// The model as clients name it, on a key only; `None` is all models together.
    pub model: Option<String>,
}

/// One limit that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLimit {
    /// What it is set for.
    pub target: LimitTarget,
    /// What it counts.
    pub kind: WindowKind,
    /// How much it allows.
    pub limit: WindowLimit,
}

/// Every limit that the requests of one key meet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyLimits {
    /// Of its tenant.
    pub tenant: WindowLimits,
    /// Of its user.
    pub user: WindowLimits,
    /// Of the key itself.
    pub key: WindowLimits,
    /// Of the key for single models, beside those of the key.
    pub models: BTreeMap<Arc<str>, WindowLimits>,
}

impl KeyLimits {
    /// Returns whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        let models = self.models.values();
        [&self.tenant, &self.user, &self.key]
            .into_iter()
            .chain(models)
            .all(WindowLimits::is_empty)
    }
}
