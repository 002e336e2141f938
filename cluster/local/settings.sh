# Read by the scripts beside it, not run: which Python, Dask's settings, and the rule that only TLS leaves this machine.
#
# In:  PYTHON (default: .venv of this checkout, else python3), HOST (default 127.0.0.1),
#      TLS_CA, TLS_CERT, TLS_KEY (all three or none)
# Out: PYTHON, HOST, SCHEME (tcp or tls), POOL_FLAGS, and the DASK_* variables of every process started from here

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

absolute() {
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s' "$PWD/$1" ;;
    esac
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

SCHEME=tcp
tls_words=
if [ -n "${TLS_CA:-}${TLS_CERT:-}${TLS_KEY:-}" ]; then
    for name in TLS_CA TLS_CERT TLS_KEY; do
        eval "file=\${$name:-}"
        [ -n "$file" ] || fail "$name is not set: TLS needs TLS_CA, TLS_CERT and TLS_KEY, all three"
        [ -r "$file" ] || fail "$name=$file cannot be read: make the files with $here/tls.sh DIR"
    done
    TLS_CA=$(absolute "$TLS_CA") TLS_CERT=$(absolute "$TLS_CERT") TLS_KEY=$(absolute "$TLS_KEY")
    SCHEME=tls
    tls_words="TLS_CA=$TLS_CA TLS_CERT=$TLS_CERT TLS_KEY=$TLS_KEY "
    export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True DASK_DISTRIBUTED__COMM__TLS__CA_FILE="$TLS_CA"
    for role in SCHEDULER WORKER CLIENT; do
        export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$TLS_CERT"
        export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$TLS_KEY"
    done
elif ! is_loopback "$HOST"; then
    fail "HOST=$HOST can be reached from other machines, and whoever reaches a Dask process runs code as you:" \
        "set TLS_CA, TLS_CERT and TLS_KEY ($here/tls.sh DIR makes the files), or leave HOST out"
fi

settings=$("$PYTHON" -c '
import shlex
from skyclass.cluster import dask_environment
for name, value in dask_environment().items():
    print(f"export {name}={shlex.quote(value)}")
') || fail "$PYTHON cannot import skyclass: install it there, or set PYTHON to the Python that has it"
eval "$settings"

# A worker without a dashboard still serves its metrics, on every interface unless told otherwise.
POOL_FLAGS='--no-dashboard --dashboard-address 127.0.0.1:0 --death-timeout 60'

# Check the scheduler's address that a worker script was given: ADDRESS must fit SCHEME and HOST.
check_address() {
    [ -n "$1" ] || fail "give the scheduler's address, such as tcp://127.0.0.1:8786 (scheduler.sh prints it)"
    case $1 in
        "$SCHEME://"*:*) ;;
        tls://*) fail "$1 speaks TLS: set TLS_CA, TLS_CERT and TLS_KEY to the files that the scheduler uses" ;;
        tcp://*) fail "$1 is not encrypted but TLS files are set: unset them, or use the tls:// address" ;;
        *) fail "$1 is not an address such as $SCHEME://127.0.0.1:8786" ;;
    esac
    target=${1#*://}
    target=${target%:*}
    is_loopback "$target" && return 0
    [ "$SCHEME" = tls ] || fail "$1 is another machine and not encrypted: start its scheduler with TLS"
    [ -n "$own_host" ] || fail "set HOST to this machine's address: the scheduler at $target must reach its workers"
}
