"""Every architecture that transformers ships, put through fxlrp: ``python -m benchmarks.census --help``.

Each is examined in a process of its own under a time limit; results are kept in a file of JSON lines, so that a
census that was stopped goes on where it was. At the end a summary is printed and ``docs/coverage.md`` written.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.architectures import CORE, TASKS, architectures
from benchmarks.coverage import page, summary
from benchmarks.examine import Record, examine

ROOT = Path(__file__).parent.parent
app = typer.Typer(add_completion=False)


@dataclass
class _Running:
    """An architecture under examination: its process, the pipe its records come through, when it must be done."""

    process: BaseProcess
    pipe: Connection
    until: float
    record: Record

    def listen(self) -> None:
        """Take the records that have arrived; the last one counts."""
        try:
            while self.pipe.poll():
                self.record = self.pipe.recv()
        except EOFError:
            pass

    def over(self) -> bool:
        """Whether it is done, has died or was stopped now for taking too long."""
        if time.monotonic() > self.until and self.process.is_alive():
            self.process.kill()
            self.process.join()
            self.listen()
            self.record.reason = self.record.reason or f"time limit, in the step after '{self.record.reached}'"
            return True
        self.listen()
        if self.process.is_alive():
            return False
        self.listen()
        if not self.record.passes and not self.record.reason:
            self.record.reason = f"the process died (exit code {self.process.exitcode})"
        return True


def _work(record: Record, pipe: Connection) -> None:
    examine(record, pipe.send)


def run(todo: list[Record], jobs: int, limit: float, file: Path, progress: Progress) -> None:
    """Examine ``todo``, ``jobs`` at a time, each for at most ``limit`` seconds; append the results to ``file``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.warm"])
    task = progress.add_task("", total=len(todo), name="")
    waiting, running = list(reversed(todo)), list[_Running]()
    while waiting or running:
        while waiting and len(running) < jobs:
            record = waiting.pop()
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(record, there), daemon=True)
            process.start()
            there.close()
            running.append(_Running(process, here, time.monotonic() + limit, record))
        wait([one.process.sentinel for one in running], timeout=1)
        for one in [one for one in running if one.over()]:
            running.remove(one)
            with file.open("a") as out:
                out.write(json.dumps(asdict(one.record)) + "\n")
            progress.update(task, advance=1, name=f"{one.record.model_type}: {one.record.reason or 'passes'}"[:90])


def load(file: Path) -> dict[tuple[str, str, int], Record]:
    """The records of ``file``, the latest of each architecture."""
    if not file.exists():
        return {}
    records = (Record(**json.loads(line)) for line in file.read_text().splitlines())
    return {record.key: record for record in records}


@app.command()
def census(
    names: Annotated[list[str] | None, typer.Argument(help="Model types, all if none is given.")] = None,
    task: Annotated[list[str] | None, typer.Option(help=f"Tasks: {', '.join(TASKS)}. 'core': the first five.")] = None,
    variant: Annotated[int, typer.Option(help="Which way of shrinking the configurations.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at a time.")] = 2,
    limit: Annotated[float, typer.Option(help="Seconds for one architecture.")] = 180,
    file: Annotated[Path, typer.Option(help="Results, kept for a census that goes on later.")] = ROOT
    / "build/census.jsonl",
    fresh: Annotated[bool, typer.Option(help="Forget earlier results.")] = False,
    again: Annotated[bool, typer.Option(help="Examine once more what did not pass.")] = False,
    write: Annotated[Path | None, typer.Option(help="The page to write, docs/coverage.md for a full census.")] = None,
) -> None:
    """Examine every architecture and say which fxlrp explains."""
    console = Console()
    tasks = tuple(CORE if t == "core" else (t,) for t in task or TASKS)
    chosen = [a for a in architectures(sum(tasks, ())) if not names or a.model_type in names]
    if not chosen:
        raise typer.BadParameter(f"nothing is called {names} in {task or 'any task'}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        file.unlink(missing_ok=True)
    known = load(file)
    wanted = [Record(a.task, a.model_type, variant) for a in chosen]
    todo = [r for r in wanted if r.key not in known or (again and not known[r.key].passes) or names]
    columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[name]}"))
    with Progress(*columns, console=console) as progress:
        run(todo, jobs, limit, file, progress)
    examined = load(file)
    records = [examined[r.key] for r in wanted]
    console.print(summary(records))
    if write:
        write.write_text(page(records))


if __name__ == "__main__":
    app()
