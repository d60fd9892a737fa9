"""The gateway's MQTT client: a thin shell over paho on the loop's own thread.

Fixed client id, persistent session and `manual_ack`: a PUBLISH is acknowledged after its handler has
returned, which for a press means after the commit. A handler that raises leaves it unacknowledged, and it
comes again with the next connection. At most MAX_HANDLING messages are being handled; the rest waits at the
broker, whose in-flight limit is the drop rule (QoS 0 positions are dropped by us beyond it: the next one is
seconds away).

`publish` returns once the broker has confirmed (QoS 1). While disconnected it raises Unavailable at once: the
outbox tries again.

paho runs without its thread: the loop tells it when its socket is readable (`loop_read`) or there is something to
write (`loop_write`), and only the blocking dial (DNS, TCP, TLS) is on another thread. With paho's thread, each
packet had to win the interpreter's lock twice, against the database's thread as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.errors import GatewayError, Unavailable

__all__ = ["Incoming", "MqttClient", "MqttSettings", "Publication"]

logger = logging.getLogger(__name__)

Handler = Callable[["Incoming"], Awaitable[None]]
Publication = tuple[str, bytes, int, bool]
"""(topic, payload, qos, retain)."""
Take = Callable[[str, bytes, int, bool, int], None]
"""(topic, payload, qos, retain, message id)."""
MAX_HANDLING = 900
PUBLISH_TIMEOUT_S = 10.0
DIAL_TIMEOUT_S = 5.0
RECONNECT_S = 0.5
RECONNECT_CAP_S = 8.0
READ_BYTES = 65_536
PUBLISH, PUBACK = 0x30, 0x40
_CONFIRMED = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES: Any = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


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


class _Client(paho.Client):
    """paho reads a packet byte by byte and writes each on its own: a handful of system calls for one press, each of
    which gives the interpreter's lock away. This one reads what there is and writes what has gathered.
    """

    def __init__(self, client_id: str, tls: ssl.SSLContext | None, take: Take) -> None:
        self._tls = tls
        self._take = take
        self._ahead = b""
        self._at = 0
        self._gathered = bytearray()
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )

    def forget(self) -> None:
        """Before a new connection: nothing of the old one is read or written any more."""
        self._ahead, self._at = b"", 0
        self._gathered.clear()

    @property
    def has_more(self) -> bool:
        """Bytes that no selector knows of: read already, or decrypted already."""
        if self._at < len(self._ahead):
            return True
        connected = self.socket()
        return isinstance(connected, ssl.SSLSocket) and connected.pending() > 0

    def flush(self, sock: Any) -> bool:
        """Sends what has gathered. False if some is left for when the socket is writable."""
        try:
            while self._gathered:
                del self._gathered[: sock.send(self._gathered)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:  # the reader learns of it from the same socket, and paho from the reader
            self._gathered.clear()
        return True

    def _packet_read(self) -> MQTTErrorCode:
        """A packet of a storm (a PUBACK, or a PUBLISH below QoS 2) that lies whole in what was read is taken from there.
        All else, and what is malformed, is paho's."""
        if self._in_packet["command"]:
            return super()._packet_read()
        if self._at >= len(self._ahead):
            try:
                self._fill()
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError:
                return super()._packet_read()  # which meets the same and knows what it means
        ahead, body = self._ahead, self._at + 2
        if body > len(ahead):
            return super()._packet_read()
        first, size = ahead[body - 2], ahead[body - 1]
        if size & 0x80 and body < len(ahead):  # a second octet of the remaining length (section 2.2.3)
            size, body = size & 0x7F | ahead[body] << 7, body + 1
        end = body + size
        if size < 1 << 14 and body <= end <= len(ahead):
            if first == PUBACK and size == 2:
                self._at = end
                return self._confirm(int.from_bytes(ahead[body:end]))
            if first & 0xF4 == PUBLISH and self._take_publish(first, ahead[body:end]):
                self._at = end
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._packet_read()

    def _take_publish(self, first: int, packet: bytes) -> bool:
        """False if it is for paho to say what is wrong with it."""
        qos, topic_end = first >> 1 & 3, 2 + int.from_bytes(packet[:2])
        payload = topic_end + 2 * qos
        try:
            topic = packet[2:topic_end].decode()
        except UnicodeDecodeError:
            return False
        if not topic or payload > len(packet):
            return False
        self._take(topic, packet[payload:], qos, bool(first & 1), int.from_bytes(packet[topic_end:payload]))
        return True

    def _fill(self) -> None:
        self._ahead, self._at = super()._sock_recv(READ_BYTES), 0
        self._last_bytes_received = time.monotonic()

    def _confirm(self, mid: int) -> MQTTErrorCode:
        """A PUBACK of 3.1.1 is the id alone (section 3.4); paho makes reasons and properties of version 5 for each."""
        with self._out_message_mutex:
            if mid in self._out_messages:
                return self._do_on_publish(mid, _CONFIRMED, _NO_PROPERTIES)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _update_inflight(self) -> MQTTErrorCode:
        """paho looks through all that is in flight, after each confirmation, for what may go next."""
        if len(self._out_messages) <= self._inflight_messages:  # nothing waits
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._update_inflight()

    def _create_socket(self) -> Any:
        """paho's own leaves the socket of a failed handshake open."""
        plain = socket.create_connection((self.host, self.port), timeout=DIAL_TIMEOUT_S)
        if self._tls is None:
            return plain
        secured = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._at >= len(self._ahead):
            self._fill()
        part = self._ahead[self._at : self._at + bufsize]
        self._at += len(part)
        return part

    def _sock_send(self, buf: bytes | bytearray) -> int:
        self._gathered += buf
        return len(buf)


