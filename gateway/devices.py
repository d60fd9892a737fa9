"""The road to the devices: the broker (our own child or somebody else's), our client there, and what each topic means.

Boxes and gridworkers' phones speak MQTT; which client may use which topic is the broker's ACL. Everything a device says
is handled here by one short function a topic, which asks the alarm desk, the roster or whoever is answered.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.alarms.broker import GATEWAY_USER, Broker, BrokerSettings, BrokerTls
from gateway.alarms.desk import AlarmDesk
from gateway.alarms.dispatch import Duty
from gateway.alarms.mqtt import Incoming, MqttClient, MqttSettings, Publication
from gateway.alarms.roster import Roster, parse_location
from gateway.config import Secrets
from gateway.data_dir import DataDir
from gateway.errors import ProtocolError, Unavailable
from gateway.identity import device_password
from gateway.settings import MqttMode
from gateway.settings import MqttSettings as Configured

__all__ = ["Devices", "Handlers", "handlers_of"]

log = logging.getLogger(__name__)

HEALTH_S = 10.0
Handlers = dict[str, Callable[[Incoming], Awaitable[None]]]


class Devices:
    """Broker and client of one gateway. `await start()`, then `run(handlers)` in a task; `await stop()` at the end."""

    def __init__(
        self,
        configured: Configured,
        secrets: Secrets,
        data: DataDir,
        *,
        on_denied: Callable[[str, str], None],
        health: Callable[[], tuple[bool, float]],
    ) -> None:
        """on_denied(client, topic): a device wrote where it may not; health: (database writable, loop lag in ms)."""
        self._configured = configured
        self._secrets = secrets
        self._data = data
        self._health = health
        self.broker = self._make_broker(on_denied)
        self.client: MqttClient | None = None

    @property
    def is_off(self) -> bool:
        """Presses come by HTTP only."""
        return self._configured.mode is MqttMode.OFF

    @property
    def is_up(self) -> bool:
        return self.client is not None and self.client.is_up

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the pages' pipe leads; None without a broker that takes plain connections."""
        if self.broker is not None:
            return self.broker.host, self.broker.port
        if self._configured.mode is MqttMode.EXTERNAL:
            host, port, tls = _broker_url(self._configured)
            return None if tls else (host, port)
        return None

    async def start(self) -> None:
        if self.broker is not None:
            await self.broker.start()

    async def run(self, handlers: Handlers) -> None:
        """Until cancelled: keeps the broker alive, the client connected and `gw/health` told."""
        if self.is_off:
            return
        self.client = MqttClient(self._client_settings(), handlers)
        async with asyncio.TaskGroup() as tasks:
            if self.broker is not None:
                tasks.create_task(self.broker.run(), name="broker")
            tasks.create_task(self.client.run(), name="mqtt")
            tasks.create_task(self._tell_health(self.client), name="mqtt-health")

    async def apply(self, secrets: Secrets) -> None:
        """secrets.yaml was read anew: our broker takes the devices' passwords of now. What the client itself logs in with
        at an external broker is read at the start only."""
        before, self._secrets = self._secrets, secrets
        if self.broker is not None and (before.boxes, before.workers) != (secrets.boxes, secrets.workers):
            await self.broker.update_passwords(self._passwords())

    def _passwords(self) -> dict[str, str]:
        keys: Mapping[str, bytes] = {**self._secrets.boxes, **self._secrets.workers}
        return {device: device_password(key, device) for device, key in keys.items()}

    async def stop(self) -> None:
        if self.broker is not None:
            await self.broker.stop()

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Returns when the broker has it (QoS 1). Raises Unavailable to be tried again."""
        await self.publish_all([(topic, payload, qos, retain)])

    async def publish_all(self, publications: Sequence[Publication]) -> None:
        """As publish(), for many at once."""
        if self.is_off:
            return  # nobody could be listening; the box polls its HTTP answer
        if self.client is None:
            raise Unavailable("no connection to the broker yet", retry_after_s=1)
        await self.client.publish_all(publications)

    async def ring(self, worker_id: str, message: dict[str, Any]) -> None:
        """`w/{wid}/call`: a phone rings, or stops ringing."""
        await self.ring_all([(worker_id, message)])

    async def ring_all(self, rings: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """As ring(), of many phones: (worker, message)."""
        root = self._configured.root
        await self.publish_all(
            [(f"{root}/w/{who}/call", msgspec.json.encode(ring), 1, False) for who, ring in rings]
        )

    async def _tell_health(self, client: MqttClient) -> None:
        while True:
            if client.is_up:
                writable, lag_ms = self._health()
                try:
                    await client.publish_health(db=writable, lag_ms=round(lag_ms))
                except Unavailable as error:
                    log.debug("health is not published: %s", error)
            await asyncio.sleep(HEALTH_S)

    def _make_broker(self, on_denied: Callable[[str, str], None]) -> Broker | None:
        configured = self._configured
        if configured.mode is not MqttMode.SUPERVISED:
            return None
        return Broker(
            self._data.path / "broker",
            BrokerSettings(
                host=configured.host,
                port=configured.port,
                root=configured.root,
                tls=_broker_tls(configured),
                # The packet is its payload, its topic and some bytes of header.
                max_packet_bytes=configured.payload_limit_bytes + 512,
            ),
            passwords=self._passwords(),
            gateway_password=self._own_password(),
            on_denied=on_denied,
        )

    def _own_password(self) -> str:
        return self._data.secret("broker.key").hex()

    def _client_settings(self) -> MqttSettings:
        if self.broker is not None:
            return MqttSettings(
                host=self.broker.host,
                port=self.broker.port,
                username=GATEWAY_USER,
                password=self._own_password(),
                client_id=GATEWAY_USER,
                root=self._configured.root,
            )
        host, port, tls = _broker_url(self._configured)
        credential = self._secrets.credentials.get(self._configured.credentials)
        return MqttSettings(
            host=host,
            port=port,
            username=credential.username if credential else "",
            password=credential.password if credential else "",
            root=self._configured.root,
            tls=tls,
        )


def handlers_of(
    desk: AlarmDesk,
    roster: Roster,
    *,
    reply: Callable[[str, dict[str, Any]], Awaitable[None]],
    duty_changed: Callable[[str, Duty], Awaitable[None]],
    now_ms: Callable[[], int],
) -> Handlers:
    """What each topic means. A handler that raises Unavailable leaves the message with the broker."""

    async def press(message: Incoming) -> None:
        await desk.press(message.payload, "mqtt", message.device)

    async def cancel(message: Incoming) -> None:
        await desk.cancel(message.payload, "mqtt", message.device)

    async def presence(message: Incoming) -> None:
        """A box's presence is retained at the broker; the gateway needs only that the topic is allowed."""

    async def location(message: Incoming) -> None:
        roster.locate(message.device, parse_location(message.payload), now_ms=now_ms())

    async def duty(message: Incoming) -> None:
        said = _decode(message.payload)
        try:
            wanted = Duty(str(said.get("duty")))
        except ValueError:
            raise ProtocolError(f"duty must be one of {', '.join(Duty)}", device=message.device) from None
        await roster.set_duty(message.device, wanted, now_ms=now_ms())
        await duty_changed(message.device, wanted)

    async def answer(message: Incoming) -> None:
        await reply(message.device, _decode(message.payload))

    return {
        "stb/+/press": press,
        "stb/+/cancel": cancel,
        "stb/+/presence": presence,
        "w/+/loc": location,
        "w/+/duty": duty,
        "w/+/reply": answer,
    }


def _decode(payload: bytes) -> dict[str, Any]:
    """A small JSON object from a device. Raises ProtocolError."""
    try:
        said = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("malformed", detail=str(error)[:200]) from None
    if not isinstance(said, dict):
        raise ProtocolError("malformed", detail="an object is expected")
    return said


def _broker_tls(configured: Configured) -> BrokerTls | None:
    if not configured.tls_cert:
        return None
    return BrokerTls(
        host=configured.tls_host,
        port=configured.tls_port,
        certificate=configured.tls_cert,
        key=configured.tls_key,
    )


def _broker_url(configured: Configured) -> tuple[str, int, ssl.SSLContext | None]:
    parts = urlsplit(configured.url)
    tls = ssl.create_default_context(cafile=configured.tls_ca or None) if parts.scheme == "mqtts" else None
    return parts.hostname or "127.0.0.1", parts.port or (8883 if tls else 1883), tls
