# What has to be on the machine: a C compiler, Python, PostgreSQL, Redis, tools to mount and to fake the time
# of day. Sourced by ./dev.
# shellcheck shell=bash

# A file that keeps Debian's package from making and starting a cluster of its own.
no_cluster=/etc/postgresql-common/createcluster.d/sluice-tests.conf

# Runs a command as root; fails when that is not possible without a question.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

may_become_root() {
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# Prints the folder with `initdb` and `postgres`, the newest version first.
find_postgres() {
    local dir
    for dir in "$(dirname "$(command -v initdb || echo /none/initdb)")" \
        $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) /usr/local/pgsql/bin; do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
            printf '%s\n' "$dir"
            return 0
        fi
    done
    return 1
}

# Prints the path of the Redis server.
find_redis() {
    command -v redis-server
}

# Prints the path of the library that tells programs another time of day.
find_faketime() {
    local file
    for file in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib*/faketime/libfaketimeMT.so.1; do
        if [ -e "$file" ]; then
            printf '%s\n' "$file"
            return 0
        fi
    done
    return 1
}

has_mount() {
    command -v mount >/dev/null && command -v unshare >/dev/null && command -v nsenter >/dev/null
}

has_python() {
    # Debian's python3 comes without ensurepip, which venv needs.
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        python3 -m pip --version >/dev/null 2>&1
}

# Installs what is missing of `compiler`, `python`, `postgres`, `redis`, `faketime` and `mount`, or says what is.
install_packages() {
    local packages=() part
    for part in "$@"; do
        case $part in
        compiler) command -v cc >/dev/null || packages+=(gcc libc6-dev) ;;
        python) has_python || packages+=(python3 python3-venv) ;;
        faketime) find_faketime >/dev/null || packages+=(libfaketime) ;;
        mount) has_mount || packages+=(mount util-linux) ;;
        redis) find_redis >/dev/null || packages+=(redis-server) ;;
        postgres) find_postgres >/dev/null || packages+=(postgresql) ;;
        esac
    done
    if [ ${#packages[@]} -eq 0 ]; then
        return 0
    fi
    if ! command -v apt-get >/dev/null; then
        die "please install what Debian calls: ${packages[*]}"
    fi
    if ! may_become_root; then
        die "please run: sudo apt-get install --no-install-recommends ${packages[*]}"
    fi
    note "installing ${packages[*]}"
    as_root mkdir -p "$(dirname "$no_cluster")"
    echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
    local status=0
    apt_install "${packages[@]}" || status=$?
    as_root rm -f "$no_cluster"
    as_root rmdir --ignore-fail-on-non-empty "$(dirname "$no_cluster")"
    [ "$status" -eq 0 ] || die "apt-get could not install ${packages[*]}"
}

apt_install() {
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >&2
}
