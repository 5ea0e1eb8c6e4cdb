//! The keys that are known: cached by their full hash, dropped when they change.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use sluice_accounting::{Account, Ledger};
use sluice_domain::id::{TenantId, UserId};
use sluice_domain::key::{InvalidKey, KeyHash, KeyHasher, ProxyKey, check_shape};
use sluice_domain::ports::StoreError;
use sluice_domain::quota::Payer;
use sluice_domain::tenant::{EntityState, Tenant, User};
use sluice_domain::time::{Period, UnixMillis};
use sluice_storage::Storage;
use tokio::runtime::Handle;

use crate::error::{ApiError, Code, Retry};
use crate::metrics::Metrics;

/// Most credentials that are remembered as unknown.
const MAX_UNKNOWN: usize = 10_000;
/// What a client is asked to wait while the database is away.
const DATABASE_PAUSE: Duration = Duration::from_secs(2);

/// A known key with its user and its tenant.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) key: ProxyKey,
    user: User,
    tenant: Tenant,
    periods: Vec<Period>,
    account: ArcSwapOption<Account>,
}

impl Grant {
    /// Returns who pays.
    pub(crate) fn payer(&self) -> Payer {
        Payer {
            tenant_id: self.tenant.id,
            user_id: self.user.id,
            key_id: self.key.id,
        }
    }

    /// Says why the key may not be used now.
    fn check(&self, now: UnixMillis) -> Result<(), ApiError> {
        if self.key.state != EntityState::Active || self.user.state != EntityState::Active {
            let whose = if self.key.state == EntityState::Active {
                "user"
            } else {
                "key"
            };
            return Err(ApiError::new(
                Code::ApiKeyDisabled,
                format!(
                    "The {whose} of API key \"{}\" ({}) is disabled. Ask the administrator of your tenant \"{}\".",
                    self.key.name,
                    self.key.hint.as_str(),
                    self.tenant.name
                ),
            ));
        }
        if let Some(expires_at) = self.key.expires_at
            && now >= expires_at
        {
            return Err(ApiError::new(
                Code::ApiKeyExpired,
                format!(
                    "API key \"{}\" ({}) expired at {}. Ask the administrator of your tenant \"{}\" for a new one.",
                    self.key.name,
                    self.key.hint.as_str(),
                    expires_at.to_rfc3339(),
                    self.tenant.name
                ),
            ));
        }
        if self.tenant.state != EntityState::Active {
            return Err(ApiError::new(
                Code::TenantSuspended,
                format!("Tenant \"{}\" is suspended.", self.tenant.name),
            ));
        }
        Ok(())
    }
}

type KeyCache<T> = Cache<KeyHash, T, UnitWeighter, BuildHasherDefault<PrefixHasher>>;

fn key_cache<T: Clone>(capacity: usize) -> KeyCache<T> {
    Cache::with(
        capacity,
        capacity as u64,
        UnitWeighter,
        BuildHasherDefault::default(),
        DefaultLifecycle::default(),
    )
}

/// Takes the first eight bytes of what it is given. A keyed hash is as good as random already, and
/// nobody without the pepper can choose it.
#[derive(Default)]
struct PrefixHasher(u64);

impl Hasher for PrefixHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Finds keys.
pub(crate) struct Grants {
    hasher: KeyHasher,
    known: KeyCache<Arc<Grant>>,
    unknown: KeyCache<()>,
    /// Advances with every invalidation, so that a look-up that began before one is not kept.
    epoch: AtomicU64,
    storage: Storage,
    ledger: Ledger,
    control: Handle,
    metrics: Arc<Metrics>,
}

