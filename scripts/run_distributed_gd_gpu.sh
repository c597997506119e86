#!/usr/bin/env bash
# Distributed general distillation on GPU.
#   bash scripts/run_distributed_gd_gpu.sh DEVICE_NUM EPOCH_SIZE DATA_DIR SCHEMA_DIR TEACHER_CKPT [flags]
if [ $# -lt 5 ]; then
  echo "usage: bash scripts/run_distributed_gd_gpu.sh DEVICE_NUM EPOCH_SIZE DATA_DIR SCHEMA_DIR TEACHER_CKPT [flags]" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_number DEVICE_NUM "$1"
need_number EPOCH_SIZE "$2"

start_workers "$1" "$PROJECT_DIR/run_general_distill.py" \
  --distribute=true --device_target="${device_target:-GPU}" --device_num="${WORKER_NUM:-$1}" --epoch_size="$2" \
  --save_ckpt_path="${save_ckpt_path:-$PWD/general_distill}" --load_teacher_ckpt_path="$5" \
  --data_dir="$3" --schema_dir="$4" --dataset_type="${dataset_type:-tfrecord}" "${@:6}"
