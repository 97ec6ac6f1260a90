"""How long ``import fxlrp`` takes next to ``import torch``: ``python -m benchmarks.imports``.

Processor time of fresh interpreters, the median of several, each pair next to each other. All modules come from
bytecode, as they do wherever a package is installed: a first run, which is not counted, writes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
#: At most this many times as long as torch alone.
LIMIT = 1.3
_CODE = "import time; import {}; print(time.process_time())"


def seconds(module: str, bytecode: str) -> float:
    """Processor time that a fresh interpreter takes to import ``module``, itself included."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": bytecode, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CODE.format(module)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def ratio(rounds: int = 7) -> tuple[float, float, float]:
    """Seconds for torch, seconds for fxlrp (which imports torch), and the median of their ratio."""
    with tempfile.TemporaryDirectory() as bytecode:
        for module in ("torch", "fxlrp"):
            seconds(module, bytecode)
        pairs = [(seconds("torch", bytecode), seconds("fxlrp", bytecode)) for _ in range(rounds)]
    torch, fxlrp = zip(*pairs, strict=True)
    return median(torch), median(fxlrp), median(b / a for a, b in pairs)


if __name__ == "__main__":
    alone, together, times = ratio()
    print(f"import torch {alone:.2f} s, import fxlrp {together:.2f} s: {times:.2f} times (at most {LIMIT})")
    sys.exit(times > LIMIT)