impl Grants {
    pub(crate) fn new(
        hasher: KeyHasher,
        cache_size: usize,
        storage: Storage,
        ledger: Ledger,
        control: Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            hasher,
            known: key_cache(cache_size),
            unknown: key_cache(MAX_UNKNOWN),
            epoch: AtomicU64::new(0),
            storage,
            ledger,
            control,
            metrics,
        }
    }

    /// Returns the grant of a presented credential.
    ///
    /// # Errors
    /// 401 or 403 with the reason, 503 when the key is not cached and the database is away.
    pub(crate) async fn find(
        &self,
        presented: Option<&str>,
        now: UnixMillis,
    ) -> Result<Arc<Grant>, ApiError> {
        let Some(presented) = presented else {
            return Err(ApiError::new(
                Code::MissingApiKey,
                "You didn't provide an API key. Send it in the header `Authorization: Bearer YOUR_KEY`.",
            ));
        };
        check_shape(presented).map_err(|reason| match reason {
            InvalidKey::Checksum => ApiError::new(
                Code::InvalidApiKey,
                "The API key has a typing error: its checksum does not fit. Copy it again.",
            ),
            InvalidKey::Shape => unknown_key(),
        })?;
        let hash = self.hasher.hash(presented);
        let grant = match self.known.get(&hash) {
            Some(grant) => grant,
            // Rare and large: in a box it does not weigh on every request.
            None => Box::pin(self.look_up(hash)).await?,
        };
        grant.check(now)?;
        Ok(grant)
    }

    /// Asks the database; simultaneous requests with one key ask once.
    async fn look_up(&self, hash: KeyHash) -> Result<Arc<Grant>, ApiError> {
        let guard = match self.known.get_value_or_guard_async(&hash).await {
            Ok(grant) => return Ok(grant),
            Err(guard) => guard,
        };
        if self.unknown.get(&hash).is_some() {
            return Err(unknown_key());
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        self.metrics.key_lookups.inc();
        let storage = self.storage.clone();
        let found = self
            .on_control(async move { storage.find_grant(&hash).await })
            .await
            .map_err(database_away)?;
        let is_current = |grants: &Self| grants.epoch.load(Ordering::Acquire) == epoch;
        let Some(found) = found else {
            self.unknown.insert(hash, ());
            if !is_current(self) {
                self.unknown.remove(&hash);
            }
            return Err(unknown_key());
        };
        let grant = Arc::new(Grant {
            key: found.key,
            user: found.user,
            tenant: found.tenant,
            periods: found.periods,
            account: ArcSwapOption::empty(),
        });
        if guard.insert(Arc::clone(&grant)).is_err() || !is_current(self) {
            self.known.remove(&hash);
        }
        Ok(grant)
    }

    /// Returns the account that pays for a request that begins now.
    ///
    /// # Errors
    /// 503 when its balances are not known and the database is away.
    pub(crate) async fn account(
        &self,
        grant: &Grant,
        now: UnixMillis,
    ) -> Result<Arc<Account>, ApiError> {
        if let Some(account) = grant.account.load_full()
            && account.period().contains(now)
        {
            return Ok(account);
        }
        Box::pin(self.open_account(grant, now)).await
    }

    async fn open_account(&self, grant: &Grant, now: UnixMillis) -> Result<Arc<Account>, ApiError> {
        let zone = grant.tenant.time_zone.clone();
        // The stored bounds rule; the calendar is asked only beyond them.
        let period = grant
            .periods
            .iter()
            .find(|p| p.contains(now))
            .copied()
            .unwrap_or_else(|| zone.period_of(now));
        let (ledger, storage, payer) = (self.ledger.clone(), self.storage.clone(), grant.payer());
        let account = self
            .on_control(async move {
                ledger
                    .open_account(&storage, payer, period, zone, now)
                    .await
            })
            .await
            .map_err(database_away)?;
        let account = Arc::new(account);
        grant.account.store(Some(Arc::clone(&account)));
        Ok(account)
    }

    /// Forgets one key.
    pub(crate) fn forget_key(&self, hash: &KeyHash) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.known.remove(hash);
        self.unknown.remove(hash);
    }

    /// Forgets the keys of a user.
    pub(crate) fn forget_user(&self, user: UserId) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.known.retain(|_hash, grant| grant.user.id != user);
    }

    /// Forgets the keys of a tenant.
    pub(crate) fn forget_tenant(&self, tenant: TenantId) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.known.retain(|_hash, grant| grant.tenant.id != tenant);
    }

    /// Forgets everything.
    pub(crate) fn forget_all(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.known.clear();
        self.unknown.clear();
    }

    /// Runs a database call where the database's connections live.
    async fn on_control<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.control.spawn(call).await {
            Ok(result) => result,
            Err(ended) => Err(StoreError::Unavailable {
                source: ended.into(),
            }),
        }
    }
}

/// One answer for every key that is not known, so that keys cannot be told apart.
fn unknown_key() -> ApiError {
    ApiError::new(
        Code::InvalidApiKey,
        "Incorrect API key provided. Check it, or ask the administrator of your tenant for a key.",
    )
}

fn database_away(error: StoreError) -> ApiError {
    ApiError::new(
        Code::ServiceUnavailable,
        "This key cannot be checked at the moment, because the database does not answer. Try again shortly.",
    )
    .retry(Retry::After(DATABASE_PAUSE))
    .cause(error)
}
