#!/bin/sh
# Start the scheduler of a cluster, in the foreground; Ctrl-C ends it and, with it, the workers.
#
#   [HOST=127.0.0.1] [PORT=8786] [DASHBOARD_PORT=PORT] [TLS_DIR=~/.skyclass-tls] scheduler.sh
#
# All values but DASHBOARD_PORT are the defaults. The script makes TLS_DIR, the certificates of the cluster, if there is
# none. The dashboard has no password: it is off unless DASHBOARD_PORT is set, and then other users of this machine can
# see it.
set -eu
. "$(dirname -- "$0")/settings.sh"
export_settings --make

address=tls://$HOST:${PORT:=8786}
say "scheduler: $address"
if [ -n "${DASHBOARD_PORT:-}" ]; then
    say "dashboard: http://127.0.0.1:$DASHBOARD_PORT/status from this machine only; elsewhere through" \
        "ssh -L $DASHBOARD_PORT:127.0.0.1:$DASHBOARD_PORT"
    set -- --dashboard --dashboard-address "127.0.0.1:$DASHBOARD_PORT"
else
    set -- --no-dashboard --dashboard-address 127.0.0.1:0 --preload skyclass.engine.cluster
fi
host_words=
is_loopback "$HOST" || host_words="HOST=THAT-MACHINE "
say "next, in other terminals (on other machines, copy $TLS_DIR there first: scp -rp):"
say "  TLS_DIR=$TLS_DIR $host_words$here/cpu-workers.sh $address"
say "  TLS_DIR=$TLS_DIR $host_words$here/gpu-workers.sh $address      (GPUs; without it the CPU workers do it all)"
say "then:"
say "  export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$TLS_DIR/ca.pem"
say "  export DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=$TLS_DIR/cert.pem"
say "  export DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY=$TLS_DIR/key.pem"
say "  skyclass classify RUN.toml --cluster $address"

exec "$PYTHON" -m distributed.cli.dask_scheduler --host "$HOST" --port "$PORT" "$@"
