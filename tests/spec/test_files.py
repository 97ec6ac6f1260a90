"""Files of rulesets: what is no ruleset is said with its place, at once; a packaged name means the packaged ruleset."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest

import fxlrp
from fxlrp.errors import RulesetError
from fxlrp.spec.ruleset import origins

#: A file's content, and what is said of it.
MALFORMED: dict[str, tuple[bytes, str]] = {
    "a key twice": (b"name: a\nrules: []\nname: b\n", r"a\.yaml:3:1: .*'name' stands here for the second time"),
    "a parameter twice": (
        b"name: a\nrules:\n - {match: linear, rule: gamma, params: {gamma: 1.0, gamma: 2.0}}\n",
        r"a\.yaml:3:54: .*'gamma' stands here for the second time",
    ),
    "brackets": (b"name: " + b"[" * 100_000, r"a\.yaml:1:\d+: .*nested deeper than"),
    "indentation": (
        b"name: a\nx:\n" + b"".join(b" " * i + b"a:\n" for i in range(1, 900)),
        r"a\.yaml:\d+:\d+: .*nested",
    ),
    "an alias in itself": (b"name: &a [*a]\n", r"a\.yaml:1:7: .*an alias stands for what it is in"),
    "a billion laughs": (
        b"a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9)),
        r"a\.yaml:\d+:\d+: .*more than \d+ values",
    ),
    "binary": (bytes(range(256)) * 10, r"a\.yaml: a ruleset is a text in UTF-8"),
    "a zero byte": (b"name: a\x00b\n", r"a\.yaml: not valid YAML: unacceptable character"),
    "60 MB": (b"# " + b"x" * 60_000_000, r"a\.yaml: a ruleset has at most 1,000,000 bytes"),
    "a long number": (b"name: " + b"9" * 6000, r"a\.yaml: not valid YAML: Exceeds the limit"),
    "no day": (b"name: 2020-99-99\n", r"a\.yaml: not valid YAML: month"),
    "a list as key": (b"name: a\n[1, 2]: 3\n", r"a\.yaml:2:1: not valid YAML: found unhashable key"),
    "a number as key": (b"name: a\n1: 3\n", r"a\.yaml:2:1: .*Keys should be strings"),
    "code": (b"name: !!python/object/apply:os.system [ls]\n", r"a\.yaml:1:7: not valid YAML: could not determine"),
    "nothing": (b"", r"a\.yaml:1:1: a ruleset is a mapping"),
    "itself": (b"name: a\nextends: a\n", r"a\.yaml:2:1: .*in a circle.*a extends a"),
    "a long name": (b"name: a\nextends: " + b"b" * 5000, r"a\.yaml:2:1: extends unknown ruleset 'b{200}…'"),
    "a name that no file has": (b'name: a\nextends: "b\\0"\n', r"a\.yaml:2:1: extends unknown ruleset"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_ruleset_is_said_with_its_place_at_once(what: str, tmp_path: Path) -> None:
    content, said = MALFORMED[what]
    (tmp_path / "a.yaml").write_bytes(content)
    begun = time.perf_counter()
    with pytest.raises(RulesetError, match=f"(?s)^{said}") as told:
        fxlrp.ruleset(tmp_path / "a.yaml")
    assert time.perf_counter() - begun < 5
    assert len(str(told.value)) < 2_000


@pytest.mark.parametrize("length", [2, 3])
def test_a_circle_is_told(length: int, tmp_path: Path) -> None:
    for i in range(length):
        (tmp_path / f"r{i}.yaml").write_text(f"name: r{i}\nextends: r{(i + 1) % length}\n")
    chain = " extends ".join(f"r{i % length}" for i in range(length + 1))
    with pytest.raises(RulesetError, match=rf"r{length - 1}\.yaml:2:1: .*{chain}\.$"):
        fxlrp.ruleset(tmp_path / "r0.yaml")


def test_a_chain_without_end_is_told(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"r{i}.yaml").write_text(f"name: r{i}\nextends: r{i + 1}\n")
    with pytest.raises(RulesetError, match="or too many of them"):
        fxlrp.ruleset(tmp_path / "r0.yaml")


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".yaml", "a\0b", "", "/", "."])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(RulesetError, match="There is no ruleset"):
        fxlrp.ruleset(name)


def test_no_file_of_the_current_folder_stands_for_a_packaged_ruleset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = fxlrp.ruleset("attnlrp")
    (tmp_path / "attnlrp").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"'attnlrp' is the packaged ruleset.*'\./attnlrp'"):
        assert fxlrp.ruleset("attnlrp") == packaged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fxlrp.ruleset("./attnlrp").name == "mine"
        assert fxlrp.ruleset(Path("attnlrp")).name == "mine"


def test_a_file_may_extend_the_packaged_ruleset_of_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "attnlrp.yaml").write_text("name: attnlrp\nextends: attnlrp\nrules: [{match: linear, rule: epsilon}]\n")
    whole = fxlrp.ruleset(tmp_path / "attnlrp.yaml")
    assert whole.rules[1:] == fxlrp.ruleset("attnlrp").rules
    assert len(origins(tmp_path / "attnlrp.yaml")) == len(whole.rules)


def test_a_neighbour_with_a_packaged_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "epsilon.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"'epsilon' is here the file '.*epsilon\.yaml', not the packaged ruleset"):
        assert not fxlrp.ruleset({"name": "b", "extends": "epsilon"}).rules


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\n", encoding="utf-8-sig")
    assert fxlrp.ruleset(tmp_path / "a.yaml").name == "a"
