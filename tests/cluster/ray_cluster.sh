#!/usr/bin/env bash
# A real Ray cluster on nodes.sh: node "head" and workers w1..wN, each with its own /tmp/ray and /dev/shm.
#   ray_cluster.sh up DIR [WORKERS] [CPUS] [redis]  boot them (2) and start Ray on the head (2 cpus); `ray` must be on PATH;
#                                             with Ray's own state in a Redis on another node "redis", which outlives the head
#   ray_cluster.sh down DIR
#   ray_cluster.sh on DIR NODE cmd...         with RAY_ADDRESS and RAY_API_SERVER_ADDRESS set
#   ray_cluster.sh head DIR [CPUS]            start Ray on the head, at first or after it was lost
#   ray_cluster.sh worker DIR NODE [CPUS]     start Ray on a worker node, at first or after it was lost
set -euo pipefail
export NODES_NET=${NODES_NET:-10.232.0}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/nodes.sh"
verb=$1; DIR=$(realpath -m "$2"); shift 2
# Ray would run its workers at a lower priority than other tests.
export RAY_worker_niceness=0
export RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
# A silent node is declared dead within about 20 s (Ray's defaults: about a minute).
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=5
# A restarted head takes long on a loaded machine; by default the others wait a minute for it.
export RAY_gcs_rpc_server_reconnect_timeout_s=600
# Metrics can be scraped after seconds, not ten.
export RAY_metrics_report_interval_ms=3000
# Memory used by other tests is no reason to kill a worker.
export RAY_memory_monitor_refresh_ms=0
# No worker is started before there is work for it: each costs a second of CPU.
export RAY_prestart_worker_first_driver=0 RAY_enable_worker_prestart=0
# A token of the cluster's own, so that no ~/.ray/auth_token from elsewhere is used.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$DIR/ray_token
STORE=$((100 * 1024 * 1024))

redis() {
  node_on redis redis-server --bind "$(node_ip redis)" --port 6379 --protected-mode no --save "" --appendonly no \
    --daemonize yes --dir "$DIR" --logfile "$DIR/redis.log" >>"$DIR/redis.log"
}

head() { # CPUS
  if [ -n "$(node_ip redis)" ]; then
    export RAY_REDIS_ADDRESS="$(node_ip redis):6379" RAY_external_storage_namespace=tests
  fi
  for _ in 1 2 3; do # Ray gives a raylet 30 s to start, which a loaded machine may not keep
    node_on head ray start --head --node-ip-address="$(node_ip head)" --port=6379 --node-name=head \
      --num-cpus="$1" --object-store-memory=$STORE --dashboard-host="$(node_ip head)" \
      --no-monitor >>"$DIR/head.log" 2>&1 && return
    node_on head ray stop --force >>"$DIR/head.log" 2>&1 || true
  done
  cat "$DIR/head.log" >&2; return 1
}

worker() { # NODE CPUS
  for _ in 1 2 3; do
    node_on "$1" ray start --address="$(node_ip head):6379" --node-ip-address="$(node_ip "$1")" \
      --node-name="$1" --num-cpus="$2" --object-store-memory=$STORE >>"$DIR/$1.log" 2>&1 && return
  done
  tail -n 5 "$DIR/$1.log" >&2; return 1
}

case $verb in
  up)
    count=${1:-2}; cpus=${2:-2}; names=()
    for i in $(seq "$count"); do names+=("w$i"); done
    nodes_up head "${names[@]}" ${3:+redis}
    [ -e "$RAY_AUTH_TOKEN_PATH" ] || (umask 077; od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
    if [ -n "${3:-}" ]; then redis; fi
    head "$cpus" ;;
  head) head "${1:-2}" ;;
  down) nodes_down ;; # the pid namespaces take gcs, raylets, workers and the dashboard with them
  on) n=$1; shift; RAY_ADDRESS="$(node_ip head):6379" RAY_API_SERVER_ADDRESS="http://$(node_ip head):8265" node_on "$n" "$@" ;;
  worker) worker "$1" "${2:-2}" ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
