#!/usr/bin/env bash
# Two "nodes" on one machine train together: network namespaces joined by a veth pair, one process each.
#   bash tests/two_nodes.sh OUTPUT_DIR TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER [flags of task distillation]
# Needs the right to make namespaces (root); exit code 77 where they cannot be made. The nodes share the file system.
set -uo pipefail

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")/../scripts" && pwd)"
out="$1" train="$2" dev="$3" teacher="$4"
shift 4
names=("minddistill-$$-0" "minddistill-$$-1")
addresses=(10.77.0.1 10.77.0.2)

remove_nodes() {
  for name in "${names[@]}"; do ip netns del "$name" 2> /dev/null; done # takes its end of the pair with it
}
trap remove_nodes EXIT

make_nodes() {
  local node
  ip link add md0 netns "${names[0]}" type veth peer name md1 netns "${names[1]}" || return
  for node in 0 1; do
    ip -n "${names[node]}" addr add "${addresses[node]}/24" dev "md$node" || return
    ip -n "${names[node]}" link set "md$node" up || return
    ip -n "${names[node]}" link set lo up || return
  done
}
if ! { command -v ip > /dev/null && ip netns add "${names[0]}" && ip netns add "${names[1]}" && make_nodes; }; then
  echo "network namespaces cannot be made here" >&2
  exit 77
fi

start_node() {
  mkdir -p "$out/node$1"
  cd "$out/node$1" || return
  export WORKER_NUM=2 NODE_RANK="$1" MASTER_ADDR="${addresses[0]}" MS_WORKER_IP="${addresses[$1]}" FOREGROUND=1
  export output_dir="$out/td"
  exec ip netns exec "${names[$1]}" bash "$scripts/run_distributed_td_cpu.sh" 1 "$train" "$dev" "$teacher" "${@:2}"
}
start_node 1 "$@" > "$out.node1" 2>&1 &
second=$!
(start_node 0 "$@") # a process of its own, so that the nodes are removed at the end
first_code=$?
wait "$second"
second_code=$?
[ "$second_code" = 0 ] || cat "$out.node1" >&2
exit $((first_code > second_code ? first_code : second_code))
