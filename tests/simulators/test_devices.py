"""Boxes and gridworkers: MQTT packets byte for byte, a press against a real broker, walks and datums."""

import asyncio
import json
import math
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators import boxes, geometry, keys, mqtt, workers

KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def test_connect_packet_golden_bytes() -> None:
    """OASIS MQTT 3.1.1 section 3.1: clean session, user name, password, a retained will of QoS 1."""
    will = mqtt.Will(topic="t", payload=b"x")
    packet = mqtt.connect_packet("a", username="a", password="b", keepalive_s=60, will=will)
    assert packet == b"\x10\x19\x00\x04MQTT\x04\xee\x00\x3c\x00\x01a\x00\x01t\x00\x01x\x00\x01a\x00\x01b"


def test_publish_and_subscribe_golden_bytes() -> None:
    packet = mqtt.publish_packet("a/b", b"hi", qos=1, retain=True, packet_id=10)
    assert packet == b"\x33\x09\x00\x03a/b\x00\x0ahi"
    assert mqtt.publish_packet("a/b", b"hi") == b"\x30\x07\x00\x03a/bhi"
    assert mqtt.subscribe_packet(2, [("a/#", 1)]) == b"\x82\x08\x00\x02\x00\x03a/#\x01"


@given(sizes=st.lists(st.integers(0, 40_000), max_size=4), step=st.integers(1, 5000))
def test_parser_cuts_anywhere(sizes: list[int], step: int) -> None:
    stream = b"".join(mqtt.publish_packet("t", bytes(size)) for size in sizes)
    parser = mqtt.Parser()
    packets = [p for at in range(0, len(stream), step) for p in parser.feed(stream[at : at + step])]
    assert [len(p.body) - 3 for p in packets] == sizes


def test_parser_refuses_lengths_that_cannot_be() -> None:
    with pytest.raises(mqtt.MqttError):
        list(mqtt.Parser().feed(b"\x30\xff\xff\xff\xff\x01"))
    with pytest.raises(mqtt.MqttError):
        list(mqtt.Parser().feed(b"\x30\xff\xff\xff\x7f"))


def test_press_body_and_shell_line_are_the_contract() -> None:
    press = boxes.Press(sid="stb00001", pid="p-1", seq=7, ts=1700000000000, kind="help", cam="cam001")
    body = press.body(KEY)
    assert list(body) == ["v", "pid", "seq", "ts", "kind", "cam", "sig"]
    assert body["sig"] == keys.press_signature(
        KEY, sid="stb00001", pid="p-1", seq=7, ts=1700000000000, kind="help", cam="cam001"
    )
    line = press.shell(KEY, "127.0.0.1", 1883)
    assert line.startswith("mosquitto_pub -h 127.0.0.1 -p 1883 -i stb00001 -u stb00001 -P ")
    assert "-q 1 -t pd/v1/stb/stb00001/press -m " in line


def test_percentiles() -> None:
    assert boxes.percentiles([]) == {"count": 0}
    assert boxes.percentiles([float(n) for n in range(100)]) == {
        "count": 100, "p50": 50, "p90": 90, "p99": 99, "max": 99,
    }  # fmt: skip


@given(seed=st.integers(0, 1000))
def test_a_walk_stays_inside_and_goes_no_faster_than_its_speed(seed: int) -> None:
    polygon = [(0.0, 0.0), (300.0, 0.0), (320.0, 200.0), (150.0, 120.0), (0.0, 240.0)]
    walk = workers.Walk(polygon, random.Random(seed))
    for _ in range(30):
        before = walk.position
        after = walk.step(5)
        assert geometry.contains(polygon, after)
        assert math.dist(before, after) <= walk.speed * 5 + 1e-6


def test_gcj02_is_some_hundred_metres_off_in_pidu() -> None:
    lat, lon = workers.gcj02(30.81, 103.89)
    north = (lat - 30.81) * 111_195
    east = (lon - 103.89) * 111_195 * math.cos(math.radians(30.81))
    assert 300 < math.hypot(north, east) < 700


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[int]:
    """A real mosquitto on a free port, open to all: who may do what is the gateway's business."""
    binary = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert binary is not None, "Debian's mosquitto is needed"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = await asyncio.create_subprocess_exec(
        binary, "-c", str(config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield port
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.broker
async def test_a_press_is_sent_again_until_persisted_and_tells_its_stages(
    broker: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, object]] = []

    def gateway(topic: str, payload: bytes) -> None:
        message = json.loads(payload)
        seen.append(message)
        if len(seen) == 2:  # the first one is "lost"
            ack = {"pid": message["pid"], "alarm": "A1", "now": 1}
            for stage in ("persisted", "persisted", "shown", "closed"):
                server.publish("pd/v1/stb/stb00001/ack", json.dumps(ack | {"stage": stage}).encode())

    server = mqtt.Client("gateway", on_message=gateway)
    await server.connect("127.0.0.1", broker, password="x")
    await server.subscribe("pd/v1/stb/+/press")
    press = boxes.Press(sid="stb00001", pid="p-1", seq=1, ts=1700000000000)
    assert await boxes.press_once(press, KEY, "127.0.0.1", broker, None, 5)
    server.disconnect()
    assert seen == [press.body(KEY)] * 2
    out = capsys.readouterr().out
    assert [stage for stage in ("persisted", "shown", "closed") if out.count(f"[{stage}]") == 1] == [
        "persisted", "shown", "closed",
    ]  # fmt: skip


@pytest.mark.broker
async def test_the_will_of_a_box_that_dies_is_published(broker: int) -> None:
    got: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(8)
    watcher = mqtt.Client("watcher", on_message=lambda topic, payload: got.put_nowait((topic, payload)))
    await watcher.connect("127.0.0.1", broker, password="x")
    await watcher.subscribe("pd/v1/stb/+/presence")
    box = boxes.Box("stb00009", KEY, boxes.Fleet(expected=1), "127.0.0.1", broker)
    await box.connect()
    async with asyncio.timeout(5):
        topic, payload = await got.get()
        assert topic == "pd/v1/stb/stb00009/presence"
        assert json.loads(payload)["on"] is True
        assert box.client is not None
        box.client.abort()
        assert json.loads((await got.get())[1])["on"] is False
    watcher.disconnect()


@pytest.mark.parametrize(
    "name", ["district", "secrets", "cameras", "boxes", "workers", "provider", "viewers"]
)
def test_every_simulator_can_say_how_it_is_used(name: str) -> None:
    """A bare per cent sign in a help text made `cameras --help` end in a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "simulators", name, "--help"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout
