//! What the handle of a fake upstream and its connections share.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::azure::Resource;
use super::call::{Call, CallKind};
use super::script::Script;
use super::served::{Served, ServedEnd};
use crate::stopwatch::Stopwatch;

/// Models that are listed unless a test says otherwise.
const MODELS: [&str; 3] = ["gpt-4o", "gpt-4o-mini", "text-embedding-3-small"];

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stopwatch: Stopwatch,
    pub(super) scripts: Mutex<Scripts>,
    pub(super) log: Mutex<Log>,
    /// Wakes everyone who waits for a state of the log.
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) by_path: HashMap<String, Script>,
    pub(super) by_user: HashMap<String, Script>,
    pub(super) queue: VecDeque<Script>,
    pub(super) queue_by_key: HashMap<String, VecDeque<Script>>,
    pub(super) queue_by_model: HashMap<String, VecDeque<Script>>,
    pub(super) by_key: HashMap<String, Script>,
    pub(super) by_model: HashMap<String, Script>,
    pub(super) default: Script,
    pub(super) models: Vec<String>,
    pub(super) azure: Option<Resource>,
    /// So many of the next connections are closed at once.
    pub(super) connections_to_close: usize,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) served: Vec<Served>,
    pub(super) connections: usize,
    pub(super) open_connections: usize,
    pub(super) malformed: Vec<String>,
}

impl Scripts {
    /// Takes the script for a call.
    fn take(&mut self, call: &Call) -> Script {
        if let Some(refusal) = self.azure.as_ref().and_then(|azure| azure.refusal(call)) {
            return refusal;
        }
        let path = call.target.split('?').next().unwrap_or_default();
        if let Some((_, script)) = self
            .by_path
            .iter()
            .find(|(end, _)| path.ends_with(end.as_str()))
        {
            return script.clone();
        }
        if let Some(script) = call.user.as_ref().and_then(|user| self.by_user.get(user)) {
            return script.clone();
        }
        let key = call.key.as_deref().unwrap_or_default();
        let lists_models = matches!(call.kind, CallKind::Models | CallKind::Model(_));
        if !lists_models {
            let model = call.model.as_deref().unwrap_or_default();
            let of_key = self.queue_by_key.get_mut(key).and_then(VecDeque::pop_front);
            let of_model = || self.queue_by_model.get_mut(model)?.pop_front();
            if let Some(script) = of_key.or_else(of_model).or_else(|| self.queue.pop_front()) {
                return script;
            }
        }
        let of_model = || {
            call.model
                .as_ref()
                .and_then(|model| self.by_model.get(model))
        };
        self.by_key
            .get(key)
            .or_else(of_model)
            .unwrap_or(&self.default)
            .clone()
    }
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            stopwatch: Stopwatch::start(),
            scripts: Mutex::new(Scripts {
                by_path: HashMap::new(),
                by_user: HashMap::new(),
                queue: VecDeque::new(),
                queue_by_key: HashMap::new(),
                queue_by_model: HashMap::new(),
                by_key: HashMap::new(),
                by_model: HashMap::new(),
                default: Script::new(),
                models: MODELS.map(str::to_owned).to_vec(),
                azure: None,
                connections_to_close: 0,
            }),
            log: Mutex::new(Log::default()),
            changed: Notify::new(),
        }
    }

    /// Changes the log and wakes who waits for it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Log, Duration) -> T) -> T {
        let result = change(&mut self.log.lock(), self.stopwatch.elapsed());
        self.changed.notify_waiters();
        result
    }

    /// Notes a call and returns its number and its script.
    pub(super) fn admit(&self, connection: usize, call: &Call) -> (usize, Script, Vec<String>) {
        let number = self.change(|log, now| {
            let number = log.served.len();
            log.served.push(Served {
                number,
                connection,
                key: call.key.clone(),
                method: call.method.clone(),
                target: call.target.clone(),
                headers: call.head.headers.clone(),
                raw_head: call.head.raw.clone(),
                body: call.body.clone(),
                model: call.model.clone(),
                streams: call.streams,
                received_at: now,
                status: None,
                head_at: None,
                events_written: 0,
                input_tokens: i64::try_from(call.input_tokens).unwrap_or(i64::MAX),
                output_tokens: 0,
                reported: None,
                end: None,
                ended_at: None,
            });
            number
        });
        let mut scripts = self.scripts.lock();
        (number, scripts.take(call), scripts.models.clone())
    }

    pub(super) fn end(&self, number: usize, end: ServedEnd) {
        self.change(|log, now| log.served[number].end_as(end, now));
    }

    /// Returns whether the next connection is one of those that are closed at once.
    pub(super) fn refuses_connection(&self) -> bool {
        let left = &mut self.scripts.lock().connections_to_close;
        let refuses = *left > 0;
        *left = left.saturating_sub(1);
        refuses
    }
}

impl Served {
    pub(super) fn end_as(&mut self, end: ServedEnd, now: Duration) {
        self.end = Some(end);
        self.ended_at = Some(now);
    }
}
