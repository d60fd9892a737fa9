"""Every reason that the gateway can give to a page is known to the pages in both languages: the source is read, not a list."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"Conflict", "NotAllowed", "NotFound", "ProtocolError", "TooMany", "Unavailable"}
ELSEWHERE = (
    # what only a log, a command or an administrator's client sees
    "alarms/broker.py", "alarms/mqtt.py", "cameras_file.py", "cli.py", "data_dir.py", "http/admin.py", "notify.py", "reload.py",
    "secrets_file.py",
    # parsers of what cameras and browsers send: our own pages send what is right, and cameras have a state of their own
    "streams/sdp.py", "streams/rtsp.py", "streams/digest.py", "streams/ice.py", "streams/stun.py", "streams/dtls.py",
    "streams/srtp.py", "streams/rtcp.py", "streams/h264.py", "streams/sps.py", "streams/packets.py", "streams/link.py",
    "streams/carrier.py", "streams/audio.py", "streams/messages.py", "streams/ingest.py", "streams/publisher.py",
)  # fmt: skip
OF_FILES = re.compile(r"cannot open|can't be opened|is in use by another gateway")
"""The database at the start of the process: there is no page yet."""


def template(node: ast.expr) -> list[str]:
    """The text of a literal, {} for what is put in; both branches of a choice."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr():
            return ["".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)]
        case ast.IfExp():
            return template(node.body) + template(node.orelse)
    return []


def reasons() -> dict[str, str]:
    """Reason -> where it is given."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        name = str(path.relative_to(ROOT / "gateway"))
        if name in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                for text in template(node.args[0]) if node.args else []:
                    found.setdefault(text, f"{name}:{node.lineno}")
    return found


def refusals() -> set[str]:
    """What `authorize` refuses with: it becomes the detail of a 403."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "gateway/access.py").read_text())):
        match node:
            case ast.Call(func=ast.Name(id="_decide"), args=[_, _, why_not]):
                found.update(template(why_not))
            case ast.Call(func=ast.Name(id="Decision"), args=[ast.Constant(value=False), why_not]):
                found.update(template(why_not))
    return found


def camera_reasons() -> set[str]:
    """What a camera's state says of a pull that ended: arguments of PullFailed and _end, returns of _os_reason."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "gateway/streams/ingest.py").read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "_os_reason":
            found.update(
                text
                for one in ast.walk(node)
                if isinstance(one, ast.Return) and one.value
                for text in template(one.value)
            )
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ("PullFailed", "_end"):
                found.update(template(node.args[0]))
    return found


def table() -> list[dict[str, str]]:
    rows = json.loads((ROOT / "gateway/web/src/reasons.json").read_text())
    assert isinstance(rows, list)
    return rows


def test_every_reason_has_words_in_both_languages() -> None:
    known = [
        re.compile(".*".join(re.escape(part) for part in row["said"].split("{}")), re.DOTALL)
        for row in table()
    ]
    given = reasons() | dict.fromkeys(camera_reasons(), "streams/ingest.py")
    given |= dict.fromkeys(refusals(), "access.py")
    missing = {
        text: where
        for text, where in given.items()
        if not OF_FILES.search(text) and not any(pattern.fullmatch(text) for pattern in known)
    }
    assert missing == {}, "add these to gateway/web/src/reasons.json"


def test_the_scan_sees_reasons_at_all() -> None:
    """Else the test above could not fail."""
    found = reasons()
    assert "log in first" in found
    assert "no incident {}" in found
    assert len(found) > 100
    assert "connection refused" in camera_reasons()
    assert "doesn't take part in it" in refusals()


def test_each_row_is_whole() -> None:
    chinese = re.compile(r"[一-鿿]")
    for row in table():
        assert chinese.search(row["zh"]), row
        said_in_chinese = bool(chinese.search(row["said"]))
        assert not said_in_chinese or row.get("en"), f"no English for {row['said']}"
        for language in ("zh", "en"):
            used = {int(n) for n in re.findall(r"\{(\d)\}", row.get(language, ""))}
            assert all(n < row["said"].count("{}") for n in used), row
    assert len({row["said"] for row in table()}) == len(table())
