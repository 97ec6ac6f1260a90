"""The options that commands of ``fxlrp`` have in common, and those of ``fxlrp compare``: names, help and metavars."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: What ``--layers`` takes for all blocks.
BLOCKS = "blocks"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH_OR_NAME",
        help="Folder or hub name of a sequence classifier or language model.",
        show_default="the small sentiment model that comes with fxlrp",
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Folder or hub name of a sequence classifier or language model.",
        show_default="the small sentiment model that comes with fxlrp",
    ),
]
TextOption = Annotated[
    list[str], typer.Option("--text", "-t", help="The text to explain. Repeat the option for several texts.")
]
RulesetOption = Annotated[
    str, typer.Option("--ruleset", "-r", help="Which paper's rules to use; `fxlrp rulesets` lists them.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        help="What to explain: a class by name or number; of a language model, the next token (' Paris').",
        show_default="the output the model prefers",
    ),
]
ContrastOption = Annotated[
    str | None,
    typer.Option(
        help="Explain why the target, rather than this other class or token (of generated ones, also 'runner-up')."
    ),
]
GenerateOption = Annotated[
    int | None, typer.Option("--generate", "-g", metavar="N", min=1, help="Explain N tokens that the model generates.")
]
LayersOption = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Also show relevance at these modules: '{BLOCKS}' for all blocks, or a glob such as "
        "'bert.encoder.layer.*'. Repeatable."
    ),
]
LedgerOption = Annotated[
    bool, typer.Option(help="Account for all relevance: inputs, the model's constants, leaks of rules.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE.html",
        help="Write a report: .html, .json (all numbers), .csv (a table).",
        dir_okay=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables and colours.")]

TextsOption = Annotated[
    list[str] | None, typer.Option("--text", "-t", help="A text to explain. Repeat the option for several texts.")
]
RulesetsOption = Annotated[
    str, typer.Option("--rulesets", "-r", metavar="A,B,C", help="Rulesets to compare, separated by commas.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Compare on this .tsv, .csv or .jsonl with columns 'sentence' (or 'text') and 'label'."
    ),
]
LimitOption = Annotated[int, typer.Option(min=1, help="Take so many texts of --data, its first.")]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="What tells which ruleset explains best: 'activation' (the most relevant tokens are put back first), "
        "'pruning' (the least relevant are taken away first), 'abpc' (area between the curves of least and most "
        "relevant first), 'eraser' (comprehensiveness, sufficiency), 'leave-one-out' (rank correlation with it), "
        "'conservation' (relevance against the logit); 'none' for maps and agreement alone.",
        show_default="activation,pruning for --data, none for --text",
    ),
]
ShowOption = Annotated[int, typer.Option(min=1, help="So many texts of --data have their maps in the report.")]
ResumeOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep finished batches here, and go on where a run stopped.", file_okay=False),
]
