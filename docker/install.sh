#!/bin/sh
# Install the wheel beside this script with our pins, and an extra if one is named; make the volume's directory.
set -eu
here=$(dirname "$0")
python3 -m pip install --no-cache-dir -c "$here/constraints.txt" "$(echo "$here"/*.whl)${1:+[$1]}"
install -d -o 1000 -g 1000 "$WANSTREAM_HOME"
