#!/usr/bin/env bash
# Distributed general distillation on Ascend.
#   bash scripts/run_distributed_gd_ascend.sh DEVICE_NUM EPOCH_SIZE RANK_TABLE_FILE [flags]
# Set the variables here or in the environment. BIND_CORES=0 does without cores of their own for the processes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_arguments 3 "DEVICE_NUM EPOCH_SIZE RANK_TABLE_FILE" $#
need_number DEVICE_NUM "$1"
need_number EPOCH_SIZE "$2"

load_teacher_ckpt_path="${load_teacher_ckpt_path:-}"
data_dir="${data_dir:-}"
schema_dir="${schema_dir:-}"
dataset_type="${dataset_type:-tfrecord}"
save_ckpt_path="${save_ckpt_path:-$PWD/general_distill}"
BIND_CORES="${BIND_CORES:-1}"
RANK_TABLE_FILE="$3"

start_workers "$1" "$PROJECT_DIR/run_general_distill.py" \
  --distribute=true --device_target=Ascend --device_num="${WORKER_NUM:-$1}" --epoch_size="$2" \
  --save_ckpt_path="$save_ckpt_path" --load_teacher_ckpt_path="$load_teacher_ckpt_path" \
  --data_dir="$data_dir" --schema_dir="$schema_dir" --dataset_type="$dataset_type" "${@:4}"
