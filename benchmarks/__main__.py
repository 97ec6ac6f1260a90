"""``python -m benchmarks``."""

from benchmarks.speed import app

if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
