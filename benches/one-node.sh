#!/usr/bin/env bash
# A one-node region beside Redis on the same disk, in turn, several runs: puts and gets of 256 bytes.
#
#   benches/one-node.sh [RUNS] [SECONDS]
#
# Needs redis-server and redis-benchmark (Debian: redis-server) and a release build (cargo build --release).
# Everything runs on loopback, in a temporary directory, and is stopped at the end.
set -euo pipefail
runs=${1:-3} seconds=${2:-8}
root=$(cd "$(dirname "$0")/.." && pwd)
meridian=${MERIDIAN:-$root/target/release/meridian}
command -v redis-server >/dev/null || { echo "skipped: redis-server is not installed" >&2; exit 0; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/meridian-bench.XXXXXX")
pids=()
cleanup() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$dir"; }
trap cleanup EXIT

"$meridian" cert init --dir "$dir/pki" >/dev/null
"$meridian" cert node --dir "$dir/pki" --region here --name here-1 >/dev/null
"$meridian" cert client --dir "$dir/pki" --name bench >/dev/null
cat >"$dir/node.toml" <<TOML
cluster = "bench"
region = "here"
node = "here-1"
data_dir = "$dir/node"
[listen]
rpc = "127.0.0.1:7900"
replication = "127.0.0.1:7901"
admin = "127.0.0.1:7902"
[tls]
ca = "$dir/pki/ca.pem"
cert = "$dir/pki/here-1.pem"
key = "$dir/pki/here-1-key.pem"
[[members]]
name = "here-1"
region = "here"
rpc = "127.0.0.1:7900"
replication = "127.0.0.1:7901"
TOML
"$meridian" server --config "$dir/node.toml" 2>"$dir/node.log" & pids+=($!)
mkdir "$dir/redis"
redis-server --port 7910 --bind 127.0.0.1 --dir "$dir/redis" --appendonly yes --appendfsync always --save '' \
    >"$dir/redis.log" & pids+=($!)
ticks() { awk '{ print $14 + $15 }' "/proc/${pids[1]}/stat"; } # hundredths of a second of Redis' CPU

connection=(--endpoint https://127.0.0.1:7900 --ca "$dir/pki/ca.pem" --cert "$dir/pki/bench.pem" --key "$dir/pki/bench-key.pem")
until "$meridian" "${connection[@]}" bucket create bench --policy async >/dev/null 2>&1; do sleep 0.2; done
until redis-cli -p 7910 ping >/dev/null 2>&1; do sleep 0.2; done

ours() { # label, arguments
    local label=$1; shift
    printf '\n-- meridian, %s\n' "$label"
    "$meridian" "${connection[@]}" bench --bucket bench --duration "${seconds}s" --value-size 256 \
        --server-pid "${pids[0]}" --sync-dir "$dir" "$@"
}
redis() { # label, clients, command, requests
    printf '\n-- redis (appendfsync always), %s\n' "$1"
    local before
    before=$(ticks)
    redis-benchmark -p 7910 -c "$2" -n "$4" -d 256 -r 100000 -t "$3" --csv | tail -n +2
    echo "CPU per operation: server $((($(ticks) - before) * 10000 / $4)) µs"
}

for run in $(seq "$runs"); do
    printf '\n==== run %s of %s\n' "$run" "$runs"
    ours "put, 1 client" --clients 1
    redis "put, 1 client" 1 set 15000
    ours "put, 64 clients" --clients 64
    redis "put, 64 clients" 64 set 120000
    ours "get, 64 clients" --clients 64 --read-share 1 --read strong
    redis "get, 64 clients" 64 get 400000
done
