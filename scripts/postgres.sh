# A private PostgreSQL for the tests: its own folder, port, password and end. Sourced by ./dev.
# shellcheck shell=bash

pg_dir=
pg_pid=
pg_user=

# Runs a command as the owner of the server, in a folder that this user can enter.
# PostgreSQL refuses to run as root.
as_postgres() {
    cd "$pg_dir" || exit 1
    if [ "$(id -u)" -eq 0 ]; then
        # The server ends when this script is killed and cannot stop it.
        exec setpriv --reuid "$pg_user" --regid "$(id -g "$pg_user")" --clear-groups \
            --pdeathsig INT "$@"
    else
        exec "$@"
    fi
}

# Starts a server and exports SLUICE_TEST_POSTGRES_URL.
start_postgres() {
    local bin password
    bin=$(find_postgres)
    # Not below the checkout: the other user may not be allowed to reach it.
    pg_dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-pg.XXXXXX")
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    (umask 077 && printf '%s\n' "$password" >"$pg_dir/password")
    if [ "$(id -u)" -eq 0 ]; then
        pg_user=nobody
        if id postgres >/dev/null 2>&1; then
            pg_user=postgres
        fi
        chown -R "$pg_user" "$pg_dir"
    fi

    # Other users of the machine reach the port, hence the password; hashing it on each of the
    # many connections of the tests would cost more than it protects on the loopback interface.
    if ! (as_postgres "$bin/initdb" --pgdata "$pg_dir/data" --username sluice --no-sync \
        --pwfile "$pg_dir/password" --auth-host password --auth-local reject \
        --encoding UTF8 --locale C) >"$pg_dir/initdb.log" 2>&1; then
        cat "$pg_dir/initdb.log" >&2
        die "initdb failed"
    fi

    local tries=0 port
    until port=$((20000 + RANDOM % 12000)) && try_postgres "$bin" "$port"; do
        tries=$((tries + 1))
        # Another process may have the port; any other cause is the same each time.
        if [ "$tries" -ge 5 ] || ! grep -q 'could not bind' "$pg_dir/server.log"; then
            cat "$pg_dir/server.log" >&2
            die "PostgreSQL did not start"
        fi
    done
    export SLUICE_TEST_POSTGRES_URL="postgres://sluice:$password@127.0.0.1:$port/postgres"
    note "started PostgreSQL $("$bin/postgres" --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/') on port $port"
}

# Starts the server on a port and waits until it is ready; fails when it ends instead.
try_postgres() {
    local bin=$1 port=$2
    # Durability is switched off: the server lives as long as the tests.
    (as_postgres "$bin/postgres" -D "$pg_dir/data" -p "$port" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200 \
        -c fsync=off -c synchronous_commit=off -c full_page_writes=off) \
        >"$pg_dir/server.log" 2>&1 &
    pg_pid=$!
    until grep -q 'ready to accept connections' "$pg_dir/server.log"; do
        if ! kill -0 "$pg_pid" 2>/dev/null; then
            pg_pid=
            return 1
        fi
        sleep 0.1
    done
}

# Stops the server by its own process id and removes its folder.
stop_postgres() {
    if [ -n "$pg_pid" ]; then
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
        kill -INT "$pg_pid" 2>/dev/null || true
        wait "$pg_pid" 2>/dev/null || true
        pg_pid=
    fi
    if [ -n "$pg_dir" ]; then
        rm -rf "$pg_dir"
        pg_dir=
    fi
}
