"""Models side by side: quality, size, latency, throughput and memory on the same rows, cores and machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable

from ..bench import measure, plots
from ..bench.environment import environment
from ..bench.report import Column, Section, Table, write_report
from ..config import flag, parse
from ..data.loader import Loader, PlannedBatch, choose_buckets
from ..data.records import Rows
from ..errors import UserError
from ..evaluation.evaluate import predict
from ..export.session import Facts, Session, describe
from ..files import model_path, write_text
from . import common
from .judging import scored
from .labels import check_problem, in_label_order

_ACCURACY_BATCH = 32
_THROUGHPUT_RUNS = 20


@dataclass
class Config:
    """Benchmark."""

    models: tuple[str, ...] = flag(
        (), "model directories, MindSpore's or ONNX; the first is what others are compared with"
    )
    data_dir: str = flag("", "labelled record directory")
    schema_dir: str = flag("", "path of the schema file; the record directory's own by default")
    dataset_type: Literal["tfrecord", "mindrecord"] = flag("tfrecord", "kind of the records")
    output_dir: str = flag("runs/benchmark", "where benchmark.jsonl, benchmark.png, benchmark.svg and report.html go")
    current: str = flag("", "model that is circled in the plot; the last one by default")
    threads: int = flag(1, "threads of every model, pinned to as many cores")
    runs: int = flag(200, "timed predictions of one sentence by each model; at least 100")
    length: int = flag(0, "tokens of the timed sentence, or of the row nearest to it; 0 takes the median of the rows")
    warm_up: int = flag(20, "predictions before the first timed one")
    batch_sizes: tuple[int, ...] = flag((1, 8, 32), "batch sizes of the throughput")


@dataclass(frozen=True)
class Result:
    """A row of `benchmark.jsonl`.

    Attributes:
        metrics: on all rows, the main one first.
        parameters, megabytes: of the weights; on disk, of the files that hold them.
        latency: milliseconds of one sentence, token ids to logits.
        throughput: sentences a second by batch size.
        peak_megabytes: the most memory of the process that did all this, its runtime included.
    """

    model: str
    path: str
    kind: str
    metrics: dict[str, float]
    parameters: int
    megabytes: float
    latency: dict[str, float]
    throughput: dict[int, float]
    peak_megabytes: float


def run(config: Config) -> list[Result]:
    """Measure all models in turn; print the tables, write figures, rows and report.

    Raises:
        UserError: flags, models and records do not go together.
    """
    _check(config)
    names = common.short_names(config.models)
    paths = dict(zip(names, config.models, strict=True))
    with measure.subjects(paths, Session.open, describe, config.threads) as opened:
        rows = {name: _rows(config, facts) for name, (_, facts) in opened.items()}[names[0]]
        results = _measured(config, paths, opened, rows)
    setting = {
        "data_dir": config.data_dir,
        "rows": len(rows),
        "tokens": typical(rows, 1, config.length)["input_ids"].shape[1],
        "threads": config.threads,
        "cores": measure.pinned_cores(config.threads),
        "runs": config.runs,
        "warm_up": config.warm_up,
        "environment": environment(),
    }
    current = names[config.models.index(config.current)] if config.current else names[-1]
    _write(Path(config.output_dir), results, setting, current)
    return results


def _measured(
    config: Config, paths: Mapping[str, str], opened: Mapping[str, tuple[measure.Subject, Facts]], rows: Rows
) -> list[Result]:
    """All figures of all models, in the order given."""
    quality = {name: _metrics(subject, facts, rows) for name, (subject, facts) in opened.items()}
    taken = [subject for subject, _ in opened.values()]
    seconds = measure.alternate(taken, typical(rows, 1, config.length), config.runs, warm_up=config.warm_up)
    speed = {name: {} for name in opened}
    for size in config.batch_sizes:
        batch = typical(rows, size, config.length)
        for name, values in measure.alternate(taken, batch, _THROUGHPUT_RUNS, warm_up=3, rounds=5).items():
            speed[name][size] = float(size / np.median(values))
    return [
        Result(
            model=name,
            path=paths[name],
            kind=facts.kind,
            metrics=quality[name],
            parameters=sum(value.size for value in common.arrays(model_path(paths[name])).values()),
            megabytes=common.megabytes(Path(paths[name])),
            latency=measure.latency(seconds[name]),
            throughput=speed[name],
            peak_megabytes=subject.peak_megabytes(),
        )
        for name, (subject, facts) in opened.items()
    ]


def _check(config: Config) -> None:
    if not config.models:
        raise UserError("--models is empty; expected the model directories to compare")
    for model in config.models:
        if not model_path(model).exists():
            raise UserError(f"--models {model}: no such file or directory; expected a model directory")
    if not config.data_dir:
        raise UserError("--data_dir is empty; expected a labelled record directory")
    if config.current and config.current not in config.models:
        raise UserError(f"--current {config.current}: not among --models {' '.join(config.models)}")
    for name, least in (("runs", 100), ("warm_up", 1)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)}: expected at least {least}")
    if min(config.batch_sizes, default=0) < 1:
        raise UserError(f"--batch_sizes {' '.join(map(str, config.batch_sizes))}: expected positive whole numbers")


def _rows(config: Config, facts: Facts) -> Rows:
    """The rows, checked against one model."""
    rows = common.read_checked(
        config.data_dir,
        "--data_dir",
        facts.config,
        facts.directory,
        kind=config.dataset_type,
        schema_file=config.schema_dir,
    )
    rows.require_labels("--data_dir")
    check_problem(facts.config, rows, facts.directory)
    rows.check_classes(facts.config.num_labels)
    return rows


def _metrics(subject: measure.Subject, facts: Facts, rows: Rows) -> dict[str, float]:
    buckets = choose_buckets(rows.length, rows.seq_length, most=3)
    logits = predict(subject.predict, Loader(rows, _ACCURACY_BATCH, buckets=buckets, shuffle=False))
    return scored(rows, facts.config, in_label_order(logits, facts.config, rows, subject.name))


def typical(rows: Rows, size: int, length: int = 0) -> dict[str, np.ndarray]:
    """A batch of the rows whose length is nearest to `length` (0: the median), padded to the longest of them."""
    nearest = np.argsort(np.abs(rows.length - (length or np.median(rows.length))), kind="stable")
    chosen = np.resize(nearest[:size], size)
    planned = PlannedBatch(chosen, int(rows.length[chosen].max()), size)
    batch = Loader(rows, size, shuffle=False).batch(planned)
    return {name: batch[name] for name in measure.INPUTS}


def _write(out: Path, results: list[Result], setting: Mapping[str, Any], current: str) -> None:
    """Write rows, figures and report, and print the tables."""
    lines = (json.dumps({**asdict(result), **setting}) for result in results)
    write_text(out / "benchmark.jsonl", "".join(f"{line}\n" for line in lines))
    metric = next(iter(results[0].metrics))
    spots = [plots.Spot(r.model, r.metrics[metric], r.latency["mean_ms"], r.megabytes) for r in results]
    figure = plots.trade_off(spots, current, metric)
    figures = plots.save(figure, out, "benchmark")
    quality, speed, how = _quality_table(results), _speed_table(results), _how(setting)
    sections = [
        Section("Quality and size", "Peak: the whole process with its runtime.", table=quality),
        Section("Latency and throughput", how, table=speed),
        Section("Quality over latency", "Area: size on disk. Dashed: the current model.", figures={metric: figure}),
        Section("Environment", facts=setting["environment"]),
    ]
    lead = f"{setting['rows']} rows of {setting['data_dir']}"
    page = write_report(out / "report.html", "Benchmark", lead, _headline(results), sections)
    console = Console(highlight=False)
    # A file or pipe has no width; the tables are not to be folded for it.
    console.width = console.width if console.is_terminal else 120
    console.print(_terminal(quality), _terminal(speed), how, sep="\n")
    console.print(f"Written: {', '.join(map(str, [out / 'benchmark.jsonl', *figures, page]))}", soft_wrap=True)


def _how(setting: Mapping[str, Any]) -> str:
    """How latency was measured."""
    threads = f"{setting['threads']} thread{'s' if setting['threads'] > 1 else ''}"
    cores = f"pinned to core {', '.join(map(str, setting['cores']))}" if setting["cores"] else "not pinned"
    return (
        f"Latency of one sentence of {setting['tokens']} tokens, token ids to logits: {setting['runs']} runs after "
        f"{setting['warm_up']} untimed ones; models in turn, each in its own process; {threads}, {cores}."
    )


def _quality_table(results: list[Result]) -> Table:
    """A row a model: how good and how large it is; ratios are to the first."""
    first, names = results[0], list(results[0].metrics)
    columns = [Column("model"), Column("runs on"), *(Column(name, ".4f") for name in names), Column("kept", ".1%")]
    columns += [Column("parameters", ",d"), Column("MB", ".1f"), Column("of size", ".2f"), Column("peak MB", ",.0f")]
    rows = [
        [
            r.model,
            r.kind,
            *(r.metrics[name] for name in names),
            r.metrics[names[0]] / first.metrics[names[0]] if first.metrics[names[0]] else None,
            r.parameters,
            r.megabytes,
            r.megabytes / first.megabytes,
            r.peak_megabytes,
        ]
        for r in results
    ]
    return Table(columns, rows)


def _speed_table(results: list[Result]) -> Table:
    """A row a model: milliseconds of one sentence, how many times faster its median is, and sentences a second."""
    first = results[0]
    columns = [Column("model"), *(Column(title, ".2f") for title in ("ms", "± std", "p50", "p95", "p99"))]
    columns += [Column("faster", ".2f"), *(Column(f"{size} at once, /s", ",.0f") for size in first.throughput)]
    rows = [
        [r.model, *r.latency.values(), first.latency["p50_ms"] / r.latency["p50_ms"], *r.throughput.values()]
        for r in results
    ]
    return Table(columns, rows)


def _headline(results: list[Result]) -> list[tuple[str, str, str]]:
    first, last = results[0], results[-1]
    name, value = next(iter(last.metrics.items()))
    times = first.latency["p50_ms"] / last.latency["p50_ms"]
    return [
        (f"{last.model}, {name}", f"{value:.4f}", f"{first.model}: {first.metrics[name]:.4f}"),
        ("Latency, p50", f"{last.latency['p50_ms']:.2f} ms", f"{times:.2f} times faster"),
        ("On disk", f"{last.megabytes:.1f} MB", f"{first.megabytes / last.megabytes:.2f} times smaller"),
        ("Peak memory", f"{last.peak_megabytes:,.0f} MB", f"{first.model}: {first.peak_megabytes:,.0f} MB"),
    ]


def _terminal(table: Table) -> TerminalTable:
    found = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        found.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        found.add_row(*(column.show(value) for column, value in zip(table.columns, row, strict=True)))
    return found


def main(argv: list[str] | None = None) -> None:
    """Entry of `minddistill benchmark`."""
    run(*parse("minddistill benchmark", "Measure models side by side.", [Config], argv))
