"""What a machine does to a gateway: a slow disk, a full one, a clock that is set, no file descriptors left, garbage at its
port, a thousand joins in five seconds, no broker for an hour. One real process through all of it; docs/faults.md has the table.

The disk's slowness and the clock come from a preloaded library (shim.c), the full disk from a tmpfs of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.district import Site, hmac_hex, make_site, press_body, running

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from rtsp_farm import Farm
from webrtc_clients import WhepClient

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.broker,
    pytest.mark.skipif(
        shutil.which("cc") is None, reason="no C compiler for the library that makes the faults"
    ),
]
DISK_BYTES = 48 << 20
HOUR_MS = 3_600_000
SETTINGS: dict[str, Any] = {
    "media": {"udp_port": 0, "workers": 1},
    "storage": {"reserve_bytes": 4 << 20},
    "evidence": {"floor_bytes": 4 << 20},
    "access": {"joins_staff": 100},
    # Escalation in seconds, so that one that comes an hour late is seen to be missing.
    "alarms": {
        "shown_s": 0.5, "acknowledged_s": 1, "street_s": 1, "district_s": 2, "leader_s": 3, "group_radius_m": 0,
    },
}  # fmt: skip


@dataclass
class Rig:
    """A running gateway, its faults and its client. `seq`: so that no press is the same as another."""

    site: Site
    session: aiohttp.ClientSession
    faults: Path
    on_tmpfs: bool
    operator: dict[str, str]
    media_port: int
    seq: int = 0
    alarms: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        assert self.site.process is not None
        return self.site.process.pid

    def fault(self, *, sync_us: int = 0, clock_ms: int = 0) -> None:
        with self.faults.open("r+b") as shared:
            shared.write(struct.pack("=qq", sync_us, clock_ms))

    async def press(self, number: int) -> tuple[int, dict[str, Any]]:
        sid = list(self.site.boxes)[number]
        self.seq += 1
        body = press_body(self.site.boxes[sid], sid, f"p{self.seq}", ts=1_700_000_000_000)
        async with self.session.post(f"{self.site.base}/api/v1/alarms", data=body) as answer:
            ack = await answer.json()
        if ack.get("alarm"):
            self.alarms.append(ack["alarm"])
        return answer.status, ack

    async def persists(self, number: int) -> None:
        status, ack = await self.press(number)
        assert (status, ack["stage"]) == (200, "persisted"), ack

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(f"{self.site.base}{path}", headers=self.operator) as answer:
            return answer.status, await answer.json()

    async def until(self, path: str, wanted: Any, seconds: float = 30) -> Any:
        """Until `wanted(status, JSON)` is true. The limit only bounds a failure."""
        said: Any = None
        try:
            async with asyncio.timeout(seconds):
                while not wanted(*(said := await self.get(path))):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{path}: still {said} after {seconds} s") from None
        return said[1]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at this place, if we may mount one."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "gateway-fault", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    library, faults = folder / "shim.so", folder / "faults"
    faults.write_bytes(bytes(16))
    source = Path(__file__).with_name("shim.c")
    compile = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    await asyncio.to_thread(subprocess.run, compile, check=True)
    site = make_site(folder / "site", boxes=40, workers=3, settings=SETTINGS)
    site.environment = {"LD_PRELOAD": str(library), "FAULT_FILE": str(faults)}
    with small_disk(site.data) as on_tmpfs:
        async with Farm() as farm:
            (site.directory / "cameras.yaml").write_text(f"cameras: [{{id: cam001, main: '{farm.url}'}}]\n")
            async with running(site), aiohttp.ClientSession() as session:
                operator = {
                    "Authorization": f"Bearer {await site.token('operator', 'op01', '--ttl', '20000')}"
                }
                port = udp_port(site)
                yield Rig(site, session, faults, on_tmpfs, operator, port)


def udp_port(site: Site) -> int:
    """The media port that the gateway took, out of the process's sockets."""
    assert site.process is not None
    folder = Path(f"/proc/{site.process.pid}")
    inodes = {
        os.readlink(fd)[8:-1] for fd in (folder / "fd").iterdir() if os.readlink(fd).startswith("socket:")
    }
    rows = [line.split() for line in (folder / "net/udp").read_text().splitlines()[1:]]
    [port] = {int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes}
    return port


