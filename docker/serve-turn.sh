#!/bin/sh
# A TURN server for viewers behind strict firewalls (docs/docker.md). The secret is in a file of the container, not on
# the command line, where every user of the machine could read it.
set -eu

if [ -z "${TURN_SECRET:-}" ]; then
    echo "Set WANSTREAM_TURN_SECRET in the file .env: without it everybody could relay through this machine." >&2
    exit 1
fi

relays=${TURN_RELAY_PORTS:-49160-49359}
umask 077
file=$(mktemp)
cat > "$file" <<EOF
listening-port=${TURN_PORT:-3478}
realm=wanstream
use-auth-secret
static-auth-secret=$TURN_SECRET
fingerprint
no-cli
no-tls
no-dtls
no-tcp-relay
no-multicast-peers
denied-peer-ip=169.254.0.0-169.254.255.255
min-port=${relays%-*}
max-port=${relays#*-}
log-file=stdout
EOF
if [ -n "${TURN_EXTERNAL_IP:-}" ]; then echo "external-ip=$TURN_EXTERNAL_IP" >> "$file"; fi
exec turnserver -c "$file" "$@"
