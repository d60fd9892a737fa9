"""`gateway doctor`: whether this machine and this configuration can carry the gateway, and what to do about what can't.

Every check looks at the real thing: it binds the ports, sends a segmented datagram, opens the database, asks the broker and
the cameras. It changes nothing and can run beside a gateway: then it asks that one over HTTP instead of its ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import fcntl
import json
import os
import resource
import shutil
import socket
import sqlite3
import ssl
import stat
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from gateway.certificates import certificate_problems, certificates
from gateway.config import CameraConfig, Configuration, Files, load_configuration
from gateway.errors import ConfigError
from gateway.settings import MqttMode, Settings

__all__ = ["Finding", "Level", "examine"]

EXPIRES_SOON = datetime.timedelta(days=30)
CAMERA_TIMEOUT_S = 3.0
CAMERAS_AT_ONCE = 64
NAMED = 5
"""Of many mistakes, or cameras that don't answer, so many are named."""
SOCKET_BUFFER_BYTES = 4 << 20
"""What the media port asks the kernel for (streams/carrier.py); less loses packets in bursts."""
SOL_UDP, UDP_SEGMENT = 17, 103  # linux/udp.h
MAX_OFFSET_MS = 500
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_MIGRATIONS = Path(__file__).parent / "migrations" / "versions"


class Level(StrEnum):
    """ok; warn: works, but somebody should look; fail: the gateway can't start or can't be trusted so."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. todo: what to do, empty when all is well."""

    level: Level
    what: str
    found: str
    todo: str = ""

    def __str__(self) -> str:
        text = f"{self.level.upper():4} {self.what}: {self.found}"
        return f"{text}\n     -> {self.todo}" if self.todo else text


def _ok(what: str, found: str) -> Finding:
    return Finding(level=Level.OK, what=what, found=found)


def _warn(what: str, found: str, todo: str) -> Finding:
    return Finding(level=Level.WARN, what=what, found=found, todo=todo)


def _fail(what: str, found: str, todo: str) -> Finding:
    return Finding(level=Level.FAIL, what=what, found=found, todo=todo)


def examine(
    files: Files, data: Path, *, taken_ports: Callable[[Settings], Sequence[str]], now: datetime.datetime
) -> Iterator[Finding]:
    """All checks in the order in which a person would go. `taken_ports`: ports that somebody else holds, a line each."""
    try:
        configuration = load_configuration(files)
    except ConfigError as error:
        more = f", and {len(error.mistakes) - NAMED} more" if len(error.mistakes) > NAMED else ""
        said = "; ".join(error.mistakes[:NAMED]) + more
        yield _fail("configuration", said, "correct it; `gateway check` names every mistake")
        return
    settings = configuration.settings
    yield _ok("configuration", f"{len(configuration.cameras)} cameras, no mistakes")
    yield from _certificates(settings, now)
    holder = _holder(data)
    yield from _data(data, settings)
    yield from _database(data / "gateway.db")
    if holder is None:
        yield from _ports(taken_ports(settings))
    else:
        yield from _running(settings, holder)
    yield from _machine(configuration)
    yield from _broker(settings, running=holder is not None)
    yield _pages()
    yield from asyncio.run(_cameras(configuration.cameras))


# -- files ----------------------------------------------------------------------------------------------------------


def _certificates(settings: Settings, now: datetime.datetime) -> Iterator[Finding]:
    for problem in certificate_problems(settings):
        yield _fail("certificates", problem, "give the gateway a PEM certificate with its chain and its key")
    for one in certificates(settings):
        left = one.ends - now
        said = f"{one.setting} ends {one.ends:%Y-%m-%d} ({left.days} days)"
        if left <= datetime.timedelta():
            yield _fail("certificates", said, f"renew {one.path} and restart the gateway")
        elif left < EXPIRES_SOON:
            yield _warn("certificates", said, f"renew {one.path} and restart the gateway")
        else:
            yield _ok("certificates", said)
    if not settings.http.tls_cert and settings.http.allow_plain:
        yield _warn("certificates", "HTTP is plain beyond this machine", "only behind a proxy that ends TLS")


