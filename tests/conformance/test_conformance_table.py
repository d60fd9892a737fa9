"""docs/conformance.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "conformance.md"


def test_every_test_named_in_the_table_exists() -> None:
    named = re.findall(r"(\S+\.py)::(\w+)", TABLE.read_text(encoding="utf-8"))
    assert len(named) > 100
    defined = {
        path: {
            node.name
            for node in ast.walk(ast.parse((TESTS / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for path in {path for path, _ in named}
    }
    assert [f"{path}::{name}" for path, name in named if name not in defined[path]] == []


def test_every_line_has_a_test() -> None:
    rows = [
        line
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (?!line|complaint|-)", line)
    ]
    assert [row for row in rows if "::" not in row and "benchmarks" not in row] == []
