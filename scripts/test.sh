#!/bin/bash
# make test: everything that the tests need, then all tests. Root, since it installs packages and makes a virtual cluster.
# What takes long is kept in $HPK_CACHE (default /var/cache/hpk) for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
    echo "make test makes a virtual cluster on this machine, which needs root: sudo make test" >&2
    echo "without root: make unit (decisions and generated files), make check (linters)" >&2
    exit 1
fi
export HPK_CACHE=${HPK_CACHE:-/var/cache/hpk}
unset HPK_HOME HPK_CONTROL_PLANE_IMAGE SLURM_CONF KUBECONFIG
venv=$HPK_CACHE/test-venv
took=()

stage() { # stage NAME COMMAND...: run it, note how long it took
    local name=$1 begin=$SECONDS status=0
    shift
    echo "== $name"
    "$@" || status=$?
    took+=("$(printf '%-34s %5d s  %s' "$name" $((SECONDS - begin)) "$([ $status = 0 ] && echo ok || echo FAILED)")")
    return "$status"
}

finish() {
    local status=$?
    trap - EXIT
    if [ -x "$venv/bin/python" ] && [ -z "${HPK_TESTBED-}" ]; then    # a bed that was named stays up
        HPK_TESTBED=e2e "$venv/bin/python" -m tests.testbed down || true
    fi
    echo "== what took how long"
    printf '%s\n' "${took[@]}" "$(printf '%-34s %5d s' total "$SECONDS")"
    exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

tests() { PYTHONPATH=$PWD "$venv/bin/python" -m pytest -p no:cacheprovider "$@"; }
image() {
    PYTHONPATH=$PWD "$venv/bin/python" -m hpk image build --from source --output "$HPK_CACHE/control-plane.sif"
}

stage "packages, Apptainer, Go" scripts/with-python -m tests.testbed packages
stage "Python environment" scripts/with-python scripts/venv.py "$venv"
stage "control-plane image" image
failed=0
stage "unit tests and linters" tests tests/unit || failed=1
stage "component tests" tests tests/component || failed=1
stage "end-to-end tests, test images" tests tests/e2e || failed=1
exit $failed
