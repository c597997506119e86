"""How much of ONNX Runtime's own throughput `minddistill predict` keeps, on a file of 10,000 sentences.

    python benchmarks/predict.py MODEL TEXTS [--count 10000] [--threads 1] [--rounds 5]

MODEL is an exported directory, TEXTS a file with a sentence a line; it is repeated to `--count` sentences. Both sides take turns:
`raw` runs the graph over batches that were tokenised, sorted by length and padded before the clock started; `predict` goes
from the file of sentences to the file of labels and scores, in one process that is already started.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from minddistill import pipeline
from minddistill.recipes.predict import Config, run


def raw(model, batches) -> float:
    """Seconds of the graph alone."""
    began = time.perf_counter()
    for _, inputs in batches:
        model.session.predict(*inputs)
    return time.perf_counter() - began


def whole(config: Config) -> float:
    """Seconds from sentences to labels, opening the model left out."""
    began = time.perf_counter()
    run(config)
    return time.perf_counter() - began


def opening(config: Config) -> float:
    """Seconds that opening the model takes."""
    began = time.perf_counter()
    pipeline(config.model, threads=config.threads, batch_size=config.batch_size)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = options.texts.read_text(encoding="utf-8").splitlines()
    lines = [lines[index % len(lines)] for index in range(options.count)]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "texts.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = Config(
            texts=[],
            model=options.model,
            file=str(file),
            output_file=str(Path(scratch) / "out.jsonl"),
            threads=options.threads,
        )
        model = pipeline(options.model, threads=options.threads, batch_size=config.batch_size)
        batches = model.batches(lines)
        found = {"raw": [], "predict": [], "opening": []}
        for _ in range(options.rounds):
            found["raw"].append(raw(model, batches))
            found["opening"].append(opening(config))
            found["predict"].append(whole(config) - found["opening"][-1])
    seconds = {name: statistics.median(values) for name, values in found.items()}
    ratio = seconds["raw"] / seconds["predict"]
    print(json.dumps({"sentences": len(lines), "threads": options.threads, "seconds": seconds, "ratio": ratio}))


if __name__ == "__main__":
    main()
