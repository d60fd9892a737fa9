"""STUN against the vectors of RFC 5769 and against aioice's independent codec."""

from __future__ import annotations

import aioice.stun
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams import stun

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
# RFC 5769 section 2.1
REQUEST = (
    bytes.fromhex("000100582112a442b7e7a701bc34d686fa87dfae80220010")
    + b"STUN test client"
    + bytes.fromhex("002400046e0001ff80290008932ff9b151263b36")
    + bytes.fromhex("00060009")
    + b"evtj:h6vY   "
    + bytes.fromhex("000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf")
)


def test_sample_request_of_rfc_5769() -> None:
    request = stun.parse_request(REQUEST)
    assert request.transaction_id == TRANSACTION
    assert request.ufrags == (b"evtj", b"h6vY")
    assert request.priority == 0x6E0001FF
    assert request.controlling is False
    assert request.tie_breaker == 0x932FF9B151263B36
    assert not request.use_candidate
    assert request.unknown == ()
    assert request.is_authentic(PASSWORD)
    assert not request.is_authentic(PASSWORD + b"x")


@pytest.mark.parametrize(
    ("host", "value"),
    [
        ("192.0.2.1", "0001a147e112a643"),  # RFC 5769 section 2.2
        ("2001:db8:1234:5678:11:2233:4455:6677", "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"),  # section 2.3
    ],
)
def test_mapped_addresses_of_rfc_5769(host: str, value: str) -> None:
    response = stun.success_response(TRANSACTION, host, 32853, PASSWORD)
    assert bytes.fromhex(value) in response
    parsed = aioice.stun.parse_message(response)
    assert parsed.check_message_integrity(PASSWORD)
    assert parsed.attributes["XOR-MAPPED-ADDRESS"] == (host, 32853)


def test_errors_are_read_by_an_independent_codec() -> None:
    response = stun.error_response(TRANSACTION, stun.UNKNOWN_ATTRIBUTE, PASSWORD, (0x7001, 0x7002))
    parsed = aioice.stun.parse_message(response)
    assert parsed.check_message_integrity(PASSWORD)
    assert parsed.attributes["ERROR-CODE"] == (420, "Unknown Attribute")
    assert bytes.fromhex("000a000470017002") in response


@given(st.integers(0, len(REQUEST) * 8 - 1))
def test_every_bit_flip_is_noticed(bit: int) -> None:
    data = bytearray(REQUEST)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        stun.parse_request(bytes(data))


@pytest.mark.parametrize("size", range(len(REQUEST)))
def test_truncations(size: int) -> None:
    with pytest.raises(ProtocolError):
        stun.parse_request(REQUEST[:size])


def test_trailing_octets() -> None:
    with pytest.raises(ProtocolError):
        stun.parse_request(REQUEST + bytes(4))


@given(st.binary(max_size=200))
def test_garbage_raises_only_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        stun.parse_request(b"\0\1" + len(data).to_bytes(2, "big") + stun.MAGIC_COOKIE + TRANSACTION + data)
