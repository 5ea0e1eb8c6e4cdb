//! Where window limits are counted, and with how many other instances.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::window::InstanceRank;
use sluice_storage::windows::{
    InvalidRedisUrl, RedisOptions, RedisTarget, Windows, WindowsOptions,
};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::LimitsConfig;
use crate::database::bounded;

/// How often it is looked how many instances there are; each is heard of more often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long one look may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

/// Returns the counters of an instance.
///
/// # Errors
/// [`InvalidRedisUrl`], which the check of the settings has ruled out.
pub(crate) fn counters(config: &LimitsConfig, boot_id: BootId) -> Result<Windows, InvalidRedisUrl> {
    let redis = match &config.redis_url {
        None => None,
        Some(url) => Some(RedisOptions {
            prefix: config.redis_prefix.clone(),
            deadline: config.redis_deadline,
            ..RedisOptions::new(RedisTarget::parse(url.expose_secret())?, boot_id)
        }),
    };
    let windows = Windows::new(WindowsOptions {
        max_counters: config.max_counters,
        redis,
        on_redis_loss: config.on_redis_loss,
    });
    // Until the database says more.
    windows.set_rank(InstanceRank {
        instances: least_instances(config),
        rank: 0,
    });
    Ok(windows)
}

fn least_instances(config: &LimitsConfig) -> NonZeroU32 {
    NonZeroU32::new(config.min_instances).unwrap_or(NonZeroU32::MIN)
}

/// Looks after the counters until the process stops.
pub(crate) async fn keep(
    app: Arc<App>,
    windows: Windows,
    instance_id: InstanceId,
    stopped: CancellationToken,
) {
    let ranking = async {
        // Without Redis nobody shares.
        while app.config.limits.redis_url.is_some() {
            tokio::time::sleep(LOOK_EVERY).await;
            rank(&app, &windows, instance_id).await;
        }
    };
    let keeping = async {
        tokio::join!(windows.keep(), ranking);
    };
    // Large, and there is one.
    Box::pin(stopped.run_until_cancelled(keeping)).await;
}

/// Finds out how many instances share the limits when Redis is lost. What was known stays while the
/// database does not answer.
pub(crate) async fn rank(app: &App, windows: &Windows, instance_id: InstanceId) {
    let least = least_instances(&app.config.limits);
    if !app.standing.is_joined() {
        return;
    }
    let look = app.storage.instance_rank(instance_id, app.now());
    if let Ok(found) = bounded(LOOK_PATIENCE, look).await {
        windows.set_rank(InstanceRank {
            instances: found.instances.max(least),
            ..found
        });
    }
}
