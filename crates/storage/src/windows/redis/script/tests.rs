//! The script is compared with the rule that it repeats, at times that a test sets.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::{Value, cmd};
use sluice_domain::window::{CounterTime, SlidingWindow, WindowShape};
use sluice_testkit::{RedisServer, faketime, redis_server};

use super::*;
use crate::windows::local::millis;

/// One decision about a counter of a minute and one of a second.
#[derive(Debug, Clone)]
struct Step {
    /// How far the clock moves before it; it may go back.
    ms: i64,
    minute: u64,
    second: u64,
    /// Age and amount of what is sent along.
    unsent: Option<(u64, u64)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ms = prop_oneof![
        3 => 0..60_i64,
        3 => 0..3_000_i64,
        2 => prop_oneof![Just(1_i64), Just(50), Just(1_000), Just(59_001), Just(60_000)],
        1 => 10_000..130_000_i64,
        1 => -8_000..0_i64,
    ];
    let unsent = prop_oneof![4 => Just(None), 1 => (0..70_000_u64, 1..4_u64).prop_map(Some)];
    let step = (ms, 0..4_u64, 0..4_u64, unsent).prop_map(|(ms, minute, second, unsent)| Step {
        ms,
        minute,
        second,
        unsent,
    });
    prop::collection::vec(step, 1..60)
}

/// What the script answers about one counter.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    used: u64,
    resets_in: u64,
    is_over: bool,
    wait: u64,
}

fn numbers(value: Value) -> Vec<i64> {
    let Value::Array(values) = value else {
        panic!("{value:?}");
    };
    let number = |value| match value {
        Value::Int(number) => number,
        _ => -1,
    };
    values.into_iter().map(number).collect()
}

/// Puts what was sent along where it belongs: nothing in the rule adds to an earlier bucket.
fn merge(window: &mut SlidingWindow, now: CounterTime, unsent: (u64, u64)) {
    let shape = window.shape();
    let mut all: Vec<(u64, u64)> = window.amounts(now).collect();
    let bucket = now.0.saturating_sub(unsent.0) / shape.width_ms;
    all.push((bucket, unsent.1));
    all.sort_unstable();
    *window = SlidingWindow::new(shape);
    for (bucket, amount) in all {
        window.take(CounterTime(bucket * shape.width_ms), amount);
    }
}

const MOST: [u64; 2] = [12, 5];

#[test]
fn the_script_decides_as_the_rule_does() {
    let (Some(binary), Some(faketime)) = (redis_server(), faketime()) else {
        return;
    };
    let server = RedisServer::start_with_clock(&binary, &faketime);
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut hashes = ScriptHashes::default();
    let hash = cmd("SCRIPT")
        .arg("LOAD")
        .arg(Script::Decide.text())
        .query(&mut connection);
    hashes.set(Script::Decide, hash.unwrap());
    let connection = RefCell::new(connection);
    let case = Cell::new(0);
    // Each step is some calls to the server; `PROPTEST_CASES` multiplies all the same.
    let cases = Config::default().cases.min(2_000) / 2;
    let mut runner = TestRunner::new(Config {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&steps(), |steps| {
        case.set(case.get() + 1);
        let case = case.get();
        let mut windows = [
            SlidingWindow::new(WindowShape::MINUTE),
            SlidingWindow::new(WindowShape::SECOND),
        ];
        let (mut clock, mut latest) = (2_000_000_000_000_i64, 0);
        for (at, step) in steps.iter().enumerate() {
            clock += step.ms;
            let ms = clock.unsigned_abs();
            server.set_clock(&format!("{}.{:03}", ms / 1_000, ms % 1_000));
            let name = |counter: &str| format!("{{case-{case}}}{counter}");
            let keys = vec![name(""), name(":minute"), name(":second")];
            let mut call = Call::new(Script::Decide, keys);
            call.text("").text("marker").number(61_000).text("boot");
            let amounts = [step.minute, step.second];
            for (window, (most, amount)) in windows.iter().zip(MOST.into_iter().zip(amounts)) {
                let shape = window.shape();
                call.word("w").number(shape.width_ms).number(shape.before);
                call.number(most).number(amount).flag(false);
                match step.unsent {
                    Some((age, amount)) => call.number(1).number(age).number(amount),
                    None => call.number(0),
                };
            }
            let reply = call
                .by_hash(&hashes)
                .query::<Value>(&mut *connection.borrow_mut())
                .unwrap();
            let reply = numbers(reply);
            // As libfaketime reads a time, it may be a little off. The latest time is kept in steps
            // of 50 ms, as exactly as buckets need it; waits are compared as exactly.
            latest = latest.max(reply[1].unsigned_abs() / 50);
            let now = CounterTime(latest * 50);
            let exact = CounterTime(reply[1].unsigned_abs().max(now.0));

            let mut expected = Vec::new();
            for window in &mut windows {
                if let Some(unsent) = step.unsent {
                    merge(window, exact, unsent);
                }
            }
            let over: Vec<bool> = windows
                .iter_mut()
                .zip(MOST.into_iter().zip(amounts))
                .map(|(window, (most, amount))| !window.fits(now, amount, most))
                .collect();
            let is_admitted = over.iter().all(|is_over| !is_over);
            for ((window, is_over), (most, amount)) in windows
                .iter_mut()
                .zip(over)
                .zip(MOST.into_iter().zip(amounts))
            {
                let wait = if is_over {
                    millis(window.wait(now, amount, most))
                } else {
                    0
                };
                if is_admitted {
                    window.take(now, amount);
                }
                expected.push(Told {
                    used: window.used(now),
                    resets_in: millis(window.resets_in(now)),
                    is_over,
                    wait,
                });
            }
            let unsigned = |number: &i64| number.unsigned_abs();
            let told: Vec<Told> = reply[3..]
                .chunks_exact(4)
                .map(|counter| Told {
                    used: unsigned(&counter[0]),
                    resets_in: unsigned(&counter[1]).div_ceil(50) * 50,
                    is_over: counter[2] == 1,
                    wait: if is_admitted {
                        0
                    } else {
                        unsigned(&counter[3]).div_ceil(50) * 50
                    },
                })
                .collect();
            prop_assert_eq!(reply[0] == 1, is_admitted, "step {}", at);
            prop_assert_eq!(told, expected, "step {}", at);
        }
        Ok(())
    });
    result.unwrap();
}
