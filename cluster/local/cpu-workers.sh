#!/bin/sh
# Start the CPU pool of a cluster on this machine, in the foreground: they read, cut, composite and commit.
#
#   [HOST=127.0.0.1] [MEMORY_LIMIT=3GB] [TLS_DIR=~/.skyclass-tls] cpu-workers.sh ADDRESS [WORKERS]
#
# WORKERS processes of one thread each (default: the cores of this machine), each with MEMORY_LIMIT.
set -eu
. "$(dirname -- "$0")/settings.sh"

address=${1:-}
check_address "$address"
export_settings
workers=${2:-$(getconf _NPROCESSORS_ONLN)}
say "$workers CPU workers of ${MEMORY_LIMIT:=3GB} each join $address"
say "next: skyclass classify RUN.toml --cluster $address"

set -- --nworkers "$workers" --nthreads 1 --memory-limit "$MEMORY_LIMIT" --resources CPU=1
exec "$PYTHON" -m distributed.cli.dask_worker "$address" $POOL_FLAGS "$@" --host "$HOST"
