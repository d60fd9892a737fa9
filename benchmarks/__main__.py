"""`make bench [ARGS="seal calls"]`: the benchmarks, one after the other, each in a process of its own.

Without names all run. A benchmark is a module of this folder with a docstring and a `main()`; it prints what the README's
tables hold. CPU times are of the process under test; on a shared machine compare rows of one run, not of two.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def available() -> dict[str, str]:
    """Name and first line of what it measures."""
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main() -> int:
    benchmarks = available()
    wanted = sys.argv[1:] or list(benchmarks)
    unknown = [name for name in wanted if name not in benchmarks]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are:", file=sys.stderr)
        print(*(f"  {name:12} {text}" for name, text in benchmarks.items()), sep="\n", file=sys.stderr)
        return 2
    failed = []
    for name in wanted:
        print(f"\n== {name}: {benchmarks[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
