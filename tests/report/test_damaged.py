"""`transformer2 report` on a report.json with a field of the wrong type: one line, and no table that looks right."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transformer2.cli import main

RUNS = Path(__file__).parents[2] / "docs" / "results" / "runs"
KINDS = {"test": "test-tiny_math_hard", "adapt": "adapt-tiny_reasoning_hard", "spectrum": "spectrum-s2"}
WRONG = ("abc", [], {}, None, True, [{}], -1.5, [["x"]], {"x": "y"})
PRINTED = {"accuracy": float, "se": float, "n": int, "seeds": list, "task": str, "protocol": str, "details": dict}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field, of lists that of the first entry."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*at, key))


def damaged(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    found = copy.deepcopy(content)
    inner = found
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return found


def of_kind(kind: str) -> Any:
    found = [json.loads(f.read_text()) for f in sorted(RUNS.glob(f"{KINDS[kind]}*/report.json"))]
    content = next(c for c in found if "strategies" not in c and (kind != "adapt" or c["evaluations"]))
    return content | ({"spectrum": content["spectrum"][:1]} if "spectrum" in content else {})


@pytest.mark.parametrize("kind", KINDS)
def test_any_field_of_the_wrong_type_is_one_line(tmp_path, capsys, monkeypatch, kind) -> None:
    monkeypatch.setattr("transformer2.report.curve.draw_curve", lambda run, out: out)
    content = of_kind(kind)
    for at in places(content):
        for value in WRONG:
            (tmp_path / "report.json").write_text(json.dumps(damaged(content, at, value)))
            status = main(["report", str(tmp_path)])
            said = capsys.readouterr()
            if status == 0:
                inner = not at or kind == "spectrum" or (at[0] == "details" and len(at) > 1)
                wanted = None if inner else PRINTED.get(at[-1])
                assert wanted is None or (type(value) is wanted and value != [{}]), (at, value, said.out)
            else:
                assert status == 2 and len(said.err.splitlines()) == 1, (at, value, said.err)
                assert str(tmp_path) in said.err and "damaged" in said.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_report_is_printed(tmp_path, capsys, monkeypatch, kind) -> None:
    monkeypatch.setattr("transformer2.report.curve.draw_curve", lambda run, out: out)
    (tmp_path / "report.json").write_text(json.dumps(of_kind(kind)))
    assert main(["report", str(tmp_path)]) == 0 and capsys.readouterr().out
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "c.png")]) == (0 if kind == "test" else 2)


def test_a_table_of_several_strategies_is_drawn_from_their_one_report(tmp_path, capsys) -> None:
    content = of_kind("adapt")
    for part, status in ((content, 0), (damaged(content, ("result", "accuracy"), "high"), 2)):
        (tmp_path / "report.json").write_text(json.dumps({"strategies": {"first": content, "second": part}}))
        assert main(["report", str(tmp_path)]) == status
    said = capsys.readouterr()
    assert "'high'" in said.err and str(tmp_path / "report.json") in said.err
    assert "\n  first: " in said.out and "\n  second: " in said.out
