"""The dependency audit tells apart: all looked at, something found, and nothing known because nobody could be asked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_script"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# As pip-audit 2.10 and npm 9 write them.
CLEAN = {"dependencies": [{"name": "aiohttp", "version": "3.14.5", "vulns": []}]}
FLAW = {"id": "PYSEC-2024-1", "fix_versions": ["3.9.4"], "aliases": [], "description": ""}
FLAWED = {"dependencies": [{"name": "aiohttp", "version": "3.9.0", "vulns": [FLAW]}]}
SKIPPED = {"dependencies": [{"name": "aiohttp", "skip_reason": "Dependency not found on PyPI"}]}
NPM_CLEAN = {"vulnerabilities": {}, "metadata": {"dependencies": {"total": 91}}}
NPM_FLAWED = {
    "vulnerabilities": {"esbuild": {"severity": "moderate", "range": "<=0.24.2"}},
    "metadata": {"dependencies": {"total": 91}},
}
NPM_REFUSED = {"message": "405 Method Not Allowed", "error": {"summary": "audit endpoint returned an error"}}


def test_all_looked_at_and_none_found(audit: ModuleType) -> None:
    verdicts = [audit.judge_pip(CLEAN), audit.judge_npm("npm", NPM_CLEAN)]
    code, text = audit.summary(verdicts, require=False)
    assert code == 0
    assert "91 packages, no known vulnerability" in text


@pytest.mark.parametrize("require", [False, True])
def test_what_is_found_fails_and_is_named(audit: ModuleType, require: bool) -> None:
    code, text = audit.summary(
        [audit.judge_pip(FLAWED), audit.judge_npm("npm", NPM_REFUSED)], require=require
    )
    assert code == 1
    assert "aiohttp 3.9.0: PYSEC-2024-1 (fixed in 3.9.4)" in text
    code, text = audit.summary([audit.judge_pip(CLEAN), audit.judge_npm("npm", NPM_FLAWED)], require=require)
    assert code == 1
    assert "esbuild: moderate (<=0.24.2)" in text


@pytest.mark.parametrize(("require", "expected"), [(False, 3), (True, 1)])
def test_nobody_to_ask_is_no_pass(audit: ModuleType, require: bool, expected: int) -> None:
    for verdicts in (
        [audit.judge_pip(SKIPPED), audit.judge_npm("npm", NPM_CLEAN)],
        [audit.judge_pip(CLEAN), audit.judge_npm("npm", NPM_REFUSED)],
    ):
        code, text = audit.summary(verdicts, require=require)
        assert code == expected
        assert "NOT AUDITED" in text
        assert "no pass" in text
