"""The results of a census as a table for the terminal and as the page ``docs/coverage.md``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

import torch
import transformers
from rich.table import Table

from benchmarks.architectures import CORE, TASKS
from benchmarks.examine import GAPS, OTHERS, RULESETS, STEPS, VALUES, Record

COLUMNS = ("listed", *STEPS)


def counts(records: Iterable[Record]) -> list[int]:
    """How many are listed, and how many got through each step."""
    reached = [STEPS.index(r.reached) if r.reached else -1 for r in records]
    return [len(reached), *(sum(last >= step for last in reached) for step in range(len(STEPS)))]


def share(records: Iterable[Record]) -> str:
    """Those that pass among those that run."""
    running = [r for r in records if r.runs]
    return f"{100 * sum(r.passes for r in running) / len(running):.1f} %" if running else "-"


def groups(records: list[Record]) -> Iterator[tuple[str, list[Record]]]:
    """The records of each task, of the five core tasks, and all."""
    for task in TASKS:
        found = [r for r in records if r.task == task]
        if found:
            yield task, found
    core = [r for r in records if r.task in CORE]
    if core and len(core) < len(records):
        yield "the first five", core
    yield "all", records


def summary(records: list[Record]) -> Table:
    """Counts by task and in all, the share of those that run, and the reason of each that runs and does not pass."""
    table = Table("task", *COLUMNS, "of those that run")
    for row in _counted(records):
        table.add_row(*row)
    table.caption = "\n".join(f"{r.model_type} ({r.task}): {r.reason}" for r in records if r.runs and not r.passes)
    return table


def page(records: list[Record]) -> str:
    """The page ``docs/coverage.md``."""
    passing = [r for r in records if r.passes]
    parts = [_intro(records), _table(("task", *COLUMNS, "of those that run"), _counted(records))]
    parts += ["## What runs and does not pass", _reasons([r for r in records if r.runs and not r.passes])]
    recorded = [r for r in passing if r.captured == "recorded"]
    parts += ["## What torch.export refuses", recordings(recorded)]
    parts += ["## What could not be built or run", _NOT_RUN, _reasons([r for r in records if not r.runs])]
    parts += ["## Each architecture", _EACH, _table(("architecture", *_HEAD), _architectures(passing))]
    parts += ["## Operators", _OPERATORS, ", ".join(f"`{name}`" for name in _operators(passing))]
    return "\n\n".join(parts) + "\n"


_RECORDED = (
    "Their control flow or their sizes depend on values (loops over the experts that some token chose, chunks around\n"
    "global tokens, grids of pictures). fxlrp then records the operators that run on the given inputs, and with them\n"
    "what was *decided* by values: each number, branch or size that the model made of a tensor. The recording serves\n"
    "all inputs of these sizes on which the same is decided. *By*: whether integers alone decide, which costs next to\n"
    "nothing to look at; where floats do, a look takes a part of a forward pass. *Anew*: how many of two more inputs\n"
    "of the same structure (other words, other pictures) were captured anew. *Where*: the lines of the model."
)
SHOWN = 3
_NOT_RUN = "Not counted: a library is missing here, or the generic shrinking and inputs do not suit the model."
_EACH = (
    "Those that pass. *precision*: float32 where the model itself computes some of its values so. *convert/export*:\n"
    "the time of fxlrp's own passes for three rulesets against that of torch.export, in the same process. *gap*: the\n"
    "largest of the three rulesets and the tasks, relative to the explained value."
)
_OPERATORS = "The operators that carry relevance somewhere in these graphs, after canonicalisation."
_HEAD = ("tasks", "precision", "nodes", "convert/export", "gap")


def _intro(records: list[Record]) -> str:
    ratio = statistics.median(r.convert_s / r.export_s for r in records if r.passes and r.export_s)
    return _INTRO.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        tasks=len({r.task for r in records}),
        rulesets=", ".join(f"`{name}`" for name in RULESETS),
        value=VALUES[torch.float64],
        value32=VALUES[torch.float32],
        gap=GAPS[torch.float64],
        gap32=GAPS[torch.float32],
        ratio=ratio,
    )


_INTRO = """# Coverage

<!-- written by `python -m benchmarks.census --write docs/coverage.md` -->

Every architecture that transformers {transformers} lists for {tasks} tasks, its configuration shrunk by rules on the
names of its fields, with random weights at a trained model's scale, two samples of random inputs, on a CPU with torch
{torch}. *builds*, *runs*: the model itself. *exports*: its graph is captured. *converts*: a plan without uncovered
operators (`strict=True`). *values*: outputs equal to the model's, to {value:.0e} relative in float64, {value32:.0e}
where the model itself computes in float32. *ledger*: the ledgers of {rulesets} close, to {gap:.0e} and {gap32:.0e} of
the explained value. A number counts those that got through all steps up to there.

fxlrp's own passes take {ratio:.2f} of the time of torch.export (median)."""


def _counted(records: list[Record]) -> Iterator[tuple[str, ...]]:
    for name, found in groups(records):
        yield (name, *map(str, counts(found)), share(found))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _reasons(records: list[Record]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for record in records:
        reason = record.reason.replace("|", "\\|").replace("<", "&lt;")
        rows.setdefault((record.model_type, reason[:200]), []).append(record.task)
    lines = ((f"`{name}`", ", ".join(tasks), reason) for (name, reason), tasks in sorted(rows.items()))
    return _table(("architecture", "tasks", "why"), lines) if rows else "Nothing."


def recordings(records: list[Record]) -> str:
    """What decides in each architecture that is recorded, and how often others of its inputs are captured anew."""
    rows = []
    for name in sorted({r.model_type for r in records}):
        found = [r for r in records if r.model_type == name]
        where = list(dict.fromkeys(each for r in found for each in r.decided))
        shown = ", ".join(f"`{each}`" for each in where[:SHOWN]) + (" ..." if len(where) > SHOWN else "")
        by = "integers" if all(r.by_integers for r in found) else "floats"
        rows.append((f"`{name}`", by, f"{max(r.anew for r in found)} of {OTHERS}", str(len(where)), shown))
    once = sum(row[2].startswith("0") for row in rows)
    counted = f"{once} of {len(rows)} serve the other inputs without a new capture."
    return "\n\n".join((_RECORDED, counted, _table(("architecture", "by", "anew", "decisions", "where"), rows)))


def _architectures(records: list[Record]) -> Iterator[tuple[str, ...]]:
    for name in sorted({r.model_type for r in records}):
        found = [r for r in records if r.model_type == name]
        gap = max(gap for r in found for gap in r.gaps.values())
        ratio = statistics.median(r.convert_s / max(r.export_s, 1e-9) for r in found)
        nodes = max(r.nodes for r in found)
        precision = ", ".join(sorted({r.lowest for r in found}))
        yield f"`{name}`", ", ".join(r.task for r in found), precision, str(nodes), f"{ratio:.2f}", f"{gap:.0e}"


def _operators(records: list[Record]) -> list[str]:
    return sorted({name for r in records for name in r.operators if name})
