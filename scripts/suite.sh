# Runs the tests and adds up their results. Sourced by ./dev.
# shellcheck shell=bash

# Brings up everything that a test may need; after it a missing piece is an error, not a skip.
prepare_backends() {
    mkdir -p "$dev_dir"
    if command -v flock >/dev/null; then
        # Two runs in one checkout must not install into the same folder at once.
        exec 9>"$dev_dir/lock"
        flock 9
    fi
    install_packages compiler python postgres redis faketime mount
    install_sdks
    exec 9>&-
    start_postgres
    start_redis
    SLUICE_TEST_FAKETIME=$(find_faketime)
    export SLUICE_TEST_FAKETIME
    export REQUIRE_BACKENDS=1
    # A proxy of the user's is not asked for addresses on this machine.
    export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost
}

# Runs `cargo test` with the arguments, on the whole workspace unless they name a package.
run_tests() {
    local status=0
    mkdir -p "$dev_dir"
    case " $* " in
    *" -p "* | *" --package "*) ;;
    *) set -- --workspace "$@" ;;
    esac
    run_cargo test --no-fail-fast "$@" 2>&1 | tee "$dev_dir/test.log" || status=$?
    summarize <"$dev_dir/test.log" >"$dev_dir/test-summary"
    cat "$dev_dir/test-summary"
    if [ "$status" -eq 0 ] && grep -q '^0 passed' "$dev_dir/test-summary"; then
        die "no test ran"
    fi
    return "$status"
}

# Adds up the result lines of all test binaries.
summarize() {
    awk '
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") passed += $(i - 1)
                if ($i == "failed;") failed += $(i - 1)
                if ($i == "ignored;") ignored += $(i - 1)
            }
        }
        END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }
    '
}
