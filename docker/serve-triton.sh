#!/bin/sh
# Serve the pipelines' models and the engines below WANSTREAM_HOME; further arguments go to tritonserver.
set -eu

pipelines=$(python3 -c 'from gateway.embedded.server import model_repository; print(model_repository())')
store=${WANSTREAM_ENGINES_DIR:-$WANSTREAM_HOME/engines}
engines=$store/models
mkdir -p "$engines"

# What the plans need, as wanstream-build has noted it; CUDA_POOL_BYTES wins, arguments do over both.
pool=${CUDA_POOL_BYTES:-}
if [ -f "$store/server_options" ]; then
    while read -r option; do
        case $option in
            --cuda-memory-pool-byte-size=*) [ -z "${CUDA_POOL_BYTES:-}" ] || continue; pool=noted ;;
        esac
        set -- "$option" "$@"
    done < "$store/server_options"
fi
if [ "$pool" != noted ]; then set -- "--cuda-memory-pool-byte-size=0:${pool:-1073741824}" "$@"; fi

# Triton puts paths into a shell's command line as they are, so it gets names that mean themselves there.
plain=$(mktemp -d /tmp/wanstream-XXXXXX)
ln -s "$pipelines" "$plain/pipelines"
ln -s "$engines" "$plain/engines"

id=$(python3 -m streaming.triton.server_id) # the gateway compares it with its own version

# The same options as those of the embedded server; the gateway relies on explicit model control.
exec tritonserver \
    --id="$id" \
    --model-repository="$plain/pipelines" \
    --model-repository="$plain/engines" \
    --model-control-mode=explicit \
    --exit-on-error=false \
    --strict-readiness=false \
    --disable-auto-complete-config \
    --exit-timeout-secs=10 \
    --grpc-keepalive-time=20000 \
    --grpc-keepalive-timeout=10000 \
    --grpc-keepalive-permit-without-calls=1 \
    --backend-config=python,shm-default-byte-size=67108864 \
    "$@"
