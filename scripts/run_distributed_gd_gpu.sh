#!/usr/bin/env bash
# Distributed general distillation on GPU.
#   bash scripts/run_distributed_gd_gpu.sh DEVICE_NUM EPOCH_SIZE DATA_DIR SCHEMA_DIR TEACHER_CKPT [flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 5 "DEVICE_NUM EPOCH_SIZE DATA_DIR SCHEMA_DIR TEACHER_CKPT" $#
need_number DEVICE_NUM "$1"
need_number EPOCH_SIZE "$2"
device_target="${_device:-GPU}"
if [ "$device_target" = CPU ]; then share_cores "$1"; fi

start_workers "$1" "$PROJECT_DIR/run_general_distill.py" \
  --distribute=true --device_target="$device_target" --device_num="${WORKER_NUM:-$1}" --epoch_size="$2" \
  --save_ckpt_path="${save_ckpt_path:-$PWD/general_distill}" --load_teacher_ckpt_path="$5" \
  --data_dir="$3" --schema_dir="$4" --dataset_type="${dataset_type:-tfrecord}" "${@:6}"
