# Checks of the shape of the workspace. Sourced by ./dev.
# shellcheck shell=bash

# The output and the configuration of cargo-deny change between minor versions.
cargo_deny_version=0.20.2
cargo_deny=

# Finds a cargo-deny that fits, or builds one into .dev/tools.
install_cargo_deny() {
    local candidate
    for candidate in "$(command -v cargo-deny || true)" "$dev_dir/tools/bin/cargo-deny"; do
        case $("${candidate:-false}" --version 2>/dev/null) in
        "cargo-deny ${cargo_deny_version%.*}."*)
            cargo_deny=$candidate
            return
            ;;
        esac
    done
    note "building cargo-deny $cargo_deny_version"
    # Its release profile builds with one unit and fat LTO; it runs for a second, so not here.
    cargo install cargo-deny --version "$cargo_deny_version" --locked --debug --quiet \
        --config profile.dev.debug=false --root "$dev_dir/tools" >&2
    cargo_deny=$dev_dir/tools/bin/cargo-deny
}

# Prints the names of the crates of the workspace.
workspace_crates() {
    run_cargo tree --workspace --depth 0 --prefix none --format '{p}' | awk 'NF { print $1 }' | sort -u
}

# cargo-deny knows who depends on a crate, but not that it may only be for tests.
check_testkit_is_dev_only() {
    local users
    users=$(run_cargo tree --workspace --all-features --edges normal,build --invert sluice-testkit \
        --depth 1 --prefix none --format '{p}' | awk 'NF && $1 != "sluice-testkit" { print $1 }' | sort -u)
    if [ -n "$users" ]; then
        die "sluice-testkit is a dev-dependency only, but is a dependency of: $users"
    fi
}

# The map names exactly what is there.
check_architecture_names_all_crates() {
    local difference
    # Both lists are sorted; a line with `<` is only in the document.
    if ! difference=$(diff <(grep -o '`sluice-[a-z-]*`' ARCHITECTURE.md | tr -d '`' | sort -u) \
        <(workspace_crates)); then
        die "ARCHITECTURE.md (<) and the workspace (>) name different crates:
$difference"
    fi
}

# The lints of the workspace hold only where a crate asks for them.
check_crates_inherit_lints() {
    local manifest
    for manifest in crates/*/Cargo.toml; do
        grep -A1 '^\[lints\]' "$manifest" | grep -q '^workspace = true' ||
            die "$manifest does not inherit the lints of the workspace"
    done
}

# A dependency is used when its name is a word of a source file of the crate. One that is there for
# its features alone says so at the end of its line: `# used: REASON`.
check_unused_dependencies() {
    local manifest crate name unused=0
    for manifest in crates/*/Cargo.toml; do
        crate=$(dirname "$manifest")
        for name in $(awk '
            /^\[/ { listed = /dependencies\]$/ }
            listed && /^[a-z]/ && !/# used: / { sub(/[ .=].*/, ""); print }
        ' "$manifest"); do
            if ! grep -rqw --include='*.rs' "$(printf '%s' "$name" | tr - _)" "$crate"; then
                echo "$manifest: $name is not used" >&2
                unused=1
            fi
        done
    done
    [ "$unused" -eq 0 ] || die "remove the dependencies that are not used"
}
