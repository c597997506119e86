#!/usr/bin/env bash
# Distributed task distillation on CPU: two phases, then evaluation. Further flags of task distillation are passed on.
#   bash scripts/run_distributed_td_cpu.sh DEVICE_NUM TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER [flags]
# DEVICE_NUM processes share the cores; OMP_NUM_THREADS says how many threads each uses.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
start_task_distillation CPU "$@"
