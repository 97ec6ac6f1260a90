"""The ``fxlrp`` command: texts and checkpoints go in, heat maps, reports and tables come out.

Results go to stdout, progress and errors to stderr, so that ``--json`` can be piped. Exit codes: 0 success, 1
a failed ``check``, 2 a mistake in what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from fxlrp.app.options import (
    BLOCKS,
    ContrastOption,
    DataOption,
    GenerateOption,
    JsonOption,
    LayersOption,
    LedgerOption,
    LimitOption,
    MetricsOption,
    ModelArgument,
    ModelOption,
    OutOption,
    ResumeOption,
    RulesetOption,
    RulesetsOption,
    ShowOption,
    TargetOption,
    TextOption,
    TextsOption,
)
from fxlrp.app.texts import USUAL_METRICS, batches_of, named_metrics, of_length, read_texts
from fxlrp.engine.conventions import block_names
from fxlrp.errors import FxlrpError, visible
from fxlrp.evaluate.comparison import Comparison
from fxlrp.evaluate.comparison import compare as compare_rulesets
from fxlrp.explain.memory import Memory
from fxlrp.explain.model import convert
from fxlrp.report import print_comparison
from fxlrp.report.descriptions import as_plain as description_as_plain
from fxlrp.report.descriptions import describe, short
from fxlrp.report.exports import as_json as json_text
from fxlrp.report.exports import as_plain, export, writer_of
from fxlrp.report.generation import show_generation
from fxlrp.report.ruleset import print_ruleset
from fxlrp.results.harmless import put
from fxlrp.shipped.checkpoints import class_index, encode, load_checkpoint, load_demo
from fxlrp.spec.ruleset import ruleset as load_ruleset
from fxlrp.spec.ruleset import rulesets as ruleset_names
from fxlrp.testing.checks import check_conservation
from fxlrp.testing.derivatives import check_derivative

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEMO_TEXTS = (
    "A film of unforgettable warmth, though the last act never quite earns it.",
    "It never once bored me.",
)
DEMO_RULESETS = "attnlrp,cp-lrp,ali2022,gradient"
DEMO_REPORT = Path("fxlrp-demo.html")


class _ErrorsAsPanels(TyperGroup):
    """Prints an :class:`FxlrpError` as a panel on stderr and exits with code 2: its message says what to
    do. So it does where output cannot be written.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (FxlrpError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
                raise
            put(_stderr(), Panel(Text(str(error)), title=type(error).__name__, title_align="left", style="red"))
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_ErrorsAsPanels,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Explain PyTorch models by layer-wise relevance propagation. New here? Run: fxlrp demo",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the HTML report goes.", dir_okay=False)] = DEMO_REPORT,
    as_json: JsonOption = False,
) -> None:
    """Explain two built-in sentences with a small built-in model, under several rulesets."""
    _explain(None, DEMO_TEXTS, _names(DEMO_RULESETS), layers=[BLOCKS], out=out, as_json=as_json, title="fxlrp demo")


