"""How many words a second `minddistill augment` asks a masked-LM model about, against one forward pass for each word.

    python benchmarks/augment.py MLM TEXTS [--count 256] [--reference 8] [--threads 2] [--rounds 3] [--compute_type int8]

MLM is a model directory with a masked-LM head, TEXTS a file with a sentence a line. The reference is the loop of TinyBERT's
original in PyTorch: each word masked alone, one forward of one sentence, scores of all places, the 15 best. It runs over the
first `--reference` sentences, ours over `--count`; both take turns, and compilation is left out (it is told apart).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from minddistill.data.augment import query_of


def reference(mlm: str, texts: list[str], threads: int):
    """A function of no arguments that gives the words asked about and the seconds taken."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(mlm)
    model = transformers.AutoModelForMaskedLM.from_pretrained(mlm).eval()

    @torch.no_grad()
    def run() -> tuple[int, float]:
        began, words = time.perf_counter(), 0
        for text in texts:
            pieces = tokenizer.tokenize(text)
            query = query_of(text)
            for place in query.places:
                if query.words[place] not in pieces:  # of several pieces: asked of the word vectors
                    continue
                masked = list(pieces)
                masked[pieces.index(query.words[place])] = tokenizer.mask_token
                first = tokenizer.convert_tokens_to_ids(["[CLS]", *masked, "[SEP]"])
                second = tokenizer.convert_tokens_to_ids([*pieces, "[SEP]"])
                ids = torch.tensor([first + second])
                segments = torch.tensor([[0] * len(first) + [1] * len(second)])
                scores = model(input_ids=ids, token_type_ids=segments).logits[0]
                best = torch.argsort(scores[first.index(tokenizer.mask_token_id)], descending=True)[:15]
                tokenizer.convert_ids_to_tokens(best.tolist())
                words += 1
        return words, time.perf_counter() - began

    return run


def ours(mlm: str, texts: list[str], batch: int, compute_type: str, threads: int):
    """The same of the command."""
    from minddistill.recipes.likely_words import LikelyWords  # which starts MindSpore, with the threads that are set

    model = LikelyWords(mlm, batch_size=batch, compute_type=compute_type, threads=threads)
    queries = [query_of(text) for text in texts]

    def run() -> tuple[int, float]:
        began = time.perf_counter()
        found = model.candidates(queries)
        return sum(map(len, found)), time.perf_counter() - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mlm")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--reference", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--compute_type", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    lines = options.texts.read_text(encoding="utf-8").splitlines()[: options.count]
    sides = {
        "reference": reference(options.mlm, lines[: options.reference], options.threads),
        "ours": ours(options.mlm, lines, options.batch, options.compute_type, options.threads),
    }
    first = {name: run()[1] for name, run in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            words, seconds = run()
            rates[name].append(words / seconds)
    ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates["reference"], strict=True)]
    print(
        json.dumps(
            {
                "words_a_second": {name: statistics.median(values) for name, values in rates.items()},
                "first_seconds": first,
                "ratio": statistics.median(ratios),
                "spread": [min(ratios), max(ratios)],
            }
        )
    )


if __name__ == "__main__":
    main()
