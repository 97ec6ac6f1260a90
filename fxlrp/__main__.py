"""``python -m fxlrp`` is the ``fxlrp`` command."""

from fxlrp.app.cli import app

if __name__ == "__main__":
    app(prog_name="fxlrp")
