"""The command table."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from . import __version__, runtime
from .errors import UserError
from .signals import handled

# Command: module of recipes, and its line in the overview.
COMMANDS = {
    "quickstart": ("quickstart", "the whole job on the embedded example: records, teacher, student, figures"),
    "prepare-task": ("prepare_task", "text of a task to records"),
    "prepare-corpus": ("prepare_corpus", "raw text to records for general distillation"),
    "augment": ("augment", "more training text of a task: words replaced by likely or near ones, or masked"),
    "label": ("label", "text with a teacher's logits or labels, for students of any tokenizer"),
    "pretrain-mlm": ("pretrain_mlm", "a masked-LM head for an encoder, trained on a corpus"),
    "init-student": ("init_student", "a student on word vectors: vocabulary, tokenizer, first weights"),
    "finetune": ("finetune", "train an encoder on a task, as a teacher"),
    "general-distill": ("general_distill", "distil a pretrained teacher on a corpus"),
    "task-distill": ("task_distill", "distil a fine-tuned teacher on its task, in two phases"),
    "distill": ("distill", "distil a classifier in one stage: labels, predictions, hidden states, attention"),
    "meta-pseudo-labels": ("meta_pseudo_labels", "a student of rows without labels, and a teacher that learns from it"),
    "prune": ("prune", "make a classifier sparse, or its tensors smaller, with its dense form as teacher"),
    "doctor": ("doctor", "look at everything that a stage of training needs, in seconds"),
    "cache-teacher": ("cache_teacher", "a teacher's outputs ahead, for students trained where it is not"),
    "hccl-config": ("hccl_config", "rank tables of Ascend devices: write, merge, check"),
    "evaluate": ("evaluate", "measure a model on records; predictions and GLUE submissions"),
    "export": ("export", "a trained model to ONNX or MindIR"),
    "quantize": ("quantize", "a trained or exported model to int8 ONNX"),
    "predict": ("predict", "labels and scores of texts"),
    "benchmark": ("benchmark", "models side by side: quality, size, latency, throughput, memory"),
    "search": ("search", "vary a command's flags in trials; the best configuration, fitted again"),
    "report": ("report", "a run's report.html, written anew"),
    "plot": ("plot", "figures: curves of a run, weights, sparsity, attention of models"),
}


def run_command(name: str, argv: list[str]) -> int:
    """Run a command of the table; a user's mistake, or a file that cannot be used, becomes one line and exit code 2."""
    code, why = _run(name, argv)
    if why:
        print(f"minddistill {name}: {why}", file=sys.stderr)
    runtime.leave(code, why)
    return code


def _run(name: str, argv: list[str]) -> tuple[int, str]:
    """The exit code, and why it is not 0."""
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    os.environ.setdefault("GLOG_v", "3" if debug else "4")  # MindSpore's own errors come as exceptions too
    try:
        with handled(_interrupt, signal.SIGTERM):  # as Ctrl-C does
            importlib.import_module(f".recipes.{COMMANDS[name][0]}", __package__).main(argv)
    except UserError as error:
        if debug:
            raise
        return 2, str(error)
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141, ""  # as a shell tells of SIGPIPE
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        return 2, f"{where}; check the path and its rights"
    except KeyboardInterrupt:
        return 130, "stopped; the same command, unless with --resume false, goes on from the last saved point"
    return 0, ""


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


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
