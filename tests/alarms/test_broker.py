"""The supervised mosquitto with real clients: identities, ACL, restart, and a press on its way through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import KEY, Bench, press_body

from gateway.alarms.broker import Broker, BrokerSettings, end_left_behind, password_line
from gateway.alarms.mqtt import Incoming, MqttClient, MqttSettings
from gateway.alarms.press import mqtt_password
from gateway.errors import Unavailable

pytestmark = pytest.mark.broker
PASSWORD = mqtt_password(KEY, "b0")


@contextlib.asynccontextmanager
async def broker_at(directory: Path, port: int = 0) -> AsyncIterator[tuple[Broker, list[tuple[str, str]]]]:
    denied: list[tuple[str, str]] = []
    passwords = {sid: mqtt_password(KEY, sid) for sid in ("b0", "b1", "w1")}
    broker = Broker(
        directory,
        BrokerSettings(port=port),
        passwords=passwords,
        gateway_password="secret",
        on_denied=lambda client, topic: denied.append((client, topic)),
    )
    await broker.start()
    task = asyncio.create_task(broker.run())
    try:
        yield broker, denied
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await broker.stop()


@contextlib.asynccontextmanager
async def client_of(broker: Broker, handlers, on_connected=lambda up: None) -> AsyncIterator[MqttClient]:
    settings = MqttSettings(host=broker.host, port=broker.port, username="gateway", password="secret")
    client = MqttClient(settings, handlers, on_connected=on_connected)
    task = asyncio.create_task(client.run())
    try:
        async with asyncio.timeout(10):
            await client.wait_up()
        yield client
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def mosquitto(
    program: str, broker: Broker, *args: str, user: str = "b0", key: bytes = KEY
) -> tuple[int, bytes]:
    """A foreign client. The password goes by a file of options, not by the command line."""
    process = await asyncio.create_subprocess_exec(
        program,
        *("-h", broker.host, "-p", str(broker.port), "-u", user, "-P", mqtt_password(key, user), "-i", user),
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(15):
            out, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out


def test_password_line_is_what_mosquitto_passwd_writes() -> None:
    # From `mosquitto_passwd -c -b` of mosquitto 2.0.11: user alice, password secret.
    salt = bytes(range(12))
    line = password_line("alice", "secret", salt)
    assert line.startswith("alice:$7$101$AAECAwQFBgcICQoL$")
    assert len(line.rpartition("$")[2]) == 88


async def test_press_by_mosquitto_pub_is_persisted_and_acknowledged(bench: Bench, tmp_path: Path) -> None:
    async with broker_at(tmp_path / "mq") as (broker, _):

        async def on_press(message: Incoming) -> None:
            await bench.desk.press(message.payload, "mqtt", message.device)

        async with client_of(broker, {"stb/+/press": on_press}) as client:
            bench.desk._publish_mqtt = client.publish_all  # type: ignore[method-assign]
            async with bench.running():
                # The box's session is persistent, so the ack waits for it while another program presses in
                # its name.
                session = ("-q", "1", "-c")
                await mosquitto("mosquitto_sub", broker, "-t", "pd/v1/stb/b0/ack", *session, "-E")
                body = press_body().decode()
                code, _ = await mosquitto(
                    "mosquitto_pub", broker, "-t", "pd/v1/stb/b0/press", *session, "-m", body
                )
                assert code == 0
                _, ack = await mosquitto(
                    "mosquitto_sub", broker, "-t", "pd/v1/stb/b0/ack", *session, "-C", "1", "-W", "5"
                )
                await bench.settle()
                _, out = await mosquitto(
                    "mosquitto_sub", broker, "-t", "pd/v1/stb/b0/state", "-C", "1", "-W", "5"
                )
    [alarm] = await bench.desk.list()
    assert json.loads(ack)["stage"] == "persisted"
    assert json.loads(ack)["alarm"] == json.loads(out)["alarm"] == alarm["id"]
    assert json.loads(out)["message"] == "已送达"


async def test_wrong_password_and_foreign_topics_are_refused(tmp_path: Path) -> None:
    got: list[str] = []
    come = asyncio.Event()

    async def on_press(message: Incoming) -> None:
        got.append(message.device)
        come.set()

    async with broker_at(tmp_path / "mq") as (broker, denied), client_of(broker, {"stb/+/press": on_press}):
        code, _ = await mosquitto(
            "mosquitto_pub", broker, "-t", "pd/v1/stb/b0/press", "-m", "x", key=b"wrong"
        )
        assert code != 0
        await mosquitto("mosquitto_pub", broker, "-t", "pd/v1/stb/b1/press", "-q", "1", "-m", "x", user="b0")
        await mosquitto("mosquitto_pub", broker, "-t", "pd/v1/stb/b0/ack", "-q", "1", "-m", "x", user="b0")
        await mosquitto("mosquitto_pub", broker, "-t", "pd/v1/stb/b0/press", "-q", "1", "-m", "x", user="b0")
        async with asyncio.timeout(5):
            await come.wait()
    assert got == ["b0"]
    assert denied == [("b0", "pd/v1/stb/b1/press"), ("b0", "pd/v1/stb/b0/ack")]


async def test_device_that_subscribes_to_everything_gets_its_own_alone(tmp_path: Path) -> None:
    async with (
        broker_at(tmp_path / "mq") as (broker, denied),
        client_of(broker, {"stb/+/press": lambda m: None}) as client,
    ):
        await client.publish("pd/v1/stb/b0/state", b"mine", 1, True)
        await client.publish("pd/v1/stb/b1/state", b"theirs", 1, True)
        await client.publish("pd/v1/w/w1/call", b"call", 1, True)
        _, out = await mosquitto("mosquitto_sub", broker, "-t", "#", "-v", "-W", "1")
        own = ("-t", "pd/v1/stb/b0/ack", "-t", "pd/v1/gw/health")
        await mosquitto("mosquitto_sub", broker, *own, "-t", "pd/v1/stb/+/ack", "-W", "1")
        async with asyncio.timeout(15):
            while len(denied) < 2:
                await asyncio.sleep(0.01)
    assert out.splitlines()[0] == b"pd/v1/stb/b0/state mine"
    assert b"theirs" not in out
    assert b"call" not in out
    assert denied == [("b0", "#"), ("b0", "pd/v1/stb/+/ack")]


async def test_killed_broker_comes_back_on_its_port_and_the_client_with_it(tmp_path: Path) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def on_press(message: Incoming) -> None:
        got.put_nowait(message.payload)

    lost = asyncio.Event()
    handlers = {"stb/+/press": on_press}
    async with (
        broker_at(tmp_path / "mq") as (broker, _),
        client_of(broker, handlers, lambda up: None if up else lost.set()) as client,
    ):
        first, port = broker.pid, broker.port
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(15):
            await lost.wait()
            with pytest.raises(Unavailable):
                await client.publish("pd/v1/gw/health", b"", 1, False)
            await client.wait_up()
            assert (broker.port, broker.restarts) == (port, 1)
            assert broker.pid != first
            await mosquitto("mosquitto_pub", broker, "-t", "pd/v1/stb/b0/press", "-q", "1", "-m", "after")
            assert await got.get() == b"after"


async def test_unhandled_press_stays_unacknowledged_and_comes_again(tmp_path: Path) -> None:
    handled: list[bytes] = []
    come = asyncio.Event()

    async def refuse(message: Incoming) -> None:
        handled.append(message.payload)
        come.set()
        raise Unavailable("locked")

    async def take(message: Incoming) -> None:
        handled.append(message.payload)
        come.set()

    async with broker_at(tmp_path / "mq") as (broker, _):
        async with client_of(broker, {"stb/+/press": refuse}):
            await mosquitto("mosquitto_pub", broker, "-t", "pd/v1/stb/b0/press", "-q", "1", "-m", "once")
            async with asyncio.timeout(5):
                await come.wait()
        come.clear()
        async with client_of(broker, {"stb/+/press": take}), asyncio.timeout(5):
            await come.wait()
    assert handled == [b"once", b"once"]


async def test_more_than_may_be_in_flight_are_all_confirmed(tmp_path: Path) -> None:
    async def ignore(message: Incoming) -> None:
        """Nobody presses here."""

    async with (
        broker_at(tmp_path / "mq") as (broker, _),
        client_of(broker, {"stb/+/press": ignore}) as client,
    ):
        for _ in range(2):  # a second time: nothing of the first is still counted
            batches = [
                [(f"pd/v1/stb/b{number}/ack", b"%d" % one, 1, False) for one in range(900)]
                for number in range(3)
            ]
            async with asyncio.timeout(20):
                await asyncio.gather(*(client.publish_all(batch) for batch in batches))
        assert client.counters["published"] == 5400
        assert (client._client._inflight_messages, len(client._client._out_messages)) == (0, 0)


async def test_taken_port_is_named_and_a_broker_left_behind_is_ended(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"MQTT port {port} on 127.0.0.1 is not free"):
            async with broker_at(tmp_path / "mq", port):
                pass
    left = Broker(tmp_path / "mq", BrokerSettings(port=0), passwords={}, gateway_password="secret")
    await left.start()
    async with broker_at(tmp_path / "mq", left.port) as (broker, _):
        assert broker.port == left.port
        assert broker.pid != left.pid
    await left.stop()


@pytest.mark.broker
async def test_a_broker_that_no_pid_file_names_is_found_and_ended(tmp_path: Path) -> None:
    """A gateway killed between starting its broker and noting its pid left one behind that held the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    assert program is not None
    orphan = await asyncio.create_subprocess_exec(
        program, "-c", str(tmp_path / "mosquitto.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        ending = asyncio.create_task(asyncio.to_thread(end_left_behind, tmp_path))
        async with asyncio.timeout(20):
            await orphan.wait()
            await ending
    finally:
        if orphan.returncode is None:
            orphan.kill()
            await orphan.wait()
