"""Writes the manual's pages on rulesets into ``docs/rulesets``: one for each, and a table and a matrix of all.

``make rulesets`` (``python docs/ruleset_pages.py``) runs it; a test fails while a page is not what this would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import specimens
from writing import joined, linked, plain, prose, table

import fxlrp
from fxlrp.report.descriptions import Description, Line, describe, override, short
from fxlrp.spec.readings import DifferenceReading
from fxlrp.spec.ruleset import Ruleset, folder

FOLDER = Path(__file__).parent / "rulesets"
PRECISION = Path(__file__).parent / "precision.json"
WRITTEN = "<!-- Written by `make rulesets` from rulesets/{}: change that file, not this one. -->"
TEXT = """
    import fxlrp
    from fxlrp.shipped.checkpoints import load_demo

    model, tokenizer = load_demo()  # or a model and a tokenizer of yours
    inputs = tokenizer("It never once bored me.", return_tensors="pt")

    lrp = fxlrp.convert(model, "{name}")
    result = lrp.attribute(inputs, tokenizer=tokenizer{reference})
    result.show()
"""
#: What a ruleset that compares with another run is given in the example: the same sentence, another word.
REFERENCE = ', reference=tokenizer("It never once moved me.", return_tensors="pt")'
IMAGES = """
    import torch
    import transformers

    import fxlrp

    size = {{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}}
    config = transformers.ViTConfig(image_size=64, **size)  # small and untrained: put a model of yours here
    model = transformers.ViTForImageClassification(config).eval()

    lrp = fxlrp.convert(model, "{name}")
    result = lrp.attribute(torch.rand(1, 3, 64, 64))
    heat = result.map(64)  # [batch, height, width]
    result.to_html("explanation.html")
"""


def pages() -> Iterator[tuple[str, str]]:
    """File name and Markdown of every page."""
    described = [describe(name) for name in fxlrp.rulesets()]
    yield "index.md", index(described)
    for each in described:
        yield f"{each.ruleset.name}.md", page(each)


def index(described: list[Description]) -> str:
    """All rulesets, what each does to each kind of operation, and the file that most of them extend."""
    rulesets = [each.ruleset for each in described]
    names = [each.name for each in rulesets]
    rows = [
        (linked(r.name, f"{r.name}.md"), prose(r.title), prose(r.description), r.domain, r.message, short(r.citation))
        for r in rulesets
    ]
    return joined(
        WRITTEN.format(""),
        "# Rulesets",
        "A ruleset is a published method as data: which rule at which pattern or operator class, which message, which "
        "beginning and which answer. `fxlrp.convert(model, name)` takes one by name, `fxlrp rulesets NAME` prints "
        "what its page here says, and [Add a ruleset](../how-to/add-a-ruleset.md) shows how to write one.",
        table(("name", "title", "what it does", "made for", "message", "source"), rows),
        "## Which rule where",
        f"Read from the plans of three small models that hold one of everything. A `{specimens.PLAIN}` says that the "
        "plain gradient is kept, which conserves relevance at operations of this class (relevance as a message follows "
        f"the values). A `{specimens.NOTHING}` says that nothing arrives, as behind a value that is held "
        "constant. Each name is one of a [rule](../reference/rules.md); parameters are on the rulesets' pages.",
        *(_matrix(title, specimens.TABLES[title], rows) for title, rows in specimens.matrix(names).items()),
        "## What most of them extend",
        "`_base` is no method: it holds the choices that conserve relevance where a paper is silent.",
        _file("_base"),
    )


def _matrix(title: str, columns: tuple[specimens.Column, ...], rows: list[tuple[str, ...]]) -> str:
    linked_rows = [(linked(row[0], f"{row[0]}.md"), *row[1:]) for row in rows]
    return joined(f"### {title}", table(("ruleset", *(column.title for column in columns)), linked_rows)).strip()


def page(described: Description) -> str:
    """One ruleset: what it does, citation, settings, rules, paper and code, notes, an example, and its file."""
    ruleset = described.ruleset
    cite = ruleset.citation
    url = f" <{cite.url}>" if cite and cite.url else ""
    settings = [*described.settings, ("Made for models of", ruleset.domain)]
    return joined(
        WRITTEN.format(f"{ruleset.name}.yaml"),
        f"# {ruleset.name}",
        f"**{prose(ruleset.title)}.** {prose(ruleset.description)}",
        (plain(str(cite)) + url) if cite else "",
        "\n".join(f"- **{title}:** {prose(sentence)}" for title, sentence in settings if sentence),
        "## Rules",
        "The first line that matches an operation decides. Operations that conserve relevance by themselves need none. "
        "R is relevance, g the gradient message, x an input, y the output of an operation.",
        table(("match", "rule", "formula", "source", "from"), [_row(*block) for block in described.blocks]),
        _switches(ruleset),
        joined("## Notes", "\n".join(f"- {prose(note)}" for note in ruleset.notes)).strip() if ruleset.notes else "",
        _precision(ruleset.name),
        "## Example",
        f"```python\n{_example(ruleset)}\n```",
        "## The file",
        _file(ruleset.name),
    )


def _precision(name: str) -> str:
    """The errors that ``python -m benchmarks.precision --write docs/precision.json`` measured last."""
    errors = json.loads(PRECISION.read_text(encoding="utf-8")).get(name)
    if errors is None:
        return ""
    models = list(next(iter(errors.values())))
    rows = [(dtype, *(_error(found[model]) for model in models)) for dtype, found in errors.items()]
    return joined(
        "## Precision",
        "The largest error beside the largest relevance, against float64 on the same weights: a BERT and a Llama of "
        "four layers at the scale of trained ones, with outliers. Weights in float16 and bfloat16 are computed with in "
        "float32.",
        table(("weights in", *models), rows),
    ).strip()


def _error(found: float | None) -> str:
    """An error as a share; what is no number of the model's, and what does not read it, by name."""
    if found is None:
        return "not read"
    return f"{found:.0e}" if found < 0.05 else "rounding alone"


