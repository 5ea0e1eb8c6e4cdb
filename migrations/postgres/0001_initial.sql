-- The same tables and columns stand in ../sqlite; a test compares them.
-- Times are milliseconds since the Unix epoch, months YYYYMM, days YYYYMMDD, ids UUIDs.
-- 4611686018427387904 is 2^62, the largest amount that the ledger holds.

-- Configuration -----------------------------------------------------------------------------------

CREATE TABLE tenants (
    tenant_id     UUID    NOT NULL,
    name          TEXT    NOT NULL,
    time_zone     TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    CONSTRAINT tenants_pk PRIMARY KEY (tenant_id),
    CONSTRAINT tenants_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE UNIQUE INDEX tenants_name_idx ON tenants (name) WHERE state <> 'deleted';

CREATE TABLE users (
    user_id       UUID    NOT NULL,
    tenant_id     UUID    NOT NULL,
    name          TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    CONSTRAINT users_pk PRIMARY KEY (user_id),
    CONSTRAINT users_tenant_id_user_id_uk UNIQUE (tenant_id, user_id),
    CONSTRAINT users_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT users_role_ck CHECK (role IN ('owner', 'admin', 'operator', 'finance', 'member')),
    CONSTRAINT users_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE UNIQUE INDEX users_tenant_id_name_idx ON users (tenant_id, name) WHERE state <> 'deleted';

CREATE TABLE proxy_keys (
    key_id         UUID    NOT NULL,
    tenant_id      UUID    NOT NULL,
    user_id        UUID    NOT NULL,
    name           TEXT    NOT NULL,
    key_hash       BYTEA   NOT NULL,
    hint           TEXT    NOT NULL,
    state          TEXT    NOT NULL,
    expires_at_ms  BIGINT,
    -- A JSON array of model names; NULL allows every model of the tenant.
    allowed_models TEXT,
    may_pin        BOOLEAN NOT NULL,
    created_at_ms  BIGINT  NOT NULL,
    CONSTRAINT proxy_keys_pk PRIMARY KEY (key_id),
    CONSTRAINT proxy_keys_key_hash_uk UNIQUE (key_hash),
    CONSTRAINT proxy_keys_key_hash_ck CHECK (length(key_hash) = 32),
    -- A key and its user are of one tenant.
    CONSTRAINT proxy_keys_user_fk FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, user_id),
    CONSTRAINT proxy_keys_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE INDEX proxy_keys_tenant_id_key_id_idx ON proxy_keys (tenant_id, key_id);

CREATE TABLE quotas (
    scope         TEXT    NOT NULL,
    scope_id      UUID    NOT NULL,
    tenant_id     UUID    NOT NULL,
    -- NULL is without a cap.
    cap_tokens    BIGINT,
    cap_nano      BIGINT,
    changed_at_ms BIGINT  NOT NULL,
    CONSTRAINT quotas_pk PRIMARY KEY (scope, scope_id),
    CONSTRAINT quotas_scope_ck CHECK (scope IN ('tenant', 'user', 'key')),
    CONSTRAINT quotas_cap_tokens_ck CHECK (cap_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT quotas_cap_nano_ck CHECK (cap_nano BETWEEN 0 AND 4611686018427387904)
);

CREATE TABLE window_limits (
    scope         TEXT    NOT NULL,
    scope_id      UUID    NOT NULL,
    -- As clients name it; empty is every model.
    model         TEXT    NOT NULL,
    kind          TEXT    NOT NULL,
    tenant_id     UUID    NOT NULL,
    most          BIGINT  NOT NULL,
    -- Whether it is counted and reported only.
    dry_run       BOOLEAN NOT NULL,
    changed_at_ms BIGINT  NOT NULL,
    CONSTRAINT window_limits_pk PRIMARY KEY (scope, scope_id, model, kind),
    CONSTRAINT window_limits_scope_ck CHECK (scope IN ('tenant', 'user', 'key')),
    CONSTRAINT window_limits_model_ck CHECK (model = '' OR scope = 'key'),
    CONSTRAINT window_limits_kind_ck CHECK (kind IN ('rps', 'rpm', 'tpm', 'concurrency')),
    -- 2^53, beyond which not every counter counts exactly.
    CONSTRAINT window_limits_most_ck CHECK (most BETWEEN 1 AND 9007199254740992)
);
CREATE INDEX window_limits_tenant_id_idx ON window_limits (tenant_id, scope, scope_id);

CREATE TABLE upstreams (
    upstream_id             UUID    NOT NULL,
    -- NULL is shared by all tenants.
    tenant_id               UUID,
    name                    TEXT    NOT NULL,
    kind                    TEXT    NOT NULL,
    base_url                TEXT,
    connect_ms              BIGINT  NOT NULL,
    first_event_ms          BIGINT  NOT NULL,
    idle_ms                 BIGINT  NOT NULL,
    total_ms                BIGINT  NOT NULL,
    client_gone             TEXT    NOT NULL,
    max_attempts            INTEGER NOT NULL,
    breaker_failures        INTEGER NOT NULL,
    breaker_failure_percent INTEGER NOT NULL,
    breaker_open_ms         BIGINT  NOT NULL,
    -- NULL is never.
    probe_every_ms          BIGINT,
    -- NULL is no limit.
    requests_per_minute     BIGINT,
    tokens_per_minute       BIGINT,
    concurrency             BIGINT,
    api_version             TEXT,
    -- Whether it may be at an address that is not public.
    allow_private           BOOLEAN NOT NULL,
    state                   TEXT    NOT NULL,
    enabled_at_ms           BIGINT  NOT NULL,
    created_at_ms           BIGINT  NOT NULL,
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
    CONSTRAINT upstreams_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE UNIQUE INDEX upstreams_name_idx ON upstreams (name) WHERE state <> 'deleted';

CREATE TABLE upstream_keys (
    upstream_key_id     UUID    NOT NULL,
    upstream_id         UUID    NOT NULL,
    name                TEXT    NOT NULL,
    weight              INTEGER NOT NULL,
    -- NULL is no limit.
    requests_per_minute BIGINT,
    tokens_per_minute   BIGINT,
    concurrency         BIGINT,
    -- Nonce, ciphertext and tag: the secret under the data key, the data key under the master key.
    sealed_secret       BYTEA   NOT NULL,
    wrapped_key         BYTEA   NOT NULL,
    master_key_id       TEXT    NOT NULL,
    state               TEXT    NOT NULL,
    enabled_at_ms       BIGINT  NOT NULL,
    created_at_ms       BIGINT  NOT NULL,
    CONSTRAINT upstream_keys_pk PRIMARY KEY (upstream_key_id),
    CONSTRAINT upstream_keys_upstream_id_fk FOREIGN KEY (upstream_id) REFERENCES upstreams (upstream_id),
    CONSTRAINT upstream_keys_weight_ck CHECK (weight BETWEEN 1 AND 1000000),
    CONSTRAINT upstream_keys_requests_per_minute_ck
        CHECK (requests_per_minute BETWEEN 1 AND 4294967295),
    CONSTRAINT upstream_keys_tokens_per_minute_ck CHECK (tokens_per_minute BETWEEN 1 AND 4294967295),
    CONSTRAINT upstream_keys_concurrency_ck CHECK (concurrency BETWEEN 1 AND 4294967295),
    CONSTRAINT upstream_keys_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE UNIQUE INDEX upstream_keys_upstream_id_name_idx ON upstream_keys (upstream_id, name)
    WHERE state <> 'deleted';

CREATE TABLE routes (
    route_id      UUID    NOT NULL,
    -- NULL is shared by all tenants.
    tenant_id     UUID,
    model         TEXT    NOT NULL,
    selection     TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    CONSTRAINT routes_pk PRIMARY KEY (route_id),
    CONSTRAINT routes_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT routes_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE UNIQUE INDEX routes_shared_model_idx ON routes (model)
    WHERE tenant_id IS NULL AND state <> 'deleted';
CREATE UNIQUE INDEX routes_tenant_id_model_idx ON routes (tenant_id, model)
    WHERE tenant_id IS NOT NULL AND state <> 'deleted';

CREATE TABLE route_targets (
    route_id       UUID    NOT NULL,
    position       INTEGER NOT NULL,
    tier           INTEGER NOT NULL,
    weight         INTEGER NOT NULL,
    upstream_id    UUID    NOT NULL,
    -- NULL is the requested name.
    upstream_model TEXT,
    serves         TEXT    NOT NULL,
    CONSTRAINT route_targets_pk PRIMARY KEY (route_id, position),
    CONSTRAINT route_targets_route_id_fk FOREIGN KEY (route_id) REFERENCES routes (route_id),
    CONSTRAINT route_targets_upstream_id_fk FOREIGN KEY (upstream_id) REFERENCES upstreams (upstream_id),
    CONSTRAINT route_targets_tier_ck CHECK (tier BETWEEN 0 AND 1000000),
    CONSTRAINT route_targets_weight_ck CHECK (weight BETWEEN 1 AND 1000000)
);

-- Change feed -------------------------------------------------------------------------------------

-- One row. It is advanced inside every transaction that changes configuration, so that the order
-- of positions is the order of commits.
CREATE TABLE feed (
    feed_id INTEGER NOT NULL,
    pos     BIGINT  NOT NULL,
    CONSTRAINT feed_pk PRIMARY KEY (feed_id),
    CONSTRAINT feed_feed_id_ck CHECK (feed_id = 1)
);
INSERT INTO feed (feed_id, pos) VALUES (1, 0);

CREATE TABLE feed_events (
    pos       BIGINT  NOT NULL,
    kind      TEXT    NOT NULL,
    key_hash  BYTEA,
    entity_id UUID,
    CONSTRAINT feed_events_pk PRIMARY KEY (pos),
    CONSTRAINT feed_events_kind_ck CHECK (kind IN ('key', 'user', 'tenant', 'routing'))
);

-- Administration ----------------------------------------------------------------------------------

CREATE TABLE accounts (
    account_id    UUID    NOT NULL,
    -- NULL is the platform.
    tenant_id     UUID,
    -- In lower case, so that it is found however it is written.
    login         TEXT    NOT NULL,
    role          TEXT    NOT NULL,
    -- Argon2id with its parameters and salt, in the form of the PHC.
    password_hash TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    CONSTRAINT accounts_pk PRIMARY KEY (account_id),
    CONSTRAINT accounts_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT accounts_role_ck CHECK (role IN ('owner', 'admin', 'operator', 'finance', 'member')),
    CONSTRAINT accounts_state_ck CHECK (state IN ('active', 'disabled', 'deleted'))
);
CREATE UNIQUE INDEX accounts_login_idx ON accounts (login) WHERE state <> 'deleted';

CREATE TABLE sessions (
    session_id    UUID    NOT NULL,
    account_id    UUID    NOT NULL,
    token_hash    BYTEA   NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    expires_at_ms BIGINT  NOT NULL,
    CONSTRAINT sessions_pk PRIMARY KEY (session_id),
    CONSTRAINT sessions_token_hash_uk UNIQUE (token_hash),
    CONSTRAINT sessions_token_hash_ck CHECK (length(token_hash) = 32),
    CONSTRAINT sessions_account_id_fk FOREIGN KEY (account_id) REFERENCES accounts (account_id)
);
CREATE INDEX sessions_account_id_idx ON sessions (account_id);
CREATE INDEX sessions_expires_at_ms_idx ON sessions (expires_at_ms);

CREATE TABLE admin_tokens (
    token_id      UUID    NOT NULL,
    -- Who made it: it may never do more than they may.
    account_id    UUID    NOT NULL,
    -- NULL is the platform.
    tenant_id     UUID,
    role          TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    token_hash    BYTEA   NOT NULL,
    hint          TEXT    NOT NULL,
    created_at_ms BIGINT  NOT NULL,
    expires_at_ms BIGINT  NOT NULL,
    -- NULL is not revoked.
    revoked_at_ms BIGINT,
    CONSTRAINT admin_tokens_pk PRIMARY KEY (token_id),
    CONSTRAINT admin_tokens_token_hash_uk UNIQUE (token_hash),
    CONSTRAINT admin_tokens_token_hash_ck CHECK (length(token_hash) = 32),
    CONSTRAINT admin_tokens_account_id_fk FOREIGN KEY (account_id) REFERENCES accounts (account_id),
    CONSTRAINT admin_tokens_tenant_id_fk FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT admin_tokens_role_ck CHECK (role IN ('owner', 'admin', 'operator', 'finance', 'member'))
);
CREATE INDEX admin_tokens_tenant_id_token_id_idx ON admin_tokens (tenant_id, token_id);

-- The end of the chain of audit events. Who acts locks it first, so that events have one order.
CREATE TABLE audit_head (
    head_id INTEGER NOT NULL,
    seq     BIGINT  NOT NULL,
    hash    BYTEA   NOT NULL,
    CONSTRAINT audit_head_pk PRIMARY KEY (head_id),
    CONSTRAINT audit_head_head_id_ck CHECK (head_id = 1),
    CONSTRAINT audit_head_hash_ck CHECK (length(hash) = 32)
);
INSERT INTO audit_head (head_id, seq, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'));

CREATE TABLE audit_events (
    seq          BIGINT  NOT NULL,
    at_ms        BIGINT  NOT NULL,
    actor_kind   TEXT    NOT NULL,
    -- NULL on the command line.
    actor_id     UUID,
    actor_name   TEXT    NOT NULL,
    -- The address that it came from; NULL on the command line.
    source       TEXT,
    action       TEXT    NOT NULL,
    -- NULL is the platform.
    tenant_id    UUID,
    target       TEXT    NOT NULL,
    -- What was changed, as JSON without secrets; NULL where there was or is nothing.
    facts_before TEXT,
    facts_after  TEXT,
    -- SHA-256 of the hash of the event before and of all the rest.
    hash         BYTEA   NOT NULL,
    CONSTRAINT audit_events_pk PRIMARY KEY (seq),
    CONSTRAINT audit_events_actor_kind_ck CHECK (actor_kind IN ('account', 'token', 'command_line')),
    CONSTRAINT audit_events_hash_ck CHECK (length(hash) = 32)
);
CREATE INDEX audit_events_tenant_id_seq_idx ON audit_events (tenant_id, seq);

-- Ledger: no foreign keys to configuration --------------------------------------------------------

CREATE TABLE instances (
    -- Stands for it in the origins of its records. Never changes.
    instance_no      BIGINT  NOT NULL,
    instance_id      UUID    NOT NULL,
    boot_id          UUID    NOT NULL,
    seq              BIGINT  NOT NULL,
    state            TEXT    NOT NULL,
    -- Posts 1 to posted_no have been taken in.
    posted_no        BIGINT  NOT NULL,
    posted_rows      BIGINT  NOT NULL,
    quarantined_rows BIGINT  NOT NULL,
    dropped_rows     BIGINT  NOT NULL,
    heartbeat_at_ms  BIGINT  NOT NULL,
    CONSTRAINT instances_pk PRIMARY KEY (instance_id),
    CONSTRAINT instances_instance_no_uk UNIQUE (instance_no),
    CONSTRAINT instances_state_ck CHECK (state IN ('live', 'resolved', 'closed')),
    CONSTRAINT instances_numbers_ck
        CHECK (seq >= 0 AND posted_no >= 0 AND posted_rows >= 0 AND quarantined_rows >= 0 AND dropped_rows >= 0),
    CONSTRAINT instances_instance_no_ck CHECK (instance_no BETWEEN 1 AND 8388607)
);

CREATE TABLE periods (
    tenant_id    UUID    NOT NULL,
    period       INTEGER NOT NULL,
    starts_at_ms BIGINT  NOT NULL,
    ends_at_ms   BIGINT  NOT NULL,
    state        TEXT    NOT NULL,
    CONSTRAINT periods_pk PRIMARY KEY (tenant_id, period),
    CONSTRAINT periods_period_ck CHECK (period BETWEEN 197001 AND 999912),
    CONSTRAINT periods_bounds_ck CHECK (starts_at_ms < ends_at_ms),
    CONSTRAINT periods_state_ck CHECK (state IN ('open', 'closed'))
);
-- Small for ever: the trigger on usage_rows asks it.
CREATE INDEX periods_closed_idx ON periods (tenant_id, period) WHERE state = 'closed';

CREATE TABLE counters (
    counter_id      UUID    NOT NULL,
    tenant_id       UUID    NOT NULL,
    scope           TEXT    NOT NULL,
    scope_id        UUID    NOT NULL,
    period          INTEGER NOT NULL,
    -- NULL is without a cap; a NULL peak means that it was so at some time of the period.
    cap_tokens      BIGINT,
    cap_nano        BIGINT,
    peak_cap_tokens BIGINT,
    peak_cap_nano   BIGINT,
    used_tokens     BIGINT  NOT NULL DEFAULT 0,
    used_nano       BIGINT  NOT NULL DEFAULT 0,
    held_tokens     BIGINT  NOT NULL DEFAULT 0,
    held_nano       BIGINT  NOT NULL DEFAULT 0,
    over_tokens     BIGINT  NOT NULL DEFAULT 0,
    over_nano       BIGINT  NOT NULL DEFAULT 0,
    -- Whether idle leases are asked back.
    recall          BOOLEAN NOT NULL DEFAULT FALSE,
    CONSTRAINT counters_pk PRIMARY KEY (counter_id),
    CONSTRAINT counters_scope_scope_id_period_uk UNIQUE (scope, scope_id, period),
    CONSTRAINT counters_scope_ck CHECK (scope IN ('tenant', 'user', 'key')),
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
);
-- Asked twice a second by every instance; nearly always empty.
CREATE INDEX counters_recall_idx ON counters (counter_id) WHERE recall;
CREATE INDEX counters_over_idx ON counters (counter_id) WHERE over_tokens > 0 OR over_nano > 0;

-- The balance of one counter that one instance may spend.
CREATE TABLE leases (
    instance_id      UUID    NOT NULL,
    counter_id       UUID    NOT NULL,
    held_tokens      BIGINT  NOT NULL,
    held_nano        BIGINT  NOT NULL,
    in_flight_tokens BIGINT  NOT NULL,
    in_flight_nano   BIGINT  NOT NULL,
    CONSTRAINT leases_pk PRIMARY KEY (instance_id, counter_id),
    CONSTRAINT leases_held_tokens_ck CHECK (held_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT leases_held_nano_ck CHECK (held_nano BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT leases_in_flight_tokens_ck CHECK (in_flight_tokens BETWEEN 0 AND 4611686018427387904),
    CONSTRAINT leases_in_flight_nano_ck CHECK (in_flight_nano BETWEEN 0 AND 4611686018427387904)
);
CREATE INDEX leases_counter_id_idx ON leases (counter_id);

-- A record is a row of what is its own (`usage_rows`) and names what it shares with many others: its
-- kind and its caller. The view `usage_records` puts them together.
--
-- Words that may grow (endpoint, ending, stage, basis) have no CHECK, as on SQLite. They come from
-- closed types.
CREATE TABLE record_kinds (
    -- The origin of the record that came with it first.
    kind_id          BIGINT  NOT NULL,
    -- The SHA-256 of the columns below.
    hash             BYTEA   NOT NULL,
    tenant_id        UUID    NOT NULL,
    user_id          UUID    NOT NULL,
    key_id           UUID    NOT NULL,
    -- Quota month, fixed at admission; statement month, fixed at the post.
    period           INTEGER NOT NULL,
    statement_period INTEGER NOT NULL,
    local_day        INTEGER NOT NULL,
    endpoint         TEXT    NOT NULL,
    streams          BOOLEAN NOT NULL,
    requested_model  TEXT    NOT NULL,
    -- Of the last attempt; NULL when nothing was sent.
    upstream_id      UUID,
    upstream_model   TEXT,
    upstream_key_id  UUID,
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
);

-- Personal data; may be erased, and is no part of any sum. A process gives the calls of a day from
-- one address with one program the same row.
CREATE TABLE callers (
    -- The origin of the record that came with it first.
    caller_id  BIGINT  NOT NULL,
    made_at_ms BIGINT  NOT NULL,
    ip         TEXT,
    user_agent TEXT,
    -- A JSON object.
    tags       TEXT,
    CONSTRAINT callers_pk PRIMARY KEY (caller_id)
);

-- Partitioned by the UTC month of the time inside the UUIDv7, so that uniqueness stays global and
-- retention is a DROP of a partition. The DEFAULT partitions stay empty.
--
-- Columns that are often the same stand last, with defaults: most rows are written without them.
CREATE TABLE usage_rows (
    -- The number of the instance, shifted by 40 bits, and that of the post.
    origin                   BIGINT  NOT NULL,
    request_id               UUID    NOT NULL,
    kind_id                  BIGINT  NOT NULL,
    -- NULL when nothing is known of the caller.
    caller_id                BIGINT,
    started_at_ms            BIGINT  NOT NULL,
    -- Of the last attempt when it succeeded: milliseconds after `started_at_ms`.
    attempt_after_ms         BIGINT,
    attempt_head_ms          BIGINT,
    first_event_ms           BIGINT,
    duration_ms              BIGINT  NOT NULL,
    input_tokens             BIGINT  NOT NULL,
    output_tokens            BIGINT  NOT NULL,
    -- What was held; what quotas and statement take is never more, and `excess` is what is owed beyond.
    bound_tokens             BIGINT  NOT NULL,
    bound_nano               BIGINT  NOT NULL,
    quota_tokens             BIGINT  NOT NULL,
    charge_nano              BIGINT  NOT NULL,
    cached_input_tokens      BIGINT  NOT NULL DEFAULT 0,
    cache_write_input_tokens BIGINT  NOT NULL DEFAULT 0,
    reasoning_output_tokens  BIGINT  NOT NULL DEFAULT 0,
    excess_tokens            BIGINT  NOT NULL DEFAULT 0,
    excess_nano              BIGINT  NOT NULL DEFAULT 0,
    -- What the provider bills; NULL when it is not known.
    cost_nano                BIGINT,
    cost_basis               TEXT,
    price_version            INTEGER,
    -- Parts per million on top of the price.
    markup_ppm               BIGINT,
    CONSTRAINT usage_rows_pk PRIMARY KEY (request_id),
    -- None is negative. The sums that take them have an upper bound.
    CONSTRAINT usage_rows_amounts_ck CHECK (
        (input_tokens | output_tokens | quota_tokens | charge_nano | cached_input_tokens
            | cache_write_input_tokens | reasoning_output_tokens | excess_tokens | excess_nano) >= 0),
    CONSTRAINT usage_rows_bound_tokens_ck CHECK (quota_tokens <= bound_tokens),
    CONSTRAINT usage_rows_bound_nano_ck CHECK (charge_nano <= bound_nano),
    CONSTRAINT usage_rows_excess_tokens_ck CHECK (excess_tokens = 0 OR quota_tokens = bound_tokens),
    CONSTRAINT usage_rows_excess_nano_ck CHECK (excess_nano = 0 OR charge_nano = bound_nano)
) PARTITION BY RANGE (request_id);
-- Not unique: a unique index would have to hold the partition key.
CREATE INDEX usage_rows_origin_idx ON usage_rows (origin);
CREATE TABLE usage_rows_default PARTITION OF usage_rows DEFAULT;

CREATE TABLE failed_attempts (
    request_id      UUID    NOT NULL,
    n               INTEGER NOT NULL,
    upstream_id     UUID    NOT NULL,
    upstream_key_id UUID,
    upstream_model  TEXT    NOT NULL,
    -- NULL when no head came.
    status          INTEGER,
    error           TEXT    NOT NULL,
    started_at_ms   BIGINT  NOT NULL,
    head_ms         BIGINT  NOT NULL,
    CONSTRAINT failed_attempts_pk PRIMARY KEY (request_id, n)
) PARTITION BY RANGE (request_id);
CREATE TABLE failed_attempts_default PARTITION OF failed_attempts DEFAULT;

-- What a request passed over, where it did.
CREATE TABLE skipped_targets (
    request_id UUID    NOT NULL,
    -- A JSON array of objects with `upstream_id`, `upstream_key_id` and `reason`.
    targets    TEXT    NOT NULL,
    -- How many there were beyond those.
    more       BIGINT  NOT NULL,
    CONSTRAINT skipped_targets_pk PRIMARY KEY (request_id)
) PARTITION BY RANGE (request_id);
CREATE TABLE skipped_targets_default PARTITION OF skipped_targets DEFAULT;

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
    tenant_id                UUID    NOT NULL,
    local_day                INTEGER NOT NULL,
    key_id                   UUID    NOT NULL,
    user_id                  UUID    NOT NULL,
    model                    TEXT    NOT NULL,
    upstream_id              UUID    NOT NULL,
    period                   INTEGER NOT NULL,
    statement_period         INTEGER NOT NULL,
    requests                 BIGINT  NOT NULL,
    failures                 BIGINT  NOT NULL,
    input_tokens             BIGINT  NOT NULL,
    cached_input_tokens      BIGINT  NOT NULL,
    cache_write_input_tokens BIGINT  NOT NULL,
    output_tokens            BIGINT  NOT NULL,
    reasoning_output_tokens  BIGINT  NOT NULL,
    quota_tokens             BIGINT  NOT NULL,
    excess_tokens            BIGINT  NOT NULL DEFAULT 0,
    charge_nano              BIGINT  NOT NULL DEFAULT 0,
    excess_nano              BIGINT  NOT NULL DEFAULT 0,
    cost_nano                BIGINT  NOT NULL DEFAULT 0,
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
);

CREATE TABLE rollup_monthly (
    tenant_id                UUID    NOT NULL,
    period                   INTEGER NOT NULL,
    key_id                   UUID    NOT NULL,
    user_id                  UUID    NOT NULL,
    model                    TEXT    NOT NULL,
    upstream_id              UUID    NOT NULL,
    statement_period         INTEGER NOT NULL,
    requests                 BIGINT  NOT NULL,
    failures                 BIGINT  NOT NULL,
    input_tokens             BIGINT  NOT NULL,
    cached_input_tokens      BIGINT  NOT NULL,
    cache_write_input_tokens BIGINT  NOT NULL,
    output_tokens            BIGINT  NOT NULL,
    reasoning_output_tokens  BIGINT  NOT NULL,
    quota_tokens             BIGINT  NOT NULL,
    excess_tokens            BIGINT  NOT NULL DEFAULT 0,
    charge_nano              BIGINT  NOT NULL DEFAULT 0,
    excess_nano              BIGINT  NOT NULL DEFAULT 0,
    cost_nano                BIGINT  NOT NULL DEFAULT 0,
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
);

-- What counts against a quota without being a usage record.
CREATE TABLE ledger_entries (
    entry_id      UUID    NOT NULL,
    kind          TEXT    NOT NULL,
    instance_id   UUID    NOT NULL,
    counter_id    UUID    NOT NULL,
    -- The record that was set aside; NULL for what was leased when the instance was settled.
    request_id    UUID,
    -- Positive for an exposure, negative for a release.
    amount_tokens BIGINT  NOT NULL,
    amount_nano   BIGINT  NOT NULL,
    made_at_ms    BIGINT  NOT NULL,
    CONSTRAINT ledger_entries_pk PRIMARY KEY (entry_id),
    CONSTRAINT ledger_entries_kind_request_id_counter_id_uk UNIQUE (kind, request_id, counter_id),
    CONSTRAINT ledger_entries_kind_ck CHECK (kind IN ('exposure', 'release')),
    CONSTRAINT ledger_entries_amount_tokens_ck CHECK (
        (kind = 'exposure' AND amount_tokens BETWEEN 0 AND 4611686018427387904)
        OR (kind = 'release' AND amount_tokens BETWEEN -4611686018427387904 AND 0)),
    CONSTRAINT ledger_entries_amount_nano_ck CHECK (
        (kind = 'exposure' AND amount_nano BETWEEN 0 AND 4611686018427387904)
        OR (kind = 'release' AND amount_nano BETWEEN -4611686018427387904 AND 0))
);
CREATE INDEX ledger_entries_instance_id_counter_id_idx ON ledger_entries (instance_id, counter_id);

-- Closed months.
CREATE TABLE statements (
    tenant_id        UUID    NOT NULL,
    statement_period INTEGER NOT NULL,
    version          INTEGER NOT NULL,
    -- A JSON object of sums.
    totals           TEXT    NOT NULL,
    record_count     BIGINT  NOT NULL,
    hash             BYTEA   NOT NULL,
    closed_at_ms     BIGINT  NOT NULL,
    CONSTRAINT statements_pk PRIMARY KEY (tenant_id, statement_period, version),
    CONSTRAINT statements_version_ck CHECK (version >= 1),
    CONSTRAINT statements_hash_ck CHECK (length(hash) = 32)
);

-- Records that the ledger refused, whole, for a person to look at.
CREATE TABLE quarantine (
    instance_id UUID    NOT NULL,
    post_no     BIGINT  NOT NULL,
    request_id  UUID    NOT NULL,
    reason      TEXT    NOT NULL,
    -- The record as a JSON object.
    record      TEXT    NOT NULL,
    made_at_ms  BIGINT  NOT NULL,
    CONSTRAINT quarantine_pk PRIMARY KEY (instance_id, post_no)
);

-- Posts that neither the database nor a journal has, according to an operator.
CREATE TABLE lost_posts (
    instance_id UUID    NOT NULL,
    first_no    BIGINT  NOT NULL,
    last_no     BIGINT  NOT NULL,
    made_at_ms  BIGINT  NOT NULL,
    CONSTRAINT lost_posts_pk PRIMARY KEY (instance_id, first_no),
    CONSTRAINT lost_posts_numbers_ck CHECK (first_no >= 1 AND last_no >= first_no)
);

-- What retention has removed.
CREATE TABLE ledger_floor (
    partition_name TEXT    NOT NULL,
    instance_id    UUID    NOT NULL,
    record_count   BIGINT  NOT NULL,
    quota_tokens   BIGINT  NOT NULL,
    charge_nano    BIGINT  NOT NULL,
    hash           BYTEA   NOT NULL,
    made_at_ms     BIGINT  NOT NULL,
    CONSTRAINT ledger_floor_pk PRIMARY KEY (partition_name, instance_id),
    CONSTRAINT ledger_floor_hash_ck CHECK (length(hash) = 32)
);

-- Append-only ---------------------------------------------------------------------------------------

CREATE FUNCTION sluice_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER record_kinds_no_change BEFORE UPDATE OR DELETE ON record_kinds
    FOR EACH ROW EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER record_kinds_no_truncate BEFORE TRUNCATE ON record_kinds
    FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER usage_rows_no_change BEFORE UPDATE OR DELETE ON usage_rows
    FOR EACH ROW EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER usage_rows_no_truncate BEFORE TRUNCATE ON usage_rows
    FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER usage_rows_default_no_truncate BEFORE TRUNCATE ON usage_rows_default
    FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER ledger_entries_no_change BEFORE UPDATE OR DELETE ON ledger_entries
    FOR EACH ROW EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION sluice_refuse_change();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_change();

-- Per statement: a look-up per row would cost more than the row. Kinds are inserted before their rows.
CREATE FUNCTION sluice_refuse_closed_period() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM new_rows r
        JOIN record_kinds k ON k.kind_id = r.kind_id
        JOIN periods p ON p.tenant_id = k.tenant_id AND p.period = k.statement_period
        WHERE p.state = 'closed')
    THEN
        RAISE EXCEPTION 'the statement period is closed' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER usage_rows_open_period AFTER INSERT ON usage_rows
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_closed_period();

-- Partitions ----------------------------------------------------------------------------------------

-- Returns the smallest UUIDv7 of a time.
CREATE FUNCTION sluice_uuid_at(at_ms BIGINT) RETURNS UUID LANGUAGE sql IMMUTABLE AS $$
    SELECT CAST(lpad(to_hex(at_ms), 12, '0') || '00000000000000000000' AS UUID)
$$;

-- Makes the partitions of the month of `now_ms` and of the two after it, where they are missing.
-- Returns how many were made.
CREATE FUNCTION sluice_ensure_partitions(now_ms BIGINT) RETURNS INTEGER LANGUAGE plpgsql AS $$
DECLARE
    month_start TIMESTAMP := date_trunc('month', to_timestamp(now_ms / 1000) AT TIME ZONE 'UTC');
    low TIMESTAMP;
    parent TEXT;
    child TEXT;
    made INTEGER := 0;
BEGIN
    FOR i IN 0..2 LOOP
        low := month_start + make_interval(months => i);
        FOREACH parent IN ARRAY ARRAY['usage_rows', 'failed_attempts', 'skipped_targets'] LOOP
            child := parent || '_' || to_char(low, 'YYYY_MM');
            CONTINUE WHEN to_regclass(quote_ident(child)) IS NOT NULL;
            -- Two instances may come here at once. That the name was free a moment ago is remembered
            -- by this session, and taking the lock does not make it forget that; the catalog knows.
            PERFORM pg_advisory_xact_lock(hashtext('sluice_ensure_partitions'));
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_class WHERE relname = child AND pg_table_is_visible(oid));
            -- Attaching waits for no reader of the parent; PARTITION OF would.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, child,
                sluice_uuid_at(CAST(extract(epoch FROM low AT TIME ZONE 'UTC') * 1000 AS BIGINT)),
                sluice_uuid_at(CAST(extract(epoch FROM (low + interval '1 month') AT TIME ZONE 'UTC') * 1000 AS BIGINT)));
            IF parent = 'usage_rows' THEN
                EXECUTE format(
                    'CREATE TRIGGER %I BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION sluice_refuse_change()',
                    child || '_no_truncate', child);
            END IF;
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;
