"""The gateway's MQTT client: a thin shell over paho on its own thread, bridged to the loop.

Fixed client id, persistent session and `manual_ack`: a PUBLISH is acknowledged after its handler has
returned, which for a press means after the commit. A handler that raises leaves it unacknowledged, and it
comes again with the next connection. At most MAX_HANDLING messages are being handled; the rest waits at the
broker, whose in-flight limit is the drop rule (QoS 0 positions are dropped by us beyond it: the next one is
seconds away).

`publish` returns once the broker has confirmed (QoS 1). While disconnected it raises Unavailable at once: the
outbox tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from gateway.errors import GatewayError, Unavailable

__all__ = ["Incoming", "MqttClient", "MqttSettings"]

logger = logging.getLogger(__name__)

Handler = Callable[["Incoming"], Awaitable[None]]
MAX_HANDLING = 900
PUBLISH_TIMEOUT_S = 10.0
RECONNECT_S = (1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """tls: a context for an external broker, None for the supervised one on the loopback interface."""

    host: str
    port: int
    username: str
    password: str
    client_id: str = "gateway"
    root: str = "pd/v1"
    keepalive_s: int = 20
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A message for a handler. device: the id in the topic, which the broker's ACL has bound to the
    sender.
    """

    topic: str
    device: str
    payload: bytes
    qos: int
    retain: bool


class MqttClient:
    """handlers: by topic below the root with `+` for the device id (`stb/+/press`). Run `run()` in a
    TaskGroup.
    """

    def __init__(
        self,
        settings: MqttSettings,
        handlers: dict[str, Handler],
        *,
        on_connected: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._settings = settings
        self._handlers = dict(handlers)
        self._on_connected = on_connected
        self._loop = asyncio.get_running_loop()
        self._up = asyncio.Event()
        self._handling: set[asyncio.Task[None]] = set()
        self._confirmations: dict[int, asyncio.Future[None]] = {}
        self.counters = {"received": 0, "dropped": 0, "failed": 0, "published": 0}
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=False,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        client.username_pw_set(settings.username, settings.password)
        if settings.tls is not None:
            client.tls_set_context(settings.tls)
        client.max_inflight_messages_set(1000)
        client.max_queued_messages_set(10_000)
        client.reconnect_delay_set(*RECONNECT_S)
        client.will_set(f"{settings.root}/gw/health", msgspec.json.encode({"up": False}), qos=1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._client = client

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def run(self) -> None:
        """Connects and stays connected until cancelled; then says so at the broker and leaves."""
        s = self._settings
        self._client.connect_async(s.host, s.port, keepalive=s.keepalive_s)
        self._client.loop_start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(self._leave)
            for task in self._handling:
                task.cancel()
            await asyncio.gather(*self._handling, return_exceptions=True)

    async def wait_up(self) -> None:
        """Until connected."""
        await self._up.wait()

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Returns once the broker has confirmed (QoS 1) or it is handed over (QoS 0). Raises Unavailable."""
        if not self._up.is_set():
            raise Unavailable("the MQTT broker is not connected", retry_after_s=1.0)
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise Unavailable(
                f"the MQTT client refuses to publish: {paho.error_string(info.rc)}", retry_after_s=1.0
            )
        self.counters["published"] += 1
        if qos == 0:
            return
        # No race: the confirmation comes through the loop, which is ours until the await below.
        confirmed: asyncio.Future[None] = self._loop.create_future()
        self._confirmations[info.mid] = confirmed
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                await confirmed
        except TimeoutError:
            raise Unavailable("the MQTT broker doesn't confirm", retry_after_s=1.0) from None
        finally:
            self._confirmations.pop(info.mid, None)

    async def publish_health(self, *, db: bool, lag_ms: int) -> None:
        """`gw/health`, retained; the will says `up: false` when we are gone."""
        payload = msgspec.json.encode({"up": True, "db": db, "lag_ms": lag_ms})
        await self.publish(f"{self._settings.root}/gw/health", payload, 1, True)

    # ---- on paho's thread --------------------------------------------------------------------------------

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # Nagle's algorithm and delayed ACKs would hold each small packet back for 40 ms.
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            logger.error("the MQTT broker refuses the gateway: %s", reason)
            return
        # Again after each reconnect: a broker that lost its state doesn't know the session.
        client.subscribe([(f"{self._settings.root}/{topic}", 1) for topic in self._handlers])
        self._call(self._set_up, True)

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        self._call(self._set_up, False)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._call(
            self._take, message.topic, bytes(message.payload), message.qos, message.retain, message.mid
        )

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        self._call(self._confirm, mid)

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _leave(self) -> None:
        gone = msgspec.json.encode({"up": False})
        self._client.publish(f"{self._settings.root}/gw/health", gone, qos=1, retain=True)
        self._client.disconnect()
        self._client.loop_stop()

    # ---- on the loop -------------------------------------------------------------------------------------

    def _set_up(self, up: bool) -> None:
        if up is self._up.is_set():
            return
        if up:
            self._up.set()
            logger.info("connected to the MQTT broker")
        else:
            self._up.clear()
            logger.warning("the MQTT broker is gone, connecting again")
            for confirmed in self._confirmations.values():
                if not confirmed.done():
                    confirmed.set_exception(Unavailable("the MQTT connection was lost", retry_after_s=1.0))
        self._on_connected(up)

    def _confirm(self, mid: int) -> None:
        confirmed = self._confirmations.get(mid)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(None)

    def _take(self, topic: str, payload: bytes, qos: int, retain: bool, mid: int) -> None:
        self.counters["received"] += 1
        if qos == 0 and len(self._handling) >= MAX_HANDLING:
            self.counters["dropped"] += 1
            return
        task = self._loop.create_task(self._handle(topic, payload, qos, retain, mid), name=f"mqtt-{mid}")
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, topic: str, payload: bytes, qos: int, retain: bool, mid: int) -> None:
        below = topic.removeprefix(f"{self._settings.root}/")
        first, _, rest = below.partition("/")
        device, _, name = rest.partition("/")
        handler = self._handlers.get(f"{first}/+/{name}")
        try:
            if handler is not None:
                await handler(Incoming(topic=topic, device=device, payload=payload, qos=qos, retain=retain))
        except Unavailable as exc:
            self.counters["failed"] += 1
            logger.warning("%s stays unacknowledged: %s", topic, exc)
            return
        except GatewayError as exc:
            self.counters["failed"] += 1
            logger.info("%s: %s", topic, exc)
        except Exception:  # one message must not end the others
            self.counters["failed"] += 1
            logger.exception("%s can't be handled", topic)
        if qos:
            self._client.ack(mid, qos)
