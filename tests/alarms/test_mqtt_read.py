"""What is read off a broker's stream, however it is cut."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import MQTTErrorCode

from gateway.alarms.mqtt import READ_BYTES, _Client


class Stream:
    """A socket that gives what it holds in given pieces, and has nothing in between."""

    def __init__(self, octets: bytes, cuts: list[int]) -> None:
        at = sorted({0, *(cut for cut in cuts if cut < len(octets)), len(octets)})
        self.pieces = [octets[a:b] for a, b in itertools.pairwise(at)]
        self.pause = True

    def recv(self, size: int) -> bytes:
        assert size == READ_BYTES
        self.pause = not self.pause
        if self.pause or not self.pieces:
            raise BlockingIOError
        return self.pieces.pop(0)


def packet(first: int, body: bytes) -> bytes:
    """MQTT 3.1.1 section 2.2: the fixed header before it."""
    size, length = len(body), b""
    while True:
        size, octet = size >> 7, size & 0x7F
        length += bytes((octet | 0x80 if size else octet,))
        if not size:
            return bytes((first,)) + length + body


@st.composite
def publishes(draw: st.DrawFn) -> tuple[str, bytes, int, bool, int]:
    topic = draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
    payload = b"x" * draw(st.sampled_from([0, 1, 60, 100, 127, 128, 300, 16_383, 16_384, 20_000]))
    qos = draw(st.integers(0, 1))
    return topic, payload, qos, draw(st.booleans()), draw(st.integers(1, 0xFFFF)) if qos else 0


def octets_of(what: tuple[str, bytes, int, bool, int] | int | None) -> bytes:
    if what is None:
        return packet(0xD0, b"")  # PINGRESP
    if isinstance(what, int):
        return packet(0x40, what.to_bytes(2))
    topic, payload, qos, retain, mid = what
    name = topic.encode()
    body = len(name).to_bytes(2) + name + (mid.to_bytes(2) if qos else b"") + payload
    return packet(0x30 | qos << 1 | retain, body)


@given(
    st.lists(st.one_of(publishes(), st.integers(1, 0xFFFF), st.none()), max_size=12),
    st.lists(st.integers(1, 2000), max_size=12),
)
def test_every_packet_is_taken_once_and_in_order(
    said: list[tuple[str, bytes, int, bool, int] | int | None], cuts: list[int]
) -> None:
    got: list[Any] = []
    client = _Client("gateway", None, lambda *message: got.append(message))
    client.on_message = lambda _client, _userdata, one: got.append(
        (one.topic, bytes(one.payload), one.qos, bool(one.retain), one.mid)
    )
    client._do_on_publish = lambda mid, reason, properties: got.append(mid) or MQTTErrorCode.MQTT_ERR_SUCCESS  # type: ignore[func-returns-value]
    client._out_messages = dict.fromkeys(range(0x10000))  # type: ignore[assignment]
    stream = Stream(b"".join(map(octets_of, said)), cuts)
    client._sock = stream  # type: ignore[assignment]
    while stream.pieces or client.has_more:
        assert client._packet_read() <= 0
    client._sock = None
    assert got == [one for one in said if one is not None]


@given(st.binary(min_size=2, max_size=200))
def test_what_is_malformed_ends_the_connection_or_waits_for_more(octets: bytes) -> None:
    client = _Client("gateway", None, lambda *message: None)
    client._do_on_publish = lambda mid, reason, properties: MQTTErrorCode.MQTT_ERR_SUCCESS
    stream = Stream(octets, [])
    client._sock = stream  # type: ignore[assignment]
    for _ in range(2 * len(octets) + 4):
        if client._packet_read() > 0:
            break
    client._sock = None
    assert not stream.pieces
