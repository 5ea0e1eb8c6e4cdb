//! Stops, restarts and copies of a data folder: nothing is lost, nothing stays leased, and two
//! processes never write in one name.

use std::path::Path;

use serde_json::Value;
use sluice_testkit::{Program, Request, RunningProcess, call};

use crate::audit::audit;
use crate::deployment::{PATIENCE, chat, on_both_databases};
use crate::load::{Load, Outcome, prepare};

/// Clean stops under load, each followed by a start.
const STOPS: usize = 4;

/// Starts a program that serves; returns where.
#[track_caller]
fn serve(program: Program) -> (RunningProcess, std::net::SocketAddr) {
    let process = program.start();
    let line = process.wait_for_line("accepting requests", PATIENCE);
    let event: Value = serde_json::from_str(&line).unwrap();
    let address = event["address"].as_str().unwrap().parse().unwrap();
    (process, address)
}

#[track_caller]
fn stop(process: &RunningProcess) {
    process.terminate();
    let status = process.wait_exit(PATIENCE);
    assert!(status.success(), "{status}\n{}", process.stderr());
}

/// Copies a folder with everything in it, as `cp -r` does.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Expects a start to be refused, with words that say why.
#[track_caller]
fn refuse_start(program: Program, why: &str) {
    let finished = program.run(PATIENCE);
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert!(!finished.status.success(), "it started:\n{said}");
    assert!(said.contains(why), "`{why}` is not in:\n{said}");
}

on_both_databases! {
    async fn a_stop_under_load_loses_nothing_and_returns_every_lease(deployment: Deployment) {
        let mut deployment = deployment;
        prepare(&deployment);
        // Some streams are still open then, and end with the process.
        deployment.set("SLUICE_SERVER_DRAIN_MS", "100");
        let keys = vec![
            deployment.key.clone(),
            deployment.issue_key("wide", &["--quota", "1000000000"]),
            deployment.issue_key("narrow", &["--quota", "5000"]),
        ];
        let load = Load::start(9, keys);
        for life in 0..STOPS {
            let (process, address) = serve(deployment.program(&["serve"]));
            load.send_to(life, address);
            load.wait_for_ends(30, PATIENCE);
            stop(&process);
            load.pause();
            let log = process.stderr();
            assert!(!log.contains("cut off by a crash"), "{log}");
            // While nothing runs, nothing is held.
            let audit = audit(&deployment, &[]).await;
            let faults: Vec<&String> = audit
                .faults
                .iter()
                // Whose requests they are is asked at the end.
                .filter(|fault| !fault.contains("nobody"))
                .collect();
            assert!(faults.is_empty(), "{faults:#?}");
        }
        let calls = load.stop();
        let audit = audit(&deployment, &calls).await;
        audit.assert_clean();
        let complete = calls.iter().filter(|call| call.outcome == Outcome::Complete).count();
        assert!(complete > 20, "{complete} complete answers of {}", calls.len());
        assert!(audit.lives.values().all(|tally| tally.recovered == 0));
    }

    async fn two_processes_never_serve_from_one_folder(deployment: Deployment) {
        let (first, address) = serve(deployment.program(&["serve"]));
        refuse_start(deployment.program(&["serve"]), "in use by another sluice process");
        let request = Request::post("/v1/chat/completions", &chat(3)).key(&deployment.key);
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        stop(&first);
        deployment.only_record().await;
    }

    async fn a_copy_of_a_folder_is_refused_once_the_other_has_served(deployment: Deployment) {
        let data = deployment.folder.path().join("data");
        let request = Request::post("/v1/chat/completions", &chat(3)).key(&deployment.key);
        let (process, address) = serve(deployment.program(&["serve"]));
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        stop(&process);
        let copy = deployment.folder.path().join("copy");
        copy_folder(&data, &copy);
        let of_copy = || deployment.program(&["serve"]).env("SLUICE_DATA_DIR", &copy);

        let (process, address) = serve(deployment.program(&["serve"]));
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        // While the other runs, and after it.
        refuse_start(of_copy(), "is a copy");
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        stop(&process);
        refuse_start(of_copy(), "is a copy");
        deployment.wait_for_records(3).await;
    }

    async fn a_copy_made_of_a_running_instance_takes_nothing_from_it(deployment: Deployment) {
        let data = deployment.folder.path().join("data");
        let request = Request::post("/v1/chat/completions", &chat(3)).key(&deployment.key);
        let (process, address) = serve(deployment.program(&["serve"]));
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        deployment.wait_for_records(1).await;
        let copy = deployment.folder.path().join("copy");
        copy_folder(&data, &copy);
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        deployment.wait_for_records(2).await;
        let of_copy = deployment.program(&["serve"]).env("SLUICE_DATA_DIR", &copy);
        refuse_start(of_copy, "is a copy");
        // The one that has the name goes on, and starts again.
        assert_eq!(call(address, &request).await.unwrap().status(), 200);
        stop(&process);
        let (process, _) = serve(deployment.program(&["serve"]));
        stop(&process);
        deployment.wait_for_records(3).await;
    }
}
