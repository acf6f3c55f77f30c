#!/usr/bin/env bash
# make demo-deployment: a whole deployment on loopback, with nothing but the commands that an operator types.
# A certificate authority, a server, three organizations, three rounds with DP and secure aggregation; then the LLM
# adapters on the organizations' disks are loaded by plain PEFT and the three ledgers verified.
set -euo pipefail

BIN=${BIN:-.venv/bin}
OUT=${1:-build/deployment}
PORT=${PORT:-$("$BIN/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
ROUNDS=${ROUNDS:-3}
CONFIG=${CONFIG:-} # a federation.toml whose pair and task are deployed; without one the embedded ones
project=(${CONFIG:+--config "$CONFIG"})
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # several processes share these cores

nodes=()
stop() {
  for pid in "${nodes[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${nodes[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap stop EXIT
run() {
  echo
  echo "\$ $*"
  "$BIN/$1" "${@:2}"
}

started=$(date +%s)
rm -rf "$OUT"
mkdir -p "$OUT"
run python -m experiments.demos.demo_rows "$OUT/rows" --organizations 3 "${project[@]}"

echo; echo "== the provider: a certificate authority and the server's certificate"
run gradtf certs init "$OUT/ca"
run gradtf certs issue "$OUT/ca" --host 127.0.0.1 --out "$OUT/tls"

echo; echo "== each organization: keys and policy"
for i in 1 2 3; do
  run gradtf org init "$OUT/org-$i" --data "$OUT/rows/org-$i.train.jsonl" --test "$OUT/rows/org-$i.test.jsonl" --budget 10 \
    "${project[@]}"
done

echo; echo "== the provider: the server, and one invitation for all"
run gradtf server init "$OUT/server" --enrolment "$OUT"/org-1/enrolment.json --enrolment "$OUT"/org-2/enrolment.json \
  --enrolment "$OUT"/org-3/enrolment.json --address "127.0.0.1:$PORT" --listen "127.0.0.1:$PORT" --ca "$OUT/ca/ca.crt" \
  --certificate "$OUT/tls/server.crt" --key "$OUT/tls/server.key" --rounds "$ROUNDS" --epsilon 8 \
  "${project[@]}"

echo; echo "== each organization: compare the fingerprint by telephone, join, run"
fingerprint=$("$BIN/gradtf" org join "$OUT/org-1" "$OUT/server/invitation.json" </dev/null 2>/dev/null |
  sed -n 's/.*fingerprint //p' || true)
for i in 1 2 3; do
  run gradtf org join "$OUT/org-$i" "$OUT/server/invitation.json" --fingerprint "$fingerprint"
done
run gradtf org check "$OUT/org-1" --offline
for i in 1 2 3; do
  echo; echo "\$ gradtf org run $OUT/org-$i &"
  "$BIN/gradtf" org run "$OUT/org-$i" &
  nodes+=($!)
done

echo; echo "== the provider: $ROUNDS rounds"
run gradtf server run "$OUT/server"
run gradtf server status "$OUT/server" --once

echo; echo "== each organization: the LLM adapter with plain PEFT, and the ledger"
for i in 1 2 3; do run gradtf org adapter "$OUT/org-$i" --latest; done
run python -m experiments.demos.use_adapter "$OUT"/org-*/current_adapter --rows "$OUT/rows/org-1.test.jsonl"
ledgers=()
for i in 1 2 3; do ledgers+=(--ledger "$OUT/org-$i/ledger.sqlite"); done
run gradtf audit report "${ledgers[@]}"
run gradtf audit verify "${ledgers[@]}"
stop
nodes=()
echo
echo "demo-deployment: $ROUNDS rounds, 3 organizations, 3 ledgers verified, 3 adapters loaded, $(($(date +%s) - started)) s"
