"""Makes what the benchmarks read, under one directory, and times the writing of records (case D1).

Teachers (MiniLM-L6 with a classifier; its weights do not matter to speed), records of SST-2, QNLI and wiki text, and
the same rows as .npz for the peers, which so read faster than from records. Run by bench.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from minddistill import runtime
from minddistill.data import records
from minddistill.models import store
from minddistill.recipes.quickstart import encoder_directory


def seconds(repeats: int, directory: Path, *words: str) -> float:
    """The median time of a command that writes `directory`, process start included."""
    times = []
    for _ in range(repeats):
        shutil.rmtree(directory, ignore_errors=True)
        began = time.perf_counter()
        words_and_place = [*words, "--output_dir", str(directory)]
        subprocess.run([sys.executable, "-m", "minddistill", *words_and_place], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    encoder = str(encoder_directory())
    took = {}
    for task, repeats in (("SST-2", 3), ("QNLI", 1)):
        words = ("prepare-task", "--task_name", task, "--data_dir", str(data / "glue" / task), "--tokenizer", encoder)
        took[task] = seconds(repeats, out / task, *words)
    texts = sorted((data / "wiki").glob("*.txt"))
    words = ("prepare-corpus", "--input", ",".join(map(str, texts)), "--tokenizer", encoder)
    took["wiki"] = seconds(3, out / "wiki", *words)
    labels: dict[str, tuple[str, ...]] = {}
    for name in ("SST-2/train", "QNLI/train", "wiki"):
        rows = records.read_rows(out / name, labelled=name != "wiki")
        part = name.split("/")[0]
        np.savez(out / f"{part}.npz", ids=rows.ids, length=rows.length, second=rows.second)
        labels[part] = tuple(rows.meta.get("labels", ("0", "1")))
    runtime.start("CPU")
    weights = store.read_weights(encoder)
    about = {"command": "benchmarks/inputs.py", "parents": {"encoder": encoder}, "data": {}, "metrics": {}}
    for part, names in labels.items():
        teacher = store.build(weights, weights.config.with_(labels=names), seed=1, may_miss=("classifier.",))
        store.save(out / f"teacher_{part}", teacher, tokenizer_from=Path(encoder), **about)
    sentences = sum(json.loads(meta.read_text())["rows"] for meta in (out / "SST-2").glob("*/meta.json"))
    written = {
        "sentences_per_second": sentences / took["SST-2"],
        "megabytes_per_second": sum(text.stat().st_size for text in texts) / 1e6 / took["wiki"],
    }
    (out / "written.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
