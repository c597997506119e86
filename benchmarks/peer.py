"""What MindDistill is measured against: TinyBERT's task and general distillation as a PyTorch loop.

`plain` is the original's: the teacher runs at every step, every row is padded to one length, float32. `skilled` is what
an experienced user of PyTorch would run: rows grouped by length as transformers' sampler does, each batch padded to its
own longest row, bfloat16 autocast. Prints one JSON object of seconds; run by bench.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, inner: int, dropout: float, eps: float):
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.attention_output, self.intermediate = nn.Linear(hidden, hidden), nn.Linear(hidden, inner)
        self.output = nn.Linear(inner, hidden)
        self.attention_norm, self.output_norm = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.dropout = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (self.split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.size) + bias
        context = self.dropout(scores.softmax(-1)) @ value
        context = context.transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.dropout(self.attention_output(context)))
        return self.output_norm(x + self.dropout(self.output(F.gelu(self.intermediate(x))))), scores


class Bert(nn.Module):
    """BERT whose layers return attention scores before softmax, as TinyBERT's losses need them."""

    def __init__(self, config: dict, layers: int, classes: int, dropout: float):
        super().__init__()
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.word = nn.Embedding(config["vocab_size"], hidden)
        self.position = nn.Embedding(config["max_position_embeddings"], hidden)
        self.segment = nn.Embedding(config["type_vocab_size"], hidden)
        self.norm, self.dropout = nn.LayerNorm(hidden, eps), nn.Dropout(dropout)
        sizes = hidden, config["num_attention_heads"], config["intermediate_size"], dropout, eps
        self.layers = nn.ModuleList([Layer(*sizes) for _ in range(layers)])
        self.pooler = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        places = torch.arange(ids.shape[1])
        x = self.dropout(self.norm(self.word(ids) + self.position(places) + self.segment(segments)))
        bias = (1.0 - mask[:, None, None].to(x.dtype)) * -10000.0
        hidden, attentions = [x], []
        for layer in self.layers:
            x, scores = layer(x, bias)
            hidden.append(x)
            attentions.append(scores)
        return hidden, attentions, self.classifier(self.dropout(torch.tanh(self.pooler(x[:, 0]))))


_PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}
_OUTER = {
    "embeddings.word_embeddings": "word",
    "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "segment",
    "embeddings.LayerNorm": "norm",
    "pooler.dense": "pooler",
    "classifier": "classifier",
}


def load(directory: Path, taken: list[int] | None, dropout: float, classes: int) -> Bert:
    """A model directory's weights, of all its layers, or of those taken for a student, whose classifier is new."""
    config = json.loads((directory / "config.json").read_text())
    outer = {theirs: mine for theirs, mine in _OUTER.items() if taken is None or mine != "classifier"}
    taken = list(range(config["num_hidden_layers"])) if taken is None else taken
    model = Bert(config, len(taken), classes, dropout)
    found = {name.removeprefix("bert."): value for name, value in load_file(directory / "model.safetensors").items()}
    state = dict(model.state_dict())
    for theirs, mine in outer.items():
        for leaf in ("weight", "bias"):
            if f"{theirs}.{leaf}" in found:
                state[f"{mine}.{leaf}"] = found[f"{theirs}.{leaf}"]
    for place, number in enumerate(taken):
        for theirs, mine in _PARTS.items():
            for leaf in ("weight", "bias"):
                state[f"layers.{place}.{mine}.{leaf}"] = found[f"encoder.layer.{number}.{theirs}.{leaf}"]
    model.load_state_dict(state)
    return model


def save(student: Bert, teacher: Path, out: Path) -> None:
    """Write the student as a model directory like its teacher's, which `minddistill evaluate` reads."""
    found = student.state_dict()
    state = {}
    for theirs, mine in _OUTER.items():
        for name in [name for name in found if name.startswith(f"{mine}.")]:
            place = theirs if mine == "classifier" else f"bert.{theirs}"
            state[place + name.removeprefix(mine)] = found[name]
    for number in range(len(student.layers)):
        for theirs, mine in _PARTS.items():
            for leaf in ("weight", "bias"):
                state[f"bert.encoder.layer.{number}.{theirs}.{leaf}"] = found[f"layers.{number}.{mine}.{leaf}"]
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((teacher / "config.json").read_text()) | {"num_hidden_layers": len(student.layers)}
    (out / "config.json").write_text(json.dumps(config))
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher / name, out / name)
    save_file(state, out / "model.safetensors")


