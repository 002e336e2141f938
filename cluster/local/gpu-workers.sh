#!/bin/sh
# Start the GPU pool of a cluster on this machine, in the foreground: one worker for each GPU, the network runs there.
#
#   [HOST=127.0.0.1] [THREADS=1] [MEMORY_LIMIT=0] [TLS_DIR=~/.skyclass-tls] gpu-workers.sh ADDRESS [STAND-INS]
#
# With more THREADS and no CPU workers, each GPU worker cuts for itself. CUDA_VISIBLE_DEVICES chooses GPUs. A machine
# without one gets STAND-INS (default 1) CPU processes under the same label, which is right for trying a split cluster
# and wrong for speed.
set -eu
. "$(dirname -- "$0")/settings.sh"

address=${1:-}
check_address "$address"
export_settings
gpus=$("$PYTHON" -c 'from skyclass.engine.cluster import count_gpus; print(count_gpus())')
stand_ins=${2:-1}
set -- --nthreads "${THREADS:-1}" --memory-limit "${MEMORY_LIMIT:=0}" --resources GPU=1 --host "$HOST"

if [ "$gpus" -gt 0 ]; then
    "$PYTHON" -c 'import dask_cuda' || fail "no working dask-cuda: $PYTHON -m pip install 'skyclass[cuda]'"
    say "$gpus GPU workers join $address (host memory limit of each: $MEMORY_LIMIT; 0 is none)"
    say "next: skyclass classify RUN.toml --cluster $address"
    exec "$PYTHON" -m dask cuda worker "$address" $POOL_FLAGS "$@"
fi

say "**************************************************************************************"
say "NO NVIDIA GPU FOUND. What starts here are CPU PROCESSES THAT STAND IN for GPU workers:"
say "the routing is that of a GPU cluster, the speed is not. For speed leave this pool out:"
say "CPU workers then do all the work."
say "**************************************************************************************"
say "next: skyclass classify RUN.toml --cluster $address"
exec "$PYTHON" -m distributed.cli.dask_worker "$address" $POOL_FLAGS "$@" --nworkers "$stand_ins"
