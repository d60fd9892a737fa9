"""kill -9 in the middle of presses: acknowledged presses lost 0, duplicate alarms 0, rings lost 0
(product.md section 6, row 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import sys
from collections import defaultdict
from pathlib import Path

from conftest import press_body

from gateway.audit import verify_audit

KILLS = 6
PRESSES = 120


async def test_kill_9_loses_no_acknowledged_press_and_no_ring(tmp_path: Path) -> None:
    dice = random.Random(7)
    path = tmp_path / "gateway.db"
    # Each box presses once, 200 m apart, so that each is an alarm of its own and rings.
    waiting = {f"b{i}": press_body(sid=f"b{i}", pid=f"p{i}") for i in range(PRESSES)}
    acks: dict[str, set[str]] = defaultdict(set)
    rung: set[str] = set()
    for life in range(KILLS + 1):
        last = life == KILLS
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).parent / "desk_process.py"),
            str(path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                assert await process.stdout.readline() == b"ready\n"
                # Every press without an ack is sent again, as a box does, and some that have one.
                again = [body for sid, body in waiting.items() if not acks[sid] or dice.random() < 0.2]
                dice.shuffle(again)
                for body in again if last else again[: dice.randrange(10, 60)]:
                    process.stdin.write(body + b"\n")
                lines, stop_after = 0, dice.randrange(1, 40)
                while last or lines < stop_after:
                    line = (await process.stdout.readline()).decode()
                    lines += 1
                    what, _, rest = line.strip().partition(" ")
                    if what == "ring":
                        rung.add(rest)
                    elif what == "ack":
                        ack = json.loads(rest)
                        assert ack["stage"] == "persisted"
                        acks["b" + ack["pid"][1:]].add(ack["alarm"])
                    done = all(acks[sid] for sid in waiting)
                    if last and done and {next(iter(a)) for a in acks.values()} <= rung:
                        break
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]
    assert all(len(answers) == 1 for answers in acks.values()), "a press got two different answers"
    with contextlib.closing(sqlite3.connect(path)) as raw:
        stored = dict(raw.execute("SELECT source, id FROM alarm").fetchall())
        assert raw.execute("SELECT count(*) FROM alarm").fetchone() == (PRESSES,)
    assert {f"stb/{sid}": next(iter(a)) for sid, a in acks.items()} == stored
    assert set(stored.values()) <= rung
    assert verify_audit(path).broken_at is None
