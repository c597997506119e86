"""ONNX graphs in ONNX Runtime as `predict` opens them, beside sessions that change one thing: ms a batch, in turn.

    python benchmarks/session.py MODEL... [--length 32] [--rounds 40]

MODEL are directories with an ONNX graph. `fused` has the fusion of addition and layer norm, `exact` the int8 sums that processors
without VNNI need.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from minddistill.export.session import ONNX_FILE, SLOW_FUSION, runtime_session


def other(graph: Path, fused: bool, exact: bool) -> Any:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    disabled = [] if fused else [SLOW_FUSION]
    return onnxruntime.InferenceSession(str(graph), options, disabled_optimizers=disabled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    for model in args.models:
        graph = model / ONNX_FILE
        sessions = {"predict": runtime_session(graph, 1), "fused": other(graph, True, False)}
        sessions["exact"] = other(graph, False, True)
        for rows in (1, 32):
            ids = np.random.default_rng(0).integers(1000, 20000, (rows, args.length))
            whole = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            batch = {value.name: whole[value.name] for value in sessions["predict"].get_inputs()}
            taken: dict[str, list[float]] = {name: [] for name in sessions}
            for _ in range(args.rounds + 3):
                for name, session in sessions.items():
                    began = time.perf_counter()
                    session.run(None, batch)
                    taken[name].append(1000 * (time.perf_counter() - began))
            told = ", ".join(f"{name} {statistics.median(values[3:]):.2f} ms" for name, values in taken.items())
            print(f"{model}, {rows} x {args.length} tokens: {told}")


if __name__ == "__main__":
    main()