async def test_a_disk_that_is_slow_to_sync_delays_answers_and_nothing_else(rig: Rig) -> None:
    rig.fault(sync_us=700_000)
    began = time.monotonic()
    answers = [asyncio.create_task(rig.press(number)) for number in range(20)]
    for _ in range(5):  # the loop waits for no disk
        status, said = await rig.get("/readyz")
        assert (status, said["ready"]) == (200, True)
        await asyncio.sleep(0.05)
    assert {(status, ack["stage"]) for status, ack in await asyncio.gather(*answers)} == {(200, "persisted")}
    assert time.monotonic() - began >= 0.7  # `persisted` is said after the sync, not before
    rig.fault()
    assert len(set(rig.alarms)) == 20


async def test_a_full_disk_refuses_presses_in_words_and_heals_when_there_is_room(rig: Rig) -> None:
    if not rig.on_tmpfs:
        pytest.skip("mounting a tmpfs needs root; test_real_gateway fills a disk by RLIMIT_FSIZE")
    filler = rig.site.data / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    _, said = await rig.get("/healthz")
    assert said["status"] == "degraded"
    assert any(note.startswith("disk: 0 MiB free") for note in said["notes"])
    before = len(rig.alarms)
    refused = 0
    for number in range(20, 30):  # what is left in the last page of the log may still take one
        status, ack = await rig.press(number)
        if status == 503:
            refused += 1
            assert (ack["stage"], ack["reason"]) == ("refused", "cannot_process")
        else:
            assert (status, ack["stage"]) == (200, "persisted")
    assert refused
    status, said = await rig.get("/readyz")
    assert (status, said["ready"]) == (503, False)
    filler.unlink()
    await rig.persists(30)
    await rig.until("/healthz", lambda status, said: said["status"] == "ok")
    with contextlib.closing(sqlite3.connect(rig.site.data / "gateway.db")) as raw:
        kept = {row[0] for row in raw.execute("SELECT id FROM alarm")}
    assert set(rig.alarms) <= kept  # whatever was called persisted is there
    assert len(rig.alarms) > before


async def test_without_file_descriptors_what_is_open_goes_on(rig: Rig) -> None:
    limits = resource.prlimit(rig.pid, resource.RLIMIT_NOFILE)
    async with rig.session.ws_connect(f"{rig.site.base}/api/v1/events", headers=rig.operator) as channel:
        assert (await channel.receive_json())["type"] == "hello"
        held = len(list(Path(f"/proc/{rig.pid}/fd").iterdir()))
        resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (held + 3, limits[1]))
        knocking = [socket.create_connection(("127.0.0.1", rig.site.http)) for _ in range(50)]
        try:
            await asyncio.sleep(0.5)
            async with asyncio.timeout(20):
                while (await channel.receive_json())["type"] != "heartbeat":
                    pass
        finally:
            for one in knocking:
                one.close()
            resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, limits)
    await rig.until("/readyz", lambda status, said: status == 200)
    await rig.persists(31)
    assert "Traceback" not in rig.site.log_tail() or "Too many open files" in rig.site.log_tail()


async def test_garbage_at_the_media_port_costs_no_memory_and_no_viewer(rig: Rig) -> None:
    dice = random.Random(4)
    # First octets by which RFC 7983 tells STUN, DTLS, RTP and the rest apart.
    firsts = (0, 1, 20, 22, 23, 63, 64, 80, 128, 144, 191, 200, 255)
    stun = struct.pack("!HHI", 1, 8, 0x2112A442)
    await rig.get("/healthz")
    before = rss(rig.pid)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(20_000):
            body = dice.randbytes(dice.randrange(0, 200))
            head = stun if number % 5 == 0 else bytes([dice.choice(firsts)])
            sender.sendto((head + body)[:1400], ("127.0.0.1", rig.media_port))
            if number % 500 == 0:
                await asyncio.sleep(0.01)  # else most of it is dropped by the kernel, not by us
    status, said = await rig.get("/readyz")
    assert (status, said["ready"]) == (200, True)
    assert rss(rig.pid) - before < 20 << 20
    client = WhepClient(video=True, audio=False)
    try:
        headers = {**rig.operator, "Content-Type": "application/sdp"}
        url = f"{rig.site.base}/whep/cam001"
        async with rig.session.post(url, data=await client.offer(), headers=headers) as answer:
            assert answer.status == 201, await answer.text()
    finally:
        await client.close()
    await rig.persists(32)


