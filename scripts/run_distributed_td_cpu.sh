#!/usr/bin/env bash
# Distributed task distillation on CPU: two phases, then evaluation. Further flags of task distillation are passed on.
#   bash scripts/run_distributed_td_cpu.sh DEVICE_NUM TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER [flags]
# DEVICE_NUM processes share the cores; OMP_NUM_THREADS says how many threads each uses.
if [ $# -lt 4 ]; then
  echo "usage: bash scripts/run_distributed_td_cpu.sh DEVICE_NUM TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER [flags]" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_number DEVICE_NUM "$1"
cores="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"

start_workers "$1" "$PROJECT_DIR/run_task_distill.py" \
  --distribute=true --device_target=CPU --device_num="${WORKER_NUM:-$1}" \
  --train_data_dir="$2" --eval_data_dir="$3" --load_teacher_ckpt_path="$4" \
  --output_dir="${output_dir:-$PWD/task_distill}" "${@:5}"
