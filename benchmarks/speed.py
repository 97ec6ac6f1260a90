"""Relevance against the plain input gradient of the untouched model, and conversion against export.

Every ratio is to transformers' own model, as it comes, with ``torch.autograd.grad`` of the arg-max logit at
``inputs_embeds``; both sides in float32 with the same number of threads, run in turns. See
:mod:`benchmarks.measure` for what is measured.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fxlrp
from benchmarks.conversion import Conversion, convert_llama
from benchmarks.measure import Clock, Contender, Local, paired_ratio
from benchmarks.models import Case, gradient_times_input
from benchmarks.peers import peers

#: Largest ratios of time and of memory, by ruleset.
Goals = Mapping[str, tuple[float | None, float | None]]
#: What fxlrp allows itself on CPU.
GOALS: Goals = {
    "attnlrp": (1.0, 1.0),
    "cp-lrp": (0.80, 0.55),
    "ali2022": (0.90, None),
    "gradient": (None, None),
}

#: The same at the shapes of real networks, where the caller does not ask for the outputs.
REAL_SHAPES: dict[Case, Goals] = {
    Case("MiniLM", 256, 384, 6): {
        "epsilon": (1.15, 1.10),
        "attnlrp-relevance": (1.50, 1.60),
        "chefer2021-bert": (3.00, 2.50),
        "wu-ong2020": (2.80, 2.50),
    },
    Case("SmolLM2", 512, 576, 30): {
        "attnlrp": (0.95, 0.80),
        "cp-lrp": (0.75, 0.45),
        "epsilon": (1.15, 1.10),
        "attnlrp-relevance": (1.45, 1.60),
    },
    Case("SmolLM2", 1536, 576, 30): {"cp-lrp": (0.75, 0.45)},
}

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Measurement:
    """One contender on one case, relative to the plain gradient of the untouched model."""

    family: str
    length: int
    contender: str
    milliseconds: float
    megabytes: float
    time_ratio: float
    memory_ratio: float
    time_goal: float | None = None
    memory_goal: float | None = None


def measure(
    case: Case,
    goals: Goals,
    rounds: int,
    clock: Clock,
    progress: Progress,
    others: Iterable[Contender] = (),
    **how: Any,
) -> list[Measurement]:
    """Every contender on one case; the first measurement is the baseline itself, against itself. ``how``: options of
    :meth:`fxlrp.ConvertedModel.attribute`.
    """
    model, embeddings = case.model(), case.inputs()
    baseline = Local("plain gradient", lambda: gradient_times_input(model, embeddings))
    first = fxlrp.convert(model, next(iter(goals)), example_inputs={"inputs_embeds": embeddings})
    ours = [_relevance(first.with_ruleset(name), embeddings, **how) for name in goals]
    contenders: list[Contender] = [baseline, *ours, *others]
    task = progress.add_task(str(case), total=len(contenders))
    rows = []
    for contender in contenders:
        for _ in range(3):  # the first runs trace, compile, fill caches, and compare the graph with its model
            contender.seconds(clock)
        ratio, duration = paired_ratio(baseline, contender, rounds, clock)
        memory, reference = contender.peak(), baseline.peak()
        allowed = goals.get(contender.name.removeprefix("fxlrp "), (None, None))
        absolute, relative = (1e3 * duration, memory / 2**20), (ratio, memory / reference)
        rows.append(Measurement(case.family, case.length, contender.name, *absolute, *relative, *allowed))
        progress.advance(task)
    return rows


def measure_with_peers(
    case: Case, rounds: int, threads: int, clock: Clock, progress: Progress
) -> tuple[list[Measurement], list[str]]:
    """Every contender on one case, those of other packages as well, with notes on these."""
    with peers(case, case.model(), threads) as (others, notes):
        return measure(case, GOALS, rounds, clock, progress, others), notes


def _relevance(lrp: fxlrp.ConvertedModel, embeddings: torch.Tensor, **how: Any) -> Local:
    """Forward and relevance through the public call, from inputs to an :class:`fxlrp.Attribution`."""
    return Local(
        f"fxlrp {lrp.ruleset.name}", lambda: lrp.attribute({"inputs_embeds": embeddings}, **how).relevance.sum(-1)
    )


def speed_table(rows: Iterable[Measurement]) -> Table:
    """Ratios with their goals; a missed goal is red."""
    table = Table(title="Forward + relevance / forward + plain input gradient (CPU, float32)")
    for heading in ("model", "tokens", "what", "ms", "MiB", "time", "goal", "memory", "goal"):
        table.add_column(heading, justify="left" if heading in ("model", "what") else "right", no_wrap=True)
    before: tuple[str, int] | None = None
    for row in rows:
        if before not in (None, (row.family, row.length)):
            table.add_section()
        before = (row.family, row.length)
        table.add_row(
            row.family,
            str(row.length),
            row.contender,
            f"{row.milliseconds:.0f}",
            f"{row.megabytes:.0f}",
            *_judged(row.time_ratio, row.time_goal),
            *_judged(row.memory_ratio, row.memory_goal),
        )
    return table


def _judged(ratio: float, goal: float | None) -> tuple[str, str]:
    if goal is None:
        return f"{ratio:.2f}x", ""
    colour = "green" if round(ratio, 2) <= goal else "red"
    return f"[{colour}]{ratio:.2f}x[/]", f"<= {goal:.2f}"


def conversion_table(rows: Iterable[Conversion]) -> Table:
    """Seconds by depth, and what each layer costs."""
    table = Table(title="Conversion of a Llama on the meta device: fxlrp's passes / torch.export")
    for heading in (
        "layers",
        "nodes",
        "export s",
        "passes s",
        "ratio",
        "goal",
        "passes ms per layer",
        "peak MB per layer",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.layers),
            str(row.nodes),
            f"{row.export_seconds:.2f}",
            f"{row.passes_seconds:.2f}",
            *_judged(row.ratio, 1.0),
            f"{1e3 * row.passes_per_layer:.1f}",
            f"{row.bytes_per_layer / 1e6:.2f}",
        )
    return table


def _environment(threads: int, rounds: int, clock: Clock) -> dict[str, Any]:
    return {
        "fxlrp": fxlrp.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "rounds": rounds,
        "clock": clock.value,
    }


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="128 tokens only, fewer rounds, shallow conversions.")] = False,
    long: Annotated[bool, typer.Option("--long", help="Convert 80 layers as well.")] = False,
    rounds: Annotated[int, typer.Option(min=0, help="Pairs of runs for each ratio (0 = 15, or 5 with --quick).")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch (0 = its own choice).")] = 0,
    clock: Annotated[Clock, typer.Option(help="Seconds on the wall, or of processor time.")] = Clock.WALL,
    speed: Annotated[bool, typer.Option(help="Measure relevance against the plain gradient.")] = True,
    shapes: Annotated[bool, typer.Option(help="Measure it at the shapes of real networks.")] = True,
    conversion: Annotated[bool, typer.Option(help="Measure conversion against torch.export.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Compare fxlrp with the plain gradient, lxt and captum, and its conversion with torch.export."""
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    rounds = rounds or (5 if quick else 15)
    cases = [Case(family, length) for family in ("Llama", "BERT") for length in ((128,) if quick else (128, 512))]
    depths = (4, 8) if quick else (8, 16, 32, 80) if long else (8, 16, 32)
    measured: list[Measurement] = []
    converted: list[Conversion] = []
    notes: list[str] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for case in cases if speed else ():
            rows, remarks = measure_with_peers(case, rounds, threads, clock, progress)
            measured.extend(rows)
            notes.extend(note for note in remarks if note not in notes)
        for case, goals in REAL_SHAPES.items() if shapes else ():
            if not quick or case.layers < 10:
                measured.extend(measure(case, goals, rounds, clock, progress, outputs=False))
        if conversion:
            convert_llama(1)  # imports and caches are paid here
            task = progress.add_task("conversion", total=len(depths))
            for depth in depths:
                converted.append(convert_llama(depth))
                progress.advance(task)
    environment = _environment(threads, rounds, clock)
    if as_json:
        shown = [{**asdict(row), "ratio": row.ratio} for row in converted]
        document = {
            "environment": environment,
            "speed": [asdict(row) for row in measured],
            "conversion": shown,
        }
        print(json.dumps({**document, "notes": notes}, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    if measured:
        console.print(speed_table(measured))
    if converted:
        console.print(conversion_table(converted))
    for note in notes:
        console.print(note, style="yellow")
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()), style="dim")