def _data(data: Path, settings: Settings) -> Iterator[Finding]:
    if not data.is_dir():
        yield _ok("data", f"{data} is made at the first start")
        return
    bad = [path for path in (data, *data.glob("*.key"), *data.glob("*.db*")) if path.stat().st_mode & 0o077]
    for path in bad:
        mode = "700" if stat.S_ISDIR(path.stat().st_mode) else "600"
        yield _fail("data", f"others may read {path}", f"chmod {mode} {path}")
    there = os.statvfs(data)
    free, least = there.f_bavail * there.f_frsize, settings.storage.reserve_bytes
    said = f"{free >> 20} MiB free in {data}"
    if free < least:
        yield _fail("disk", said, f"make room: below {least >> 20} MiB presses may soon be refused")
    elif free < 10 * least:
        yield _warn("disk", said, f"make room before it is below {least >> 20} MiB (storage.reserve_bytes)")
    else:
        yield _ok("disk", said)


def _database(path: Path) -> Iterator[Finding]:
    if not path.is_file():
        yield _ok("database", "is made at the first start")
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            sound = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            heads = {row[0] for row in connection.execute("SELECT version_num FROM alembic_version")}
    except sqlite3.Error as error:
        sound, heads = str(error), set()
    if sound != "ok":
        todo = "stop the gateway, keep the file, and restore the last backup (docs/runbook.md)"
        yield _fail("database", f"{path} is damaged: {sound}", todo)
        return
    known = {file.name.partition("_")[0] for file in _MIGRATIONS.glob("*.py")}
    if unknown := sorted(heads - known):
        todo = "start the newer gateway that made it, or restore a backup of this version"
        yield _fail(
            "database", f"{path} has steps that this version does not know: {', '.join(unknown)}", todo
        )
        return
    yield _ok("database", f"sound, schema {', '.join(sorted(heads))}")


# -- this machine ---------------------------------------------------------------------------------------------------


def _holder(data: Path) -> str | None:
    """Pid of the gateway that runs on this data, as it wrote it down; None if none does."""
    try:
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


def _ports(taken: Sequence[str]) -> Iterator[Finding]:
    for line in taken:
        yield _fail("ports", line, "stop what holds it, or set another port")
    if not taken:
        yield _ok("ports", "all free")


def _running(settings: Settings, holder: str) -> Iterator[Finding]:
    http = settings.http
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)  # noqa: S104 - where to ask, not to bind
    base = f"{'https' if http.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{http.port}"
    if http.port == 0:
        yield _ok("gateway", f"runs (pid {holder}) on a port of its choice: it can't be asked")
        return
    # To one's own address: who answers there holds our port, whatever name its certificate has.
    context = ssl._create_unverified_context() if http.tls_cert else None  # noqa: S323
    try:
        with urllib.request.urlopen(f"{base}/healthz", timeout=5, context=context) as answer:  # noqa: S310
            said = json.load(answer)
            troubles = [*said["reasons"], *said["notes"]]
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError) as error:
        yield _fail(
            "gateway", f"pid {holder} does not answer at {base}: {error}", "look into its log; restart it"
        )
        return
    if not troubles:
        yield _ok("gateway", f"runs (pid {holder}), all well")
    for trouble in troubles:
        yield _warn("gateway", f"pid {holder} says: {trouble}", "see docs/runbook.md")


def _machine(configuration: Configuration) -> Iterator[Finding]:
    yield _clock()
    yield _segmentation()
    try:
        from gateway.streams import _fan  # noqa: F401 - whether it was built
    except ImportError:
        todo = "install cc, python3-dev and libssl-dev and reinstall: video then costs a third less"
        yield _warn("compiled loop", "not built, video is sent by Python", todo)
    else:
        yield _ok("compiled loop", "built")
    cameras = len(configuration.cameras)
    needed = 2 * cameras + 4_096
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} file descriptors for {cameras} cameras"
    if soft < needed:
        todo = f"LimitNOFILE={max(65_536, needed)} in the unit, or ulimit -n (the hard limit is {hard})"
        yield _warn("limits", said, todo)
    else:
        yield _ok("limits", said)
    for name in ("rmem_max", "wmem_max"):
        most = int(Path(f"/proc/sys/net/core/{name}").read_text())
        if most < SOCKET_BUFFER_BYTES:
            todo = f"sysctl -w net.core.{name}={SOCKET_BUFFER_BYTES}: bursts of video lose packets otherwise"
            yield _warn("limits", f"net.core.{name} is {most}", todo)
        else:
            yield _ok("limits", f"net.core.{name} is {most}")


