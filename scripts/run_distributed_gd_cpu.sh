#!/usr/bin/env bash
# Distributed general distillation on CPU: the arguments of run_distributed_gd_gpu.sh; SCHEMA_DIR may be "".
#   bash scripts/run_distributed_gd_cpu.sh DEVICE_NUM EPOCH_SIZE DATA_DIR SCHEMA_DIR TEACHER_CKPT [flags]
# DEVICE_NUM processes share the cores; OMP_NUM_THREADS says how many threads each uses.
_device=CPU
source "$(dirname "${BASH_SOURCE[0]}")/run_distributed_gd_gpu.sh"
