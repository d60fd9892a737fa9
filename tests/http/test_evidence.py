"""Evidence on a running gateway: a press records the cameras around it, a call its legs; clips are held, exported, verified,
pruned; a kill leaves the truth."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import socket
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
import yaml
from running_gateway import KEY, STREET_A, STREET_B, Bench, running_gateway, sign, write_files
from sqlalchemy import select

from gateway.access import Principal, Role
from gateway.audit import audit_table
from gateway.cli import main
from gateway.evidence.bundle import verify_bundle
from gateway.evidence.recording import AUDIO_ALONE_S
from gateway.identity import Keyring, TokenKind

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from evidence_clients import publishing, until
from rtsp_farm import Farm
from still_encoder import encode

pytestmark = pytest.mark.realtime
SETTINGS = {"evidence": {"after_s": 3, "floor_bytes": 1_000_000}, "calls": {"publish_s": 120}}
STILL = encode(np.full((120, 160, 3), (40, 90, 160), np.uint8))


async def clips(bench: Bench, query: str, who: dict[str, str] | None = None) -> list[dict[str, Any]]:
    status, said = await bench.call("GET", f"/api/v1/evidence?{query}", who or bench.bearer("operator", "op"))
    assert status == 200, said
    return said["evidence"]


async def media(bench: Bench, clip_id: str, **headers: str) -> tuple[int, bytes, Any]:
    headers |= bench.bearer("operator", "op")
    async with bench.client.get(f"/api/v1/evidence/{clip_id}/media", headers=headers) as answer:
        return answer.status, await answer.read(), answer.headers


async def audited(bench: Bench, action: str) -> list[Any]:
    query = select(audit_table).where(audit_table.c.action == action)
    return await bench.gateway.store.read(lambda c: list(c.execute(query).mappings()))


def streams_of(data: bytes) -> dict[str, int]:
    """Packets by kind of stream, read by FFmpeg."""
    counts: dict[str, int] = {}
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux():
            if packet.size:
                counts[packet.stream.type] = counts.get(packet.stream.type, 0) + 1
    return counts


async def output_of(*command: str) -> bytes:
    """Of a program, both streams."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await child.communicate()
    assert child.returncode == 0, out
    return out


async def ffmpeg_says(path: Path) -> str:
    """What it has to complain of when it decodes all of it."""
    return (await output_of("ffmpeg", "-v", "error", "-i", str(path), "-f", "null", "-")).decode().strip()


