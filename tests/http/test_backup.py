"""Backup of a running gateway, restore into an empty place, and a gateway that goes on from there."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest
from running_gateway import KEY, PASSWORD, Bench, running_gateway

from gateway.audit import verify_audit
from gateway.backup import restore_backup
from gateway.cli import main
from gateway.errors import GatewayError

pytestmark = pytest.mark.broker


async def command(*words: str) -> int:
    return await asyncio.to_thread(main, words)


async def test_a_backup_beside_a_running_gateway_is_restored_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, backup = tmp_path / "site", tmp_path / "backups" / "monday"
    site.mkdir()
    async with running_gateway(site) as bench:
        await bench.fill()
        photo, task = await add_photo(bench)
        evidence = site / "var" / "evidence" / "2026"
        evidence.mkdir(parents=True)
        (evidence / "clip.mp4").write_bytes(b"frames")
        pressing = asyncio.create_task(press_on(bench))
        arguments = ("--cameras", f"{site}/cameras.yaml", "--data", f"{site}/var")
        assert await command("backup", str(backup), *arguments) == 0
        assert await command("backup", str(backup), *arguments) == 1  # never over another
        pressing.cancel()
        said = capsys.readouterr().out
        _, before = await bench.call("GET", "/api/v1/alarms?limit=500", bench.bearer("operator", "op"))
    assert "1 evidence files are listed" in said
    manifest = json.loads((backup / "manifest.json").read_text())
    assert [one["path"] for one in manifest["evidence"]] == ["evidence/2026/clip.mp4"]
    for path in (backup, *backup.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not [path for path in backup.rglob("*") if path.name.endswith(("-wal", ".lock"))]

    there = tmp_path / "there"
    restore = ("restore", str(backup), "--data", f"{there}/var", "--to-config", f"{there}/config")
    assert await command(*restore) == 0
    assert await command(*restore) == 1  # never over anything
    assert await command("audit", "verify", "--data", f"{there}/var", "--anchor", manifest["audit_head"]) == 0
    assert await command("check", "--cameras", f"{there}/config/cameras.yaml") == 0
    (there / "config" / "var").symlink_to(there / "var")
    async with running_gateway(there / "config") as bench:
        operator = bench.bearer("operator", "op")
        _, after = await bench.call("GET", "/api/v1/alarms?limit=500", operator)
        kept, had = ({one["id"] for one in said["alarms"]} for said in (after, before))
        assert kept <= had
        assert kept >= {one["id"] for one in before["alarms"] if one["press_id"] == "p1"}
        status, _ = await bench.call("POST", "/api/v1/session", json={"sub": "op", "password": PASSWORD})
        assert status == 200
        bench.client.cookie_jar.clear()
        status, _ = await bench.call("GET", f"/api/v1/tasks/{task}/photos/{photo}", operator)
        assert status == 200
        ack = await bench.press("a1", pid="after-restore", key=KEY)
        assert ack["stage"] == "persisted"
    report = verify_audit(there / "var" / "gateway.db")
    assert report.broken_at is None


async def add_photo(bench: Bench) -> tuple[str, str]:
    operator, worker = bench.bearer("operator", "op"), bench.bearer("worker", "wa")
    incident = bench.ids["incident"]["a1"]
    await bench.call(
        "POST", f"/api/v1/incidents/{incident}/dispatch", operator, json={"detail": {"worker": "wa"}}
    )
    _, found = await bench.call("GET", "/api/v1/tasks", worker)
    task = found["tasks"][0]["id"]
    headers = {**worker, "Content-Type": "image/jpeg"}
    _, photo = await bench.call("POST", f"/api/v1/tasks/{task}/photos", headers, data=b"\xff\xd8\xff\xe0abc")
    return photo["sha256"], task


async def press_on(bench: Bench) -> None:
    number = 0
    while True:
        number += 1
        await bench.press("b1", pid=f"meanwhile-{number}")


async def test_what_is_damaged_or_hostile_is_not_restored(tmp_path: Path) -> None:
    site, backup = tmp_path / "site", tmp_path / "backup"
    site.mkdir()
    async with running_gateway(site, settings={"mqtt": {"mode": "off"}}):
        assert (
            await command("backup", str(backup), "--cameras", f"{site}/cameras.yaml", "--data", f"{site}/var")
            == 0
        )
    manifest = json.loads((backup / "manifest.json").read_text())

    def refused(why: str) -> None:
        with pytest.raises(GatewayError, match=why):
            restore_backup(backup, tmp_path / "data", tmp_path / "config")
        assert not (tmp_path / "data").exists()

    secrets = backup / "config" / "secrets.yaml"
    text = secrets.read_bytes()
    secrets.write_bytes(text.replace(b"a", b"b", 1))
    refused("secrets.yaml is damaged")
    secrets.write_bytes(text)
    hostile = {
        **manifest,
        "files": [*manifest["files"], {"path": "data/../../evil", "size": 1, "sha256": ""}],
    }
    (backup / "manifest.json").write_text(json.dumps(hostile))
    refused("outside of itself")
    (backup / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    refused("format 99")
    (backup / "manifest.json").write_text("{")
    refused("can't be read")
    (backup / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").touch()
    refused("not empty")
    with (site / "var" / "gateway.db").open("r+b") as database:
        database.seek(os.path.getsize(database.name) // 2)
        database.write(b"\xa5" * 8192)
    words = ("backup", f"{tmp_path}/second", "--cameras", f"{site}/cameras.yaml", "--data", f"{site}/var")
    assert await command(*words) == 1
    assert not (tmp_path / "second").exists()
