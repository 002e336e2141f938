# Read by the scripts beside it, not run: which Python, the certificates of the cluster, and Dask's settings.
#
# In:  PYTHON (default: .venv of this checkout, else python3), HOST (default 127.0.0.1),
#      TLS_DIR (default ~/.skyclass-tls): folder of the certificates
# Out: PYTHON, HOST, TLS_DIR, POOL_FLAGS and, from export_settings, the DASK_* variables of every process

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

say() {
    printf '%s\n' "$*" >&2
}

is_loopback() {
    case $1 in
        127.0.0.1 | localhost | ::1 | '[::1]') return 0 ;;
    esac
    return 1
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$here/../../.venv/bin/python" ]; then PYTHON=$here/../../.venv/bin/python; fi
fi

own_host=${HOST:-}
HOST=${HOST:-127.0.0.1}
case $HOST in
    0.0.0.0 | :: | '[::]') fail "HOST=$HOST is every interface: give the one address that the other machines use" ;;
esac

[ -n "${TLS_DIR:-${HOME:-}}" ] || fail "HOME is not set: set TLS_DIR to the folder of the cluster's certificates"
TLS_DIR=${TLS_DIR:-$HOME/.skyclass-tls}
case $TLS_DIR in
    /*) ;;
    *) TLS_DIR=$PWD/$TLS_DIR ;;
esac

# Export the DASK_* variables of a cluster with the certificates in TLS_DIR; with --make, make these first if need be.
export_settings() {
    settings=$("$PYTHON" -m skyclass.engine.tls "$TLS_DIR" "$@") || exit 2
    eval "$settings"
}

# The preload stops the HTTP server of a worker, which has no authentication.
POOL_FLAGS='--no-dashboard --dashboard-address 127.0.0.1:0 --preload skyclass.engine.cluster --death-timeout 60'

# Check the scheduler's address that a worker script was given: it must speak TLS, and HOST must fit it.
check_address() {
    [ -n "$1" ] || fail "give the scheduler's address, such as tls://127.0.0.1:8786 (scheduler.sh prints it)"
    case $1 in
        tls://*:*) ;;
        *) fail "$1 is not an address such as tls://127.0.0.1:8786: these scripts use TLS only" ;;
    esac
    target=${1#*://}
    target=${target%:*}
    is_loopback "$target" || [ -n "$own_host" ] ||
        fail "set HOST to this machine's address: the scheduler at $target must reach its workers"
}
