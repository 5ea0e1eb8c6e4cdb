-- The same tables and columns stand in ../postgres; a test compares them.
-- Times are milliseconds since the Unix epoch, months YYYYMM, days YYYYMMDD, ids 16-byte UUIDs.
-- 4611686018427387904 is 2^62, the largest amount that the ledger holds.

-- Configuration -----------------------------------------------------------------------------------

CREATE TABLE tenants (
    tenant_id     BLOB    NOT NULL,
    name          TEXT    NOT NULL,
    time_zone     TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    CONSTRAINT tenants_pk PRIMARY KEY (tenant_id),
    CONSTRAINT tenants_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE UNIQUE INDEX tenants_name_idx ON tenants (name) WHERE state <> 'deleted';

CREATE TABLE users (
    user_id       BLOB    NOT NULL,
    tenant_id     BLOB    NOT NULL,
    name          TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    CONSTRAINT users_pk PRIMARY KEY (user_id),
    CONSTRAINT users_tenant_id_user_id_uk UNIQUE (tenant_id, user_id),
    CONSTRAINT users_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT users_role_ck CHECK (role IN ('owner', 'admin', 'operator', 'finance', 'member')),
    CONSTRAINT users_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE UNIQUE INDEX users_tenant_id_name_idx ON users (tenant_id, name) WHERE state <> 'deleted';

CREATE TABLE proxy_keys (
    key_id         BLOB    NOT NULL,
    tenant_id      BLOB    NOT NULL,
    user_id        BLOB    NOT NULL,
    name           TEXT    NOT NULL,
    key_hash       BLOB    NOT NULL,
    hint           TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    expires_at_ms  INTEGER,
    -- A JSON array of model names; NULL allows every model of the tenant.
    allowed_models TEXT,
    may_pin        INTEGER NOT NULL,
    created_at_ms  INTEGER NOT NULL,
    CONSTRAINT proxy_keys_pk PRIMARY KEY (key_id),
    CONSTRAINT proxy_keys_key_hash_uk UNIQUE (key_hash),
    CONSTRAINT proxy_keys_key_hash_ck CHECK (length(key_hash) = 32),
    -- A key and its user are of one tenant.
    CONSTRAINT proxy_keys_user_fk FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id),
    CONSTRAINT proxy_keys_may_pin_ck CHECK (may_pin IN (0, 1)),
    CONSTRAINT proxy_keys_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE INDEX proxy_keys_tenant_id_key_id_idx ON proxy_keys (tenant_id, key_id);

CREATE TABLE quotas (
    scope         TEXT    NOT NULL,
    scope_id      BLOB    NOT NULL,
    tenant_id     BLOB    NOT NULL,
    -- NULL is without a cap.
    cap_tokens    INTEGER,
    cap_nano      INTEGER,
    changed_at_ms INTEGER NOT NULL,
    CONSTRAINT quotas_pk PRIMARY KEY (scope, scope_id),
    CONSTRAINT quotas_scope_ck CHECK (scope IN ('tenant', 'user', 'key')),
    CONSTRAINT quotas_cap_tokens_ck CHECK (cap_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT quotas_cap_nano_ck CHECK (cap_nano BETWEEN 0 AND 4611686018427387904)
) STRICT, WITHOUT ROWID;

CREATE TABLE window_limits (
    scope         TEXT    NOT NULL,
    scope_id      BLOB    NOT NULL,
    -- As clients name it; empty is every model.
    model         TEXT    NOT NULL,
    kind          TEXT    NOT NULL,
    tenant_id     BLOB    NOT NULL,
    most          INTEGER NOT NULL,
    -- Whether it is counted and reported only.
    dry_run       INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    CONSTRAINT window_limits_pk PRIMARY KEY (scope, scope_id, model, kind),
    CONSTRAINT window_limits_scope_ck CHECK (scope IN ('tenant', 'user', 'key')),
    CONSTRAINT window_limits_model_ck CHECK (model = '' OR scope = 'key'),
    CONSTRAINT window_limits_kind_ck CHECK (kind IN ('rps', 'rpm', 'tpm', 'concurrency')),
    CONSTRAINT window_limits_dry_run_ck CHECK (dry_run IN (0, 1)),
    -- 2^53, beyond which not every counter counts exactly.
    CONSTRAINT window_limits_most_ck CHECK (most BETWEEN 1 AND 9007199254740992)
) STRICT, WITHOUT ROWID;
CREATE INDEX window_limits_tenant_id_idx ON window_limits (tenant_id, scope, scope_id);

CREATE TABLE upstreams (
    upstream_id             BLOB    NOT NULL,
    -- NULL is shared by all tenants.
    tenant_id               BLOB,
    name                    TEXT    NOT NULL,
    kind                    TEXT    NOT NULL,
    base_url                TEXT,
    connect_ms              INTEGER NOT NULL,
    first_event_ms          INTEGER NOT NULL,
    idle_ms                 INTEGER NOT NULL,
    total_ms                INTEGER NOT NULL,
    client_gone             TEXT    NOT NULL,
    max_attempts            INTEGER NOT NULL,
    breaker_failures        INTEGER NOT NULL,
    breaker_failure_percent INTEGER NOT NULL,
    breaker_open_ms         INTEGER NOT NULL,
    -- NULL is never.
    probe_every_ms          INTEGER,
    -- NULL is no limit.
    requests_per_minute     INTEGER,
    tokens_per_minute       INTEGER,
    concurrency             INTEGER,
    api_version             TEXT,
    -- Whether it may be at an address that is not public.
    allow_private           INTEGER NOT NULL,
    state                   TEXT    NOT NULL,
    enabled_at_ms           INTEGER NOT NULL,
    created_at_ms           INTEGER NOT NULL,
    CONSTRAINT upstreams_pk PRIMARY KEY (upstream_id),
    CONSTRAINT upstreams_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT upstreams_deadlines_ck
        CHECK (connect_ms > 0 AND first_event_ms > 0 AND idle_ms > 0 AND total_ms > 0),
    CONSTRAINT upstreams_max_attempts_ck CHECK (max_attempts BETWEEN 1 AND 1000),
    CONSTRAINT upstreams_breaker_ck CHECK (
        breaker_failures BETWEEN 1 AND 1000000 AND breaker_failure_percent BETWEEN 1 AND 100
        AND breaker_open_ms > 0),
    CONSTRAINT upstreams_probe_every_ms_ck CHECK (probe_every_ms BETWEEN 1000 AND 86400000),
    CONSTRAINT upstreams_requests_per_minute_ck CHECK (requests_per_minute BETWEEN 1 AND 4294967295),
    CONSTRAINT upstreams_tokens_per_minute_ck CHECK (tokens_per_minute BETWEEN 1 AND 4294967295),
    CONSTRAINT upstreams_concurrency_ck CHECK (concurrency BETWEEN 1 AND 4294967295),
    CONSTRAINT upstreams_allow_private_ck CHECK (allow_private IN (0, 1)),
    CONSTRAINT upstreams_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE UNIQUE INDEX upstreams_name_idx ON upstreams (name) WHERE state <> 'deleted';

CREATE TABLE upstream_keys (
    upstream_key_id     BLOB    NOT NULL,
    upstream_id         BLOB    NOT NULL,
    name                TEXT    NOT NULL,
    weight              INTEGER NOT NULL,
    -- NULL is no limit.
    requests_per_minute INTEGER,
    tokens_per_minute   INTEGER,
    concurrency         INTEGER,
    -- Nonce, ciphertext and tag: the secret under the data key, the data key under the master key.
    sealed_secret       BLOB    NOT NULL,
    wrapped_key         BLOB    NOT NULL,
    master_key_id       TEXT    NOT NULL,
    state               TEXT    NOT NULL,
    enabled_at_ms       INTEGER NOT NULL,
    created_at_ms       INTEGER NOT NULL,
    CONSTRAINT upstream_keys_pk PRIMARY KEY (upstream_key_id),
    CONSTRAINT upstream_keys_upstream_id_fk FOREIGN KEY (upstream_id) REFERENCES upstreams (upstream_id),
    CONSTRAINT upstream_keys_weight_ck CHECK (weight BETWEEN 1 AND 1000000),
    CONSTRAINT upstream_keys_requests_per_minute_ck
        CHECK (requests_per_minute BETWEEN 1 AND 4294967295),
    CONSTRAINT upstream_keys_tokens_per_minute_ck CHECK (tokens_per_minute BETWEEN 1 AND 4294967295),
    CONSTRAINT upstream_keys_concurrency_ck CHECK (concurrency BETWEEN 1 AND 4294967295),
    CONSTRAINT upstream_keys_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE UNIQUE INDEX upstream_keys_upstream_id_name_idx ON upstream_keys (upstream_id, name)
    WHERE state <> 'deleted';

CREATE TABLE routes (
    route_id      BLOB    NOT NULL,
    -- NULL is shared by all tenants.
    tenant_id     BLOB,
    model         TEXT    NOT NULL,
    selection     TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    CONSTRAINT routes_pk PRIMARY KEY (route_id),
    CONSTRAINT routes_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT routes_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE UNIQUE INDEX routes_shared_model_idx ON routes (model)
    WHERE tenant_id IS NULL AND state <> 'deleted';
CREATE UNIQUE INDEX routes_tenant_id_model_idx ON routes (tenant_id, model)
    WHERE tenant_id IS NOT NULL AND state <> 'deleted';

CREATE TABLE route_targets (
    route_id       BLOB    NOT NULL,
    position       INTEGER NOT NULL,
    tier           INTEGER NOT NULL,
    weight         INTEGER NOT NULL,
    upstream_id    BLOB    NOT NULL,
    -- NULL is the requested name.
    upstream_model TEXT,
    serves         TEXT    NOT NULL,
    CONSTRAINT route_targets_pk PRIMARY KEY (route_id, position),
    CONSTRAINT route_targets_route_id_fk FOREIGN KEY (route_id) REFERENCES routes (route_id),
    CONSTRAINT route_targets_upstream_id_fk FOREIGN KEY (upstream_id) REFERENCES upstreams (upstream_id),
    CONSTRAINT route_targets_tier_ck CHECK (tier BETWEEN 0 AND 1000000),
    CONSTRAINT route_targets_weight_ck CHECK (weight BETWEEN 1 AND 1000000)
) STRICT, WITHOUT ROWID;

-- Change feed -------------------------------------------------------------------------------------

-- One row. It is advanced inside every transaction that changes configuration, so that the order
-- of positions is the order of commits.
CREATE TABLE feed (
    feed_id INTEGER NOT NULL,
    pos     INTEGER NOT NULL,
    CONSTRAINT feed_pk PRIMARY KEY (feed_id),
    CONSTRAINT feed_feed_id_ck CHECK (feed_id = 1)
) STRICT;
INSERT INTO feed (feed_id, pos) VALUES (1, 0);

CREATE TABLE feed_events (
    pos       INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    key_hash  BLOB,
    entity_id BLOB,
    CONSTRAINT feed_events_pk PRIMARY KEY (pos),
    CONSTRAINT feed_events_kind_ck CHECK (kind IN ('key', 'user', 'tenant', 'routing'))
) STRICT;

-- Administration ----------------------------------------------------------------------------------

CREATE TABLE accounts (
    account_id    BLOB    NOT NULL,
    -- NULL is the platform.
    tenant_id     BLOB,
    -- In lower case, so that it is found however it is written.
    login         TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    -- Argon2id with its parameters and salt, in the form of the PHC.
    password_hash TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    CONSTRAINT accounts_pk PRIMARY KEY (account_id),
    CONSTRAINT accounts_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT accounts_role_ck CHECK (role IN ('owner', 'admin', 'operator', 'finance', 'member')),
    CONSTRAINT accounts_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
) STRICT;
CREATE UNIQUE INDEX accounts_login_idx ON accounts (login) WHERE state <> 'deleted';

CREATE TABLE sessions (
    session_id    BLOB    NOT NULL,
    account_id    BLOB    NOT NULL,
    token_hash    BLOB    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    CONSTRAINT sessions_pk PRIMARY KEY (session_id),
    CONSTRAINT sessions_token_hash_uk UNIQUE (token_hash),
    CONSTRAINT sessions_token_hash_ck CHECK (length(token_hash) = 32),
    CONSTRAINT sessions_account_id_fk FOREIGN KEY (account_id) REFERENCES accounts (account_id)
) STRICT;
CREATE INDEX sessions_account_id_idx ON sessions (account_id);
CREATE INDEX sessions_expires_at_ms_idx ON sessions (expires_at_ms);

CREATE TABLE admin_tokens (
    token_id      BLOB    NOT NULL,
    -- Who made it: it may never do more than they may.
    account_id    BLOB    NOT NULL,
    -- NULL is the platform.
    tenant_id     BLOB,
    role          TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    token_hash    BLOB    NOT NULL,
    hint          TEXT    NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    -- NULL is not revoked.
    revoked_at_ms INTEGER,
    CONSTRAINT admin_tokens_pk PRIMARY KEY (token_id),
    CONSTRAINT admin_tokens_token_hash_uk UNIQUE (token_hash),
    CONSTRAINT admin_tokens_token_hash_ck CHECK (length(token_hash) = 32),
    CONSTRAINT admin_tokens_account_id_fk FOREIGN KEY (account_id) REFERENCES accounts (account_id),
    CONSTRAINT admin_tokens_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT admin_tokens_role_ck CHECK (role IN ('owner', 'admin', 'operator', 'finance', 'member'))
) STRICT;
CREATE INDEX admin_tokens_tenant_id_token_id_idx ON admin_tokens (tenant_id, token_id);

-- The end of the chain of audit events. Who acts locks it first, so that events have one order.
CREATE TABLE audit_head (
    head_id INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    hash    BLOB    NOT NULL,
    CONSTRAINT audit_head_pk PRIMARY KEY (head_id),
    CONSTRAINT audit_head_head_id_ck CHECK (head_id = 1),
    CONSTRAINT audit_head_hash_ck CHECK (length(hash) = 32)
) STRICT;
INSERT INTO audit_head (head_id, seq, hash) VALUES (1, 0, zeroblob(32));

CREATE TABLE audit_events (
    seq          INTEGER NOT NULL,
    at_ms        INTEGER NOT NULL,
    actor_kind   TEXT    NOT NULL,
    -- NULL on the command line.
    actor_id     BLOB,
    actor_name   TEXT    NOT NULL,
    -- The address that it came from; NULL on the command line.
    source       TEXT,
    action       TEXT    NOT NULL,
    -- NULL is the platform.
    tenant_id    BLOB,
    target       TEXT    NOT NULL,
    -- What was changed, as JSON without secrets; NULL where there was or is nothing.
    facts_before TEXT,
    facts_after  TEXT,
    -- SHA-256 of the hash of the event before and of all the rest.
    hash         BLOB    NOT NULL,
    CONSTRAINT audit_events_pk PRIMARY KEY (seq),
    CONSTRAINT audit_events_actor_kind_ck CHECK (actor_kind IN ('account', 'token', 'command_line')),
    CONSTRAINT audit_events_hash_ck CHECK (length(hash) = 32)
) STRICT;
CREATE INDEX audit_events_tenant_id_seq_idx ON audit_events (tenant_id, seq);
CREATE TRIGGER audit_events_no_update BEFORE UPDATE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit_events is append-only');
END;
CREATE TRIGGER audit_events_no_delete BEFORE DELETE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit_events is append-only');
END;

-- Ledger: no foreign keys to configuration --------------------------------------------------------

CREATE TABLE instances (
    -- Stands for it in the origins of its records. Never changes.
    instance_no      INTEGER NOT NULL,
    instance_id      BLOB    NOT NULL,
    boot_id          BLOB    NOT NULL,
    seq              INTEGER NOT NULL,
    state            TEXT    NOT NULL,
    -- Posts 1 to posted_no have been taken in.
    posted_no        INTEGER NOT NULL,
    posted_rows      INTEGER NOT NULL,
    quarantined_rows INTEGER NOT NULL,
    dropped_rows     INTEGER NOT NULL,
    heartbeat_at_ms  INTEGER NOT NULL,
    CONSTRAINT instances_pk PRIMARY KEY (instance_id),
    CONSTRAINT instances_instance_no_uk UNIQUE (instance_no),
    CONSTRAINT instances_state_ck CHECK (state IN ('live', 'resolved', 'closed')),
    CONSTRAINT instances_numbers_ck
        CHECK (seq >= 0 AND posted_no >= 0 AND posted_rows >= 0 AND quarantined_rows >= 0 AND dropped_rows >= 0),
    CONSTRAINT instances_instance_no_ck CHECK (instance_no BETWEEN 1 AND 8388607)
) STRICT;

CREATE TABLE periods (
    tenant_id    BLOB    NOT NULL,
    period       INTEGER NOT NULL,
    starts_at_ms INTEGER NOT NULL,
    ends_at_ms   INTEGER NOT NULL,
    state        TEXT    NOT NULL,
    CONSTRAINT periods_pk PRIMARY KEY (tenant_id, period),
    CONSTRAINT periods_period_ck CHECK (period BETWEEN 197001 AND 999912),
    CONSTRAINT periods_bounds_ck CHECK (starts_at_ms < ends_at_ms),
    CONSTRAINT periods_state_ck CHECK (state IN ('open', 'closed'))
) STRICT, WITHOUT ROWID;
-- Small for ever: the triggers on rollup_monthly ask it for each row.
CREATE INDEX periods_closed_idx ON periods (tenant_id, period) WHERE state = 'closed';

CREATE TABLE counters (
    counter_id      BLOB    NOT NULL,
    tenant_id       BLOB    NOT NULL,
    scope           TEXT    NOT NULL,
    scope_id        BLOB    NOT NULL,
    period          INTEGER NOT NULL,
    -- NULL is without a cap; a NULL peak means that it was so at some time of the period.
    cap_tokens      INTEGER,
    cap_nano        INTEGER,
    peak_cap_tokens INTEGER,
    peak_cap_nano   INTEGER,
    used_tokens     INTEGER NOT NULL DEFAULT 0,
    used_nano       INTEGER NOT NULL DEFAULT 0,
    held_tokens     INTEGER NOT NULL DEFAULT 0,
    held_nano       INTEGER NOT NULL DEFAULT 0,
    over_tokens     INTEGER NOT NULL DEFAULT 0,
    over_nano       INTEGER NOT NULL DEFAULT 0,
    -- Whether idle leases are asked back.
    recall          INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT counters_pk PRIMARY KEY (counter_id),
    CONSTRAINT counters_scope_scope_id_period_uk UNIQUE (scope, scope_id, period),
    CONSTRAINT counters_scope_ck CHECK (scope IN ('tenant', 'user', 'key')),
    CONSTRAINT counters_recall_ck CHECK (recall IN (0, 1)),
    CONSTRAINT counters_cap_tokens_ck CHECK (cap_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_cap_nano_ck CHECK (cap_nano BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_peak_cap_tokens_ck CHECK (peak_cap_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_peak_cap_nano_ck CHECK (peak_cap_nano BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_used_tokens_ck CHECK (used_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_used_nano_ck CHECK (used_nano BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_held_tokens_ck CHECK (held_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_held_nano_ck CHECK (held_nano BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_over_tokens_ck CHECK (over_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT counters_over_nano_ck CHECK (over_nano BETWEEN 0 AND 4611686018427387904)
) STRICT;
-- Asked twice a second by every instance; nearly always empty.
CREATE INDEX counters_recall_idx ON counters (counter_id) WHERE recall;
CREATE INDEX counters_over_idx ON counters (counter_id) WHERE over_tokens > 0 OR over_nano > 0;

-- The balance of one counter that one instance may spend.
CREATE TABLE leases (
    instance_id      BLOB    NOT NULL,
    counter_id       BLOB    NOT NULL,
    held_tokens      INTEGER NOT NULL,
    held_nano        INTEGER NOT NULL,
    in_flight_tokens INTEGER NOT NULL,
    in_flight_nano   INTEGER NOT NULL,
    CONSTRAINT leases_pk PRIMARY KEY (instance_id, counter_id),
    CONSTRAINT leases_held_tokens_ck CHECK (held_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT leases_held_nano_ck CHECK (held_nano BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT leases_in_flight_tokens_ck CHECK (in_flight_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT leases_in_flight_nano_ck CHECK (in_flight_nano BETWEEN 0 AND 4611686018427387904)
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_counter_id_idx ON leases (counter_id);

-- A record is a row of what is its own (`usage_rows`) and names what it shares with many others: its
-- kind and its caller. The view `usage_records` puts them together.
--
-- Words that may grow (endpoint, ending, stage, basis) have no CHECK: SQLite cannot change one
-- without copying the table. They come from closed types.
CREATE TABLE record_kinds (
    -- The origin of the record that came with it first.
    kind_id          INTEGER NOT NULL,
    -- The SHA-256 of the columns below.
    hash             BLOB    NOT NULL,
    tenant_id        BLOB    NOT NULL,
    user_id          BLOB    NOT NULL,
    key_id           BLOB    NOT NULL,
    -- Quota month, fixed at admission; statement month, fixed at the post.
    period           INTEGER NOT NULL,
    statement_period INTEGER NOT NULL,
    local_day        INTEGER NOT NULL,
    endpoint         TEXT    NOT NULL,
    streams          INTEGER NOT NULL,
    requested_model  TEXT    NOT NULL,
    -- Of the last attempt; NULL when nothing was sent.
    upstream_id      BLOB,
    upstream_model   TEXT,
    upstream_key_id  BLOB,
    -- How many attempts there were.
    attempt_count    INTEGER NOT NULL,
    -- Of the last attempt when it succeeded; those that failed are rows of `failed_attempts`.
    attempt_status   INTEGER,
    ending           TEXT    NOT NULL,
    stage            TEXT    NOT NULL,
    status           INTEGER NOT NULL,
    error_code       TEXT,
    basis            TEXT    NOT NULL,
    CONSTRAINT record_kinds_pk PRIMARY KEY (kind_id),
    CONSTRAINT record_kinds_hash_uk UNIQUE (hash),
    CONSTRAINT record_kinds_hash_ck CHECK (length(hash) = 32)
) STRICT;

-- Personal data; may be erased, and is no part of any sum. A process gives the calls of a day from
-- one address with one program the same row.
CREATE TABLE callers (
    -- The origin of the record that came with it first.
    caller_id  INTEGER NOT NULL,
    made_at_ms INTEGER NOT NULL,
    ip         TEXT,
    user_agent TEXT,
    -- A JSON object.
    tags       TEXT,
    CONSTRAINT callers_pk PRIMARY KEY (caller_id)
) STRICT;

-- Ordered by origin: rows are appended to full pages.
--
-- Columns that are often the same stand last, with defaults: most rows are written without them. The
-- others are written in this order, which spares SQLite a copy of each value.
CREATE TABLE usage_rows (
    -- The number of the instance, shifted by 40 bits, and that of the post.
    origin                   INTEGER NOT NULL,
    request_id               BLOB    NOT NULL,
    kind_id                  INTEGER NOT NULL,
    -- NULL when nothing is known of the caller.
    caller_id                INTEGER,
    started_at_ms            INTEGER NOT NULL,
    -- Of the last attempt when it succeeded: milliseconds after `started_at_ms`.
    attempt_after_ms         INTEGER,
    attempt_head_ms          INTEGER,
    first_event_ms           INTEGER,
    duration_ms              INTEGER NOT NULL,
    input_tokens             INTEGER NOT NULL,
    output_tokens            INTEGER NOT NULL,
    -- What was held; what quotas and statement take is never more, and `excess` is what is owed beyond.
    bound_tokens             INTEGER NOT NULL,
    bound_nano               INTEGER NOT NULL,
    quota_tokens             INTEGER NOT NULL,
    charge_nano              INTEGER NOT NULL,
    cached_input_tokens      INTEGER NOT NULL DEFAULT 0,
    cache_write_input_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_output_tokens  INTEGER NOT NULL DEFAULT 0,
    excess_tokens            INTEGER NOT NULL DEFAULT 0,
    excess_nano              INTEGER NOT NULL DEFAULT 0,
    -- What the provider bills; NULL when it is not known.
    cost_nano                INTEGER,
    cost_basis               TEXT,
    price_version            INTEGER,
    -- Parts per million on top of the price.
    markup_ppm               INTEGER,
    CONSTRAINT usage_rows_pk PRIMARY KEY (origin),
    CONSTRAINT usage_rows_request_id_uk UNIQUE (request_id),
    -- None is negative. The sums that take them have an upper bound.
    CONSTRAINT usage_rows_amounts_ck CHECK (
        (input_tokens | output_tokens | quota_tokens | charge_nano | cached_input_tokens
            | cache_write_input_tokens | reasoning_output_tokens | excess_tokens | excess_nano) >= 0),
    CONSTRAINT usage_rows_bound_tokens_ck CHECK (quota_tokens <= bound_tokens),
    CONSTRAINT usage_rows_bound_nano_ck CHECK (charge_nano <= bound_nano),
    CONSTRAINT usage_rows_excess_tokens_ck CHECK (excess_tokens = 0 OR quota_tokens = bound_tokens),
    CONSTRAINT usage_rows_excess_nano_ck CHECK (excess_nano = 0 OR charge_nano = bound_nano)
) STRICT;

CREATE TRIGGER record_kinds_no_update BEFORE UPDATE ON record_kinds
BEGIN
    SELECT RAISE(ABORT, 'record_kinds is append-only');
END;
CREATE TRIGGER record_kinds_no_delete BEFORE DELETE ON record_kinds
BEGIN
    SELECT RAISE(ABORT, 'record_kinds is append-only');
END;
CREATE TRIGGER usage_rows_no_update BEFORE UPDATE ON usage_rows
BEGIN
    SELECT RAISE(ABORT, 'usage_rows is append-only');
END;
CREATE TRIGGER usage_rows_no_delete BEFORE DELETE ON usage_rows
BEGIN
    SELECT RAISE(ABORT, 'usage_rows is append-only');
END;

CREATE TABLE failed_attempts (
    request_id      BLOB    NOT NULL,
    n               INTEGER NOT NULL,
    upstream_id     BLOB    NOT NULL,
    upstream_key_id BLOB,
    upstream_model  TEXT    NOT NULL,
    -- NULL when no head came.
    status          INTEGER,
    error           TEXT    NOT NULL,
    started_at_ms   INTEGER NOT NULL,
    head_ms         INTEGER NOT NULL,
    CONSTRAINT failed_attempts_pk PRIMARY KEY (request_id, n)
) STRICT, WITHOUT ROWID;

-- What a request passed over, where it did.
CREATE TABLE skipped_targets (
    request_id BLOB    NOT NULL,
    -- A JSON array of objects with `upstream_id`, `upstream_key_id` and `reason`.
    targets    TEXT    NOT NULL,
    -- How many there were beyond those.
    more       INTEGER NOT NULL,
    CONSTRAINT skipped_targets_pk PRIMARY KEY (request_id)
) STRICT;

-- The usage records, whole: for all who read.
CREATE VIEW usage_records AS
    SELECT r.request_id, i.instance_id, r.origin & 1099511627775 AS post_no, k.tenant_id, k.user_id, k.key_id,
        k.period, k.statement_period, k.local_day, r.started_at_ms, k.endpoint, k.streams, k.requested_model,
        k.upstream_id, k.upstream_model, k.upstream_key_id, k.attempt_count, k.attempt_status,
        r.started_at_ms + r.attempt_after_ms AS attempt_started_at_ms, r.attempt_head_ms, k.ending, k.stage,
        k.status, k.error_code, k.basis, r.input_tokens, r.cached_input_tokens, r.cache_write_input_tokens,
        r.output_tokens, r.reasoning_output_tokens, r.bound_tokens, r.bound_nano, r.quota_tokens, r.charge_nano,
        r.excess_tokens, r.excess_nano, r.cost_nano, r.cost_basis, r.price_version, r.markup_ppm,
        r.first_event_ms, r.duration_ms
    FROM usage_rows r
    JOIN record_kinds k ON k.kind_id = r.kind_id
    LEFT JOIN instances i ON i.instance_no = (r.origin >> 40);

-- Every attempt. The one that succeeded is stored with its record, so that the common request costs
-- one row less.
CREATE VIEW attempts AS
    SELECT request_id, n, upstream_id, upstream_key_id, upstream_model, status, error, started_at_ms, head_ms
    FROM failed_attempts
    UNION ALL
    SELECT request_id, attempt_count, upstream_id, upstream_key_id, upstream_model, attempt_status,
        CAST(NULL AS TEXT), attempt_started_at_ms, attempt_head_ms
    FROM usage_records WHERE attempt_head_ms IS NOT NULL;

-- What is known of the caller of each record.
CREATE VIEW record_details AS
    SELECT r.request_id, c.ip, c.user_agent, c.tags
    FROM usage_rows r JOIN callers c ON c.caller_id = r.caller_id;

-- `upstream_id` is the nil UUID for requests that were sent nowhere.
CREATE TABLE rollup_daily (
    tenant_id                BLOB    NOT NULL,
    local_day                INTEGER NOT NULL,
    key_id                   BLOB    NOT NULL,
    user_id                  BLOB    NOT NULL,
    model                    TEXT    NOT NULL,
    upstream_id              BLOB    NOT NULL,
    period                   INTEGER NOT NULL,
    statement_period         INTEGER NOT NULL,
    requests                 INTEGER NOT NULL,
    failures                 INTEGER NOT NULL,
    input_tokens             INTEGER NOT NULL,
    cached_input_tokens      INTEGER NOT NULL,
    cache_write_input_tokens INTEGER NOT NULL,
    output_tokens            INTEGER NOT NULL,
    reasoning_output_tokens  INTEGER NOT NULL,
    quota_tokens             INTEGER NOT NULL,
    excess_tokens            INTEGER NOT NULL DEFAULT 0,
    charge_nano              INTEGER NOT NULL DEFAULT 0,
    excess_nano              INTEGER NOT NULL DEFAULT 0,
    cost_nano                INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT rollup_daily_pk PRIMARY KEY
        (tenant_id, local_day, key_id, user_id, model, upstream_id, period, statement_period),
    CONSTRAINT rollup_daily_sums_ck CHECK (
        requests BETWEEN 0 AND 4611686018427387904
        AND failures BETWEEN 0 AND 4611686018427387904
        AND input_tokens BETWEEN 0 AND 4611686018427387904
        AND cached_input_tokens BETWEEN 0 AND 4611686018427387904
        AND cache_write_input_tokens BETWEEN 0 AND 4611686018427387904
        AND output_tokens BETWEEN 0 AND 4611686018427387904
        AND reasoning_output_tokens BETWEEN 0 AND 4611686018427387904
        AND quota_tokens BETWEEN 0 AND 4611686018427387904
        AND excess_tokens BETWEEN 0 AND 4611686018427387904
        AND charge_nano BETWEEN 0 AND 4611686018427387904
        AND excess_nano BETWEEN 0 AND 4611686018427387904
        AND cost_nano BETWEEN 0 AND 4611686018427387904)
) STRICT, WITHOUT ROWID;

CREATE TABLE rollup_monthly (
    tenant_id                BLOB    NOT NULL,
    period                   INTEGER NOT NULL,
    key_id                   BLOB    NOT NULL,
    user_id                  BLOB    NOT NULL,
    model                    TEXT    NOT NULL,
    upstream_id              BLOB    NOT NULL,
    statement_period         INTEGER NOT NULL,
    requests                 INTEGER NOT NULL,
    failures                 INTEGER NOT NULL,
    input_tokens             INTEGER NOT NULL,
    cached_input_tokens      INTEGER NOT NULL,
    cache_write_input_tokens INTEGER NOT NULL,
    output_tokens            INTEGER NOT NULL,
    reasoning_output_tokens  INTEGER NOT NULL,
    quota_tokens             INTEGER NOT NULL,
    excess_tokens            INTEGER NOT NULL DEFAULT 0,
    charge_nano              INTEGER NOT NULL DEFAULT 0,
    excess_nano              INTEGER NOT NULL DEFAULT 0,
    cost_nano                INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT rollup_monthly_pk PRIMARY KEY
        (tenant_id, period, key_id, user_id, model, upstream_id, statement_period),
    CONSTRAINT rollup_monthly_sums_ck CHECK (
        requests BETWEEN 0 AND 4611686018427387904
        AND failures BETWEEN 0 AND 4611686018427387904
        AND input_tokens BETWEEN 0 AND 4611686018427387904
        AND cached_input_tokens BETWEEN 0 AND 4611686018427387904
        AND cache_write_input_tokens BETWEEN 0 AND 4611686018427387904
        AND output_tokens BETWEEN 0 AND 4611686018427387904
        AND reasoning_output_tokens BETWEEN 0 AND 4611686018427387904
        AND quota_tokens BETWEEN 0 AND 4611686018427387904
        AND excess_tokens BETWEEN 0 AND 4611686018427387904
        AND charge_nano BETWEEN 0 AND 4611686018427387904
        AND excess_nano BETWEEN 0 AND 4611686018427387904
        AND cost_nano BETWEEN 0 AND 4611686018427387904)
) STRICT, WITHOUT ROWID;

-- Closed months are protected where they are summed, a few rows per batch: a trigger on the insert
-- of a record would run for each and make SQLite copy the whole statement first.
CREATE TRIGGER rollup_monthly_open_period_insert BEFORE INSERT ON rollup_monthly
WHEN EXISTS (
    SELECT 1 FROM periods INDEXED BY periods_closed_idx
    WHERE tenant_id = NEW.tenant_id AND period = NEW.statement_period AND state = 'closed')
BEGIN
    SELECT RAISE(ABORT, 'the statement period is closed');
END;
CREATE TRIGGER rollup_monthly_open_period_update BEFORE UPDATE ON rollup_monthly
WHEN EXISTS (
    SELECT 1 FROM periods INDEXED BY periods_closed_idx
    WHERE tenant_id = NEW.tenant_id AND period = NEW.statement_period AND state = 'closed')
BEGIN
    SELECT RAISE(ABORT, 'the statement period is closed');
END;

-- What counts against a quota without being a usage record.
CREATE TABLE ledger_entries (
    entry_id      BLOB    NOT NULL,
    kind          TEXT    NOT NULL,
    instance_id   BLOB    NOT NULL,
    counter_id    BLOB    NOT NULL,
    -- The record that was set aside; NULL for what was leased when the instance was settled.
    request_id    BLOB,
    -- Positive for an exposure, negative for a release.
    amount_tokens INTEGER NOT NULL,
    amount_nano   INTEGER NOT NULL,
    made_at_ms    INTEGER NOT NULL,
    CONSTRAINT ledger_entries_pk PRIMARY KEY (entry_id),
    CONSTRAINT ledger_entries_kind_request_id_counter_id_uk UNIQUE (kind, request_id, counter_id),
    CONSTRAINT ledger_entries_kind_ck CHECK (kind IN ('exposure', 'release')),
    CONSTRAINT ledger_entries_amount_tokens_ck CHECK (
        (kind = 'exposure' AND amount_tokens BETWEEN 0 AND 4611686018427387904)
        OR (kind = 'release' AND amount_tokens BETWEEN -4611686018427387904 AND 0)),
    CONSTRAINT ledger_entries_amount_nano_ck CHECK (
        (kind = 'exposure' AND amount_nano BETWEEN 0 AND 4611686018427387904)
        OR (kind = 'release' AND amount_nano BETWEEN -4611686018427387904 AND 0))
) STRICT;
CREATE INDEX ledger_entries_instance_id_counter_id_idx ON ledger_entries (instance_id, counter_id);
CREATE TRIGGER ledger_entries_no_update BEFORE UPDATE ON ledger_entries
BEGIN
    SELECT RAISE(ABORT, 'ledger_entries is append-only');
END;
CREATE TRIGGER ledger_entries_no_delete BEFORE DELETE ON ledger_entries
BEGIN
    SELECT RAISE(ABORT, 'ledger_entries is append-only');
END;

-- Closed months.
CREATE TABLE statements (
    tenant_id        BLOB    NOT NULL,
    statement_period INTEGER NOT NULL,
    version          INTEGER NOT NULL,
    -- A JSON object of sums.
    totals           TEXT    NOT NULL,
    record_count     INTEGER NOT NULL,
    hash             BLOB    NOT NULL,
    closed_at_ms     INTEGER NOT NULL,
    CONSTRAINT statements_pk PRIMARY KEY (tenant_id, statement_period, version),
    CONSTRAINT statements_version_ck CHECK (version >= 1),
    CONSTRAINT statements_hash_ck CHECK (length(hash) = 32)
) STRICT;

-- Records that the ledger refused, whole, for a person to look at.
CREATE TABLE quarantine (
    instance_id BLOB    NOT NULL,
    post_no     INTEGER NOT NULL,
    request_id  BLOB    NOT NULL,
    reason      TEXT    NOT NULL,
    -- The record as a JSON object.
    record      TEXT    NOT NULL,
    made_at_ms  INTEGER NOT NULL,
    CONSTRAINT quarantine_pk PRIMARY KEY (instance_id, post_no)
) STRICT;

-- Posts that neither the database nor a journal has, according to an operator.
CREATE TABLE lost_posts (
    instance_id BLOB    NOT NULL,
    first_no    INTEGER NOT NULL,
    last_no     INTEGER NOT NULL,
    made_at_ms  INTEGER NOT NULL,
    CONSTRAINT lost_posts_pk PRIMARY KEY (instance_id, first_no),
    CONSTRAINT lost_posts_numbers_ck CHECK (first_no >= 1 AND last_no >= first_no)
) STRICT;

-- What retention has removed.
CREATE TABLE ledger_floor (
    partition_name TEXT    NOT NULL,
    instance_id    BLOB    NOT NULL,
    record_count   INTEGER NOT NULL,
    quota_tokens   INTEGER NOT NULL,
    charge_nano    INTEGER NOT NULL,
    hash           BLOB    NOT NULL,
    made_at_ms     INTEGER NOT NULL,
    CONSTRAINT ledger_floor_pk PRIMARY KEY (partition_name, instance_id),
    CONSTRAINT ledger_floor_hash_ck CHECK (length(hash) = 32)
) STRICT;
