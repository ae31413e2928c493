#!/bin/sh
# Make the image's environment: install.sh [EXTRA [OPTIONS OF venv]]. It gets the wheel beside this script with our
# pins, and an extra if one is named. The volume's directory is made, too.
set -eu
here=$(dirname "$0")
python=$(command -v python3) # once the environment is there, it is the first on PATH
extra=${1:-}
shift $(($# > 0))
# An environment of its own: not all packages of a distribution's Python can be replaced. It borrows that Python's pip,
# because Debian's and Ubuntu's cannot give it one.
"$python" -m venv --without-pip "$@" /opt/wanstream
"$python" -m pip --python /opt/wanstream/bin/python3 install --no-cache-dir \
    -c "$here/constraints.txt" "$(echo "$here"/*.whl)${extra:+[$extra]}"
install -d -o 1000 -g 1000 "$WANSTREAM_HOME"
