#!/usr/bin/env bash
# Create the virtual environment and install pinned dependencies, Debian packages included.
#   scripts/setup.sh serve   what the server on this machine needs, PyTorch and ONNX Runtime for models included
#   scripts/setup.sh test    the same, and what the tests need (Chromium, coturn, iproute2, iptables, promtool)
#   scripts/setup.sh containers   only the Debian packages that build and run the images in `make test-containers`
set -euo pipefail
cd "$(dirname "$0")/.."

role=${1:?usage: scripts/setup.sh serve|test|containers}
venv=${VENV:-.venv}
case $role in
    serve) extras=embedded,export ;;
    test) extras=embedded,export,dev ;;
    containers) extras= ;;
    *) echo "unknown role '$role': serve, test or containers" >&2; exit 2 ;;
esac

fail() { echo "setup: $*" >&2; exit 1; }

case $PWD in
    *$'\n'* | *:*) fail "this directory's name has a colon or a line end, which no Python environment can have; move it" ;;
esac

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    command -v sudo >/dev/null || fail "run as root: $*"
    sudo "$@"
}

# Debian packages, through sudo where needed.
apt_install() {
    command -v apt-get >/dev/null || fail "please install the equivalent of: $*"
    echo "setup: installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null \
        || fail "apt-get install $* failed"
}

# The tests start a TURN server of their own, and want Prometheus' checker alone; the services that the packages start
# at every boot are in nobody's interest.
install_without_service() {
    apt_install "$1"
    if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet --now "$1"; fi
}

in_range() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if command -v "$name" >/dev/null && in_range "$name"; then command -v "$name"; return; fi
    done
    fail "Python 3.10, 3.11 or 3.12 is needed (tried ${PYTHON:-python3 python3.12 python3.11 python3.10}); \
set PYTHON to one"
}

install_environment() {
    # Scripts of a virtual environment name its place: one that was copied or moved has to be made anew.
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        rm -rf "$venv"
        if ! "$python" -c 'import ensurepip' 2>/dev/null; then
            apt_install "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        fi
        echo "setup: creating $venv with $("$python" --version)"
        "$python" -m venv "$venv"
    fi
    echo "setup: installing wanstream[$extras]"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
}

# ModelOpt wants other versions than we do, so it has an environment of its own, which borrows what they share.
# Without borrowing it takes 6.5 GB (docs/engines.md).
install_modelopt() {
    local modelopt=$venv/modelopt
    rm -rf "$modelopt"
    echo "setup: installing ModelOpt in $modelopt"
    "$venv/bin/python" -m venv --without-pip "$modelopt"
    "$venv/bin/python" -m pip --python "$modelopt/bin/python" install --quiet --disable-pip-version-check --no-deps \
        -r scripts/modelopt.txt
    "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        > "$("$modelopt/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
}

# GStreamer's WebRTC and its Python binding, which Debian has for its own interpreter only.
has_gstreamer() {
    /usr/bin/python3 -c 'import gi, sys
for name in "Gst", "GstSdp", "GstWebRTC":
    gi.require_version(name, "1.0")
from gi.repository import Gst
Gst.init(None)
sys.exit(not all(map(Gst.ElementFactory.find, sys.argv[1:])))' webrtcbin nicesrc vp8enc x264enc avdec_h264 opusenc
}

# WHIP and WHEP clients of others, as bundles for a page: tests/server/npm.
has_npm_clients() { cmp -s tests/server/npm/package-lock.json "$venv/npm/installed.json"; }

install_npm_clients() {
    command -v npm >/dev/null || apt_install nodejs npm
    echo "setup: installing the npm packages of the tests"
    mkdir -p "$venv/npm"
    cp tests/server/npm/package.json tests/server/npm/package-lock.json "$venv/npm/"
    (cd "$venv/npm" && npm ci --ignore-scripts --no-audit --no-fund --silent) || fail "npm ci failed"
    cp tests/server/npm/package-lock.json "$venv/npm/installed.json"
}

# Not among the pinned packages: NDI's library has a licence of its own, and only the tests need it here.
install_ndi() {
    echo "setup: installing cyndilib with the NDI library, under the licence of the NDI SDK (scripts/ndi.txt)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -r scripts/ndi.txt
}

# Its compiler needs no GPU (tests/rtx). Beside the tests' packages, not among them: pins of its own, and none for
# Python 3.10.
install_rtx() {
    local rtx=$venv/rtx
    rm -rf "$rtx"
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || return 0
    command -v cc >/dev/null || apt_install gcc libc6-dev
    echo "setup: installing TensorRT for RTX in $rtx, under NVIDIA's licence (scripts/rtx.txt)"
    "$venv/bin/python" -m venv --without-pip "$rtx"
    "$venv/bin/python" -m pip --python "$rtx/bin/python" install --quiet --disable-pip-version-check --no-deps \
        -r scripts/rtx.txt
}

test_tools() {
    command -v chromium && command -v turnserver && command -v tc && command -v iptables && command -v promtool \
        && has_gstreamer && has_npm_clients
}

# What pip cannot bring: the interpreter's shared library for Triton's model processes; for the tests a browser, a TURN
# server, links of limited speed, a NAT, Prometheus' checker, and players and publishers that are not ours.
install_libraries() {
    if ! "$venv/bin/python" -m gateway.embedded.installation >/dev/null 2>&1; then
        apt_install "libpython$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
        "$venv/bin/python" -m gateway.embedded.installation || fail "the embedded Triton server cannot run here"
    fi
    if [ "$role" = test ]; then
        command -v chromium >/dev/null || apt_install chromium
        command -v turnserver >/dev/null || install_without_service coturn
        command -v promtool >/dev/null || install_without_service prometheus
        command -v tc >/dev/null || apt_install iproute2
        command -v iptables >/dev/null || apt_install iptables
        has_gstreamer >/dev/null 2>&1 || apt_install python3-gi gir1.2-gst-plugins-base-1.0 gir1.2-gst-plugins-bad-1.0 \
            gstreamer1.0-nice gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
            gstreamer1.0-plugins-ugly gstreamer1.0-libav
        has_npm_clients || install_npm_clients
    fi
}

container_tools() { command -v podman && command -v buildah && command -v runc; }

if [ "$role" = containers ]; then
    container_tools >/dev/null || apt_install podman buildah runc containernetworking-plugins iptables
    exit
fi

stamp=$venv/.wanstream-$role
wanted=$(cat pyproject.toml constraints.txt scripts/modelopt.txt scripts/ndi.txt scripts/rtx.txt scripts/setup.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    install_environment
    if [ "$role" = test ]; then install_modelopt; install_ndi; install_rtx; fi
    install_libraries
    echo "$wanted" > "$stamp"
elif [ "$role" = test ] && ! test_tools >/dev/null 2>&1; then
    install_libraries
fi
