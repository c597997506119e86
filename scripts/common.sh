# Shared by the run_*.sh scripts: where the project and its Python are, and how a run is started.
set -euo pipefail

PROJECT_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$PROJECT_DIR/.venv/bin/python" ] && PYTHON="$PROJECT_DIR/.venv/bin/python"
fi

# Runs "$@" in the background with its output in log.txt; FOREGROUND=1 stays and returns its exit code.
start_run() {
  : > log.txt  # appended to: it is also the run's own where the run directory is this one
  # In this process's place, so that signals reach it; Ctrl-C is for it, not for tee.
  if [ "${FOREGROUND:-0}" = 1 ]; then
    exec "$@" > >(tee -ai log.txt) 2>&1
  fi
  nohup "$@" >> log.txt 2>&1 &
  echo "Running in the background as process $!; its output is in $PWD/log.txt"
}

# The embedded example stands in where nothing is set.
need_example() {
  echo "$1 is set: using the embedded example in $PROJECT_DIR/runs/quickstart"
  if [ ! -f "$PROJECT_DIR/runs/quickstart/teacher/config.json" ]; then
    echo "It is not there yet; run 'make quickstart' first." >&2
    exit 2
  fi
}

# Adds to the array `flags` those of the named variables that are set: what is not is left to the command, or to --config.
add_flags() {
  local name
  for name in "$@"; do
    if [ -n "${!name:-}" ]; then flags+=("--$name=${!name}"); fi
  done
}

# Whether one of the words, a script's further flags, names records, models or a file of flags.
names_inputs() {
  local word
  for word in "$@"; do
    case "$word" in --config* | --data_dir* | --train_data_dir* | --eval_data_dir* | --load_*) return 0 ;; esac
  done
  return 1
}

# Starts DEVICE_NUM processes of "$@" on this node with msrun, the launcher that ships with MindSpore, in the background;
# FOREGROUND=1 stays and returns its exit code, DRY_RUN=1 only prints the command and its environment. Each process's
# output is in LOG<rank>/log.txt, msrun's own in msrun_log; the first process's and why a run ended, in log.txt.
#   MASTER_ADDR, MASTER_PORT  where the first node listens; the port after it is used too, to watch the processes
#   WORKER_NUM, NODE_RANK     processes of all nodes, and which of them this one is; for several nodes
#   CLUSTER_TIMEOUT           seconds until a process gives up that does not reach the first node
#   LOST_TIMEOUT              seconds without a sign of life after which a process is lost and all others end
#   BIND_CORES                1 gives each process cores of its own
#   RANK_TABLE_FILE           handed to msrun, and checked before anything starts
start_workers() {
  local device_num="$1" rank first worker_num master="${MASTER_ADDR:-127.0.0.1}" port="${MASTER_PORT:-8118}"
  shift
  worker_num="${WORKER_NUM:-$device_num}"
  need_number MASTER_PORT "$port"
  if [ "${#port}" -gt 5 ] || [ "$port" -gt 65534 ]; then
    echo "MASTER_PORT is '$port'; expected at most 65534, as the port after it is used too" >&2
    exit 2
  fi
  need_number WORKER_NUM "$worker_num"
  if [ "$worker_num" = "$device_num" ]; then
    NODE_RANK=0  # one node, whatever a batch system has set
  elif ! [[ "${NODE_RANK:-}" =~ ^(0|[1-9][0-9]*)$ ]] || [ "$(((NODE_RANK + 1) * device_num))" -gt "$worker_num" ]; then
    echo "WORKER_NUM is $worker_num, more than DEVICE_NUM: NODE_RANK is '${NODE_RANK:-}'; expected the number of this node," \
      "from 0 to $((worker_num / device_num - 1))" >&2
    exit 2
  fi
  local launch=("$PYTHON" -m minddistill.launch "--address=$master:$((port + 1))" "--node=$NODE_RANK"
    "--wait=${CLUSTER_TIMEOUT:-120}" "--silence=${LOST_TIMEOUT:-30}" "--log=$PWD/msrun_log/msrun.log" --
    "$PYTHON" -m mindspore.parallel.cluster.run "--worker_num=$worker_num"
    "--local_worker_num=$device_num" "--master_addr=$master" "--master_port=$port"
    "--cluster_time_out=${CLUSTER_TIMEOUT:-120}" --join=True --tail_worker_log=0 "--log_dir=$PWD/msrun_log")
  if [ "$worker_num" != "$device_num" ]; then
    launch+=("--node_rank=$NODE_RANK")
  fi
  [ "${BIND_CORES:-0}" = 1 ] && launch+=(--bind_core=True)
  if [ -n "${RANK_TABLE_FILE:-}" ]; then
    "$PYTHON" -m minddistill hccl-config --check "$RANK_TABLE_FILE" --device_num "$device_num" || exit 2
    launch+=("--rank_table_file=$RANK_TABLE_FILE")
  fi
  # msrun starts its processes by the name python3: it must find the interpreter of this project.
  PATH="$(dirname "$(command -v "$PYTHON")"):$PATH"
  launch+=(python3)
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf 'OMP_NUM_THREADS=%s' "${OMP_NUM_THREADS:-}"
    printf ' %q' "${launch[@]}" "$@"
    echo
    exit 0
  fi
  first=$((NODE_RANK * device_num))
  for ((rank = first; rank < first + device_num; rank++)); do
    mkdir -p "LOG$rank"
    ln -sfn "../msrun_log/worker_$rank.log" "LOG$rank/log.txt"
  done
  start_run "${launch[@]}" "$@"
}

# Checks that the argument named $1 is a positive whole number.
need_number() {
  if ! [[ "$2" =~ ^[1-9][0-9]*$ ]]; then
    echo "$1 is '$2'; expected a positive whole number" >&2
    exit 2
  fi
}

# Ends with the usage of the script that was called, whose arguments are $2, where $3 of them are fewer than $1.
need_arguments() {
  if [ "$3" -lt "$1" ]; then
    echo "usage: bash scripts/$(basename "$0") $2 [flags]" >&2
    exit 2
  fi
}

# Gives each of $1 processes on this node its share of the cores, where OMP_NUM_THREADS does not say otherwise.
share_cores() {
  local cores
  cores="$(nproc)"  # those that this process may use
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"
}

# Distributed task distillation on the device $1; the rest are the arguments of run_distributed_td_*.sh.
start_task_distillation() {
  local device="$1"
  shift
  need_arguments 4 "DEVICE_NUM TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER" $#
  need_number DEVICE_NUM "$1"
  if [ "$device" = CPU ]; then share_cores "$1"; fi
  start_workers "$1" "$PROJECT_DIR/run_task_distill.py" \
    --distribute=true --device_target="$device" --device_num="${WORKER_NUM:-$1}" \
    --train_data_dir="$2" --eval_data_dir="$3" --load_teacher_ckpt_path="$4" \
    --output_dir="${output_dir:-$PWD/task_distill}" "${@:5}"
}
