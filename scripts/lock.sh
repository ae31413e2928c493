#!/usr/bin/env bash
# Resolve pyproject.toml into constraints.txt for Python 3.10 to 3.12 (needs `uv` on PATH). Without extra `fp8`,
# which has an environment of its own.
set -eu
cd "$(dirname "$0")/.."
uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url --no-annotate \
    --extra embedded --extra export --extra tensorrt --extra dev pyproject.toml --output-file constraints.txt
