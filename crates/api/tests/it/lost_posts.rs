//! A database that goes back by more than a journal keeps: what an operator sees, and does about it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use sluice_testkit::{Program, Request, call};

use crate::deployment::{Backend, Deployment, PATIENCE, address_of, chat, wait_until_posted};

const CLIENTS: usize = 8;

/// Copies one database over another, also while it is in use: as a restore does that replaces what is
/// in it and not the file.
fn copy_database(python: &str, from: &Path, to: &Path) {
    let script = "import sqlite3, sys\n\
        source, target = (sqlite3.connect(path, timeout=50) for path in sys.argv[1:])\n\
        source.backup(target)\n\
        source.close()\n\
        target.close()\n";
    let copied = Program::new(python)
        .args(["-c", script])
        .args([from, to])
        .run(PATIENCE);
    assert!(copied.status.success(), "{}", copied.stderr);
}

fn segments(journal: &Path) -> Vec<String> {
    let files = std::fs::read_dir(journal).unwrap();
    let mut names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment what is installed"
)]
fn python() -> Option<String> {
    let python = std::env::var("SLUICE_TEST_PYTHON").ok();
    assert!(
        python.is_some() || std::env::var("REQUIRE_BACKENDS").is_err(),
        "REQUIRE_BACKENDS=1, but SLUICE_TEST_PYTHON is not set"
    );
    python
}

#[tokio::test]
async fn a_running_instance_that_lacks_posts_says_how_to_give_them_up_and_hands_in_the_rest() {
    let Some(python) = python() else { return };
    let Some(mut deployment) = Deployment::new(Backend::Sqlite) else {
        return;
    };
    deployment.set("SLUICE_JOURNAL_KEEP_MS", "0");
    deployment.set("SLUICE_JOURNAL_SEGMENT_BYTES", "1048576");
    let folder = deployment.folder.path();
    let (database, earlier) = (folder.join("sluice.db"), folder.join("earlier.db"));
    let journal = folder.join("data/journal");
    let process = deployment.program(&["serve"]).start();
    let address = address_of(&process);
    let request = Request::post("/v1/chat/completions", &chat(1))
        .key(&deployment.key)
        .header("user-agent", &"x".repeat(200));
    assert_eq!(call(address, &request).await.unwrap().status(), 200);
    wait_until_posted(address).await;
    copy_database(&python, &database, &earlier);

    // Until the first segment is gone, because the database has what is in it.
    let first = segments(&journal).remove(0);
    let stopped = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (request, stopped) = (request.clone(), Arc::clone(&stopped));
            tokio::spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    call(address, &request).await.unwrap();
                }
            })
        })
        .collect();
    let began = tokio::time::Instant::now();
    while segments(&journal).contains(&first) {
        assert!(began.elapsed() < 3 * PATIENCE, "{:?}", segments(&journal));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    stopped.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    wait_until_posted(address).await;

    copy_database(&python, &earlier, &database);
    // Its next transaction finds out.
    let _ends_meanwhile = call(address, &request).await;
    assert!(!process.wait_exit(PATIENCE).success());
    let instances: Value =
        serde_json::from_str(&deployment.run(&["ledger", "instances", "--json"])).unwrap();
    let instance = instances[0].to_string();
    let id = instance
        .split('"')
        .find(|word| word.starts_with("ins_"))
        .unwrap();
    let journal = journal.display().to_string();
    let advice = format!("`sluice ledger resolve {id} --journal {journal}` gives up what is lost");
    let log = process.stderr();
    assert!(
        log.contains("went back to before post 2 of this instance"),
        "{log}"
    );
    assert!(log.contains(&advice), "{advice}\n{log}");
    // So does the next start.
    let refused = deployment.try_run(&["serve"]);
    assert!(
        !refused.status.success() && refused.stderr.contains(&advice),
        "{}",
        refused.stderr
    );

    let resolve = ["ledger", "resolve", id, "--journal", &journal, "--force"];
    let unconfirmed = deployment.try_run(&resolve);
    assert_eq!(unconfirmed.status.code(), Some(2), "{}", unconfirmed.stderr);
    assert!(
        unconfirmed.stderr.contains("has posts 2 to "),
        "{}",
        unconfirmed.stderr
    );
    deployment.run(&[&resolve[..], &["--yes"]].concat());
    let handed_in = deployment.try_run(&["serve"]);
    assert!(
        handed_in
            .stderr
            .contains("Start again: it will be a new instance"),
        "{}",
        handed_in.stderr
    );
    let process = deployment.program(&["serve"]).start();
    let answer = call(address_of(&process), &request).await.unwrap();
    assert_eq!(answer.status(), 200);
    process.terminate();
    assert!(
        process.wait_exit(PATIENCE).success(),
        "{}",
        process.stderr()
    );
    deployment.run(&["ledger", "verify"]);
}
