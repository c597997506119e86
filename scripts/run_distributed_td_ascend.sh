#!/usr/bin/env bash
# Distributed task distillation on Ascend: two phases, then evaluation. Further flags of task distillation are passed on.
#   bash scripts/run_distributed_td_ascend.sh DEVICE_NUM TRAIN_DATA_DIR EVAL_DATA_DIR TEACHER [flags]
# RANK_TABLE_FILE of the environment is checked and handed to MindSpore. BIND_CORES=0 does without cores of their own.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
BIND_CORES="${BIND_CORES:-1}"
start_task_distillation Ascend "$@"
