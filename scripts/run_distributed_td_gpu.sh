#!/usr/bin/env bash
# Distributed task distillation on GPU: two phases, then evaluation. Further flags of task distillation are passed on.
#   bash scripts/run_distributed_td_gpu.sh DEVICE_NUM TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER [flags]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start_task_distillation GPU "$@"
