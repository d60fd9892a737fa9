"""STUN binding requests and responses (RFC 8489) with the attributes that ICE adds (RFC 8445 section 16.1).
Sans-I/O.

An ICE-lite agent is only ever a server: it parses requests and builds responses. Reading is split in two,
because the key is found by the user name: `parse_request` checks the form and the fingerprint,
`BindingRequest.is_authentic` the integrity.
"""

from __future__ import annotations

import hmac
import socket
import struct
import zlib
from typing import NamedTuple

from gateway.errors import ProtocolError

__all__ = [
    "BAD_REQUEST",
    "ROLE_CONFLICT",
    "UNKNOWN_ATTRIBUTE",
    "BindingRequest",
    "error_response",
    "parse_request",
    "success_response",
]

MAGIC_COOKIE = b"\x21\x12\xa4\x42"
HEADER_SIZE = 20
# A check carries a handful of attributes; more is an attack on the parser's time.
MAX_ATTRIBUTES = 32
FINGERPRINT_XOR = 0x5354554E

BINDING_REQUEST = 0x0001
BINDING_SUCCESS = 0x0101
BINDING_ERROR = 0x0111

USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
UNKNOWN_ATTRIBUTES = 0x000A
MESSAGE_INTEGRITY_SHA256 = 0x001C
XOR_MAPPED_ADDRESS = 0x0020
PRIORITY = 0x0024
USE_CANDIDATE = 0x0025
FINGERPRINT = 0x8028
ICE_CONTROLLED = 0x8029
ICE_CONTROLLING = 0x802A

# Exact sizes of what has one; a wrong size is malformed (RFC 8489 section 14).
FIXED_SIZES = {
    MESSAGE_INTEGRITY: 20,
    PRIORITY: 4,
    USE_CANDIDATE: 0,
    FINGERPRINT: 4,
    ICE_CONTROLLED: 8,
    ICE_CONTROLLING: 8,
}
MAX_USERNAME = 513

BAD_REQUEST = (400, "Bad Request")
UNKNOWN_ATTRIBUTE = (420, "Unknown Attribute")
ROLE_CONFLICT = (487, "Role Conflict")

_ATTRIBUTE = struct.Struct("!HH")
_MAPPED = struct.Struct("!BBH")


class BindingRequest(NamedTuple):
    """One well-formed binding request, not yet authenticated.

    username: as sent; to us it reads `our ufrag:their ufrag` (RFC 8445 section 7.2.2).
    controlling: True with ICE-CONTROLLING, False with ICE-CONTROLLED, None with neither.
    unknown: comprehension-required attribute types that we don't know (answered with 420).
    """

    transaction_id: bytes
    username: bytes
    priority: int | None
    use_candidate: bool
    controlling: bool | None
    tie_breaker: int
    unknown: tuple[int, ...]
    integrity_offset: int
    raw: bytes

    @property
    def ufrags(self) -> tuple[bytes, bytes]:
        """(the receiver's ufrag, the sender's ufrag)."""
        receiver, _, sender = self.username.partition(b":")
        return receiver, sender

    def is_authentic(self, password: bytes) -> bool:
        """Check MESSAGE-INTEGRITY with short-term credentials (RFC 8489 section 14.5)."""
        at = self.integrity_offset
        # The length covers everything up to and with MESSAGE-INTEGRITY, not the FINGERPRINT behind it.
        covered = self.raw[:2] + (at + 24 - HEADER_SIZE).to_bytes(2, "big") + self.raw[4:at]
        return hmac.compare_digest(hmac.digest(password, covered, "sha1"), self.raw[at + 4 : at + 24])


