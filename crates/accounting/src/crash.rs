//! Places at which a test lets the process die, to see what is true afterwards.
//!
//! They exist in builds with debug assertions only; in others a [`point`] is nothing. The variable
//! `CRASH_AT=NAME:N` names the place and how often it is passed until the end.
//!
//! The end is SIGKILL sent to the own process, the same end that the system gives: nothing is
//! unwound, no buffer is flushed, no thread goes on, and no core is written as by an abort. What was
//! handed to the system before, such as a line of the journal, is there; all else is gone.

/// Ends the process when it is told to die here.
#[cfg(not(debug_assertions))]
#[inline]
pub fn point(_name: &'static str) {}

/// Ends the process when it is told to die here.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    if let Some(plan) = armed::PLAN.as_ref() {
        plan.pass(name);
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The variable; without the prefix of settings, because it is none.
    const CRASH_AT: &str = "CRASH_AT";

    pub(super) static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test's order to a debug build, not a setting"
        )]
        let order = std::env::var(CRASH_AT).ok()?;
        Plan::parse(&order)
    });

    /// Where the process dies, and after how many passes.
    #[derive(Debug)]
    pub(super) struct Plan {
        name: String,
        left: AtomicU64,
    }

    impl Plan {
        pub(super) fn parse(order: &str) -> Option<Self> {
            let (name, passes) = order.rsplit_once(':')?;
            let left = AtomicU64::new(passes.parse().ok().filter(|passes| *passes > 0)?);
            let name = name.to_owned();
            Some(Self { name, left })
        }

        pub(super) fn pass(&self, name: &str) {
            if self.is_last_pass(name) {
                die();
            }
        }

        pub(super) fn is_last_pass(&self, name: &str) -> bool {
            // Below zero it wraps around and is never one again.
            name == self.name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    fn die() -> ! {
        use rustix::process::{Signal, getpid, kill_process};

        // It does not return; should the system refuse it, an abort ends the process as well.
        let _refused = kill_process(getpid(), Signal::KILL);
        std::process::abort()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_process_dies_at_the_pass_that_was_named() {
            let plan = Plan::parse("post.written:3").unwrap();
            let passes = [
                "post.written",
                "open.written",
                "post.written",
                "post.written",
            ];
            let dies = passes.map(|name| plan.is_last_pass(name));
            assert_eq!(dies, [false, false, false, true]);
            assert!(!plan.is_last_pass("post.written"));
        }

        #[test]
        fn an_order_that_makes_no_sense_is_none() {
            for order in ["", "post.written", "post.written:0", "post.written:soon"] {
                assert!(Plan::parse(order).is_none(), "{order}");
            }
        }
    }
}
