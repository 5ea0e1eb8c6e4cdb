# A private Redis for the tests: its own folder, port, password and end. Sourced by ./dev.
# shellcheck shell=bash

redis_dir=
redis_pid=

# Starts a server and exports SLUICE_TEST_REDIS_URL, and SLUICE_TEST_REDIS_SERVER for the tests that
# need servers of their own.
start_redis() {
    local password tries=0 port
    SLUICE_TEST_REDIS_SERVER=$(find_redis)
    export SLUICE_TEST_REDIS_SERVER
    redis_dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-redis.XXXXXX")
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    # Arguments can be seen by other users of the machine, this file cannot.
    (umask 077 && printf 'requirepass %s\n' "$password" >"$redis_dir/redis.conf")
    until port=$((20000 + RANDOM % 12000)) && try_redis "$port"; do
        tries=$((tries + 1))
        # Another process may have the port; any other cause is the same each time.
        if [ "$tries" -ge 5 ] || ! grep -q 'Address already in use' "$redis_dir/server.log"; then
            cat "$redis_dir/server.log" >&2
            die "Redis did not start"
        fi
    done
    export SLUICE_TEST_REDIS_URL="redis://default:$password@127.0.0.1:$port"
    note "started Redis $("$SLUICE_TEST_REDIS_SERVER" --version | sed 's/.*v=\([0-9.]*\).*/\1/') on port $port"
}

# Starts the server on a port and waits until it is ready; fails when it ends instead.
try_redis() {
    local run=("$SLUICE_TEST_REDIS_SERVER")
    if command -v setpriv >/dev/null; then
        # The server ends when this script is killed and cannot stop it.
        run=(setpriv --pdeathsig TERM "${run[@]}")
    fi
    # Nothing is written to disk: the server lives as long as the tests.
    "${run[@]}" "$redis_dir/redis.conf" --port "$1" --bind 127.0.0.1 --dir "$redis_dir" \
        --save '' --appendonly no --maxmemory-policy noeviction >"$redis_dir/server.log" 2>&1 &
    redis_pid=$!
    until grep -q 'Ready to accept connections' "$redis_dir/server.log"; do
        if ! kill -0 "$redis_pid" 2>/dev/null; then
            redis_pid=
            return 1
        fi
        sleep 0.1
    done
}

# Stops the server by its own process id and removes its folder.
stop_redis() {
    if [ -n "$redis_pid" ]; then
        kill -TERM "$redis_pid" 2>/dev/null || true
        wait "$redis_pid" 2>/dev/null || true
        redis_pid=
    fi
    if [ -n "$redis_dir" ]; then
        rm -rf "$redis_dir"
        redis_dir=
    fi
}
