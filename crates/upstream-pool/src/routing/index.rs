//! Finds a route by model inside one scope: a tenant's own routes, or the shared ones.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::plan::RoutePlan;

/// The routes of one scope.
#[derive(Debug, Default)]
pub(super) struct ScopeIndex {
    /// Filled by admins only, so that its hash need not withstand chosen names.
    exact: HashMap<Arc<str>, Arc<RoutePlan>, RandomState>,
    /// Sorted by prefix after [`finish`](Self::finish).
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    prefix: Box<str>,
    /// The longest other pattern whose prefix begins this one.
    parent: Option<usize>,
    plan: Arc<RoutePlan>,
}

impl ScopeIndex {
    /// Adds a route; a model that ends in `*` is a pattern.
    pub(super) fn insert(&mut self, model: &str, plan: Arc<RoutePlan>) {
        if let Some(prefix) = model.strip_suffix('*') {
            self.patterns.push(Pattern {
                prefix: Box::from(prefix),
                parent: None,
                plan,
            });
        } else {
            self.exact.insert(Arc::from(model), plan);
        }
    }

    /// Sorts the patterns and links each to the one that it refines.
    pub(super) fn finish(&mut self) {
        self.patterns.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        for index in 1..self.patterns.len() {
            let parent = self.longest_from(index.checked_sub(1), &self.patterns[index].prefix);
            self.patterns[index].parent = parent;
        }
    }

    /// Finds the exact route, else the one with the longest matching pattern.
    pub(super) fn find(&self, model: &str) -> Option<&Arc<RoutePlan>> {
        if let Some(plan) = self.exact.get(model) {
            return Some(plan);
        }
        let after = self.patterns.partition_point(|p| &*p.prefix <= model);
        let index = self.longest_from(after.checked_sub(1), model)?;
        self.patterns.get(index).map(|pattern| &pattern.plan)
    }

    /// Walks from the last prefix that sorts before `model` to the longest one that begins it.
    ///
    /// Every prefix of `model` also begins whatever sorts between the two, so it is among the
    /// ancestors.
    fn longest_from(&self, mut candidate: Option<usize>, model: &str) -> Option<usize> {
        while let Some(index) = candidate {
            let pattern = self.patterns.get(index)?;
            if model.starts_with(&*pattern.prefix) {
                return Some(index);
            }
            candidate = pattern.parent;
        }
        None
    }

    /// Returns the routes that are no patterns.
    pub(super) fn exact(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<RoutePlan>)> {
        self.exact.iter()
    }
}
