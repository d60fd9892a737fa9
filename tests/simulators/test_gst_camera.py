"""The camera that docs/own-camera.md tells a newcomer to start plays, and the gateway shows its picture."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config import Files, load_configuration
from gateway.streams.cameras import CameraSupervisor
from gateway.streams.media import StreamName
from gateway.streams.pictures import decode_keyframe
from gateway.streams.stream import Stream

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
SCRIPT = ROOT / "simulators" / "gst_camera.py"
PAGE = ROOT / "docs" / "own-camera.md"


def has_gi() -> bool:
    if not Path(SYSTEM_PYTHON).exists():
        return False
    return (
        subprocess.run([SYSTEM_PYTHON, "-c", "import gi"], check=False, capture_output=True).returncode == 0
    )


needs_gi = pytest.mark.skipif(not has_gi(), reason="python3-gi is not installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    id: str
    main: str
    sub: str | None = None
    credentials: str | None = None
    pull: str = "on_demand"
    pull_main: str = "on_demand"
    transport: str = "tcp"


@contextlib.asynccontextmanager
async def camera() -> AsyncIterator[str]:
    """Its address."""
    process = await asyncio.create_subprocess_exec(
        SYSTEM_PYTHON, str(SCRIPT), "0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


@needs_gi
async def test_plays_a_picture() -> None:
    stream = Stream()
    async with camera() as url:
        assert re.fullmatch(r"rtsp://127\.0\.0\.1:\d+/test", url)
        supervisor = CameraSupervisor([Camera(id="test", main=url)], {}, lambda camera_id, name: stream)
        running = asyncio.create_task(supervisor.run())
        try:
            await asyncio.sleep(0)  # it runs
            async with asyncio.timeout(20):
                await supervisor.acquire("test", StreamName.MAIN)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert stream.video.keyframe is not None
    picture = decode_keyframe(stream.video.keyframe.nal_units)
    assert picture.shape == (360, 640, 3)
    assert picture.max() > 200  # the white ball
    assert picture.min() < 30


@needs_gi
async def test_says_when_the_port_is_taken() -> None:
    async with camera() as url:
        port = url.rsplit(":", 1)[1].removesuffix("/test")
        process = await asyncio.create_subprocess_exec(
            SYSTEM_PYTHON, str(SCRIPT), port, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(20):
            _, complaint = await process.communicate()
    assert process.returncode == 1
    assert f"port {port} is taken" in complaint.decode()


def test_the_files_on_the_page_are_right(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.+?)```", PAGE.read_text("utf-8"), re.S)
    assert blocks
    for block in blocks:
        if block.startswith("cameras:"):
            (tmp_path / "my-cameras.yaml").write_text(block, "utf-8")
        else:
            (tmp_path / "secrets.yaml").write_text(block, "utf-8")
            (tmp_path / "secrets.yaml").chmod(0o600)
    configuration = load_configuration(Files.beside(tmp_path / "my-cameras.yaml"))
    assert configuration.cameras


def test_the_page_names_what_exists() -> None:
    text = PAGE.read_text("utf-8")
    assert "/usr/bin/python3 simulators/gst_camera.py" in text
    assert "rtsp://127.0.0.1:8555/test" in text
