"""The house's rules of import and size, read from the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path
    for top in ("gateway", "simulators")
    for path in (ROOT / top).rglob("*.py")
    if "node_modules" not in path.parts
)
FOUNDATION = (
    "store",
    "access",
    "identity",
    "district",
    "config",
    "settings",
    "yaml_check",
    "data_dir",
    "geo",
    "errors",
)
FORBIDDEN = {  # importer -> what it must not import; the longest prefix of the importer counts
    "gateway.streams": ("gateway.alarms", "gateway.intercom", "gateway.http", "gateway.app", "gateway.cli"),
    "gateway.evidence": (
        "gateway.streams",
        "gateway.alarms",
        "gateway.intercom",
        "gateway.http",
        "gateway.app",
        "gateway.cli",
    ),
    "gateway.alarms": ("gateway.streams", "gateway.intercom", "gateway.http", "gateway.app", "gateway.cli"),
    "gateway.intercom": ("gateway.streams", "gateway.alarms", "gateway.http", "gateway.app", "gateway.cli"),
    "gateway.http": ("gateway.app", "gateway.cli"),
    "gateway.app": ("gateway.cli",),
    "gateway.cli": (),
    "gateway": ("gateway.app",),
    "simulators": ("gateway",),
}
for name in FOUNDATION:
    upward = ("streams", "alarms", "intercom", "http", "app", "cli")
    FORBIDDEN[f"gateway.{name}"] = tuple(f"gateway.{part}" for part in upward)


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(path: Path, module: str) -> set[str]:
    """Full names of all that is imported, at any depth; `from a import b` counts as a.b."""
    found: set[str] = set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{start}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way_and_modules_stay_small(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    rule = max((one for one in FORBIDDEN if is_below(module, one)), key=len)
    wrong = {name for name in imports(path, module) for no in FORBIDDEN[rule] if is_below(name, no)}
    assert not wrong, f"{module} must not import {wrong}"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 700, f"{module}: split it by concept"
    assert path.stem not in {"utils", "helpers", "manager", "common", "misc"}, "name it by what it knows"


def test_the_test_sees_violations() -> None:
    source = ROOT / "gateway" / "cli.py"
    assert "gateway.app" in imports(source, "gateway.cli")  # the one lazy import that is allowed
    assert "gateway.errors.GatewayError" in imports(source, "gateway.cli")
