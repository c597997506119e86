"""A trained model as a graph that runs without this package: ONNX or MindIR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import runtime
from ..config import flag, parse
from ..errors import UserError
from ..export import directory, mindir, onnx
from ..models import store


@dataclass
class Config:
    """Export."""

    model: str = flag("", "model directory or .ckpt of a classifier")
    format: Literal["onnx", "mindir"] = flag("onnx", "onnx (ONNX Runtime) or mindir (MindSpore and MindSpore Lite)")
    output_dir: str = flag("", "where the graph, config.json and the tokenizer go")
    fp16: bool = flag(False, "weights and arithmetic of an ONNX graph in float16, for GPUs")
    num_attention_heads: int = flag(12, "attention heads of a .ckpt that has no config.json beside it")


def run(config: Config) -> Path:
    """Write the directory of the exported model. Returns it.

    Raises:
        UserError: the model cannot be read or is no classifier, or flags contradict each other.
    """
    target = directory.check_target(config.output_dir)
    if config.fp16 and config.format != "onnx":
        raise UserError(f"--fp16 true: expected --format onnx, found {config.format}")
    runtime.start()
    weights = store.read_weights(config.model, config.num_attention_heads)
    weights.config.require_classifier(config.model)

    def save(part: Path) -> None:
        if config.format == "mindir":
            mindir.save(weights, part / directory.MINDIR_FILE)
        else:
            store.build(weights)  # as MindIR is: which sees that all are there, of the right shapes, and numbers
            onnx.save(onnx.build(weights, config.fp16), part / directory.ONNX_FILE)

    command = f"minddistill export --format {config.format}"
    directory.write(target, save, weights.config, weights.directory, command, {"parameters": weights.count})
    print(f"{config.model}: exported to {target}")
    return target


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill export`."""
    run(*parse("minddistill export", "A trained model to ONNX or MindIR.", [Config], argv))