@app.command()
def explain(
    text: TextOption,
    model: ModelOption = None,
    ruleset: RulesetOption = "attnlrp",
    target: TargetOption = None,
    contrast: ContrastOption = None,
    generate: GenerateOption = None,
    layers: LayersOption = None,
    ledger: LedgerOption = True,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which words speak for and against what the model says about a text, or each word that it generates."""
    if generate is not None:
        if target is not None or layers:
            raise typer.BadParameter("leave out --target and --layers, which explain one output")
        _explain_generation(model, text, ruleset, generate, contrast, out, as_json)
        return
    _explain(
        model,
        text,
        [ruleset],
        target=target,
        contrast=contrast,
        layers=layers,
        ledger=ledger,
        out=out,
        as_json=as_json,
    )


@app.command()
def compare(
    text: TextsOption = None,
    rulesets: RulesetsOption = DEMO_RULESETS,
    model: ModelOption = None,
    data: DataOption = None,
    limit: LimitOption = 100,
    metrics: MetricsOption = None,
    show: ShowOption = 5,
    resume: ResumeOption = None,
    target: TargetOption = None,
    contrast: ContrastOption = None,
    layers: LayersOption = None,
    ledger: LedgerOption = True,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain texts under several rulesets, side by side: do they agree, and which explains the model best?"""
    if bool(text) == bool(data):
        raise typer.BadParameter("give texts, or a file of them", param_hint="--text / --data")
    _require_writable(out)
    rules = [load_ruleset(name) for name in _names(rulesets)]  # misspelt names are reported before any work is done
    wanted = _names(metrics) if metrics is not None else list(USUAL_METRICS) if data else []
    protocols = named_metrics([] if wanted == ["none"] else wanted)
    texts = read_texts(data, limit) if data else text or []
    network, tokenizer = _load(model)
    comparison = compare_rulesets(
        network,
        batches_of(texts, tokenizer, network),
        rules,
        protocols=[protocol(tokenizer) for protocol in protocols],
        shown=show if data else None,
        resume=resume,
        progress=_stderr().is_terminal,
        ledger=ledger,
        **_options(network, tokenizer, target, contrast, layers or []),
    )
    _present(
        comparison,
        f"Methods compared on {len(texts)} texts of {data.name}" if data else str(texts[0]),
        out,
        as_json,
        maps=data is None,
    )


@app.command()
def plan(
    model: ModelArgument = None,
    ruleset: RulesetOption = "attnlrp",
    memory: Annotated[
        bool, typer.Option("--memory", help="Estimate, without running it, how much memory a text of --tokens takes.")
    ] = False,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="The length of that text.")] = 512,
    as_json: JsonOption = False,
) -> None:
    """Show which rule applies where in a model, or how much memory it takes."""
    network, tokenizer = _load(model)
    with _working("tracing the model"):
        inputs = encode(DEMO_TEXTS[:1], tokenizer, network)
        converted = convert(network, ruleset, example_inputs=dict(inputs))
    if memory:
        _print_memory(converted.memory(of_length(inputs, tokens)), tokens, ruleset, as_json)
        return
    rows = converted.plan
    if as_json:
        plain = [asdict(row) for row in rows.rows]
        _print_json({"ruleset": ruleset, "plan": plain, "near_misses": list(rows.near_misses)})
        return
    _print_table(
        ("pattern", "rule", "message", "count", "modules", "note"),
        [(row.pattern, row.rule, row.message, str(row.count), row.modules, row.note) for row in rows.rows],
    )
    for miss in rows.told_misses:
        put(_stdout(), Text(f"near miss: {miss}", "yellow"))


def _print_memory(memory: Memory, tokens: int, ruleset: str, as_json: bool) -> None:
    if as_json:
        _print_json({"ruleset": ruleset, "tokens": tokens, "bytes": asdict(memory)})
        return
    put(_stdout(), Text(f"One text of {tokens:,} tokens under '{ruleset}':"))
    put(_stdout(), Text(str(memory)))


