#!/bin/sh
# Start the scheduler of a cluster, in the foreground; Ctrl-C ends it and, with it, the workers.
#
#   [HOST=127.0.0.1] [PORT=8786] [DASHBOARD_PORT=8787] [TLS_CA=.. TLS_CERT=.. TLS_KEY=..] scheduler.sh
set -eu
. "$(dirname -- "$0")/settings.sh"

address=$SCHEME://$HOST:${PORT:=8786}
host_words=
is_loopback "$HOST" || host_words="HOST=THAT-MACHINE "
say "scheduler: $address"
say "dashboard: http://127.0.0.1:${DASHBOARD_PORT:=8787}/status from this machine only; elsewhere through" \
    "ssh -L $DASHBOARD_PORT:127.0.0.1:$DASHBOARD_PORT"
say "next, in other terminals:"
say "  $tls_words$host_words$here/cpu-workers.sh $address"
say "  $tls_words$host_words$here/gpu-workers.sh $address      (GPUs; without this pool the CPU workers do it all)"
say "then:"
if [ "$SCHEME" = tls ]; then
    say "  export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$TLS_CA"
    say "  export DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT=$TLS_CERT"
    say "  export DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY=$TLS_KEY"
fi
say "  skyclass classify RUN.toml --cluster $address"

exec "$PYTHON" -m distributed.cli.dask_scheduler --host "$HOST" --port "$PORT" \
    --dashboard-address "127.0.0.1:$DASHBOARD_PORT"
