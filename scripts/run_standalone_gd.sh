#!/usr/bin/env bash
# Standalone general distillation. Set the variables here or in the environment; further flags are passed on:
#   load_teacher_ckpt_path=/path/teacher data_dir=/path/records bash scripts/run_standalone_gd.sh --train_steps 1000
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

device_target="${device_target:-}"                    # Ascend, GPU or CPU; empty takes the best there is
device_id="${device_id:-}"                            # empty: 0
epoch_size="${epoch_size:-}"                          # empty: 1
save_ckpt_path="${save_ckpt_path:-$PWD/general_distill}"
load_teacher_ckpt_path="${load_teacher_ckpt_path:-}"
data_dir="${data_dir:-}"
schema_dir="${schema_dir:-}"
dataset_type="${dataset_type:-}"                      # empty: tfrecord

if [ -z "$data_dir$load_teacher_ckpt_path" ] && ! names_inputs "$@"; then
  need_example "Neither data_dir nor load_teacher_ckpt_path"
  data_dir="$PROJECT_DIR/runs/quickstart/data/train"
  load_teacher_ckpt_path="$PROJECT_DIR/runs/quickstart/teacher"
  set -- --student minilm-l3 "$@"
fi

flags=(--distribute=false)
add_flags device_target device_id epoch_size save_ckpt_path load_teacher_ckpt_path data_dir schema_dir dataset_type
start_run "$PYTHON" "$PROJECT_DIR/run_general_distill.py" "${flags[@]}" "$@"
