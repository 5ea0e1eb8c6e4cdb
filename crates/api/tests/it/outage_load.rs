//! The database goes away under load, in the middle of whatever is under way, and comes back; the
//! relay goes on, or is killed meanwhile.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{Link, RunningProcess};

use crate::audit::audit;
use crate::deployment::{Backend, Deployment, PATIENCE};
use crate::load::{Dice, Load, Outcome, prepare};

/// Outages in the small size.
const OUTAGES: usize = 6;
const CLIENTS: usize = 9;

#[tokio::test]
async fn an_outage_of_the_database_loses_no_record_whether_the_relay_is_killed_in_it_or_not() {
    let Some(mut deployment) = Deployment::new(Backend::Postgres) else {
        return;
    };
    prepare(&deployment);
    let (link, url) = linked(&deployment.database_url);
    deployment.set("SLUICE_DATABASE_URL", url);
    deployment.set("SLUICE_LEDGER_QUOTA_WAIT_MS", "200");
    let keys = vec![
        deployment.key.clone(),
        deployment.issue_key("wide", &["--quota", "1000000000"]),
        deployment.issue_key("narrow", &["--quota", "5000"]),
    ];
    let load = Load::start(CLIENTS, keys);
    let mut dice = Dice::new(11);
    let mut process: Option<RunningProcess> = None;
    for outage in 0..OUTAGES {
        let running = process.take().unwrap_or_else(|| {
            let (running, address) = serve(&deployment).unwrap();
            load.send_to(outage, address);
            running
        });
        load.wait_for_ends(20, PATIENCE);
        std::thread::sleep(Duration::from_millis(dice.below(200)));
        link.cut();
        std::thread::sleep(Duration::from_millis(100 + dice.below(400)));
        if outage % 2 == 0 {
            running.kill();
            load.pause();
            // Without the database it may not know enough to serve; what it has is kept in any case.
            if let Some((again, address)) = serve(&deployment) {
                load.send_to(outage, address);
                std::thread::sleep(Duration::from_millis(200));
                again.kill();
                load.pause();
            }
            link.restore();
        } else {
            link.restore();
            process = Some(running);
        }
    }
    let running = process.unwrap_or_else(|| {
        let (running, address) = serve(&deployment).unwrap();
        load.send_to(OUTAGES, address);
        running
    });
    std::thread::sleep(Duration::from_secs(2));
    let calls = load.stop();
    running.terminate();
    let status = running.wait_exit(PATIENCE);
    assert!(status.success(), "{status}\n{}", running.stderr());
    let audit = audit(&deployment, &calls).await;
    let count = |is: fn(&Outcome) -> bool| calls.iter().filter(|c| is(&c.outcome)).count();
    let recovered: usize = audit.lives.values().map(|tally| tally.recovered).sum();
    println!(
        "{} requests, {} complete, {} refused, {recovered} recovered",
        calls.len(),
        count(|o| *o == Outcome::Complete),
        count(|o| matches!(o, Outcome::Refused(..)))
    );
    audit.assert_clean();
    assert!(recovered > 0);
}

/// Starts the relay; `None` when it ends instead.
fn serve(deployment: &Deployment) -> Option<(RunningProcess, SocketAddr)> {
    let process = deployment.program(&["serve"]).start();
    let line = process.wait_for_line_or_exit("accepting requests", Duration::from_mins(1))?;
    let event: Value = serde_json::from_str(&line).unwrap();
    let address = event["address"].as_str().unwrap().parse().unwrap();
    Some((process, address))
}

/// Puts a link before a database.
pub(crate) fn linked(url: &str) -> (Link, String) {
    let mut url = url::Url::parse(url).unwrap();
    let target = (url.host_str().unwrap(), url.port().unwrap_or(5432));
    let link = Link::start(target.to_socket_addrs().unwrap().next().unwrap());
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(link.address().port())).unwrap();
    (link, url.into())
}
