#!/usr/bin/env bash
# Three regions with simulated round trips of 30, 80 and 120 ms on this machine: synchronous puts from the primary's
# region and from another one, and how far asynchronous replication is behind.
#
#   benches/regions.sh [SECONDS]
#
# Needs a release build (cargo build --release). Loopback only, in a temporary directory, stopped at the end.
# A put of 64 clients at 30 ms is bounded by 64 / 30 ms = 2,133/s, one of 256 clients by 8,533/s. The lag is the put's
# time less the acknowledgement's way back: half the round trip to the region that is waited for (40 ms with `--ack all`,
# 15 ms with `--ack 2`).
set -euo pipefail
seconds=${1:-6}
root=$(cd "$(dirname "$0")/.." && pwd)
meridian=${MERIDIAN:-$root/target/release/meridian}

dir=$(mktemp -d "${TMPDIR:-/tmp}/meridian-regions.XXXXXX")
"$meridian" dev --dir "$dir/dev" --port-base 37100 --rtt us-east:eu-west=30ms --rtt us-east:ap-south=80ms \
    --rtt eu-west:ap-south=120ms >"$dir/dev.log" 2>&1 & pid=$!
cleanup() { kill -INT "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; rm -rf "$dir"; }
trap cleanup EXIT

in_region() { local region=$1; shift; "$meridian" --profile "$dir/dev" --region "$region" "$@"; }
until in_region us-east bucket create sync --policy sync >/dev/null 2>&1; do sleep 0.3; done
in_region us-east bucket create async --policy async >/dev/null
sleep 1

puts() { # region, bucket, clients, more arguments
    printf '\n-- %s puts, %s clients in %s %s\n' "$2" "$3" "$1" "${*:4}"
    in_region "$1" bench --bucket "$2" --clients "$3" --duration "${seconds}s" "${@:4}"
}

for region in us-east eu-west ap-south; do puts "$region" sync 1; done
for region in us-east eu-west; do puts "$region" sync 64; done
for region in us-east eu-west; do puts "$region" sync 256; done
# Long enough for BBR's look at the round trip, every 5 s.
seconds=$((seconds > 12 ? seconds : 12))
for ack in 2 all; do puts us-east async 512 --rate 1000 --ack "$ack"; done
