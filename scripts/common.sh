# What every task may use. Sourced by ./dev, in the root of the repository.
# shellcheck shell=bash

# Everything that a task installs or writes is below this folder.
dev_dir=$PWD/.dev

# Prints one line about a failure and ends the task.
die() {
    printf 'dev: %s\n' "$*" >&2
    exit 1
}

# Prints one line about what takes time.
note() {
    printf 'dev: %s\n' "$*" >&2
}

# Runs a cargo command; on CI the lock file must fit as it is.
run_cargo() {
    local command=$1
    shift
    if [ "${CI:-}" = true ]; then
        # Incremental data is never read again in a fresh clone, and takes time to write.
        CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never cargo "$command" --locked "$@"
    else
        cargo "$command" "$@"
    fi
}

# Runs a task as a step of CI, in a process of its own: it stops at its first error.
step() {
    local began=$SECONDS
    echo "== $1"
    ./dev "$@" || die "the step \`$1\` failed"
    echo "== $1 passed in $((SECONDS - began)) s"
}

# Prints something that differs when a file of the tree differs.
tree_state() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git status --porcelain
        git diff HEAD | cksum
    fi
}

# Fails when the steps have changed the tree that they were started on.
check_tree_is_unchanged() {
    if [ "$1" != "$(tree_state)" ]; then
        git status --short >&2
        die "the steps changed the tree"
    fi
}

# Runs when the task ends, however it ends.
on_exit() {
    local status=$?
    trap - EXIT
    stop_redis
    stop_postgres
    exit "$status"
}
