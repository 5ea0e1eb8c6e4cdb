//! The keys that are known: cached by their full hash, dropped when they change.

use std::cell::RefCell;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use sluice_accounting::{Account, Ledger};
use sluice_domain::id::{TenantId, UserId};
use sluice_domain::key::{InvalidKey, KeyHash, KeyHasher, ProxyKey, check_shape};
use sluice_domain::limit::KeyLimits;
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Payer, ScopeKind, ScopeSet};
use sluice_domain::tenant::{EntityState, Tenant, User};
use sluice_domain::time::{Period, UnixMillis};
use sluice_domain::window::WindowSubject;
use sluice_storage::Storage;
use sluice_storage::grant::KeyGrant;
use tokio::runtime::Handle;

use crate::database::{Standing, away, bounded};
use crate::error::{ApiError, Code, Retry};
use crate::metrics::Metrics;
use crate::snapshot::GrantView;

/// Most credentials that are remembered as unknown.
const MAX_UNKNOWN: usize = 10_000;
/// How long a request waits for the database to know its key or its balances.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(3);
/// How often a key is read whose place was taken away by changes meanwhile.
const MAX_LOOK_UPS: u32 = 3;
/// What a client is asked to wait while the database is away.
const DATABASE_PAUSE: Duration = Duration::from_secs(2);

/// A known key with its user and its tenant.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) key: ProxyKey,
    user: User,
    tenant: Tenant,
    periods: Vec<Period>,
    /// The window limits of all three; `None` when there is none.
    limits: Option<KeyLimits>,
    account: ArcSwapOption<Account>,
}

impl Grant {
    fn new(granted: KeyGrant) -> Self {
        Self {
            key: granted.key,
            user: granted.user,
            tenant: granted.tenant,
            periods: granted.periods,
            limits: Some(granted.limits).filter(|limits| !limits.is_empty()),
            account: ArcSwapOption::empty(),
        }
    }

    /// Returns whose changes concern it.
    pub(crate) fn owners(&self) -> (TenantId, UserId) {
        (self.tenant.id, self.user.id)
    }

