//! `sluice upstream test`.

use anyhow::bail;
use sluice_domain::tenant::{EntityState, Name};
use sluice_storage::secret::SealBinding;

use super::prober;
use crate::cli::admin::Admin;
use crate::data_folder::Secrets;
use crate::terminal;

pub(super) async fn run(admin: &Admin<'_>, name: &Name) -> anyhow::Result<()> {
    let upstream = admin.upstream(name).await?;
    if upstream.state != EntityState::Active {
        bail!(
            "upstream `{name}` is {}; `sluice upstream enable {name}` first",
            upstream.state
        );
    }
    let vault = Secrets::load(admin.config)?.vault();
    let routing = admin.storage.load_routing().await?;
    let keys: Vec<_> = routing
        .keys
        .iter()
        .filter(|(key, _)| key.upstream_id == upstream.id)
        .collect();
    let prober = prober();
    if keys.is_empty() {
        let report = prober.probe(&upstream, None).await?;
        terminal::result(&format!("without a key: {}", said(&report)))?;
        return Ok(());
    }
    let mut failed = 0;
    for (key, sealed) in &keys {
        let outcome = match vault.open(sealed, &SealBinding::of(&upstream, key.id)) {
            Ok(secret) => prober
                .probe(&upstream, Some(&secret))
                .await
                .map_err(anyhow::Error::new),
            Err(error) => Err(anyhow::Error::new(error).context("the key cannot be unsealed")),
        };
        match outcome {
            Ok(report) => terminal::result(&format!("key `{}`: {}", key.name, said(&report)))?,
            Err(error) => {
                failed += 1;
                terminal::error(&format!("key `{}`: {error:#}", key.name));
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} keys of upstream `{name}` do not work",
            keys.len()
        );
    }
    Ok(())
}

fn said(report: &sluice_upstream_pool::ProbeReport) -> String {
    let count = report.models.len();
    let plural = if count == 1 { "" } else { "s" };
    format!(
        "works; {count} model{plural}, answered in {} ms",
        report.took.as_millis()
    )
}
