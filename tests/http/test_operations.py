"""A running gateway that is reloaded, changed by API, measured and stopped, with real viewers of a real camera."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import yaml
from aiohttp import WSMsgType
from running_gateway import Bench, running_gateway, serving, write_files

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from rtsp_farm import Farm
from still_encoder import encode
from webrtc_clients import WhepClient

from gateway.store import Store

ROOT = Path(__file__).parents[2]
SETTINGS = {"mqtt": {"mode": "off"}, "pictures": {"enabled": False}}


class Viewer(WhepClient):
    """Counts video packets: the farm's pictures don't decode."""

    def __init__(self) -> None:
        super().__init__()
        self.packets = 0
        self.session = ""
        self.drop_incoming(self._count)

    def _count(self, ssrc: int, number: int, payload_type: int) -> bool:
        self.packets += 1
        return False

    async def join(self, bench: Bench, camera_id: str) -> None:
        headers = {**bench.bearer("operator", "op"), "Content-Type": "application/sdp"}
        async with bench.client.post(
            f"/whep/{camera_id}", data=await self.offer(), headers=headers
        ) as answer:
            body = await answer.text()
            assert answer.status == 201, body
            self.session = answer.headers["Location"].rpartition("/")[2]
        await self.accept(SimpleNamespace(sdp=body))

    async def sees_more(self) -> None:
        before = self.packets
        await eventually(lambda: self.packets >= before + 20)


async def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(bench: Bench, *camera_ids: str) -> AsyncIterator[list[Viewer]]:
    viewers = [Viewer() for _ in camera_ids]
    try:
        for viewer, camera_id in zip(viewers, camera_ids, strict=True):
            await viewer.join(bench, camera_id)
            await viewer.sees_more()
        yield viewers
    finally:
        await asyncio.gather(*(viewer.close() for viewer in viewers))


def edit(bench: Bench, change: Callable[[dict[str, Any]], object]) -> None:
    path = bench.folder / "cameras.yaml"
    cameras = {one["id"]: one for one in yaml.safe_load(path.read_text())["cameras"]}
    change(cameras)
    path.write_text(yaml.safe_dump({"cameras": list(cameras.values())}, allow_unicode=True))


def open_sessions(bench: Bench) -> set[str]:
    return {one.session_id for one in bench.gateway.media.sessions()}


async def test_a_reload_touches_only_what_changed(tmp_path: Path) -> None:
    async with (
        Farm() as farm,
        Farm() as other,
        running_gateway(tmp_path, live_url=farm.url, settings=SETTINGS) as bench,
    ):
        admin = bench.bearer("admin", "root")

        def three(cameras: dict[str, Any]) -> None:
            for name in ("a2-street", "b1-street"):
                cameras[name]["main"] = farm.url
            cameras["b1-none"]["main"] = farm.url

        edit(bench, three)
        status, said = await bench.call("POST", "/api/v1/admin/reload", admin)
        assert status == 200, said
        assert sorted(said["changed"]) == ["a2-street", "b1-none", "b1-street"]
        async with watching(bench, "a1-community", "a2-street", "b1-street") as (kept, changed, gone):
            dials = farm.methods.count("PLAY")
            edit(
                bench, lambda cameras: (cameras.pop("b1-street"), cameras["a2-street"].update(main=other.url))
            )
            status, said = await bench.call("POST", "/api/v1/admin/reload", admin)
            assert status == 200, said
            assert said["changed"] == ["a2-street"]
            assert said["removed"] == ["b1-street"]
            assert said["restart"] == []
            await eventually(lambda: gone.session not in open_sessions(bench))
            await kept.sees_more()
            await other.saw("PLAY")
            await changed.sees_more()
            assert {kept.session, changed.session} <= open_sessions(bench)
            assert farm.methods.count("PLAY") == dials
            assert farm.sessions == 1
            closed = {one.session_id: one.reason for one in bench.gateway.media.sessions(closed=True)}
            assert closed[gone.session] in ("camera_removed", "revoked")
        status, _ = await bench.call("GET", "/api/v1/cameras/b1-street", admin)
        assert status == 404


async def test_a_mistake_changes_nothing(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings=SETTINGS) as bench:
        admin = bench.bearer("admin", "root")
        edit(
            bench,
            lambda cameras: (cameras.pop("b1-street"), cameras["a1-none"].update(headin=5, community="9")),
        )
        status, said = await bench.call("POST", "/api/v1/admin/reload", admin)
        assert status == 400
        assert len(said["mistakes"]) == 3  # the grid does not lie in that community either
        assert "did you mean heading?" in said["detail"]
        status, _ = await bench.call("GET", "/api/v1/cameras/b1-street", admin)
        assert status == 200
        bench.gateway.reload_soon()  # SIGHUP: the same mistakes, to the log
        await asyncio.sleep(0.2)
        assert "b1-street" in bench.gateway.catalog.configs
        settings = bench.folder / "gateway.yaml"
        settings.write_text(settings.read_text() + "\nalarms: {triage_s: 61}\n")
        edit(bench, lambda cameras: (cameras["a1-none"].pop("headin"), cameras["a1-none"].pop("community")))
        status, said = await bench.call("POST", "/api/v1/admin/reload", admin)
        assert status == 200, said
        assert said["restart"] == ["alarms"]
        assert said["removed"] == ["b1-street"]


async def test_cameras_by_api_stand_in_the_file(tmp_path: Path) -> None:
    async with Farm() as farm, running_gateway(tmp_path, live_url=farm.url, settings=SETTINGS) as bench:
        admin = bench.bearer("admin", "root")
        path = bench.folder / "cameras.yaml"
        path.write_text("# by hand\n" + path.read_text())
        path.chmod(0o640)
        entry = {"id": "new", "main": farm.url, "name": "新的"}
        async with watching(bench, "a1-community") as (kept,):
            status, camera = await bench.call("POST", "/api/v1/cameras", admin, json=entry)
            assert status == 201, camera
            assert camera["name"] == "新的"
            assert (await bench.call("POST", "/api/v1/cameras", admin, json=entry))[0] == 409
            for wrong, word in (
                ({"id": "x"}, "main: is missing"),
                ({"main": farm.url}, "id: is missing"),
                ({"id": "x", "main": "rtsp://192.0.2.1/a"}, "camera_networks"),
                ({"id": "x", "main": "rtsp://localhost/a"}, "camera_networks"),
                ({"id": "x", "main": "rtsp://u:p@127.0.0.1/a"}, "secrets.yaml"),
                (
                    {"id": "x", "main": farm.url, "fov": "wide", "colour": 1},
                    "fov: should be a number, not 'wide'",
                ),
            ):
                before = path.read_bytes()
                status, said = await bench.call("POST", "/api/v1/cameras", admin, json=wrong)
                assert status == 400, (wrong, said)
                assert word in said["detail"]
                assert path.read_bytes() == before
            status, camera = await bench.call(
                "PUT", "/api/v1/cameras/new", admin, json={"main": farm.url, "fov": 30}
            )
            assert (status, camera["fov"], camera["name"]) == (200, 30, "new")
            changes = [
                {"op": "put", "camera": {"id": "more", "main": farm.url}},
                {"op": "update", "id": "new", "set": {"fov": None, "heading": 12}},
                {"op": "remove", "id": "nowhere"},
            ]
            far = yaml.safe_load(path.read_text())["cameras"]
            far.append({"id": "far", "main": "rtsp://192.0.2.1/a"})
            path.write_text("# by hand\n" + yaml.safe_dump({"cameras": far}, allow_unicode=True))
            assert (await bench.call("POST", "/api/v1/admin/reload", admin))[0] == 200
            renamed = {
                "changes": [
                    {"op": "update", "id": "far", "set": {"name": "远", "main": "rtsp://192.0.2.1/a"}}
                ]
            }
            assert (await bench.call("PATCH", "/api/v1/cameras", admin, json=renamed))[0] == 200
            renamed["changes"][0]["set"] = {"main": "rtsp://192.0.2.2/a"}
            status, said = await bench.call("PATCH", "/api/v1/cameras", admin, json=renamed)
            assert (status, "camera_networks" in str(said)) == (400, True)
            half = {"changes": [*changes, {"op": "remove", "id": "none"}]}
            assert (await bench.call("PATCH", "/api/v1/cameras", admin, json=half))[0] == 404
            assert (await bench.call("GET", "/api/v1/cameras/more", admin))[0] == 404
            status, said = await bench.call("PATCH", "/api/v1/cameras", admin, json={"changes": changes})
            assert status == 200, said
            assert (said["added"], said["changed"], said["removed"]) == (["more"], ["new"], ["nowhere"])
            assert (await bench.call("DELETE", "/api/v1/cameras/more", admin))[0] == 204
            await kept.sees_more()
            assert kept.session in open_sessions(bench)
        text = path.read_text()
        assert text.startswith("# by hand\n")
        assert path.stat().st_mode & 0o777 == 0o640
        assert [one.name for one in bench.folder.glob(".cameras*")] == []
        cameras = {one["id"]: one for one in yaml.safe_load(text)["cameras"]}
        assert cameras["new"] == {"id": "new", "main": farm.url, "heading": 12}
        assert {"more", "nowhere"} & cameras.keys() == set()
    store = await Store.open(tmp_path / "var" / "gateway.db", busy_deadline_s=5)
    try:
        rows = await store.read(
            lambda connection: connection.exec_driver_sql(
                "SELECT who, detail FROM audit WHERE action = 'cameras.change' ORDER BY id"
            ).fetchall()
        )
    finally:
        await store.close()
    assert [json.loads(detail) for _, detail in rows] == [
        {"added": ["new"]},
        {"changed": ["new"]},
        {"changed": ["far"]},
        {"added": ["more"], "changed": ["new"], "removed": ["nowhere"]},
        {"removed": ["more"]},
    ]
    assert {who for who, _ in rows} == {"admin/root"}


async def test_the_pages_and_viewers_are_told_of_a_restart(tmp_path: Path) -> None:
    async with Farm() as farm, running_gateway(tmp_path, live_url=farm.url, settings=SETTINGS) as bench:
        operator = bench.bearer("operator", "op")
        gateway = bench.gateway
        async with (
            watching(bench, "a1-community") as (viewer,),
            bench.client.ws_connect("/api/v1/events", headers=operator) as page,
        ):
            assert json.loads((await page.receive()).data)["type"] == "hello"
            seen: dict[str, object] = {}
            emptied: Callable[[], Awaitable[None]] = gateway.events.emptied

            async def look() -> None:
                """While it drains: between the first and the last word to the pages."""
                seen["ready"] = await bench.call("GET", "/readyz")
                headers = {**operator, "Content-Type": "application/sdp"}
                async with bench.client.post("/whep/a1-community", data="v=0", headers=headers) as answer:
                    seen["join"] = answer.status, answer.headers.get("Retry-After")
                async with bench.client.get("/api/v1/events", headers=operator) as answer:
                    seen["page"] = answer.status
                seen["press"] = (await bench.press("a1"))["stage"]
                await emptied()

            gateway.events.emptied = look  # type: ignore[method-assign]
            bench.stopping.set()
            frames = []
            while (message := await page.receive()).type is WSMsgType.TEXT:
                frames.append(json.loads(message.data))
            assert [frame["data"] for frame in frames if frame["type"] == "revoked"] == [
                {"reason": "restart"}
            ]
            await eventually(lambda: "press" in seen)
            status, said = seen["ready"]  # type: ignore[misc]
            assert status == 503
            assert "draining" in said["reasons"]
            assert seen["join"] == (503, "3")
            assert seen["page"] == 503
            assert seen["press"] == "persisted"
            assert viewer.session not in open_sessions(bench)


async def test_a_bad_picture_is_shown_everywhere(tmp_path: Path) -> None:
    black = encode(np.zeros((360, 640, 3), np.uint8))
    settings = {**SETTINGS, "pictures": {"interval_s": 0.2, "cpu_share": 1}}
    async with (
        Farm(still=black) as farm,
        running_gateway(tmp_path, live_url=farm.url, settings=settings) as bench,
        bench.client.ws_connect("/api/v1/events", headers=bench.bearer("operator", "op")) as page,
    ):
        operator = bench.bearer("operator", "op")
        _, camera = await bench.call("GET", "/api/v1/cameras/a1-community", operator)
        assert camera["picture"] is None
        async with watching(bench, "a1-community"), asyncio.timeout(20):
            while True:
                frame = json.loads((await page.receive()).data)
                if frame["type"] == "camera" and frame["data"]["picture"]:
                    break
        assert frame["data"]["id"] == "a1-community"
        _, camera = await bench.call("GET", "/api/v1/cameras/a1-community", operator)
        assert camera["picture"]["verdict"] == frame["data"]["picture"]["verdict"] == "black"
        assert camera["picture"]["reason"].startswith("画面全黑")
        assert camera["picture"]["since"] <= camera["picture"]["checked_at"]
        _, text = await bench.call("GET", "/metrics")
        assert 'gateway_camera_pictures{verdict="black"} 1.0' in text
        assert 'gateway_camera_pictures{verdict="ok"} 0.0' in text
        status, _ = await bench.call("GET", "/api/v1/cameras/a1-community/snapshot.jpg", operator)
        assert status == 200


async def test_keys_and_passwords_change_with_a_reload(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, settings=SETTINGS) as bench:
        admin = bench.bearer("admin", "root")
        new = "6b" * 32
        path = bench.folder / "secrets.yaml"
        secrets = yaml.safe_load(path.read_text())
        secrets["boxes"]["box-a1"] = new
        path.write_text(yaml.safe_dump(secrets))
        assert (await bench.press("a1", pid="p1", key=new))["stage"] == "refused"
        status, said = await bench.call("POST", "/api/v1/admin/reload", admin)
        assert (status, said["secrets"], said["changed"]) == (200, True, [])
        assert (await bench.press("a1", pid="p2", key=new))["stage"] == "persisted"
        path.chmod(0o644)
        status, said = await bench.call("POST", "/api/v1/admin/reload", admin)
        assert (status, "chmod 600" in said["detail"], new in said["detail"]) == (400, True, False)


def labels(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r'(\w+)="([^"]*)"', text))


async def test_the_metrics_are_as_prometheus_likes_them(tmp_path: Path) -> None:
    async with Farm() as farm, running_gateway(tmp_path, live_url=farm.url, settings=SETTINGS) as bench:
        await bench.press("a1")
        async with watching(bench, "a1-community") as (viewer,):
            status, text = await bench.call("GET", "/metrics")
        assert status == 200
        checked = await asyncio.to_thread(
            subprocess.run,
            ["promtool", "check", "metrics"],
            input=text.encode(),
            capture_output=True,
            timeout=30,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
        assert not [value for _, value in labels(text) if value in (viewer.session, "op", "a1-community")]
        families = set(re.findall(r"^# TYPE (\S+)", text, re.M))
        assert families == set(re.findall(r"^# HELP (\S+) \S", text, re.M))
        assert {"gateway_camera_pictures", "gateway_picture_checks_total"} <= families
        assert all(name.startswith("gateway_") for name in families)


def admin_token(folder: Path) -> str:
    options = ("--role", "admin", "--sub", "root", "--data", f"{folder}/var")
    command = [sys.executable, "-m", "gateway", "token", *options]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    ).stdout.strip()


async def test_signals_reload_and_stop_a_gateway_with_workers(tmp_path: Path) -> None:
    write_files(tmp_path, live_url="rtsp://127.0.0.1:9/x", settings=SETTINGS)
    async with serving(tmp_path, "--workers", "2") as (process, base):
        token = await asyncio.to_thread(admin_token, tmp_path)
        async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {token}"}) as client:

            async def names() -> set[str]:
                async with client.get("/api/v1/cameras") as answer:
                    return {camera["id"] for camera in (await answer.json())["cameras"]}

            before = await names()
            path = tmp_path / "cameras.yaml"
            text = path.read_text()
            path.write_text(text.replace("id: b1-none\n", "id: renamed\n"))
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(20):
                while "renamed" not in await names():
                    await asyncio.sleep(0.05)
            assert await names() == before - {"b1-none"} | {"renamed"}
            path.write_text("cameras: [")
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            async with asyncio.timeout(20):
                while b"not reloaded" not in (line := await process.stderr.readline()):
                    assert line
            assert "renamed" in await names()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.communicate()
        assert process.returncode == 0
