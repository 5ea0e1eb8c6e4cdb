//! How often log-ins are tried: a sliding log for each account and each source.
//!
//! The source is the address of the connection and nothing that a request says. A try counts before
//! it is looked at, so that many at a time count as many; one that succeeds is taken back.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_domain::account::LoginName;
use tokio::time::Instant;

/// How long a try is remembered.
const WINDOW: Duration = Duration::from_mins(15);
/// Tries from one source in that time.
pub(crate) const PER_SOURCE: usize = 10;
/// Tries at one account in that time, from anywhere. More than a source has, so that one source
/// does not shut an account.
const PER_ACCOUNT: usize = 50;
/// Most sources, and most names, that are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// A try that was let through.
#[derive(Debug)]
pub(crate) struct Try {
    source: IpAddr,
    login: LoginName,
    at: Instant,
}

/// Counts tries.
pub(crate) struct Throttle(Mutex<Logs>);

#[derive(Default)]
struct Logs {
    sources: HashMap<IpAddr, VecDeque<Instant>>,
    accounts: HashMap<LoginName, VecDeque<Instant>>,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Counts a try, or says how long to wait for one.
    ///
    /// # Errors
    /// The time until a try is free.
    pub(crate) fn begin(
        &self,
        source: IpAddr,
        login: &LoginName,
        at: Instant,
    ) -> Result<Try, Duration> {
        let source = network(source);
        let mut logs = self.0.lock();
        let of_source = wait(&mut logs.sources, &source, PER_SOURCE, at);
        let of_account = wait(&mut logs.accounts, login, PER_ACCOUNT, at);
        if let Some(wait) = of_source.max(of_account) {
            return Err(wait);
        }
        logs.sources.entry(source).or_default().push_back(at);
        let account = logs.accounts.entry(login.clone()).or_default();
        account.push_back(at);
        Ok(Try {
            source,
            login: login.clone(),
            at,
        })
    }

    /// Takes a try back that has succeeded.
    pub(crate) fn succeeded(&self, tried: &Try) {
        let mut logs = self.0.lock();
        take_back(&mut logs.sources, &tried.source, tried.at);
        take_back(&mut logs.accounts, &tried.login, tried.at);
    }
}

/// Returns how long a further try must wait. `None` is not at all.
fn wait<K: Hash + Eq>(
    logs: &mut HashMap<K, VecDeque<Instant>>,
    key: &K,
    limit: usize,
    now: Instant,
) -> Option<Duration> {
    if let Some(log) = logs.get_mut(key) {
        forget_old(log, now);
        return match log.front() {
            Some(oldest) if log.len() >= limit => {
                Some(WINDOW.saturating_sub(now.duration_since(*oldest)))
            }
            _ => None,
        };
    }
    if logs.len() >= MAX_REMEMBERED {
        logs.retain(|_, log| {
            forget_old(log, now);
            !log.is_empty()
        });
    }
    // Nobody is forgotten to make room: who can fill this memory must not win by it.
    (logs.len() >= MAX_REMEMBERED).then_some(WINDOW)
}

fn forget_old(log: &mut VecDeque<Instant>, now: Instant) {
    while log
        .front()
        .is_some_and(|at| now.duration_since(*at) >= WINDOW)
    {
        log.pop_front();
    }
}

fn take_back<K: Hash + Eq>(logs: &mut HashMap<K, VecDeque<Instant>>, key: &K, at: Instant) {
    let Some(log) = logs.get_mut(key) else { return };
    if let Some(found) = log.iter().position(|other| *other == at) {
        log.remove(found);
    }
    if log.is_empty() {
        logs.remove(key);
    }
}

/// Returns what one person has of addresses: of IPv6 a network of 64 bits.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(number))
    }

    fn name(text: &str) -> LoginName {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_so_many_tries_in_every_window() {
        let (throttle, mut now) = (Throttle::new(), Instant::now());
        let mut let_through = Vec::new();
        // Names differ, so that only the source counts.
        for number in 0..200_u32 {
            if throttle
                .begin(source(1), &name(&format!("n{number}")), now)
                .is_ok()
            {
                let_through.push(now);
            }
            now += Duration::from_secs(30);
        }
        assert!(
            let_through.len() > 2 * PER_SOURCE,
            "tries become free again"
        );
        for tries in let_through.windows(PER_SOURCE + 1) {
            assert!(tries[PER_SOURCE] - tries[0] >= WINDOW);
        }
        assert!(throttle.begin(source(2), &name("n1"), now).is_ok());
    }

    #[test]
    fn an_account_is_not_tried_from_everywhere() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        let tries = (0..1_000).filter(|n| throttle.begin(source(*n), &name("ann"), now).is_ok());
        assert_eq!(tries.count(), PER_ACCOUNT);
        assert_eq!(
            throttle
                .begin(source(9_999), &name("ann"), now)
                .unwrap_err(),
            WINDOW
        );
        assert!(throttle.begin(source(9_999), &name("ben"), now).is_ok());
    }

    #[test]
    fn what_succeeds_does_not_count() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        for _ in 0..100 {
            let tried = throttle.begin(source(1), &name("ann"), now).unwrap();
            throttle.succeeded(&tried);
        }
        assert!(throttle.0.lock().sources.is_empty());
        assert!(throttle.0.lock().accounts.is_empty());
    }

    #[test]
    fn a_network_of_somebody_is_one_source() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        let tries = (0..1_000_u128).filter(|n| {
            let address = Ipv6Addr::from_bits((0x2001_0db8 << 96) | n);
            let login = name(&format!("n{n}"));
            throttle.begin(IpAddr::V6(address), &login, now).is_ok()
        });
        assert_eq!(tries.count(), PER_SOURCE);
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let (throttle, now) = (Throttle::new(), Instant::now());
        let limit = u32::try_from(MAX_REMEMBERED).unwrap();
        for number in 0..limit {
            assert!(
                throttle
                    .begin(source(number), &name(&format!("n{number}")), now)
                    .is_ok()
            );
        }
        assert!(throttle.begin(source(limit), &name("late"), now).is_err());
        assert!(
            throttle
                .begin(source(limit), &name("late"), now + WINDOW)
                .is_ok()
        );
        assert_eq!(throttle.0.lock().sources.len(), 1);
    }
}
