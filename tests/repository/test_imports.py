"""What ``import fxlrp`` loads: torch and what torch loads, and neither transformers nor the compiler."""

from __future__ import annotations

import subprocess
import sys

import fxlrp
from tests.repository.sources import ROOT

#: Slow to load and of no use before the first conversion, report or evaluation.
LATE = (
    "transformers",
    "torch._dynamo",
    "torch._inductor",
    "torch.ao.quantization",
    "torch.distributed.tensor",
    "sympy",
    "networkx",
    "jinja2",
    "rich",
    "typer",
    "yaml",
    "pandas",
    "scipy",
    "matplotlib",
    "safetensors",
    "fxlrp.evaluate",
    "fxlrp.report",
    "fxlrp.testing",
)


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter after ``code``."""
    code += "\nimport sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_transformers_nor_the_compiler() -> None:
    found = loaded("import fxlrp") - loaded("import torch")
    assert "fxlrp.explain.model" in found
    assert not found.intersection(LATE)


def test_a_plain_model_is_explained_without_transformers() -> None:
    code = "import torch, fxlrp\nfrom torch import nn\nmodel = nn.Sequential(nn.Linear(4, 2)).eval()\n"
    found = loaded(code + "fxlrp.convert(model, 'epsilon').attribute(torch.ones(2, 4), target=1)")
    assert "torch._dynamo" in found
    assert "transformers" not in found


def test_what_is_loaded_late_is_there_all_the_same() -> None:
    assert set(fxlrp.__all__) <= set(dir(fxlrp))
    assert {"evaluate", "plots", "shipped", "testing"} <= set(dir(fxlrp))
    code = "import fxlrp; assert fxlrp.compare.__module__ == fxlrp.Comparison.__module__ == 'fxlrp.evaluate.comparison'"
    assert "fxlrp.evaluate.comparison" in loaded(code)
