#!/usr/bin/env bash
# Resolve pyproject.toml into constraints.txt for Python 3.10 to 3.12 (needs `uv` on PATH).
set -eu
cd "$(dirname "$0")/.."
uv pip compile --quiet --universal --python-version 3.10 --no-header --no-emit-index-url --no-annotate \
    --all-extras pyproject.toml --output-file constraints.txt
