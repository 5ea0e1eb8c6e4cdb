//! The queries of the identities: each finds the rows that break one.

statements! {
    // What is held is what the instances have leased.
    V1_HELD = "SELECT c.scope, c.scope_id, c.period, \
            COALESCE(l.tokens, 0) AS expected_tokens, c.held_tokens AS found_tokens, \
            COALESCE(l.nano, 0) AS expected_nano, c.held_nano AS found_nano \
        FROM counters c LEFT JOIN (SELECT counter_id, CAST(SUM(held_tokens) AS BIGINT) AS tokens, \
                CAST(SUM(held_nano) AS BIGINT) AS nano FROM leases GROUP BY counter_id) l \
            ON l.counter_id = c.counter_id \
        WHERE c.held_tokens <> COALESCE(l.tokens, 0) OR c.held_nano <> COALESCE(l.nano, 0)";
    V1_LOST_LEASES = "SELECT l.instance_id, l.counter_id AS id FROM leases l \
        WHERE NOT EXISTS (SELECT 1 FROM counters c WHERE c.counter_id = l.counter_id)";
    // What is used is what records and entries say.
    // Of months that retention has reached, the rollups are all there is.
    V2_USED = "WITH sums AS (SELECT tenant_id, user_id, key_id, period, CAST(SUM(quota_tokens) AS BIGINT) AS tokens, \
                CAST(SUM(charge_nano) AS BIGINT) AS nano \
                FROM usage_records WHERE period > $1 GROUP BY tenant_id, user_id, key_id, period \
            UNION ALL SELECT tenant_id, user_id, key_id, period, quota_tokens, charge_nano \
                FROM rollup_monthly WHERE period <= $1) \
        SELECT c.scope, c.scope_id, c.period, \
            COALESCE(r.tokens, 0) + COALESCE(e.tokens, 0) AS expected_tokens, c.used_tokens AS found_tokens, \
            COALESCE(r.nano, 0) + COALESCE(e.nano, 0) AS expected_nano, c.used_nano AS found_nano \
        FROM counters c \
        LEFT JOIN (SELECT 'tenant' AS scope, tenant_id AS scope_id, period, \
                CAST(SUM(tokens) AS BIGINT) AS tokens, CAST(SUM(nano) AS BIGINT) AS nano \
                FROM sums GROUP BY tenant_id, period \
            UNION ALL SELECT 'user', user_id, period, CAST(SUM(tokens) AS BIGINT), \
                CAST(SUM(nano) AS BIGINT) FROM sums GROUP BY user_id, period \
            UNION ALL SELECT 'key', key_id, period, CAST(SUM(tokens) AS BIGINT), \
                CAST(SUM(nano) AS BIGINT) FROM sums GROUP BY key_id, period) r \
            ON r.scope = c.scope AND r.scope_id = c.scope_id AND r.period = c.period \
        LEFT JOIN (SELECT counter_id, CAST(SUM(amount_tokens) AS BIGINT) AS tokens, \
                CAST(SUM(amount_nano) AS BIGINT) AS nano FROM ledger_entries GROUP BY counter_id) e \
            ON e.counter_id = c.counter_id \
        WHERE c.used_tokens <> COALESCE(r.tokens, 0) + COALESCE(e.tokens, 0) \
            OR c.used_nano <> COALESCE(r.nano, 0) + COALESCE(e.nano, 0)";
    // Nothing is overdrawn that was not counted.
    V3_PEAK = "SELECT scope, scope_id, period, \
            peak_cap_tokens + over_tokens AS expected_tokens, used_tokens + held_tokens AS found_tokens, \
            peak_cap_nano + over_nano AS expected_nano, used_nano + held_nano AS found_nano \
        FROM counters WHERE used_tokens + held_tokens > peak_cap_tokens + over_tokens \
            OR used_nano + held_nano > peak_cap_nano + over_nano";
    // Every number that an instance gave is a row.
    V4_NUMBERS = "SELECT i.instance_id, i.posted_no, i.posted_rows, i.quarantined_rows, i.dropped_rows, \
            COALESCE(r.n, 0) AS records, COALESCE(r.last, 0) AS last, COALESCE(q.n, 0) AS quarantined, \
            COALESCE(f.n, 0) AS removed, COALESCE(t.n, 0) AS lost \
        FROM instances i \
        LEFT JOIN (SELECT origin >> 40 AS no, COUNT(*) AS n, MIN(origin) & 1099511627775 AS first, \
                MAX(origin) & 1099511627775 AS last \
            FROM usage_rows GROUP BY origin >> 40) r ON r.no = i.instance_no \
        LEFT JOIN (SELECT instance_id, COUNT(*) AS n, MIN(post_no) AS first, MAX(post_no) AS last \
            FROM quarantine GROUP BY instance_id) q \
            ON q.instance_id = i.instance_id \
        LEFT JOIN (SELECT instance_id, CAST(SUM(record_count) AS BIGINT) AS n FROM ledger_floor \
            GROUP BY instance_id) f ON f.instance_id = i.instance_id \
        LEFT JOIN (SELECT instance_id, CAST(SUM(last_no - first_no + 1) AS BIGINT) AS n, MAX(last_no) AS last \
            FROM lost_posts GROUP BY instance_id) t ON t.instance_id = i.instance_id \
        WHERE i.posted_rows <> COALESCE(r.n, 0) + i.dropped_rows OR r.first < 1 OR r.last > i.posted_no \
            OR q.first < 1 OR q.last > i.posted_no OR i.posted_rows + i.quarantined_rows + COALESCE(t.n, 0) <> i.posted_no \
            OR t.last > i.posted_no \
            OR i.quarantined_rows <> COALESCE(q.n, 0) OR i.dropped_rows <> COALESCE(f.n, 0)";
    // Which numbers of an instance are missing.
    V4_GAPS = "SELECT n.before_no, n.after_no FROM (SELECT post_no AS before_no, \
                LEAD(post_no) OVER (ORDER BY post_no) AS after_no \
            FROM (SELECT origin & 1099511627775 AS post_no FROM usage_rows \
                    WHERE origin BETWEEN (SELECT instance_no FROM instances WHERE instance_id = $1) * 1099511627776 \
                        AND (SELECT instance_no + 1 FROM instances WHERE instance_id = $1) * 1099511627776 - 1 \
                UNION ALL SELECT post_no FROM quarantine WHERE instance_id = $1 \
                UNION ALL SELECT 0 FROM instances WHERE instance_id = $1 \
                UNION ALL SELECT posted_no + 1 FROM instances WHERE instance_id = $1) p) n \
        WHERE n.after_no - n.before_no - 1 > (SELECT CAST(COALESCE(SUM(last_no - first_no + 1), 0) AS BIGINT) \
            FROM lost_posts WHERE instance_id = $1 AND first_no > n.before_no AND last_no < n.after_no) ORDER BY n.before_no LIMIT 100";
    V4_UNKNOWN_NUMBERS = "SELECT DISTINCT r.origin >> 40 FROM usage_rows r \
        WHERE NOT EXISTS (SELECT 1 FROM instances i WHERE i.instance_no = (r.origin >> 40))";
    V4_UNKNOWN_INSTANCES = "SELECT r.instance_id FROM (SELECT instance_id FROM quarantine UNION SELECT instance_id FROM ledger_floor \
            UNION SELECT instance_id FROM lost_posts) r \
        WHERE NOT EXISTS (SELECT 1 FROM instances i WHERE i.instance_id = r.instance_id)";
    // The name of a partition ends in its month.
    FLOOR = "SELECT MAX(partition_name) FROM ledger_floor";
    // The rollups are the records, per key and in every sum.
    V5_DAYS = "SELECT tenant_id, key_id, model, local_day AS at, \
            CAST(SUM(n) AS BIGINT) AS n, CAST(SUM(quota) AS BIGINT) AS tokens, CAST(SUM(charge) AS BIGINT) AS nano \
        FROM (SELECT tenant_id, local_day, key_id, user_id, requested_model AS model, \
                COALESCE(upstream_id, $1) AS upstream_id, period, statement_period, 1 AS n, \
                CASE WHEN ending <> 'finished' OR status >= 400 THEN 1 ELSE 0 END AS failures, \
                input_tokens AS input, cached_input_tokens AS cached, cache_write_input_tokens AS written, \
                output_tokens AS output, reasoning_output_tokens AS reasoning, quota_tokens AS quota, \
                charge_nano AS charge, excess_tokens AS excess, excess_nano AS loss, \
                COALESCE(cost_nano, 0) AS cost FROM usage_records WHERE local_day > $2 \
            UNION ALL SELECT tenant_id, local_day, key_id, user_id, model, upstream_id, period, statement_period, \
                -requests, -failures, -input_tokens, -cached_input_tokens, -cache_write_input_tokens, \
                -output_tokens, -reasoning_output_tokens, -quota_tokens, -charge_nano, -excess_tokens, \
                -excess_nano, -cost_nano FROM rollup_daily WHERE local_day > $2) s \
        GROUP BY tenant_id, local_day, key_id, user_id, model, upstream_id, period, statement_period \
        HAVING SUM(n) <> 0 OR SUM(failures) <> 0 OR SUM(input) <> 0 OR SUM(cached) <> 0 OR SUM(written) <> 0 \
            OR SUM(output) <> 0 OR SUM(reasoning) <> 0 OR SUM(quota) <> 0 OR SUM(charge) <> 0 \
            OR SUM(excess) <> 0 OR SUM(loss) <> 0 OR SUM(cost) <> 0";
    // Up to the day that retention has reached, rollups are the records and what it has removed.
    V5_REMOVED = "SELECT r.n, r.tokens, r.nano FROM (SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) AS n, \
                CAST(COALESCE(SUM(tokens), 0) AS BIGINT) AS tokens, CAST(COALESCE(SUM(nano), 0) AS BIGINT) AS nano \
            FROM (SELECT 1 AS n, quota_tokens AS tokens, charge_nano AS nano FROM usage_records WHERE local_day <= $1 \
                UNION ALL SELECT record_count, quota_tokens, charge_nano FROM ledger_floor \
                UNION ALL SELECT -requests, -quota_tokens, -charge_nano FROM rollup_daily WHERE local_day <= $1) s) r \
        WHERE r.n <> 0 OR r.tokens <> 0 OR r.nano <> 0";
    V5_MONTHS = "SELECT tenant_id, key_id, model, period AS at, \
            CAST(SUM(n) AS BIGINT) AS n, CAST(SUM(quota) AS BIGINT) AS tokens, CAST(SUM(charge) AS BIGINT) AS nano \
        FROM (SELECT tenant_id, key_id, user_id, model, upstream_id, period, statement_period, \
                requests AS n, failures, input_tokens AS input, cached_input_tokens AS cached, \
                cache_write_input_tokens AS written, output_tokens AS output, \
                reasoning_output_tokens AS reasoning, quota_tokens AS quota, charge_nano AS charge, \
                excess_tokens AS excess, excess_nano AS loss, cost_nano AS cost FROM rollup_daily \
            UNION ALL SELECT tenant_id, key_id, user_id, model, upstream_id, period, statement_period, \
                -requests, -failures, -input_tokens, -cached_input_tokens, -cache_write_input_tokens, \
                -output_tokens, -reasoning_output_tokens, -quota_tokens, -charge_nano, -excess_tokens, \
                -excess_nano, -cost_nano FROM rollup_monthly) s \
        GROUP BY tenant_id, key_id, user_id, model, upstream_id, period, statement_period \
        HAVING SUM(n) <> 0 OR SUM(failures) <> 0 OR SUM(input) <> 0 OR SUM(cached) <> 0 OR SUM(written) <> 0 \
            OR SUM(output) <> 0 OR SUM(reasoning) <> 0 OR SUM(quota) <> 0 OR SUM(charge) <> 0 \
            OR SUM(excess) <> 0 OR SUM(loss) <> 0 OR SUM(cost) <> 0";
    // A charge is never more than what was held, and an excess only beyond it.
    V6_AMOUNTS = "SELECT request_id, bound_tokens, bound_nano, quota_tokens, charge_nano, excess_tokens, excess_nano \
        FROM usage_rows \
        WHERE quota_tokens < 0 OR quota_tokens > bound_tokens OR charge_nano < 0 OR charge_nano > bound_nano \
            OR excess_tokens < 0 OR excess_nano < 0 OR (excess_tokens > 0 AND quota_tokens < bound_tokens) \
            OR (excess_nano > 0 AND charge_nano < bound_nano)";
    // Every month that has records has a counter and stands in the calendar, which holds their days.
    V7_MONTHS = "SELECT r.tenant_id, r.period, r.first_day, r.last_day, c.counter_id, p.starts_at_ms, p.ends_at_ms \
        FROM (SELECT tenant_id, period, MIN(local_day) AS first_day, MAX(local_day) AS last_day \
            FROM usage_records GROUP BY tenant_id, period) r \
        LEFT JOIN counters c ON c.scope = 'tenant' AND c.scope_id = r.tenant_id AND c.period = r.period \
        LEFT JOIN periods p ON p.tenant_id = r.tenant_id AND p.period = r.period";
    // A local day is one of those that a zone may have at the start of its requests.
    V7_DAYS = "SELECT tenant_id, local_day, MIN(started_at_ms) AS first_ms, MAX(started_at_ms) AS last_ms \
        FROM usage_records GROUP BY tenant_id, local_day";
    V7_STARTS = "SELECT request_id, started_at_ms FROM usage_records \
        WHERE tenant_id = $1 AND local_day = $2 AND (started_at_ms < $3 OR started_at_ms >= $4) LIMIT 100";
    // No more was released than was exposed; only settled instances have exposures left.
    V8_EXPOSURES = "SELECT e.instance_id, e.counter_id AS id, i.state, \
            CAST(SUM(e.amount_tokens) AS BIGINT) AS tokens, CAST(SUM(e.amount_nano) AS BIGINT) AS nano \
        FROM ledger_entries e LEFT JOIN instances i ON i.instance_id = e.instance_id \
        WHERE e.request_id IS NULL \
        GROUP BY e.instance_id, e.counter_id, i.state \
        HAVING SUM(e.amount_tokens) < 0 OR SUM(e.amount_nano) < 0 \
            OR ((i.state IS NULL OR i.state <> 'resolved') \
                AND (SUM(e.amount_tokens) <> 0 OR SUM(e.amount_nano) <> 0))";
    V8_LOST_ENTRIES = "SELECT e.entry_id, e.counter_id FROM ledger_entries e \
        WHERE NOT EXISTS (SELECT 1 FROM counters c WHERE c.counter_id = e.counter_id)";
    // What stands for a record that was set aside does so as long as that is set aside.
    V8_REQUESTS = "SELECT DISTINCT e.request_id FROM ledger_entries e WHERE e.request_id IS NOT NULL \
        AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.request_id = e.request_id \
            AND q.instance_id = e.instance_id)";
    // The months of a tenant do not overlap, and those that follow each other adjoin.
    V9_CALENDAR = "SELECT a.tenant_id, a.period, a.ends_at_ms AS ends, b.starts_at_ms AS starts \
        FROM periods a JOIN periods b ON b.tenant_id = a.tenant_id AND b.starts_at_ms = \
            (SELECT MIN(n.starts_at_ms) FROM periods n \
                WHERE n.tenant_id = a.tenant_id AND n.starts_at_ms > a.starts_at_ms) \
        WHERE b.starts_at_ms < a.ends_at_ms OR (b.starts_at_ms > a.ends_at_ms AND b.period = \
            CASE WHEN a.period % 100 = 12 THEN a.period + 89 ELSE a.period + 1 END)";
    // A closed month has the records that its statement counted.
    V10_STATEMENTS = "SELECT s.tenant_id, s.statement_period AS period, s.record_count AS expected, \
            COALESCE(r.n, 0) AS found \
        FROM statements s LEFT JOIN (SELECT tenant_id, statement_period, COUNT(*) AS n FROM usage_records \
                WHERE statement_period > $1 GROUP BY tenant_id, statement_period \
            UNION ALL SELECT tenant_id, statement_period, CAST(SUM(requests) AS BIGINT) FROM rollup_monthly \
                WHERE statement_period <= $1 GROUP BY tenant_id, statement_period) r \
            ON r.tenant_id = s.tenant_id AND r.statement_period = s.statement_period \
        WHERE s.version = (SELECT MAX(v.version) FROM statements v \
                WHERE v.tenant_id = s.tenant_id AND v.statement_period = s.statement_period) \
            AND s.record_count <> COALESCE(r.n, 0)";
    V10_UNSTATED = "SELECT p.tenant_id, p.period FROM periods p WHERE p.state = 'closed' AND NOT EXISTS \
        (SELECT 1 FROM statements s WHERE s.tenant_id = p.tenant_id AND s.statement_period = p.period)";
    // One row per number.
    V11_TWICE = "SELECT instance_id, post_no, COUNT(*) AS n \
        FROM (SELECT i.instance_id, r.origin & 1099511627775 AS post_no \
                FROM usage_rows r JOIN instances i ON i.instance_no = (r.origin >> 40) \
            UNION ALL SELECT instance_id, post_no FROM quarantine) p \
        GROUP BY instance_id, post_no HAVING COUNT(*) > 1";
    // Only live instances lease; what is in flight is a part of it.
    V12_LEASES = "SELECT l.instance_id, l.counter_id AS id, i.state, l.held_tokens, l.held_nano, \
            l.in_flight_tokens, l.in_flight_nano \
        FROM leases l LEFT JOIN instances i ON i.instance_id = l.instance_id \
        WHERE ((i.state IS NULL OR i.state <> 'live') AND (l.held_tokens <> 0 OR l.held_nano <> 0)) \
            OR l.in_flight_tokens > l.held_tokens OR l.in_flight_nano > l.held_nano";
    // The caps of the running month and the next are those of the quotas.
    V13_CAPS = "SELECT c.scope, c.scope_id, c.period, q.cap_tokens AS expected_tokens, c.cap_tokens AS found_tokens, \
            q.cap_nano AS expected_nano, c.cap_nano AS found_nano \
        FROM counters c \
        JOIN periods p ON p.tenant_id = c.tenant_id AND p.period = c.period \
            AND p.ends_at_ms > $1 \
        LEFT JOIN quotas q ON q.scope = c.scope AND q.scope_id = c.scope_id \
        WHERE c.cap_tokens IS DISTINCT FROM q.cap_tokens OR c.cap_nano IS DISTINCT FROM q.cap_nano";
    // What has a cap since a month or before it is counted in that month.
    V13_UNCOUNTED = "SELECT q.scope, q.scope_id, r.period, q.cap_tokens AS expected_tokens, \
            CAST(NULL AS BIGINT) AS found_tokens, q.cap_nano AS expected_nano, CAST(NULL AS BIGINT) AS found_nano \
        FROM quotas q JOIN (SELECT 'tenant' AS scope, tenant_id AS scope_id, tenant_id, period FROM rollup_monthly \
            UNION SELECT 'user', user_id, tenant_id, period FROM rollup_monthly \
            UNION SELECT 'key', key_id, tenant_id, period FROM rollup_monthly) r \
            ON r.scope = q.scope AND r.scope_id = q.scope_id \
        JOIN periods p ON p.tenant_id = r.tenant_id AND p.period = r.period AND p.ends_at_ms > q.changed_at_ms \
        WHERE (q.cap_tokens IS NOT NULL OR q.cap_nano IS NOT NULL) AND NOT EXISTS \
            (SELECT 1 FROM counters c WHERE c.scope = q.scope AND c.scope_id = q.scope_id AND c.period = r.period)";
    // What hangs on records has them. Of attempts that a crash cut off, only the last is kept.
    V14_ATTEMPTS = "SELECT r.request_id, CAST(r.attempt_count - CASE WHEN r.attempt_head_ms IS NULL THEN 0 ELSE 1 END AS BIGINT) AS expected, \
            COALESCE(f.n, 0) AS found \
        FROM usage_records r LEFT JOIN (SELECT request_id, COUNT(*) AS n FROM failed_attempts GROUP BY request_id) f \
            ON f.request_id = r.request_id \
        WHERE r.ending <> 'crashed' \
            AND r.attempt_count - CASE WHEN r.attempt_head_ms IS NULL THEN 0 ELSE 1 END <> COALESCE(f.n, 0)";
    V14_LOST_ATTEMPTS = "SELECT DISTINCT f.request_id FROM failed_attempts f \
        WHERE NOT EXISTS (SELECT 1 FROM usage_rows r WHERE r.request_id = f.request_id)";
    V14_LOST_SKIPPED = "SELECT s.request_id FROM skipped_targets s \
        WHERE NOT EXISTS (SELECT 1 FROM usage_rows r WHERE r.request_id = s.request_id)";
    // Each record has a kind, and each kind is what was hashed.
    V15_LOST_KINDS = "SELECT r.request_id FROM usage_rows r \
        WHERE NOT EXISTS (SELECT 1 FROM record_kinds k WHERE k.kind_id = r.kind_id)";
    V15_KINDS = "SELECT kind_id, hash, tenant_id, user_id, key_id, period, statement_period, local_day, endpoint, \
            streams, requested_model, upstream_id, upstream_model, upstream_key_id, attempt_count, \
            attempt_status, ending, stage, status, error_code, basis \
        FROM record_kinds WHERE kind_id > $1 ORDER BY kind_id LIMIT $2";
    W1_OVER = "SELECT scope, scope_id, period, CAST(0 AS BIGINT) AS expected_tokens, over_tokens AS found_tokens, \
            CAST(0 AS BIGINT) AS expected_nano, over_nano AS found_nano \
        FROM counters WHERE over_tokens > 0 OR over_nano > 0";
    W1_ENDED = "SELECT c.scope, c.scope_id, c.period, CAST(0 AS BIGINT) AS expected_tokens, c.held_tokens AS found_tokens, \
            CAST(0 AS BIGINT) AS expected_nano, c.held_nano AS found_nano \
        FROM counters c JOIN periods p ON p.tenant_id = c.tenant_id AND p.period = c.period \
        WHERE p.ends_at_ms <= $1 AND (c.held_tokens > 0 OR c.held_nano > 0)";
    W1_QUARANTINE = "SELECT instance_id, post_no, reason FROM quarantine ORDER BY instance_id, post_no LIMIT 100";
    W1_LOST = "SELECT instance_id, first_no, last_no, made_at_ms FROM lost_posts \
        ORDER BY instance_id, first_no LIMIT 100";
    W1_INSTANCES = "SELECT i.instance_id, i.state, i.heartbeat_at_ms FROM instances i \
        WHERE i.state = 'resolved' OR (i.state = 'live' AND i.heartbeat_at_ms < $1 AND EXISTS \
            (SELECT 1 FROM leases l WHERE l.instance_id = i.instance_id \
                AND (l.held_tokens <> 0 OR l.held_nano <> 0)))";
    // What a journal is compared with.
    LIST_POSTS = "SELECT post_no, request_id, tenant_id, user_id, key_id, quota_tokens, charge_nano, excess_tokens, \
            excess_nano FROM (SELECT r.origin & 1099511627775 AS post_no, r.request_id, k.tenant_id, k.user_id, \
                k.key_id, r.quota_tokens, r.charge_nano, r.excess_tokens, r.excess_nano \
            FROM usage_rows r JOIN record_kinds k ON k.kind_id = r.kind_id \
            WHERE r.origin BETWEEN (SELECT instance_no FROM instances WHERE instance_id = $1) * 1099511627776 + $2 \
                AND (SELECT instance_no FROM instances WHERE instance_id = $1) * 1099511627776 + $3) p \
        UNION ALL SELECT post_no, request_id, NULL, NULL, NULL, 0, 0, 0, 0 FROM quarantine \
            WHERE instance_id = $1 AND post_no BETWEEN $2 AND $3 \
        ORDER BY post_no";
}
