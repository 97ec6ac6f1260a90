"""Files are there whole or not at all, have the mode that the umask says, and are read or refused in a sentence."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import fxlrp
from fxlrp.errors import FileError, FxlrpError
from fxlrp.results.files import write_whole

OLD = b"what stood there"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, by the system's own limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def result() -> fxlrp.Attribution:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    return fxlrp.attribute(model, torch.tensor([[1.0, -2.0, 0.5]]), ruleset="epsilon", target=1, ledger=True)


WRITERS: dict[str, Callable[[fxlrp.Attribution, Path], Any]] = {
    "html": lambda result, path: result.to_html(path),
    "saved": lambda result, path: result.save(path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_old_file_as_it_was(writer: str, result: fxlrp.Attribution, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.write_bytes(OLD)
    with files_of_at_most(64), pytest.raises(FileError, match=r"'.*there' cannot be written: File too large"):
        WRITERS[writer](result, path)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_device_is_no_success(writer: str, result: fxlrp.Attribution) -> None:
    with pytest.raises(OSError, match="'/dev/full' cannot be written: No space left"):
        WRITERS[writer](result, Path("/dev/full"))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(
    writer: str, umask: int, result: fxlrp.Attribution, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        WRITERS[writer](result, tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask


def test_an_old_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "old").chmod(0o640)
    (tmp_path / "link").symlink_to("old")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["missing/a", "folder", "a" * 300, "a\0b"])
def test_a_place_where_nothing_can_stand_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="cannot be written: "):
        write_whole(tmp_path / name, "text")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_stop_in_the_middle_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "there").write_bytes(OLD)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "there", "new")
    assert os.listdir(tmp_path) == ["there"]
    assert (tmp_path / "there").read_bytes() == OLD


def _saved(result: fxlrp.Attribution, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    result.save(path)
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fxlrp"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


DEEP = "[" * 100_000 + "]" * 100_000
BROKEN: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Any]] = {
    "no ruleset": lambda about, _: about.pop("ruleset"),
    "a ruleset that is a number": lambda about, _: about.update(ruleset=3),
    "a ruleset without a name": lambda about, _: about["ruleset"].pop("name"),
    "labels of other samples": lambda about, _: about.update(label=["a", "b"]),
    "labels that are none": lambda about, _: about.update(label=[[1]]),
    "tokens that are numbers": lambda about, _: about.update(tokens=7),
    "entries of two parts": lambda about, _: about.update(entries=[["a", "b"]]),
    "an image size of three": lambda about, _: about.update(image_size=[1, 2, 3]),
    "no relevance": lambda _, tensors: tensors.pop("relevance"),
    "no entry of the ledger": lambda _, tensors: tensors.pop("ledger/0"),
    "an explained scalar": lambda _, tensors: tensors.update(explained=torch.zeros(())),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_result_is_refused_in_a_sentence(what: str, result: fxlrp.Attribution, tmp_path: Path) -> None:
    about, tensors = _saved(result, tmp_path / "a")
    BROKEN[what](about, tensors)
    save_file(tensors, tmp_path / "a", {"fxlrp": json.dumps(about)})
    with pytest.raises(FxlrpError, match=r"(?s)'.*a' is not an attribution saved by fxlrp: .+"):
        fxlrp.Attribution.load(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "3", "null", "[]", DEEP, '{"ruleset": ' + DEEP + "}"])
@pytest.mark.parametrize("kind", [fxlrp.Attribution, fxlrp.GenerationAttribution])
def test_a_description_that_is_none_is_refused(text: str, kind: Any, tmp_path: Path) -> None:
    save_file({"relevance": torch.zeros(1)}, tmp_path / "a", {"fxlrp": text, "fxlrp-generation": text})
    with pytest.raises(FxlrpError, match=r"is not an attribution.* saved by fxlrp: .+\.$"):
        kind.load(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 100, b"nothing"])
def test_any_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    for path in (tmp_path / "a", tmp_path, tmp_path / "missing"):
        with pytest.raises(FxlrpError, match="is not an attribution saved by fxlrp"):
            fxlrp.Attribution.load(path)


def total(outputs: Tensor) -> Tensor:
    """A target."""
    return outputs.sum(-1)


def test_a_function_that_was_explained_comes_back_by_its_name(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(3, 2)).eval(), torch.randn(2, 3)
    names = []
    for target in (total, partial(torch.sum, dim=-1), lambda outputs: outputs[:, 0]):
        fxlrp.attribute(net, x, ruleset="gradient", target=target).save(tmp_path / "a")
        names.append(fxlrp.Attribution.load(tmp_path / "a").target)
    assert names[0] == f"a function `{__name__}.total`"
    assert all(" at 0x" not in name for name in names), names
