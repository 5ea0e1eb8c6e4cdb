//! Upstreams and routes for tests that need hundreds, written straight into the database: as many
//! commands would take minutes.

use secrecy::SecretString;
use sluice_domain::id::{RouteId, UpstreamId, UpstreamKeyId, uuid_v7};
use sluice_domain::route::{Route, Target};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{ProviderKind, Upstream, UpstreamKey};
use sluice_storage::Storage;
use sluice_storage::secret::{MasterKey, SealBinding, Vault};

use crate::deployment::Deployment;

const MADE_AT: UnixMillis = UnixMillis(1);

/// The routing of a deployment before its relay is started.
pub(crate) struct Pool {
    storage: Storage,
    vault: Vault,
    last_id: u64,
}

impl Pool {
    pub(crate) async fn of(deployment: &Deployment) -> Self {
        let (storage, _tenant) = deployment.storage().await;
        // What the environment of every process of a deployment says.
        let master = MasterKey::new("mk1".to_owned(), [0x11; 32]);
        Self {
            storage,
            vault: Vault::new(vec![master]),
            last_id: 0,
        }
    }

    fn id(&mut self) -> uuid::Uuid {
        self.last_id += 1;
        let mut random = [0; 10];
        getrandom::fill(&mut random).unwrap();
        uuid_v7(self.last_id, random)
    }

    /// Adds an upstream with so many keys: `sk-NAME-0` and so on.
    pub(crate) async fn upstream(
        &mut self,
        name: &str,
        kind: ProviderKind,
        base_url: &str,
        keys: usize,
        settings: impl FnOnce(&mut Upstream),
    ) -> UpstreamId {
        let id = UpstreamId::from_uuid(self.id());
        let url = base_url.parse().unwrap();
        let mut upstream = Upstream::new(id, name.parse().unwrap(), kind, Some(url), MADE_AT);
        upstream.allow_private = true;
        settings(&mut upstream);
        self.storage.create_upstream(&upstream).await.unwrap();
        for number in 0..keys {
            let key_id = UpstreamKeyId::from_uuid(self.id());
            let key_name = format!("key-{number}").parse().unwrap();
            let key = UpstreamKey::new(key_id, id, key_name, MADE_AT);
            let secret = SecretString::from(format!("sk-{name}-{number}"));
            let binding = SealBinding::of(&upstream, key_id);
            let sealed = self.vault.seal(&secret, &binding).unwrap();
            assert!(self.storage.add_upstream_key(&key, &sealed).await.unwrap());
        }
        id
    }

    /// Leads a model to upstreams, each in a tier of its own. There it has the same name, also where
    /// the model is a pattern.
    pub(crate) async fn route(&mut self, model: &str, tiers: &[UpstreamId]) {
        let tiers: Vec<_> = tiers.iter().map(std::slice::from_ref).collect();
        self.route_in_tiers(model, &tiers).await;
    }

    /// Leads a model to tiers of upstreams.
    pub(crate) async fn route_in_tiers(&mut self, model: &str, tiers: &[&[UpstreamId]]) {
        let targets = tiers.iter().zip(0..).flat_map(|(upstreams, tier)| {
            upstreams.iter().map(move |upstream| Target {
                tier,
                ..Target::new(*upstream)
            })
        });
        let id = RouteId::from_uuid(self.id());
        let route = Route::new(id, model.to_owned(), targets.collect(), MADE_AT);
        assert!(self.storage.create_route(&route).await.unwrap());
    }

    pub(crate) async fn close(self) {
        self.storage.close().await;
    }
}
