#!/usr/bin/env bash
# A region of three nodes beside three nodes of etcd on the same disk, in turn, several runs: puts on a majority of disks and
# linearizable gets, 256 bytes, 64 clients.
#
#   benches/region-of-three.sh [RUNS] [SECONDS]
#
# Needs etcd (Debian: etcd-server) and release builds (cargo build --release; cargo build --release -p meridian-client --examples).
# Everything runs on loopback, in a temporary directory, and is stopped at the end.
set -euo pipefail
runs=${1:-3} seconds=${2:-5}
root=$(cd "$(dirname "$0")/.." && pwd)
meridian=${MERIDIAN:-$root/target/release/meridian}
etcd_bench=${ETCD_BENCH:-$root/target/release/examples/etcd_bench}
command -v etcd >/dev/null || { echo "skipped: etcd is not installed" >&2; exit 0; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/meridian-bench.XXXXXX")
pids=()
cleanup() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; wait 2>/dev/null || true; rm -rf "$dir"; }
trap cleanup EXIT

"$meridian" cert init --dir "$dir/pki" >/dev/null
"$meridian" cert client --dir "$dir/pki" --name bench >/dev/null
members=""
for node in 1 2 3; do
    "$meridian" cert node --dir "$dir/pki" --region here --name "here-$node" >/dev/null
    members+="
[[members]]
name = \"here-$node\"
region = \"here\"
rpc = \"127.0.0.1:79${node}0\"
replication = \"127.0.0.1:79${node}1\""
done
for node in 1 2 3; do
    cat >"$dir/node-$node.toml" <<TOML
cluster = "bench"
region = "here"
node = "here-$node"
data_dir = "$dir/node-$node"
[listen]
rpc = "127.0.0.1:79${node}0"
replication = "127.0.0.1:79${node}1"
admin = "127.0.0.1:79${node}2"
[tls]
ca = "$dir/pki/ca.pem"
cert = "$dir/pki/here-$node.pem"
key = "$dir/pki/here-$node-key.pem"
$members
TOML
    "$meridian" server --config "$dir/node-$node.toml" 2>"$dir/node-$node.log" & pids+=($!)
done
peers="e1=http://127.0.0.1:7951,e2=http://127.0.0.1:7952,e3=http://127.0.0.1:7953"
for node in 1 2 3; do
    etcd --name "e$node" --data-dir "$dir/etcd-$node" --initial-cluster "$peers" --initial-cluster-state new \
        --listen-peer-urls "http://127.0.0.1:795$node" --initial-advertise-peer-urls "http://127.0.0.1:795$node" \
        --listen-client-urls "http://127.0.0.1:794$node" --advertise-client-urls "http://127.0.0.1:794$node" \
        >"$dir/etcd-$node.log" 2>&1 & pids+=($!)
done

connection=(--endpoint https://127.0.0.1:7910 --ca "$dir/pki/ca.pem" --cert "$dir/pki/bench.pem" --key "$dir/pki/bench-key.pem")
until "$meridian" "${connection[@]}" bucket create bench --policy async >/dev/null 2>&1; do sleep 0.2; done
endpoints=http://127.0.0.1:7941,http://127.0.0.1:7942,http://127.0.0.1:7943
until "$etcd_bench" --endpoints "$endpoints" --clients 1 --seconds 1 >/dev/null 2>&1; do sleep 0.2; done

ours() { # label, arguments
    local label=$1; shift
    printf '\n-- meridian, %s\n' "$label"
    "$meridian" "${connection[@]}" bench --bucket bench --duration "${seconds}s" --value-size 256 \
        --server-pid "${pids[0]}" --sync-dir "$dir" "$@"
}
theirs() { # label, arguments
    printf '\n-- etcd %s, %s\n' "$(etcd --version | awk 'NR == 1 { print $3 }')" "$1"
    "$etcd_bench" --endpoints "$endpoints" --seconds "$seconds" "${@:2}"
}

for run in $(seq "$runs"); do
    printf '\n==== run %s of %s\n' "$run" "$runs"
    ours "put, 1 client" --clients 1
    theirs "put, 1 client" --clients 1
    ours "put, 64 clients" --clients 64
    theirs "put, 64 clients" --clients 64
    ours "strong get, 64 clients" --clients 64 --read-share 1 --read strong
    theirs "linearizable get, 64 clients" --clients 64 --gets
done
