//! Reading the configuration again.

use serde_json::json;

use super::problem::Problem;
use super::route::{Answer, Authorized, Call, Reload};

/// `POST /admin/v1/reload` and `POST /admin/reload-keys`: forgets every proxy key and reads upstreams
/// and routes. Changes take effect by themselves; this is for who has changed the database by hand.
/// It concerns the instance that is asked.
pub(crate) async fn reload(_by: Authorized<Reload>, call: Call) -> Result<Answer, Problem> {
    let app = &call.state.app;
    let forgotten = app.grants.forget_all().len();
    app.reload_routing().await?;
    tracing::info!(forgotten, "an admin had the configuration read again");
    Ok(Answer::ok(json!({"status": "reloaded"})))
}
