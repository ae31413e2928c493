#!/bin/sh
# Serve the pipelines' models and the engines below WANSTREAM_HOME; further arguments go to tritonserver.
set -eu

pipelines=$(python3 -c 'from gateway.embedded.server import model_repository; print(model_repository())')
engines=${WANSTREAM_ENGINES_DIR:-$WANSTREAM_HOME/engines}/models
mkdir -p "$engines"

# Triton puts paths into a shell's command line as they are, so it gets names that mean themselves there.
plain=$(mktemp -d /tmp/wanstream-XXXXXX)
ln -s "$pipelines" "$plain/pipelines"
ln -s "$engines" "$plain/engines"

# The same options as those of the embedded server; the gateway relies on explicit model control.
exec tritonserver \
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
