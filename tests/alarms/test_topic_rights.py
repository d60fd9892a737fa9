"""Who may publish and who receives what at the broker: every topic of the contract, tried by its owner, by another device of
the same kind and by one of the other kind, at a real mosquitto."""

from __future__ import annotations

import asyncio
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from conftest import KEY
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from test_broker import broker_at

from gateway.alarms.broker import Broker, acl_text
from gateway.alarms.press import mqtt_password

pytestmark = pytest.mark.broker
ROOT = "pd/v1"
# Branch -> topic -> what its owner may do there. docs/contract.md section 4; nobody else may do anything.
RIGHTS = {
    "stb": {
        "press": "publish",
        "cancel": "publish",
        "presence": "publish",
        "ack": "receive",
        "state": "receive",
    },
    "w": {"loc": "publish", "duty": "publish", "reply": "publish", "task": "receive", "call": "receive"},
}
DEVICES = {"b0": "stb", "b1": "stb", "w1": "w"}
TOPICS = {
    f"{ROOT}/{branch}/{device}/{name}": (branch, device, right)
    for branch, names in RIGHTS.items()
    for device in DEVICES
    for name, right in names.items()
}


class Device:
    """A foreign MQTT 5 client on paho's own thread, which tells the broker's word on each publish."""

    def __init__(self, broker: Broker, user: str, password: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.codes: dict[int, asyncio.Future[str]] = {}
        self.received: list[str] = []
        self.news = asyncio.Event()
        self.up: asyncio.Future[None] = self.loop.create_future()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=user, protocol=paho.MQTTv5)
        self.client.username_pw_set(user, password)
        self.client.on_connect = lambda *_: self.loop.call_soon_threadsafe(self.up.set_result, None)
        self.client.on_publish = self._on_publish
        self.client.on_message = lambda _c, _u, message: self.loop.call_soon_threadsafe(
            self._on_message, message.topic
        )
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()

    def _on_publish(
        self, _client: paho.Client, _data: object, mid: int, code: ReasonCode, _p: Properties
    ) -> None:
        self.loop.call_soon_threadsafe(lambda: self._answer(mid).set_result(str(code)))

    def _answer(self, mid: int) -> asyncio.Future[str]:
        return self.codes.setdefault(mid, self.loop.create_future())

    def _on_message(self, topic: str) -> None:
        self.received.append(topic)
        self.news.set()

    async def publish(self, topic: str) -> str:
        return await self._answer(self.client.publish(topic, b"{}", qos=1).mid)

    async def until(self, topic: str) -> None:
        while topic not in self.received:
            self.news.clear()
            await self.news.wait()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


async def test_every_topic_by_every_device(tmp_path: Path) -> None:
    async with broker_at(tmp_path / "mq") as (broker, _), asyncio.timeout(30):
        gateway = Device(broker, "gateway", "secret")
        devices = {name: Device(broker, name, mqtt_password(KEY, name)) for name in DEVICES}
        try:
            await asyncio.gather(gateway.up, *(device.up for device in devices.values()))
            for name, device in devices.items():
                device.client.subscribe("#", qos=1)
                for topic, (branch, owner, right) in TOPICS.items():
                    may = owner == name and right == "publish"
                    assert ("Not authorized" not in await device.publish(topic)) is may, (name, topic, branch)
                assert "Not authorized" in await device.publish(f"{ROOT}/gw/health")
                assert "Not authorized" in await device.publish("elsewhere")
            for topic in TOPICS:
                await gateway.publish(topic)
            await gateway.publish(f"{ROOT}/gw/health")
            for name, device in devices.items():
                await device.until(f"{ROOT}/gw/health")  # the last one sent
                own = {
                    topic
                    for topic, (_, owner, right) in TOPICS.items()
                    if owner == name and right == "receive"
                }
                assert set(device.received) == own | {f"{ROOT}/gw/health"}, name
        finally:
            for device in (gateway, *devices.values()):
                device.close()


def test_the_acl_has_no_topic_that_the_table_lacks() -> None:
    given = {
        line.split()[-1].replace("%u", "b0")
        for line in acl_text(ROOT).splitlines()
        if line.startswith("pattern")
    }
    known = {topic for topic, (_, owner, _) in TOPICS.items() if owner == "b0"} | {f"{ROOT}/gw/health"}
    assert given == known