def parse_request(data: bytes) -> BindingRequest:
    """Parse one binding request as ICE demands it: with USERNAME, MESSAGE-INTEGRITY and FINGERPRINT.

    Raises ProtocolError for everything else, also for responses and indications.
    """
    size = len(data)
    if size < HEADER_SIZE:
        raise ProtocolError("stun_truncated", size)
    if data[4:8] != MAGIC_COOKIE:
        raise ProtocolError("stun_cookie", 4)
    if int.from_bytes(data[2:4], "big") != size - HEADER_SIZE or size % 4:
        raise ProtocolError("stun_length", 2)
    if int.from_bytes(data[0:2], "big") != BINDING_REQUEST:
        raise ProtocolError("stun_not_binding_request", 0)

    values: dict[int, bytes] = {}
    unknown: list[int] = []
    integrity_offset = 0
    offset = HEADER_SIZE
    count = 0
    while offset < size:
        if offset + 4 > size:
            raise ProtocolError("stun_attribute_truncated", offset)
        kind, length = _ATTRIBUTE.unpack_from(data, offset)
        end = offset + 4 + length
        if end > size:
            raise ProtocolError("stun_attribute_truncated", offset)
        count += 1
        if count > MAX_ATTRIBUTES:
            raise ProtocolError("stun_too_many_attributes", offset)
        if FIXED_SIZES.get(kind, length) != length:
            raise ProtocolError("stun_attribute_size", offset)
        if kind == FINGERPRINT:
            expected = zlib.crc32(data[:offset]) ^ FINGERPRINT_XOR
            if int.from_bytes(data[offset + 4 : end], "big") != expected:
                raise ProtocolError("stun_fingerprint", offset)
            if end != size:
                raise ProtocolError("stun_after_fingerprint", end)
            values[kind] = b""
        elif integrity_offset:
            pass  # what follows MESSAGE-INTEGRITY is unprotected and must be ignored (section 14.5)
        elif kind == MESSAGE_INTEGRITY:
            integrity_offset = offset
        elif kind in (USERNAME, PRIORITY, USE_CANDIDATE, ICE_CONTROLLED, ICE_CONTROLLING):
            values.setdefault(kind, data[offset + 4 : end])  # only the first of a kind counts (section 14)
        elif kind < 0x8000 and kind != MESSAGE_INTEGRITY_SHA256:
            unknown.append(kind)
        offset = end + (-length & 3)

    username = values.get(USERNAME)
    if username is None or b":" not in username or len(username) > MAX_USERNAME:
        raise ProtocolError("stun_username", HEADER_SIZE)
    if not integrity_offset:
        raise ProtocolError("stun_no_integrity", size)
    if FINGERPRINT not in values:
        raise ProtocolError("stun_no_fingerprint", size)
    controlling = True if ICE_CONTROLLING in values else False if ICE_CONTROLLED in values else None
    tie_breaker = values.get(ICE_CONTROLLING, values.get(ICE_CONTROLLED, b""))
    priority = values.get(PRIORITY)
    return BindingRequest(
        transaction_id=data[8:20],
        username=username,
        priority=None if priority is None else int.from_bytes(priority, "big"),
        use_candidate=USE_CANDIDATE in values,
        controlling=controlling,
        tie_breaker=int.from_bytes(tie_breaker, "big"),
        unknown=tuple(unknown),
        integrity_offset=integrity_offset,
        raw=data,
    )


def success_response(transaction_id: bytes, host: str, port: int, password: bytes) -> bytes:
    """A binding success response telling the peer the address we saw (XOR-MAPPED-ADDRESS, section 14.2)."""
    # By inet_pton and as integers: each viewer is answered every few seconds, and a thousand of them are watched.
    version = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = socket.inet_pton(version, host.partition("%")[0])
    size = len(address)
    pad = (MAGIC_COOKIE + transaction_id)[:size]
    mapped = int.from_bytes(address, "big") ^ int.from_bytes(pad, "big")
    value = _MAPPED.pack(0, 1 if size == 4 else 2, port ^ 0x2112) + mapped.to_bytes(size, "big")
    return _seal(BINDING_SUCCESS, transaction_id, _attribute(XOR_MAPPED_ADDRESS, value), password)


def error_response(
    transaction_id: bytes, error: tuple[int, str], password: bytes, unknown: tuple[int, ...] = ()
) -> bytes:
    """A binding error response (section 14.8); `unknown` fills UNKNOWN-ATTRIBUTES of a 420."""
    code, text = error
    body = _attribute(ERROR_CODE, struct.pack("!HBB", 0, code // 100, code % 100) + text.encode())
    if unknown:
        body += _attribute(UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(unknown)}H", *unknown))
    return _seal(BINDING_ERROR, transaction_id, body, password)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) & 3)


def _seal(kind: int, transaction_id: bytes, attributes: bytes, password: bytes) -> bytes:
    """Put the header in front, MESSAGE-INTEGRITY and FINGERPRINT behind.

    Each counts the length up to its own end.
    """
    body = MAGIC_COOKIE + transaction_id + attributes
    message = _ATTRIBUTE.pack(kind, len(attributes) + 24) + body
    message += _attribute(MESSAGE_INTEGRITY, hmac.digest(password, message, "sha1"))
    message = message[:2] + (len(message) - HEADER_SIZE + 8).to_bytes(2, "big") + message[4:]
    return message + _attribute(FINGERPRINT, (zlib.crc32(message) ^ FINGERPRINT_XOR).to_bytes(4, "big"))
