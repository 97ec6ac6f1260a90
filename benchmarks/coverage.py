"""The results of a census as a table for the terminal and as the page ``docs/coverage.md``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

import torch
import transformers
from rich.table import Table

from benchmarks.architectures import CORE, TASKS
from benchmarks.examine import GAPS, RULESETS, STEPS, VALUES, Record

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
    parts += ["## What torch.export refuses", _RECORDED, _names(recorded)]
    parts += ["## What could not be built or run", _NOT_RUN, _reasons([r for r in records if not r.runs])]
    parts += ["## Each architecture", _EACH, _table(("architecture", *_HEAD), _architectures(passing))]
    parts += ["## Operators", _OPERATORS, ", ".join(f"`{name}`" for name in _operators(passing))]
    return "\n\n".join(parts) + "\n"


_RECORDED = (
    "Their control flow or their sizes depend on values (loops over the experts that some token chose, chunks around\n"
    "global tokens). fxlrp then records the operators that run on the given inputs. The recording is good for these\n"
    "inputs only, each new input is recorded anew, and a `RetraceWarning` names the line of the model that is why."
)
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


def _names(records: list[Record]) -> str:
    return ", ".join(f"`{name}`" for name in sorted({r.model_type for r in records})) + "." if records else "Nothing."


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
