"""A password set by program leaves everything else of secrets.yaml octet by octet; the console command around it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigError, Conflict
from gateway.identity import verify_password
from gateway.secrets_file import set_user

ROOT = Path(__file__).parents[1]
HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"
FILES = {
    "nothing": "",
    "a comment": "# secrets\n",
    "others only": "boxes:\n  box1: '00'\n",
    "no newline at the end": "boxes: {box1: '00'}",
    "users without any": "users:\nboxes:\n  box1: '00'  # keep\n",
    "users of braces": "users: {}\nboxes: {}\n",
    "users in a flow": "users: {li: secret, 'wang' : \"old\"}  # both\nboxes: {b: '00'}\n",
    "users in a block": "users:\n    # who may\n    li: secret  # plain\n    zhao: x\n\nboxes: {b: '00'}\n",
    "the same user": "users:\n  op: old  # the operator\n  li: x\n",
    "the same user, quoted": "users:\n  'op': \"old\"\n",
    "windows": "users:\r\n  li: x\r\nboxes: {}\r\n",
}


@pytest.mark.parametrize("name", FILES)
def test_only_the_one_password_changes(name: str) -> None:
    before = FILES[name]
    after = set_user(before, "op", HASH)
    said, had = yaml.safe_load(after), yaml.safe_load(before) or {}
    assert said["users"] == {**(had.get("users") or {}), "op": HASH}
    assert {key: value for key, value in said.items() if key != "users"} == {
        key: value for key, value in had.items() if key != "users"
    }
    for line in before.splitlines():
        if "op" not in line and "users" not in line:
            assert line in after
    assert set_user(after, "op", "$argon2-other").count("argon2") == after.count("argon2")


@pytest.mark.parametrize("text", ["- a\n", "just text", "a: [", "[" * 5000, "users: {a: b"])
def test_what_is_no_mapping_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        set_user(text, "op", HASH)
    assert text not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "{boxes: {}}",
        "~\n",
        "users: &all {a: b}\nboxes: *all\n",
        "users: {a: b,}\n",
        "users:\n  a: 1\n  a: 2\n",
    ],
)
def test_what_is_past_editing_is_left_to_a_hand(text: str) -> None:
    with pytest.raises(Conflict):
        set_user(text, "op", HASH)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)


@given(NAMES, NAMES, st.dictionaries(NAMES, NAMES, max_size=4), st.booleans())
def test_whatever_the_file_says_nothing_else_changes(
    sub: str, stored: str, users: dict[str, str], flow: bool
) -> None:
    text = yaml.safe_dump({"users": users, "boxes": {"b": "00"}}, default_flow_style=None if flow else False)
    try:
        after = set_user(text, sub, stored)
    except (Conflict, ConfigError):
        return
    assert yaml.safe_load(after)["boxes"] == {"b": "00"}


def district(folder: Path) -> Path:
    """Areas and users of the example's district beside a cameras file; it has a user op01."""
    (folder / "district").mkdir()
    for name in ("district.yaml", "areas.geojson", "users.yaml"):
        (folder / "district" / name).symlink_to(ROOT / "config" / "district" / name)
    (folder / "cameras.yaml").write_text('cameras:\n  - {id: gate, main: "rtsp://127.0.0.1:9/x"}\n')
    return folder / "cameras.yaml"


def passwd(cameras: Path, sub: str, typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "passwd", "--sub", sub, "--cameras", str(cameras)],
        cwd=ROOT, input=typed, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_writes_a_hash_that_others_cannot_read(tmp_path: Path) -> None:
    cameras, secrets = district(tmp_path), tmp_path / "secrets.yaml"
    done = passwd(cameras, "op01", "correct horse battery\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "correct horse" not in done.stdout + secrets.read_text()
    assert secrets.stat().st_mode & 0o777 == 0o600
    stored = yaml.safe_load(secrets.read_text())["users"]["op01"]
    assert stored.startswith("$argon2id$")
    assert verify_password(stored, "correct horse battery")
    assert not verify_password(stored, "correct horse batterz")
    for sub, typed, why in (
        ("nobody", "correct horse battery\n", "no user 'nobody'"),
        ("op01", "short\n", "at least"),
    ):
        done = passwd(cameras, sub, typed)
        assert done.returncode == 1
        assert why in done.stderr
    assert yaml.safe_load(secrets.read_text())["users"] == {"op01": stored}
    secrets.chmod(0o644)
    assert "chmod 600" in passwd(cameras, "op01", "correct horse battery\n").stderr


def test_a_terminal_sees_no_password(tmp_path: Path) -> None:
    """A real terminal: asked twice, without echo."""
    cameras = district(tmp_path)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "passwd", "--sub", "op01", "--cameras", str(cameras)],
        cwd=ROOT, stdin=child, stdout=child, stderr=child, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(child)
    seen = b""
    for _ in range(2):
        while not seen.rstrip().endswith(b":"):
            seen += os.read(parent, 1024)
        os.write(parent, b"correct horse battery\n")
        seen += b"<typed>"
    try:
        while chunk := os.read(parent, 1024):
            seen += chunk
    except OSError:  # the terminal's other side is gone
        pass
    os.close(parent)
    assert process.wait(30) == 0, seen
    assert b"correct horse" not in seen
    assert "op01" in yaml.safe_load((tmp_path / "secrets.yaml").read_text())["users"]
