"""Commands in this process, and flags that keep a training run small."""

from minddistill.__main__ import run_command

QUICK = ["--batch_size", "16", "--log_interval", "5", "--buckets", "off"]


def command(name: str, *argv: object) -> int:
    """Run a command of minddistill; its exit code."""
    return run_command(name, [str(word) for word in argv])
