#!/usr/bin/env bash
# Standalone task distillation. Set the variables here or in the environment; further flags are passed on:
#   task_name=SST-2 load_teacher_ckpt_path=... load_gd_ckpt_path=... train_data_dir=... eval_data_dir=... \
#     bash scripts/run_standalone_td.sh --batch_size 16
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

device_target="${device_target:-}"                    # Ascend, GPU or CPU; empty takes the best there is
device_id="${device_id:-}"                            # empty: 0
do_train="${do_train:-}"                              # empty: true
do_eval="${do_eval:-}"                                # empty: true
td_phase1_epoch_size="${td_phase1_epoch_size:-}"      # empty: 10
td_phase2_epoch_size="${td_phase2_epoch_size:-}"      # empty: 3
task_name="${task_name:-}"
load_teacher_ckpt_path="${load_teacher_ckpt_path:-}"
load_gd_ckpt_path="${load_gd_ckpt_path:-}"
load_td1_ckpt_path="${load_td1_ckpt_path:-}"
train_data_dir="${train_data_dir:-}"
eval_data_dir="${eval_data_dir:-}"
schema_dir="${schema_dir:-}"
dataset_type="${dataset_type:-}"                      # empty: tfrecord
output_dir="${output_dir:-$PWD/task_distill}"

if [ -z "$train_data_dir$eval_data_dir$load_teacher_ckpt_path$load_gd_ckpt_path$load_td1_ckpt_path" ] && ! names_inputs "$@"; then
  need_example "None of the records and models"
  train_data_dir="$PROJECT_DIR/runs/quickstart/data/train"
  eval_data_dir="$PROJECT_DIR/runs/quickstart/data/dev"
  load_teacher_ckpt_path="$PROJECT_DIR/runs/quickstart/teacher"
  set -- --student minilm-l3 "$@"
fi

flags=()
add_flags device_target device_id do_train do_eval td_phase1_epoch_size td_phase2_epoch_size task_name \
  load_teacher_ckpt_path load_gd_ckpt_path load_td1_ckpt_path train_data_dir eval_data_dir schema_dir dataset_type output_dir
start_run "$PYTHON" "$PROJECT_DIR/run_task_distill.py" "${flags[@]}" "$@"
