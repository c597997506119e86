"""General distillation under its documented name; see `minddistill general-distill --help`."""

import sys

from minddistill.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("general-distill", sys.argv[1:]))