class _Unconfirmed:
    """Publications whose confirmation somebody waits for together."""

    __slots__ = ("done", "left")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.left = 0


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
        self._lost = asyncio.Event()
        self._handling: set[asyncio.Task[None]] = set()
        self._unconfirmed: dict[int, _Unconfirmed] = {}
        self._connection = 0
        self._attached: Any = None
        self.counters = {"received": 0, "dropped": 0, "failed": 0, "published": 0}
        client = _Client(settings.client_id, settings.tls, self._take)
        client.username_pw_set(settings.username, settings.password)
        client.max_inflight_messages_set(1000)
        client.max_queued_messages_set(10_000)
        client.will_set(f"{settings.root}/gw/health", msgspec.json.encode({"up": False}), qos=1, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_something_to_write
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.connect_async(settings.host, settings.port, keepalive=settings.keepalive_s)
        self._client = client

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def run(self) -> None:
        """Connects and stays connected until cancelled; then says so at the broker and leaves."""
        attempts = 0
        dial: asyncio.Future[object] | None = None
        try:
            while True:
                self._lost.clear()
                self._client.forget()
                dial = self._loop.run_in_executor(None, self._client.reconnect)
                try:
                    await asyncio.shield(dial)
                except (OSError, ValueError) as error:  # ValueError: a name that is no host
                    if attempts in (0, 5):
                        logger.warning("the MQTT broker can't be reached: %s", error)
                else:
                    self._attach()
                    if await self._until_lost():
                        attempts = 0
                wait_s = min(RECONNECT_CAP_S, RECONNECT_S * 2 ** min(attempts, 6))
                attempts += 1
                await asyncio.sleep(random.uniform(0.2, 1.0) * wait_s)
        finally:
            if (
                dial is not None and not dial.done()
            ):  # its thread can't be stopped, what it opens must be closed
                with contextlib.suppress(OSError, ValueError):
                    await dial
                    self._attach()
            self._leave()
            for task in self._handling:
                task.cancel()
            await asyncio.gather(*self._handling, return_exceptions=True)

    async def wait_up(self) -> None:
        """Until connected."""
        await self._up.wait()

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Returns once the broker has confirmed (QoS 1) or it is handed over (QoS 0). Raises Unavailable."""
        await self.publish_all([(topic, payload, qos, retain)])

    async def publish_all(self, publications: Iterable[Publication]) -> None:
        """In this order; returns once the broker has confirmed all. Raises Unavailable if one was not: any may have
        arrived then.
        """
        if not self._up.is_set():
            raise Unavailable("the MQTT broker is not connected", retry_after_s=1.0)
        waiting = _Unconfirmed(self._loop.create_future())
        mids: list[int] = []
        try:
            for topic, payload, qos, retain in publications:
                info = self._client.publish(topic, payload, qos=qos, retain=retain)
                if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    raise Unavailable(
                        f"the MQTT client refuses to publish: {paho.error_string(info.rc)}", retry_after_s=1.0
                    )
                self.counters["published"] += 1
                if qos:
                    # No race: the confirmation comes on this thread, which is ours until the await below.
                    mids.append(info.mid)
                    self._unconfirmed[info.mid] = waiting
                    waiting.left += 1
            if waiting.left:
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    await waiting.done
        except TimeoutError:
            raise Unavailable("the MQTT broker doesn't confirm", retry_after_s=1.0) from None
        finally:
            for mid in mids:
                if self._unconfirmed.get(mid) is waiting:
                    del self._unconfirmed[mid]

    async def publish_health(self, *, db: bool, lag_ms: int) -> None:
        """`gw/health`, retained; the will says `up: false` when we are gone."""
        payload = msgspec.json.encode({"up": True, "db": db, "lag_ms": lag_ms})
        await self.publish(f"{self._settings.root}/gw/health", payload, 1, True)

    # ---- the socket ------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """The dial is over: from now on everything of paho happens on the loop."""
        self._attached = self._client.socket()
        if self._attached is None:
            self._lost.set()
            return
        self._loop.add_reader(self._attached, self._read)
        self._write()

    async def _until_lost(self) -> bool:
        """Keeps the connection alive; True if it was up in between."""
        before = self._connection
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.keepalive_s / 4):
                    await self._lost.wait()
            self._client.loop_misc()
        return self._connection != before

    def _read(self) -> None:
        self._client.loop_read()
        while self._client.has_more:
            self._client.loop_read()

    def _write(self) -> None:
        """All that gathered since the loop last came by goes into one segment."""
        self._client.loop_write()
        sock = self._attached
        if sock is None:
            return
        if self._client.flush(sock):
            self._loop.remove_writer(sock)
        else:
            self._loop.add_writer(sock, self._write)

    def _on_something_to_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if self._attached is not None:
            self._loop.call_soon(self._write)

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """On the dialling thread."""
        # Nagle's algorithm and delayed ACKs would hold each small packet back for 40 ms.
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if self._attached is None:
            return
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self._attached = None
        self._client.flush(sock)  # a DISCONNECT closes at once what it was written to

    def _leave(self) -> None:
        if self._attached is None:
            return
        gone = msgspec.json.encode({"up": False})
        self._client.publish(f"{self._settings.root}/gw/health", gone, qos=1, retain=True)
        self._client.disconnect()
        self._write()

    # ---- what paho tells -------------------------------------------------------------------------------

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            logger.error("the MQTT broker refuses the gateway: %s", reason)
            return
        # Again after each reconnect: a broker that lost its state doesn't know the session.
        client.subscribe([(f"{self._settings.root}/{topic}", 1) for topic in self._handlers])
        self._connection += 1
        self._set_up(True)

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        self._set_up(False)
        self._lost.set()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._take(message.topic, bytes(message.payload), message.qos, message.retain, message.mid)

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        waiting = self._unconfirmed.pop(mid, None)
        if waiting is not None:
            waiting.left -= 1
            if not waiting.left and not waiting.done.done():
                waiting.done.set_result(None)

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
            for waiting in set(self._unconfirmed.values()):
                if not waiting.done.done():
                    waiting.done.set_exception(Unavailable("the MQTT connection was lost", retry_after_s=1.0))
        self._on_connected(up)

    def _take(self, topic: str, payload: bytes, qos: int, retain: bool, mid: int) -> None:
        self.counters["received"] += 1
        if qos == 0 and len(self._handling) >= MAX_HANDLING:
            self.counters["dropped"] += 1
            return
        task = self._loop.create_task(self._handle(topic, payload, qos, retain, mid), name="mqtt-message")
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, topic: str, payload: bytes, qos: int, retain: bool, mid: int) -> None:
        below = topic.removeprefix(f"{self._settings.root}/")
        first, _, rest = below.partition("/")
        device, _, name = rest.partition("/")
        handler = self._handlers.get(f"{first}/+/{name}")
        connection = self._connection
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
        # Over a new connection the broker sends it again, and this id may by then be another message's.
        if qos and connection == self._connection and self._up.is_set():
            self._client.ack(mid, qos)
