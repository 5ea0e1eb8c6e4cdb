//! What is sent to Redis behind the scenes: corrections, and slots in use.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;
use sluice_domain::window::{WindowGroup, WindowKey};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::script::{Call, Script};
use super::{RedisWindows, key_name};
use crate::windows::local::millis;

/// Slots in use are told so many times before they would expire.
const TELL_PARTS: u32 = 3;
/// How much later others learn that slots were given back; this instance knows at once.
const TELL_AFTER: Duration = Duration::from_millis(10);
/// How many corrections are under way at once.
const AT_ONCE: usize = 256;

/// A correction that is to be sent, at most once: a second time it would be a gift.
#[derive(Debug)]
pub(super) struct Correction {
    pub(super) group: WindowGroup,
    pub(super) marker: String,
    pub(super) key: WindowKey,
    pub(super) bucket: u64,
    pub(super) surplus: u64,
    pub(super) shortage: u64,
}

impl RedisWindows {
    /// Connects, watches the servers, and sends what is to be sent, for ever. Must run once.
    ///
    /// # Cancel safety
    /// Dropping it ends all connections after what is under way.
    pub async fn keep(&self) {
        let waiting = self.0.waiting.lock().take();
        let Some(mut waiting) = waiting else {
            std::future::pending::<()>().await;
            return;
        };
        tokio::join!(
            self.0.topology.keep(),
            self.send_corrections(&mut waiting),
            self.tell_changes(),
            self.tell_all(),
        );
    }

    async fn send_corrections(&self, waiting: &mut mpsc::Receiver<Correction>) {
        let mut batch = Vec::with_capacity(AT_ONCE);
        while waiting.recv_many(&mut batch, AT_ONCE).await > 0 {
            // They share a connection, so that they go out together.
            let sent = batch.drain(..).map(|correction| self.correct(correction));
            futures_util::future::join_all(sent).await;
        }
    }

    async fn correct(&self, correction: Correction) {
        let mut call = None;
        if let (Some(name), Some(shape)) =
            (self.name(correction.group), correction.key.kind.shape())
        {
            let keys = vec![name.clone(), key_name::counter_name(&name, &correction.key)];
            let mut made = Call::new(Script::Correct, keys);
            made.text(correction.marker)
                .number(shape.width_ms)
                .number(shape.before)
                .number(correction.bucket)
                .number(correction.surplus)
                .number(correction.shortage);
            call = Some(made);
        }
        let is_sent = match call {
            Some(call) => self.send(correction.group, &call).await.is_some(),
            None => false,
        };
        if !is_sent {
            self.0.lost_corrections.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells of slots that were given back, soon after they were.
    async fn tell_changes(&self) {
        loop {
            self.0.local.slots_changed().await;
            // Those of one counter that end meanwhile are one message.
            tokio::time::sleep(TELL_AFTER).await;
            self.tell(self.0.local.take_changed()).await;
        }
    }

    /// Tells of all slots in use before those that were told expire, and forgets what need not be
    /// known any more.
    async fn tell_all(&self) {
        let every = (self.0.settings.slots_expire / TELL_PARTS).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell(self.0.local.slots_in_use()).await;
            let now = Instant::now();
            let mut known = self.0.known.lock();
            known.retain(|_, known| known.until > now);
            let fitting = known.len() * 2;
            known.shrink_to(fitting);
        }
    }

    async fn tell(&self, counters: Vec<(WindowGroup, WindowKey)>) {
        for chunk in counters.chunks(AT_ONCE) {
            let told = chunk.iter().map(|(group, key)| self.tell_one(*group, key));
            futures_util::future::join_all(told).await;
        }
    }

    async fn tell_one(&self, group: WindowGroup, key: &WindowKey) {
        let Some((used, version)) = self.0.local.slots_to_tell(group, key) else {
            return;
        };
        let Some(name) = self.name(group) else {
            return;
        };
        let counter = key_name::counter_name(&name, key);
        let mut call = Call::new(Script::Tell, vec![name, counter]);
        call.text(self.0.settings.boot.as_str())
            .number(used)
            .number(version)
            .number(millis(self.0.settings.slots_expire));
        // What is lost is told again in the next round, or expires.
        let _told = self.send(group, &call).await;
    }

    fn name(&self, group: WindowGroup) -> Option<String> {
        let tag = key_name::tag(group)?;
        let name = key_name::group_name(&self.0.settings.prefix, &tag);
        Some(name)
    }

    async fn send(&self, group: WindowGroup, call: &Call) -> Option<Value> {
        let tag = key_name::tag(group)?;
        let node = self.0.topology.find(&tag)?;
        node.send(self.0.local.hash(group), call).await.ok()
    }
}