def _clock() -> Finding:
    """What the kernel knows of its clock: adjtimex(2) with nothing to set."""
    timex = (ctypes.c_long * 64)()  # struct timex is smaller on every Linux
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    # modes (int, padded), offset, freq, maxerror, esterror, status ...
    offset, status = (
        timex[1],
        ctypes.cast(ctypes.byref(timex, 5 * ctypes.sizeof(ctypes.c_long)), ctypes.POINTER(ctypes.c_int))[0],
    )
    offset_ms = abs(offset) / (1e6 if status & 0x2000 else 1e3)  # STA_NANO
    if state in (-1, _TIME_ERROR):
        todo = "run chrony or systemd-timesyncd: boxes, tokens and records go by this clock"
        return _warn("clock", "not synchronised", todo)
    if offset_ms > MAX_OFFSET_MS:
        return _warn(
            "clock",
            f"{offset_ms:.0f} ms off",
            "let the time service finish, or step the clock before starting",
        )
    return _ok("clock", f"synchronised, {offset_ms:.1f} ms off")


def _segmentation() -> Finding:
    """UDP_SEGMENT (GSO): one call sends a group of packets."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
    ):
        there.bind(("127.0.0.1", 0))
        there.settimeout(1)
        try:
            segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 100))]
            here.sendmsg([bytes(250)], segment, 0, there.getsockname())
            sizes = [len(there.recv(2_048)) for _ in range(3)]
        except OSError as error:
            return _warn(
                "GSO", f"not here ({error}): packets are sent one by one", "a kernel of 4.18 or newer"
            )
    if sizes != [100, 100, 50]:
        return _warn("GSO", f"segments of {sizes}", "a kernel of 4.18 or newer")
    return _ok("GSO", "UDP segmentation works")


# -- the others -----------------------------------------------------------------------------------------------------


def _broker(settings: Settings, *, running: bool) -> Iterator[Finding]:
    mqtt = settings.mqtt
    if mqtt.mode is MqttMode.OFF:
        yield _warn("broker", "mqtt is off: boxes have one path only", "set mqtt.mode: supervised")
    elif mqtt.mode is MqttMode.SUPERVISED:
        found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if found is None:
            yield _fail(
                "broker", "no mosquitto on this machine", "apt install mosquitto, or mqtt.mode: external"
            )
        elif running and mqtt.port:
            yield _answers("broker", mqtt.host, mqtt.port, "look into the gateway's log for `mosquitto`")
        else:
            yield _ok("broker", found)
    else:
        parts = urlsplit(mqtt.url)
        port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        yield _answers("broker", parts.hostname or "127.0.0.1", port, "start it, or correct mqtt.url")


def _answers(what: str, host: str, port: int, todo: str) -> Finding:
    try:
        with socket.create_connection((host, port), timeout=CAMERA_TIMEOUT_S):
            return _ok(what, f"answers at {host}:{port}")
    except OSError as error:
        return _fail(what, f"no answer at {host}:{port}: {error.strerror or error}", todo)


def _pages() -> Finding:
    if (Path(__file__).parent / "web" / "dist" / "wall.html").is_file():
        return _ok("pages", "built")
    return _fail("pages", "not built", "run `make setup` in the source, or install the wheel")


async def _cameras(cameras: Sequence[CameraConfig]) -> list[Finding]:
    """An RTSP OPTIONS to each: not a login, not a stream, just whether there is a camera."""
    slots = asyncio.Semaphore(CAMERAS_AT_ONCE)

    async def ask(camera: CameraConfig) -> str | None:
        async with slots:
            return await _rtsp_options(camera.main)

    answers = await asyncio.gather(*(ask(camera) for camera in cameras))
    silent = [(camera.id, why) for camera, why in zip(cameras, answers, strict=True) if why]
    if not silent:
        return [_ok("cameras", f"all {len(cameras)} answer")]
    named = "; ".join(f"{camera_id}: {why}" for camera_id, why in silent[:NAMED])
    more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
    todo = "check power, cable, address and the network between; the others are not affected"
    return [_warn("cameras", f"{len(silent)} of {len(cameras)} don't answer: {named}{more}", todo)]


async def _rtsp_options(url: str) -> str | None:
    """None if something that speaks RTSP answers, else why not."""
    parts = urlsplit(url)
    secure = parts.scheme == "rtsps"
    context = ssl._create_unverified_context() if secure else None  # noqa: S323 - is it there? the pull verifies
    try:
        async with asyncio.timeout(CAMERA_TIMEOUT_S):
            host, port = parts.hostname or "", parts.port or (322 if secure else 554)
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(f"OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return "no answer"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return None if line.startswith(b"RTSP/1.") else "something answers, but not in RTSP"