def rss(pid: int) -> int:
    line = next(
        one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024


@pytest.mark.realtime
async def test_a_thousand_joins_in_five_seconds_are_answered_and_alarms_go_on(rig: Rig) -> None:
    client = WhepClient(video=True, audio=False)
    offer = await client.offer()
    await client.close()
    people = await asyncio.gather(
        *(rig.site.token("operator", f"op-{number}", "--ttl", "20000") for number in range(20))
    )
    url, began = f"{rig.site.base}/whep/cam001", time.monotonic()

    async def join(number: int) -> int:
        await asyncio.sleep(max(0.0, began + number * 0.005 - time.monotonic()))
        headers = {
            "Authorization": f"Bearer {people[number % len(people)]}",
            "Content-Type": "application/sdp",
        }
        async with rig.session.post(url, data=offer, headers=headers) as answer:
            await answer.read()
            return answer.status

    joining = [asyncio.create_task(join(number)) for number in range(1_000)]
    for _ in range(3):
        await asyncio.sleep(1)
        await rig.persists(33)
    statuses = await asyncio.gather(*joining)
    assert {*statuses} == {201}
    _, said = await rig.get("/healthz")
    assert said["sessions"] >= 1_000 - 100
    assert said["status"] == "ok", said
    await rig.persists(33)


async def test_no_broker_for_an_hour_and_a_clock_that_is_set_back_after_it(rig: Rig) -> None:
    """The hour passes on the clock of the gateway alone."""
    host, sid = "127.0.0.1", list(rig.site.boxes)[34]
    os.kill(rig.site.broker_pid, signal.SIGKILL)
    with socket.socket() as squatter:
        # Bound and not listening, without SO_REUSEADDR: a new broker can't have it, and nobody can connect.
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        async with asyncio.timeout(10):
            while True:
                try:
                    squatter.bind((host, rig.site.mqtt))
                    break
                except OSError:  # the broker was started again in this moment
                    with contextlib.suppress(StopIteration, FileNotFoundError):
                        os.kill(rig.site.broker_pid, signal.SIGKILL)
                    await asyncio.sleep(0.01)
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        await rig.until("/healthz", lambda status, said: "no connection to the broker" in said["reasons"])
        for minutes in range(0, 60, 10):
            rig.fault(clock_ms=minutes * 60_000)
            await rig.persists(34)
        rig.fault(clock_ms=HOUR_MS)
        await rig.persists(34)
        with contextlib.closing(sqlite3.connect(rig.site.data / "gateway.db")) as raw:
            assert raw.execute("SELECT count(*) FROM outbox WHERE kind = 'ack'").fetchone()[0] >= 7
    await rig.until("/readyz", lambda status, said: status == 200, seconds=60)
    # What was not delivered for an hour is now, and only then leaves the outbox.
    with contextlib.closing(sqlite3.connect(rig.site.data / "gateway.db")) as raw:
        async with asyncio.timeout(60):
            while raw.execute("SELECT count(*) FROM outbox").fetchone()[0]:
                await asyncio.sleep(0.2)
    said = await asyncio.to_thread(
        subprocess.run,
        ["mosquitto_sub", "-h", host, "-p", str(rig.site.mqtt), "-u", sid, "-i", sid,
         "-P", hmac_hex(rig.site.boxes[sid], f"mqtt|{sid}"), "-t", f"pd/v1/stb/{sid}/state", "-C", "1", "-W", "20"],
        capture_output=True, timeout=60, text=True, check=False,
    )  # fmt: skip
    assert rig.alarms[-1] in said.stdout

    _, last = await rig.get(f"/api/v1/alarms/{rig.alarms[-1]}")
    rig.fault()  # and back by the hour
    await rig.persists(35)
    health = await rig.until("/healthz", lambda status, said: said["clock_ahead_ms"] > 3_000_000)
    assert any("clock was set back" in note for note in health["notes"])
    alarm = await rig.until(
        f"/api/v1/alarms/{rig.alarms[-1]}",
        lambda status, said: (
            {"street", "district", "leader"} <= {one["audience"] for one in said["deliveries"]}
        ),
    )
    assert alarm["received_at"] > last["received_at"]  # and the escalation did not come an hour late
