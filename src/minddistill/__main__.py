"""The command table."""

from __future__ import annotations

import importlib
import os
import sys

from . import __version__
from .errors import UserError

# Command: module of recipes, and its line in the overview.
COMMANDS = {
    "quickstart": ("quickstart", "the whole job on the embedded example: records, teacher, student, figures"),
    "prepare-task": ("prepare_task", "text of a task to records"),
    "prepare-corpus": ("prepare_corpus", "raw text to records for general distillation"),
    "finetune": ("finetune", "train an encoder on a task, as a teacher"),
    "general-distill": ("general_distill", "distil a pretrained teacher on a corpus"),
    "task-distill": ("task_distill", "distil a fine-tuned teacher on its task, in two phases"),
    "cache-teacher": ("cache_teacher", "a teacher's outputs ahead, for students trained where it is not"),
    "hccl-config": ("hccl_config", "rank tables of Ascend devices: write, merge, check"),
    "evaluate": ("evaluate", "measure a model on records; predictions and GLUE submissions"),
}


def run_command(name: str, argv: list[str]) -> int:
    """Run a command of the table; a user's mistake becomes one line and exit code 2."""
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    os.environ.setdefault("GLOG_v", "3")
    try:
        importlib.import_module(f".recipes.{COMMANDS[name][0]}", __package__).main(argv)
    except UserError as error:
        if debug:
            raise
        print(f"minddistill {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"minddistill {name}: stopped; the same command goes on from the last saved point", file=sys.stderr)
        return 130
    return 0


def main() -> None:
    """Entry of `minddistill`."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: minddistill COMMAND [flags]   (minddistill COMMAND --help lists a command's flags)\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()))
        sys.exit(0)
    if argv[0] == "--version":
        print(__version__)
        sys.exit(0)
    if argv[0] not in COMMANDS:
        print(f"minddistill: no command {argv[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_command(argv[0], argv[1:]))


if __name__ == "__main__":
    main()