def _example(ruleset: Ruleset) -> str:
    reading = ruleset.readout
    patching = isinstance(reading, DifferenceReading) and reading.kind == "patching"
    text = dedent(IMAGES if ruleset.domain == "images" else TEXT).strip()
    return text.format(name=ruleset.name, reference=REFERENCE if patching else "")


def _row(line: Line, matches: list[str]) -> tuple[str, ...]:
    where = f" where {prose(line.where)}" if line.where else ""
    options = ", ".join(f"{key} = {value}" for key, value in line.params.items())
    rule = f"[{plain(line.rule)}](../reference/rules.md#{line.rule})" + (f" with {plain(options)}" if options else "")
    formula = "*a line above decides*" if line.overruled else prose(line.formula)
    source = "" if line.overruled else plain(line.source)
    return ", ".join(f"`{match}`" for match in matches) + where, rule, formula, source, f"`{line.origin}`"


def _switches(ruleset: Ruleset) -> str:
    if not ruleset.switches:
        return ""
    rows = [
        (f"`{s.name}`", prose(s.paper), prose(s.code), s.default, f"`{override(s)}`".replace("|", "\\|"))
        for s in ruleset.switches
    ]
    return joined(
        "## Paper and code",
        f'Where the two differ. `fxlrp.ruleset("{ruleset.name}").switch("{ruleset.switches[0].name}")` takes the other '
        "of the two, as the override does.",
        table(("switch", "paper", "code", "here", "the other"), rows),
    ).strip()


def _file(name: str) -> str:
    return f"```yaml\n{(folder() / f'{name}.yaml').read_text(encoding='utf-8').strip()}\n```"


def write() -> list[str]:
    """Write every page that is not current, remove those of rulesets that are gone; the names of both."""
    FOLDER.mkdir(exist_ok=True)
    current = dict(pages())
    changed = []
    for path in {*FOLDER.glob("*.md"), *(FOLDER / name for name in current)}:
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        after = current.get(path.name)
        if after == before:
            continue
        changed.append(path.name)
        if after is None:
            path.unlink()
        else:
            path.write_text(after, encoding="utf-8")
    return sorted(changed)


if __name__ == "__main__":
    for name in write():
        print(name)
