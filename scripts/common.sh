# Shared by the run_*.sh scripts: where the project and its Python are, and how a run is started.
set -euo pipefail

PROJECT_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$PROJECT_DIR/.venv/bin/python" ] && PYTHON="$PROJECT_DIR/.venv/bin/python"
fi

# Runs "$@" in the background with its output in log.txt; FOREGROUND=1 stays and returns its exit code.
start_run() {
  if [ "${FOREGROUND:-0}" = 1 ]; then
    "$@" 2>&1 | tee log.txt
    exit "${PIPESTATUS[0]}"
  fi
  nohup "$@" > log.txt 2>&1 &
  echo "Running in the background as process $!; its output is in $PWD/log.txt"
}

# The embedded example stands in where nothing is set.
need_example() {
  echo "$1 is not set: using the embedded example in $PROJECT_DIR/runs/quickstart"
  if [ ! -f "$PROJECT_DIR/runs/quickstart/teacher/config.json" ]; then
    echo "It is not there yet; run 'make quickstart' first." >&2
    exit 2
  fi
}
