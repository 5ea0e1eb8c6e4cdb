use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::bound::{BoundProfile, RequestSize, TokenBound, tighten, token_bound};
use crate::id::{ProxyKeyId, TenantId, UserId};
use crate::quota::ScopeSet;
use crate::usage::{MAX_AMOUNT, Owed, charge};

/// Each case tries every cell of the table of endings.
const CELLS: u32 = 21;

/// How many cases try as many records as `SLUICE_PROVE_CHARGES` says, or few.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
fn cases() -> u32 {
    let wanted = std::env::var("SLUICE_PROVE_CHARGES").ok();
    wanted.map_or(500, |count| count.parse::<u32>().unwrap().div_ceil(CELLS))
}

/// Numbers as they come, and those at which sums go wrong.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 0_i64..200_000,
        1 => Just(0),
        1 => Just(-1),
        1 => Just(1),
        1 => MAX_AMOUNT - 2..=MAX_AMOUNT,
        1 => i64::MAX - 2..=i64::MAX,
        1 => i64::MIN..=i64::MIN + 2,
        2 => any::<i64>(),
    ]
}

fn usage() -> impl Strategy<Value = TokenUsage> {
    let numbers = (number(), number(), number(), number(), number());
    numbers.prop_map(
        |(input, cached_input, cache_write_input, output, reasoning_output)| TokenUsage {
            input,
            cached_input,
            cache_write_input,
            output,
            reasoning_output,
        },
    )
}

fn size() -> impl Strategy<Value = RequestSize> {
    let bytes = prop_oneof![3 => 0_usize..2_000_000, 1 => any::<usize>()];
    let max_output = proptest::option::of(number());
    (bytes, max_output, number(), any::<bool>(), any::<bool>()).prop_map(
        |(body_bytes, max_output, choices, has_output, refers_elsewhere)| RequestSize {
            body_bytes,
            max_output,
            choices,
            has_output,
            refers_elsewhere,
        },
    )
}

fn profile() -> impl Strategy<Value = BoundProfile> {
    let at_least_nothing = || number().prop_map(|number| number.max(0));
    let known = prop::sample::select(vec!["gpt-4o", "text-embedding-3", "claude-3-haiku", "?"]);
    let any = (
        at_least_nothing(),
        at_least_nothing(),
        at_least_nothing(),
        at_least_nothing(),
    );
    let any = any.prop_map(
        |(context_window, max_output, tokens_per_kilobyte, added_tokens)| BoundProfile {
            context_window,
            max_output,
            tokens_per_kilobyte,
            added_tokens,
        },
    );
    prop_oneof![known.prop_map(crate::bound::profile_of), any]
}

/// Every cell of the table of endings.
fn endings() -> impl Iterator<Item = (Ending, Stage)> {
    let endings = [
        Ending::Finished,
        Ending::ClientLeft,
        Ending::UpstreamFailed,
        Ending::Deadline,
        Ending::Shutdown,
        Ending::Panicked,
        Ending::Crashed,
    ];
    let stages = [Stage::Held, Stage::Dispatched, Stage::Relaying];
    endings
        .into_iter()
        .flat_map(move |ending| stages.map(|stage| (ending, stage)))
}

fn record(bound: Amounts, owed: Amounts, (ending, stage): (Ending, Stage)) -> UsageRecord {
    let mut record = UsageRecord::begun(OpenRequest {
        request_id: RequestId::from_uuid(Uuid::nil()),
        payer: Payer {
            tenant_id: TenantId::from_uuid(Uuid::nil()),
            user_id: UserId::from_uuid(Uuid::nil()),
            key_id: ProxyKeyId::from_uuid(Uuid::nil()),
        },
        period: Month::from_number(202_611).unwrap(),
        local_day: LocalDay(20_261_118),
        started_at: UnixMillis(0),
        endpoint: Endpoint::ChatCompletions,
        streams: true,
        requested_model: Arc::from("gpt-4o"),
        hold: HoldTerms {
            bound,
            leased: ScopeSet::default(),
            input_estimate: 0,
        },
        caller: Caller {
            ip: None,
            user_agent: None,
        },
    });
    record.end.ending = ending;
    record.end.stage = stage;
    record.end.owed = owed;
    record
}

/// What the columns of the ledger take, unit by unit.
fn check(record: &UsageRecord) -> Result<(), TestCaseError> {
    let (bound, charge, excess) = (record.open.hold.bound, record.charge(), record.excess());
    let owed = record.end.owed;
    for (bound, charge, excess, owed) in [
        (bound.tokens, charge.tokens, excess.tokens, owed.tokens),
        (bound.nano, charge.nano, excess.nano, owed.nano),
    ] {
        prop_assert!((0..=MAX_AMOUNT).contains(&bound), "bound {bound}");
        prop_assert!((0..=bound).contains(&charge), "charge {charge} of {bound}");
        prop_assert!((0..=MAX_AMOUNT).contains(&excess), "excess {excess}");
        prop_assert!(
            excess == 0 || charge == bound,
            "excess {excess} at {charge} of {bound}"
        );
        // Nothing that is owed is lost, up to what a column holds, and nothing is added.
        let sum = charge.saturating_add(excess);
        let owed = owed.max(0);
        prop_assert!(sum <= owed, "{charge} and {excess} of {owed}");
        prop_assert!(
            sum == owed || excess == MAX_AMOUNT,
            "{charge} and {excess} of {owed}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn no_record_is_negative_or_takes_more_than_its_hold(
        profile in profile(),
        size in size(),
        tight in proptest::option::of((number(), number(), number())),
        usage in usage(),
    ) {
        let mut bound = token_bound(&profile, &size);
        if let Some((counted, free, unused)) = tight
            && let Some(tight) = tighten(bound, counted.max(0), size.choices.max(1), 0, (free, unused))
        {
            prop_assert!(tight.bound.total() <= bound.total());
            bound = tight.bound;
        }
        let TokenBound { input, output } = bound;
        prop_assert!(input >= 0 && output >= 0);
        let total = usage.total();
        prop_assert!(total <= MAX_AMOUNT);
        for (ending, stage) in endings() {
            let owed = charge(ending, stage);
            let tokens = match owed {
                Owed::Nothing => 0,
                // What the provider reported wins.
                Owed::Input | Owed::InputAndOutput => total,
            };
            let record = record(Amounts::tokens(bound.total()), Amounts::tokens(tokens), (ending, stage));
            check(&record)?;
            if owed == Owed::Nothing {
                prop_assert_eq!((record.charge(), record.excess()), (Amounts::ZERO, Amounts::ZERO));
            }
        }
    }

    #[test]
    fn whatever_is_owed_in_either_unit_is_charged_or_excess(
        bound in (0..=MAX_AMOUNT, 0..=MAX_AMOUNT),
        small in (0_i64..1_000, 0_i64..1_000),
        owed in (number(), number()),
        is_small: bool,
    ) {
        let (tokens, nano) = if is_small { small } else { bound };
        let owed = Amounts { tokens: owed.0, nano: owed.1 };
        for how in endings() {
            check(&record(Amounts { tokens, nano }, owed, how))?;
        }
    }
}
