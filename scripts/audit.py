"""Do our locked dependencies have known vulnerabilities? Asks pip-audit (the PyPI advisory service) and npm audit.

    python scripts/audit.py [--require]

Exit 0: all were looked at and none is known to be vulnerable. 1: some are; they are named. 3: the services could not be asked
(offline, or a mirror without advisories): nothing is known, and it says so. `--require` makes that exit 1 as well, for
pipelines with a network. pip-audit by itself ends with 0 when it could look at nothing, which is why this stands around it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (ROOT / "gateway/web", ROOT / "tests/conformance/clients")
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """found: one line for each vulnerable package. unknown: why some could not be looked at; empty: all were."""

    what: str
    looked_at: int = 0
    found: tuple[str, ...] = ()
    unknown: str = ""


def judge_pip(report: Any) -> Verdict:
    """pip-audit's JSON. A package with `skip_reason` was not looked at."""
    packages = report["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    found = tuple(
        f"{one['name']} {one['version']}: {flaw['id']} (fixed in {', '.join(flaw['fix_versions']) or 'nothing yet'})"
        for one in packages
        for flaw in one.get("vulns", ())
    )
    unknown = f"{len(skipped)} of {len(packages)}, first: {skipped[0]['skip_reason']}" if skipped else ""
    return Verdict(what="Python", looked_at=len(packages) - len(skipped), found=found, unknown=unknown)


def judge_npm(what: str, report: Any) -> Verdict:
    """npm audit's JSON, version 2."""
    if "vulnerabilities" not in report:
        error = report.get("error") or {}
        said = error.get("summary") or report.get("message") or "no report"
        return Verdict(what=what, unknown=" ".join(str(said).split()))
    found = tuple(
        f"{name}: {flaw['severity']} ({flaw['range']})" for name, flaw in report["vulnerabilities"].items()
    )
    return Verdict(what=what, looked_at=report["metadata"]["dependencies"]["total"], found=found)


def _ask(what: str, command: list[str], folder: Path, judge: Callable[[Any], Verdict]) -> Verdict:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        return judge(json.loads(done.stdout))
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(what=what, unknown=f"{command[0]}: {error}")
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip() or "no report").splitlines()[-1]
        return Verdict(what=what, unknown=last)


def ask_all() -> list[Verdict]:
    lock = [sys.executable, "-m", "pip_audit", "-r", "requirements.lock", "--disable-pip", "--require-hashes"]
    verdicts = [_ask("Python", [*lock, "-f", "json", "--progress-spinner", "off"], ROOT, judge_pip)]
    for folder in LOCKS:
        what = f"npm {folder.relative_to(ROOT)}"
        command = ["npm", "audit", "--json", "--package-lock-only"]
        verdicts.append(_ask(what, command, folder, lambda report, what=what: judge_npm(what, report)))  # type: ignore[misc]
    return verdicts


def summary(verdicts: list[Verdict], *, require: bool) -> tuple[int, str]:
    """Exit code and text."""
    lines = []
    for one in verdicts:
        lines += [f"[audit] VULNERABLE, {one.what}: {flaw}" for flaw in one.found]
        if one.unknown:
            lines.append(
                f"[audit] NOT AUDITED, {one.what}: the advisory service gave no answer ({one.unknown})"
            )
        elif not one.found:
            lines.append(f"[audit] {one.what}: {one.looked_at} packages, no known vulnerability")
    if any(one.found for one in verdicts):
        return 1, "\n".join(lines)
    if any(one.unknown for one in verdicts):
        lines.append("[audit] this is no pass: run `make audit` where the advisory services can be reached")
        return 1 if require else 3, "\n".join(lines)
    return 0, "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--require", action="store_true", help="fail when the services can't be asked")
    code, text = summary(ask_all(), require=parser.parse_args().require)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