    /// Returns what a snapshot needs of it.
    pub(crate) fn view(&self, hash: KeyHash) -> GrantView<'_> {
        GrantView {
            hash,
            key: &self.key,
            user: &self.user,
            tenant: &self.tenant,
            periods: &self.periods,
            limits: self.limits.as_ref(),
        }
    }

    /// Returns the window limits of key, user and tenant, when there are any.
    pub(crate) fn limits(&self) -> Option<&KeyLimits> {
        self.limits.as_ref()
    }

    /// Returns the scopes with a cap.
    fn capped(&self) -> ScopeSet {
        let caps = [
            (ScopeKind::Tenant, self.tenant.quota_tokens),
            (ScopeKind::User, self.user.quota_tokens),
            (ScopeKind::Key, self.key.quota_tokens),
        ];
        caps.into_iter()
            .filter(|(_, cap)| cap.is_some())
            .fold(ScopeSet::default(), |set, (kind, _)| set.with(kind))
    }

    /// Returns who pays.
    pub(crate) fn payer(&self) -> Payer {
        Payer {
            tenant_id: self.tenant.id,
            user_id: self.user.id,
            key_id: self.key.id,
        }
    }

    /// Names one of those whose limits it meets, for the client.
    pub(crate) fn describe(&self, subject: &WindowSubject) -> String {
        let key = || {
            let (name, hint) = (&self.key.name, self.key.hint.as_str());
            format!("API key \"{name}\" ({hint})")
        };
        match subject {
            WindowSubject::ProxyKey(_) => key(),
            WindowSubject::ProxyKeyModel(_, model) => format!("model \"{model}\" on {}", key()),
            WindowSubject::User(_) => format!("your user \"{}\"", self.user.name),
            WindowSubject::Tenant(_) => format!("your tenant \"{}\"", self.tenant.name),
            WindowSubject::SourceIp(_) | WindowSubject::Instance => "this relay".to_owned(),
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
    /// Advances with every invalidation. What was looked up before one is not kept: it is compared
    /// and kept under this lock, so that not even a snapshot sees it for a moment.
    epoch: Mutex<u64>,
    /// How many keys were put into the cache.
    learned: AtomicU64,
    storage: Storage,
    ledger: Ledger,
    standing: Arc<Standing>,
    control: Handle,
    metrics: Arc<Metrics>,
}

impl Grants {
    pub(crate) fn new(
        hasher: KeyHasher,
        cache_size: usize,
        storage: Storage,
        ledger: Ledger,
        standing: Arc<Standing>,
        control: Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            hasher,
            known: key_cache(cache_size),
            unknown: key_cache(MAX_UNKNOWN),
            epoch: Mutex::new(0),
            learned: AtomicU64::new(0),
            storage,
            ledger,
            standing,
            control,
            metrics,
        }
    }

    /// Returns the grant of a presented credential.
    ///
    /// # Errors
    /// 401 or 403 with the reason, 503 when the database is away and the key is not known, or was
    /// last heard of too long ago.
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
        if self.standing.is_stale() {
            return Err(database_away(away("it was silent for too long")));
        }
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
        let mut tries = 0;
        loop {
            let guard = match self.known.get_value_or_guard_async(&hash).await {
                Ok(grant) => return Ok(grant),
                Err(guard) => guard,
            };
            if self.unknown.get(&hash).is_some() {
                return Err(unknown_key());
            }
            if !self.standing.is_up() {
                return Err(database_away(away("it did not answer a moment ago")));
            }
            let epoch = *self.epoch.lock();
            self.metrics.key_lookups.inc();
            let storage = self.storage.clone();
            let found = self
                .on_control(async move { storage.find_grant(&hash).await })
                .await
                .map_err(database_away)?
                .map(|found| Arc::new(Grant::new(found)));
            tries += 1;
            let current = self.epoch.lock();
            let mut is_kept = *current == epoch;
            if let Some(grant) = &found {
                is_kept = is_kept && guard.insert(Arc::clone(grant)).is_ok();
                self.learned
                    .fetch_add(u64::from(is_kept), Ordering::Relaxed);
            } else if is_kept {
                self.unknown.insert(hash, ());
            }
            // Something changed while it was read. What was read serves at least this request, but
            // a key that is not kept is in no snapshot, so it is read again.
            if is_kept || tries == MAX_LOOK_UPS {
                return found.ok_or_else(unknown_key);
            }
        }
    }

    /// Reads a key that was in use again, so that nobody waits for it and a snapshot has it. One that
    /// may not be used stays out.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub(crate) async fn refresh(&self, hash: KeyHash) -> Result<(), StoreError> {
        let epoch = *self.epoch.lock();
        let found = bounded(LOOK_UP_PATIENCE, self.storage.find_grant(&hash)).await?;
        let Some(found) = found.filter(|found| found.key.state == EntityState::Active) else {
            return Ok(());
        };
        let current = self.epoch.lock();
        if *current == epoch {
            self.known.insert(hash, Arc::new(Grant::new(found)));
        }
        Ok(())
    }

    /// Takes over the keys of a snapshot.
    pub(crate) fn import(&self, grants: Vec<(KeyHash, KeyGrant)>) {
        for (hash, grant) in grants {
            self.known.insert(hash, Arc::new(Grant::new(grant)));
        }
    }

    /// Returns the keys that are known, at most so many.
    pub(crate) fn export(&self, at_most: usize) -> Vec<(KeyHash, Arc<Grant>)> {
        self.known.iter().take(at_most).collect()
    }

    /// Returns a number that grows when keys become known.
    pub(crate) fn learned(&self) -> u64 {
        self.learned.load(Ordering::Relaxed)
    }

    /// Returns the account that pays for a request that begins now. While the database is away it is
    /// opened with the caps that are known.
    ///
    /// # Errors
    /// 503 when the database refuses to tell its balances.
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
        let payer = grant.payer();
        let found = if self.standing.is_up() {
            let (ledger, storage, zone) = (self.ledger.clone(), self.storage.clone(), zone.clone());
            self.on_control(async move {
                ledger
                    .open_account(&storage, payer, period, zone, now)
                    .await
            })
            .await
        } else {
            Err(away("it did not answer a moment ago"))
        };
        let account = match found {
            Ok(account) => account,
            // Which scopes have a cap is known; what may be spent of it, the lease says.
            Err(StoreError::Unavailable { .. }) => {
                self.ledger
                    .open_account_away(payer, period, zone, grant.capped(), now)
            }
            Err(error) => return Err(database_away(error)),
        };
        let account = Arc::new(account);
        grant.account.store(Some(Arc::clone(&account)));
        Ok(account)
    }

    /// Forgets one key. Returns those that were known; they may be read again.
    pub(crate) fn forget_key(&self, hash: &KeyHash) -> Vec<KeyHash> {
        *self.epoch.lock() += 1;
        self.unknown.remove(hash);
        self.known
            .remove(hash)
            .map(|(hash, _grant)| hash)
            .into_iter()
            .collect()
    }

    /// Forgets the keys of a user. Returns those that were known.
    pub(crate) fn forget_user(&self, user: UserId) -> Vec<KeyHash> {
        self.forget_where(|grant| grant.user.id == user)
    }

    /// Forgets the keys of a tenant. Returns those that were known.
    pub(crate) fn forget_tenant(&self, tenant: TenantId) -> Vec<KeyHash> {
        self.forget_where(|grant| grant.tenant.id == tenant)
    }

    fn forget_where(&self, is_meant: impl Fn(&Grant) -> bool) -> Vec<KeyHash> {
        *self.epoch.lock() += 1;
        let forgotten = RefCell::new(Vec::new());
        self.known.retain(|hash, grant| {
            let is_meant = is_meant(grant);
            if is_meant {
                forgotten.borrow_mut().push(*hash);
            }
            !is_meant
        });
        forgotten.into_inner()
    }

    /// Forgets everything. Returns the keys that were known.
    pub(crate) fn forget_all(&self) -> Vec<KeyHash> {
        let forgotten = self.forget_where(|_every| true);
        self.unknown.clear();
        forgotten
    }

    /// Runs a database call where the database's connections live.
    async fn on_control<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.control.spawn(bounded(LOOK_UP_PATIENCE, call)).await {
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