def order_of(length: np.ndarray, batch: int, grouped: bool, generator: np.random.Generator) -> list[np.ndarray]:
    """The batches of an epoch; grouped as transformers' LengthGroupedSampler: sorted within 50 batches' rows."""
    order = generator.permutation(len(length))
    if not grouped:
        return [order[start : start + batch] for start in range(0, len(order), batch)]
    batches = []
    for start in range(0, len(order), 50 * batch):
        mega = order[start : start + 50 * batch]
        mega = mega[np.argsort(-length[mega], kind="stable")]
        batches += [mega[at : at + batch] for at in range(0, len(mega), batch)]
    return batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("plain", "skilled"), required=True)
    parser.add_argument("--stage", choices=("phase1", "phase2", "general"), required=True)
    parser.add_argument("--rows", type=Path, required=True, help="an .npz of ids, length, second")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="a model directory to start from in place of the teacher's layers")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="time so many steps of the first epoch; 0 runs them all")
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="run both models through torch.compile")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    rows = np.load(args.rows)
    ids, length, second = rows["ids"], rows["length"], rows["second"]
    ids = np.pad(ids, ((0, 0), (0, max(args.length - ids.shape[1], 0))))
    student = load(args.student or args.teacher, None if args.student else [1, 3, 5], 0.1, 2).train()
    teacher = load(args.teacher, None, 0.0, 2).eval()
    teach, learn = teacher, student
    if args.compile:  # for any length: a batch's is its own longest row's
        teach, learn = (torch.compile(model, dynamic=True) for model in (teacher, student))
    project = nn.Linear(student.word.embedding_dim, teacher.word.embedding_dim)
    decayed = [p for p in (*student.parameters(), *project.parameters()) if p.dim() > 1]
    plain = [p for p in (*student.parameters(), *project.parameters()) if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, eps=1e-6, fused=args.kind == "skilled")
    generator = np.random.default_rng(args.seed)
    skilled = args.kind == "skilled"
    steps_an_epoch = len(order_of(length, args.batch, skilled, generator))
    total, done, times, tokens = steps_an_epoch * args.epochs, 0, [], []
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(s / (0.1 * total), (total - s) / (0.9 * total)) if s < total else 0.0
    )
    startup = time.time() - float(os.environ["BENCH_BEGAN"])
    for _ in range(args.epochs):
        batches = order_of(length, args.batch, skilled, generator)
        if args.steps:  # one to warm up, then some spread over the epoch, so that lengths are met in proportion
            batches = [batches[0]] + [batches[i] for i in np.linspace(0, len(batches) - 2, args.steps).astype(int)]
        for picked in batches:
            at = time.perf_counter()
            width = int(length[picked].max()) if skilled else args.length
            places = np.arange(width)
            mask = torch.from_numpy((places < length[picked, None]).astype(np.int64))
            segments = torch.from_numpy(((places >= second[picked, None]) & (mask.numpy() == 1)).astype(np.int64))
            batch = torch.from_numpy(ids[picked, :width].astype(np.int64)), mask, segments
            with torch.autocast("cpu", torch.bfloat16, enabled=skilled):
                with torch.no_grad():
                    taught = teach(*batch)
                mine = learn(*batch)
                if args.stage == "phase2":
                    loss = -(taught[2].softmax(-1) * mine[2].log_softmax(-1)).mean()
                else:
                    loss = torch.zeros(())
                    for place, source in enumerate((1, 3, 5)):
                        theirs, ours = taught[1][source].float(), mine[1][place].float()
                        zero = torch.zeros(())
                        loss = loss + F.mse_loss(
                            torch.where(ours <= -100, zero, ours), torch.where(theirs <= -100, zero, theirs)
                        )
                    for place, source in enumerate((0, 2, 4, 6)):
                        loss = loss + F.mse_loss(project(mine[0][place]).float(), taught[0][source].float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([*student.parameters(), *project.parameters()], 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done % 100 == 0:
                loss.item()
            times.append(time.perf_counter() - at)
            tokens.append(int(length[picked].sum()))
        if args.steps:
            break
    at = time.perf_counter()
    save(student, args.teacher, args.output)
    saving = time.perf_counter() - at
    measured = times[1:] if args.steps else times
    print(
        json.dumps(
            {
                "startup": startup + (times[0] if args.steps else 0.0) + saving,
                "step": float(np.mean(measured)),
                "median": float(np.median(measured)),
                "steps": total,
                "measured": len(measured),
                "tokens_per_second": float(sum(tokens[-len(measured) :]) / sum(measured)),
            }
        )
    )


if __name__ == "__main__":
    main()