@app.command()
def rulesets(
    name: Annotated[
        str | None, typer.Argument(help="Show this ruleset, by name or path.", show_default="list all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the rulesets, or show one: its law, and the formula and source of each of its rules."""
    if name is None:
        known = [load_ruleset(each) for each in ruleset_names()]
        rows = [(each.name, each.title, short(each.citation)) for each in known]
        if as_json:
            _print_json([dict(zip(("name", "title", "citation"), row, strict=True)) for row in rows])
        else:
            _print_table(("name", "title", "citation"), rows)
        return
    described = describe(name)
    if as_json:
        _print_json(description_as_plain(described))
    else:
        print_ruleset(described, _stdout())


@app.command()
def check(
    model: ModelArgument = None,
    ruleset: RulesetOption = "conservative",
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="Text to check on; repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that no relevance is lost in a model under a ruleset, and that the model's gradient is its derivative; exit
    with code 1 if not.

    The checks run in float64, where anything but rounding shows.
    """
    network, tokenizer = _load(model)
    with _working("checking conservation and derivatives"):
        inputs = dict(encode(text or DEMO_TEXTS, tokenizer, network))
        lrp = convert(network.double(), ruleset)
        report, slope = check_conservation(lrp, ruleset, inputs), check_derivative(lrp, inputs)
    passed = bool(report.passed and slope.passed)
    if as_json:
        found = {"gap": float(report.gap), "derivative_error": slope.error}
        _print_json({"ruleset": ruleset, "passed": passed, **found})
    else:
        verdict = ("conserved", "bold green") if report.passed else ("NOT conserved", "bold red")
        put(_stdout(), Text.assemble(verdict, f" under {ruleset}; largest relative gap {float(report.gap):.2e}"))
        put(_stdout(), Text(str(slope), style="" if slope.passed else "bold red"))
    if not passed:
        raise typer.Exit(1)


def _explain(
    source: str | None,
    texts: Sequence[str],
    rulesets: Sequence[str],
    *,
    target: str | None = None,
    contrast: str | None = None,
    layers: Sequence[str] | None = None,
    ledger: bool = True,
    out: Path | None = None,
    as_json: bool = False,
    title: str | None = None,
) -> None:
    """Explain ``texts`` under each ruleset, then print the views and write the report."""
    _require_writable(out)
    rules = [load_ruleset(name) for name in rulesets]  # a misspelt name is reported before any work is done
    network, tokenizer = _load(source)
    options = _options(network, tokenizer, target, contrast, layers or [])
    with _working("explaining"):
        comparison = compare_rulesets(network, encode(texts, tokenizer, network), rules, ledger=ledger, **options)
    _present(comparison, title or texts[0], out, as_json)


def _options(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: str | None,
    contrast: str | None,
    layers: Sequence[str],
) -> dict[str, Any]:
    """What the command line asks for, as options of ``attribute``."""
    wanted, other = (None if name is None else class_index(name, network, tokenizer) for name in (target, contrast))
    taps = [tap for layer in layers for tap in (block_names(network) if layer == BLOCKS else [layer])]
    return {"target": wanted, "contrast": other, "at": taps, "tokenizer": tokenizer}


def _present(comparison: Comparison, title: str, out: Path | None, as_json: bool, *, maps: bool = True) -> None:
    """Write the report, and print a comparison with its ``maps`` or without."""
    if out is not None:
        export(comparison, out, title)
    if as_json:
        _print_json({**as_plain(comparison), "report": out and str(out)})
        return
    print_comparison(comparison, _stdout(), maps=maps)
    _name_report(out)


def _explain_generation(
    source: str | None, texts: list[str], rules: str, count: int, contrast: str | None, out: Path | None, as_json: bool
) -> None:
    """Explain every token that the model generates after ``texts``, then print the view and write the report."""
    _require_writable(out)
    chosen = load_ruleset(rules)
    network, tokenizer = _load(source)
    other = contrast if contrast in (None, "runner-up") else class_index(contrast, network, tokenizer)
    with _working("generating and explaining"):
        inputs = encode(texts, tokenizer, network, count)
        lrp = convert(network, chosen)
        result = lrp.attribute_generation(inputs, count, contrast=other, tokenizer=tokenizer)
    if out is not None:
        export(result, out, texts[0])
    if as_json:
        _print_json({**as_plain(result), "report": out and str(out)})
        return
    show_generation(result, _stdout())
    _name_report(out)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _load(source: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the named checkpoint, or the embedded one, without transformers' own progress bars and notes."""
    with _working("loading the model" if source is None else f"loading {source}"):
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        return load_demo() if source is None else load_checkpoint(source)


def _name_report(out: Path | None) -> None:
    if out is not None:
        put(_stdout(), Text(f"\nReport: {out.resolve()}"), soft_wrap=True)


def _require_writable(out: Path | None) -> None:
    """Refuse a report whose folder does not exist, or whose kind is unknown, before minutes are spent on it."""
    if out is None:
        return
    writer_of(out)
    if not out.resolve().parent.is_dir():
        raise typer.BadParameter(f"the folder {out.resolve().parent} does not exist", param_hint="--out")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        table.add_column(name, overflow="fold", justify="right" if name == "count" else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    put(_stdout(), table)


def _print_json(value: Any) -> None:
    typer.echo(json_text(value))


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show a spinner on stderr, when someone is looking."""
    with _stderr().status(Text(visible(what) + " ...")):
        yield


def _stdout() -> Console:
    return Console()


def _stderr() -> Console:
    return Console(stderr=True)