async def spans(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """First and last time of each kind of stream, in seconds, as ffprobe reads them; it may say nothing on stderr."""
    entries = "packet=codec_type,pts_time"
    out = await output_of("ffprobe", "-v", "error", "-show_entries", entries, "-of", "json", str(path))
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    for packet in json.loads(out)["packets"]:
        kind, at = packet["codec_type"], float(packet["pts_time"])
        begin[kind], end[kind] = min(at, begin.get(kind, at)), max(at, end.get(kind, at))
    return begin, end


async def alarm_clip(bench: Bench) -> dict[str, Any]:
    """Presses at a1 and waits for the clip of its one live camera."""
    alarm_id = (await bench.press("a1"))["alarm"]
    found = await until(
        lambda: clips(bench, f"alarm_id={alarm_id}"),
        lambda found: found and all(clip["state"] != "recording" for clip in found),
        why="the clips are finished",
    )
    by_camera = {clip["camera_id"]: clip for clip in found}
    dead = by_camera["a1-none"]
    assert (dead["state"], dead["sha256"]) == ("failed", None)
    assert dead["reason"], "a camera that could not be had says why"
    return by_camera["a1-community"]


async def test_a_press_records_its_cameras_and_the_clip_is_handed_out(tmp_path: Path) -> None:
    async with (
        Farm(still=STILL) as farm,
        running_gateway(tmp_path, live_url=farm.url, settings=SETTINGS) as bench,
    ):
        clip = await alarm_clip(bench)
        assert (clip["kind"], clip["state"], clip["media_type"]) == ("camera", "complete", "video/quicktime")
        assert 1_000 < clip["to_at"] - clip["from_at"] <= 4_000
        status, data, headers = await media(bench, clip["id"])
        assert (status, headers["Content-Type"]) == (200, "video/quicktime")
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (clip["sha256"], clip["size"])
        assert streams_of(data)["video"] > 50
        status, part, headers = await media(bench, clip["id"], Range="bytes=10-19")
        assert (status, part) == (206, data[10:20])
        assert headers["Content-Range"] == f"bytes 10-19/{len(data)}"
        assert len(await audited(bench, "evidence.view")) == 1, "one view, however many pieces"

        for who, expected in (
            (bench.bearer("desk", "desk-a", STREET_A), 200),
            (bench.bearer("leader", "l1"), 200),
            (bench.bearer("admin", "root"), 200),
            (bench.bearer("desk", "desk-b", STREET_B), 403),
            (bench.bearer("worker", "wa"), 403),
            (bench.bearer("stb", "box-a1"), 403),
            ({}, 401),
        ):
            for path in ("", "/media"):
                status, _ = await bench.call("GET", f"/api/v1/evidence/{clip['id']}{path}", who)
                assert status == expected, (who, path)
        assert (
            await clips(bench, f"alarm_id={clip['alarm_id']}", bench.bearer("desk", "desk-b", STREET_B)) == []
        )

        url = f"/api/v1/evidence/{clip['id']}"
        operator = bench.bearer("operator", "op")
        assert (await bench.call("POST", f"{url}/hold", operator, json={"reason": " "}))[0] == 400
        status, held = await bench.call("POST", f"{url}/hold", operator, json={"reason": "警方调取"})
        assert (status, held["hold"]["by"], held["hold"]["reason"]) == (200, "operator/op", "警方调取")
        desk = bench.gateway.witness.desk
        desk.keeping._clock = lambda: clip["expires_at"] + 1  # thirty days later
        await desk.keeping.look()
        assert (await clips(bench, f"alarm_id={clip['alarm_id']}"))[0]["state"] != "pruned"
        assert (await media(bench, clip["id"]))[0] == 200, "held evidence outlives its time"
        assert (await bench.call("POST", f"{url}/release", operator, json={"reason": "已归还"}))[0] == 200
        await desk.keeping.look()
        status, said = await bench.call("GET", f"{url}/media", operator)
        assert (status, said["state"]) == (409, "pruned")
        assert not list((tmp_path / "var" / "evidence").rglob("*.mov"))
        assert [line["subject"] for line in await audited(bench, "evidence.prune")] == [
            f"evidence/{clip['id']}"
        ]


async def test_an_export_verifies_offline_and_shows_each_change(tmp_path: Path, capsys: Any) -> None:
    async with (
        Farm(still=STILL) as farm,
        running_gateway(tmp_path, live_url=farm.url, settings=SETTINGS) as bench,
    ):
        clip = await alarm_clip(bench)
        of = {"alarm_id": clip["alarm_id"]}
        operator, path = bench.bearer("operator", "op"), "/api/v1/evidence/export"
        for who, body, expected in (
            (operator, {**of, "reason": ""}, 400),
            (operator, {"reason": "x"}, 400),
            (operator, {"alarm_id": "none", "reason": "x"}, 404),
            (bench.bearer("desk", "desk-b", STREET_B), {**of, "reason": "x"}, 403),
            (bench.bearer("worker", "wa"), {**of, "reason": "x"}, 403),
        ):
            assert (await bench.call("POST", path, who, json=body))[0] == expected, body
        async with bench.client.post(path, headers=operator, json={**of, "reason": "移交110"}) as answer:
            assert (answer.status, answer.content_type) == (200, "application/zip")
            data = await answer.read()
        (line,) = await audited(bench, "evidence.export")
        assert not list((tmp_path / "var" / "exports").iterdir())
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(data)
    report = verify_bundle(bundle)
    assert (report.wrong, report.clips) == ((), 1)
    assert report.audit_lines > 0
    assert json.loads(line["detail"])["manifest_sha256"] == report.manifest_sha256
    assert main(["evidence", "verify", str(bundle)]) == 0
    with zipfile.ZipFile(bundle) as archive:
        timeline = json.loads(archive.read("timeline.json"))
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert timeline["alarm"]["id"] == clip["alarm_id"]
    assert timeline["alarm"]["household"] is None
    (name,) = (name for name in contents if name.startswith("clips/"))
    assert hashlib.sha256(contents[name]).hexdigest() == clip["sha256"]

    def changed(**values: bytes | None) -> tuple[str, ...]:
        spoilt = tmp_path / "spoilt.zip"
        with zipfile.ZipFile(spoilt, "w") as archive:
            for one, content in {**contents, **values}.items():
                if content is not None:
                    archive.writestr(one, content)
        return verify_bundle(spoilt).wrong

    assert changed() == ()
    assert changed(**{name: contents[name][:-1] + b"x"}) == (f"{name}: changed after it was exported",)
    assert changed(**{name: None}) == (f"{name}: missing",)
    assert changed(**{"more.txt": b"x"}) == ("more.txt: not in the manifest",)
    audit = json.loads(contents["audit.json"])
    audit["entries"][0]["who"] = "operator/somebody"
    forged = changed(**{"audit.json": json.dumps(audit).encode()})
    assert forged == (
        "audit.json: changed after it was exported",
        f"audit.json: line {audit['entries'][0]['id']} was changed",
    )
    bundle.write_bytes(data[: len(data) // 2])
    assert main(["evidence", "verify", str(bundle)]) == 1
    assert "no evidence bundle" in capsys.readouterr().err


async def claimed(bench: Bench) -> tuple[str, str, dict[str, str]]:
    """(call, leg, headers) of a gridworker who answered the call of a press."""
    worker = bench.bearer("worker", "wa")
    await bench.on_duty("wa", "a1")
    call_id = await bench.call_of((await bench.press("a1"))["alarm"])
    status, call = await bench.call("POST", f"/api/v1/calls/{call_id}/claim", worker, json={})
    assert status == 200, call
    return call_id, call["leg"], worker


async def test_each_leg_of_a_call_is_recorded_and_everybody_is_told(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings=SETTINGS) as bench:
        call_id, leg, worker = await claimed(bench)
        operator, base = bench.bearer("operator", "op"), bench.gateway.base_url
        call_url = f"/api/v1/calls/{call_id}"

        async def call() -> dict[str, Any]:
            return (await bench.call("GET", call_url, operator))[1]

        assert (await call())["recording"] is False
        status, joined = await bench.call("POST", f"{call_url}/join", operator, json={})
        assert status == 200
        async with (
            publishing(bench.client, base, f"{call_url}/legs/{leg}/whip", worker, codec="H264"),
            publishing(bench.client, base, f"{call_url}/legs/{joined['leg']}/whip", operator, codec="VP8"),
        ):
            await until(call, lambda seen: seen["recording"] and seen["state"] == "ACTIVE")
            await asyncio.sleep(2)
            status, _ = await bench.call("POST", f"{call_url}/hangup", worker, json={})
            assert status == 200
        found = await until(
            lambda: clips(bench, f"call_id={call_id}"),
            lambda found: len(found) == 2 and all(clip["state"] == "complete" for clip in found),
        )
        assert (await call())["recording"] is False
        by_type = {clip["media_type"]: clip for clip in found}
        assert set(by_type) == {"video/mp4", "video/webm"}
        assert by_type["video/mp4"]["name"] == "王网格"
        for clip in found:
            assert clip["alarm_id"], "the alarm's clips hold the call"
            _, data, _ = await media(bench, clip["id"])
            assert hashlib.sha256(data).hexdigest() == clip["sha256"]
            packets = streams_of(data)
            assert packets["video"] > 20
            assert packets["audio"] > 60
            path = tmp_path / f"clip{len(data)}"
            path.write_bytes(data)
            assert await ffmpeg_says(path) == "", "FFmpeg decodes it without a word"
            begin, end = await spans(path)
            assert abs(begin["video"] - begin["audio"]) <= AUDIO_ALONE_S, clip
            assert abs(end["video"] - end["audio"]) < 0.5, "picture and sound are in step"
            assert abs(max(end.values()) - (clip["to_at"] - clip["from_at"]) / 1000) < 0.5


async def test_recording_is_refused_with_a_reason_before_the_disk_is_full(tmp_path: Path) -> None:
    full = {"evidence": {"floor_bytes": 1_099_511_627_776}}
    async with running_gateway(tmp_path, settings=full) as bench:
        call_id, leg, worker = await claimed(bench)
        path = f"/api/v1/calls/{call_id}/legs/{leg}/whip"
        async with publishing(bench.client, bench.gateway.base_url, path, worker):

            async def tracks() -> list[str]:
                _, call = await bench.call("GET", f"/api/v1/calls/{call_id}", worker)
                return call["legs"][0]["tracks"]

            await until(
                tracks, lambda seen: seen == ["audio", "video"], why="both tracks come, each by itself"
            )
            (clip,) = await until(lambda: clips(bench, f"call_id={call_id}"), bool)
        assert clip["state"] == "failed"
        assert clip["reason"].startswith("disk_full:")
        _, health = await bench.call("GET", "/healthz")
        assert any(reason.startswith("evidence: disk_full") for reason in health["notes"]), health
        status, _ = await bench.call("GET", "/readyz")
        assert status == 200, "presses are still taken"
        _, call = await bench.call("GET", f"/api/v1/calls/{call_id}", worker)
        assert call["recording"] is False
        _, metrics = await bench.call("GET", "/metrics")
        assert "gateway_evidence_refused 1.0" in metrics


async def test_preroll_is_kept_in_memory_and_a_missing_one_is_named(tmp_path: Path) -> None:
    settings = {"evidence": {"after_s": 2, "preroll_s": 2, "floor_bytes": 1_000_000}}
    async with Farm(still=STILL) as farm:
        cameras = write_files(tmp_path, live_url=farm.url, settings=settings)
        listed = yaml.safe_load(cameras.read_text())
        for camera in listed["cameras"]:
            if camera["id"] == "a1-community":
                camera |= {"pull": "always"}
            if camera["id"] == "a1-none":
                camera["main"] = farm.url
        cameras.write_text(yaml.safe_dump(listed, allow_unicode=True))
        async with running_gateway(tmp_path) as bench:
            media_service = bench.gateway.media

            async def octets() -> int:
                return media_service.preroll_octets()

            await until(octets, lambda held: held > 0, why="the pre-roll fills")
            await asyncio.sleep(2.5)
            _, metrics = await bench.call("GET", "/metrics")
            assert "gateway_evidence_preroll_bytes 0.0" not in metrics
            alarm_id = (await bench.press("a1"))["alarm"]
            found = await until(
                lambda: clips(bench, f"alarm_id={alarm_id}"),
                lambda found: len(found) >= 2 and all(clip["state"] == "complete" for clip in found),
            )
            by_camera = {clip["camera_id"]: clip for clip in found}
            assert 1.4 < by_camera["a1-community"]["preroll_s"] < 3
            assert by_camera["a1-community"]["reason"] == ""
            assert by_camera["a1-none"]["preroll_s"] < 1
            assert by_camera["a1-none"]["reason"].startswith("preroll_missing")


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(folder: Path, base: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`gateway serve` as a child in a process group of its own, up and ready."""
    with (folder / "gateway.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "--cameras", str(folder / "cameras.yaml"), "--data",
            str(folder / "var"), *options, stdout=log, stderr=log, process_group=0,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while True:
                assert child.returncode is None, (folder / "gateway.log").read_text()[-3000:]
                try:
                    async with session.get(f"{base}/readyz") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


async def test_after_a_kill_what_was_written_plays_and_the_rows_say_so(tmp_path: Path) -> None:
    """With two worker processes: the leg lives in one of them."""
    port = free_port(socket.SOCK_STREAM)
    base = f"http://127.0.0.1:{port}"
    settings = {
        **SETTINGS,
        "http": {"port": port},
        "media": {"udp_port": 0},
        "mqtt": {"mode": "off"},
        "evidence": {"after_s": 60, "floor_bytes": 1_000_000},
    }
    write_files(tmp_path, live_url="rtsp://127.0.0.1:9/x", settings=settings)

    def bearer(role: Role, sub: str) -> dict[str, str]:
        key = bytes.fromhex((tmp_path / "var" / "signing.key").read_text())
        token = Keyring(key).issue(
            Principal(sub=sub, role=role), TokenKind.ACCESS, now_s=time.time(), ttl_s=600
        )
        return {"Authorization": f"Bearer {token}"}

    async with aiohttp.ClientSession(base) as session:

        async def ask(method: str, path: str, who: dict[str, str], **more: Any) -> Any:
            async with session.request(method, path, headers=who, **more) as answer:
                return await answer.json()

        async with process(tmp_path, base, "--workers", "2") as child:
            worker, operator = bearer(Role.WORKER, "wa"), bearer(Role.OPERATOR, "op")
            await ask("POST", "/api/v1/workers/me/duty", worker, json={"duty": "on"})
            text = "press|box-a1|p1|1|1700000000000|help||0"
            press = {"v": 1, "sid": "box-a1", "pid": "p1", "seq": 1, "ts": 1_700_000_000_000, "kind": "help"}
            ack = await ask("POST", "/api/v1/alarms", {}, json={**press, "sig": sign(KEY, text)})

            async def alarm() -> Any:
                return await ask("GET", f"/api/v1/alarms/{ack['alarm']}", operator)

            call_id = (await until(alarm, lambda seen: seen["call_id"]))["call_id"]
            claim = await ask("POST", f"/api/v1/calls/{call_id}/claim", worker, json={})

            async def call() -> Any:
                return await ask("GET", f"/api/v1/calls/{call_id}", operator)

            path = f"/api/v1/calls/{call_id}/legs/{claim['leg']}/whip"
            async with publishing(session, base, path, worker, codec="H264"):
                await until(call, lambda seen: seen["recording"])
                await asyncio.sleep(3)
                os.killpg(child.pid, signal.SIGKILL)
                await child.wait()

        async with process(tmp_path, base, "--workers", "2"):
            operator = bearer(Role.OPERATOR, "op")

            async def found() -> Any:
                return (await ask("GET", f"/api/v1/evidence?call_id={call_id}", operator))["evidence"]

            (clip,) = await until(found, lambda seen: seen and seen[0]["state"] != "recording")
            assert (clip["state"], clip["reason"]) == ("complete", "interrupted")
            async with session.get(f"/api/v1/evidence/{clip['id']}/media", headers=operator) as answer:
                data = await answer.read()
            assert hashlib.sha256(data).hexdigest() == clip["sha256"]
            assert streams_of(data)["video"] > 20
            assert (await ask("GET", f"/api/v1/calls/{call_id}", operator))["recording"] is False
