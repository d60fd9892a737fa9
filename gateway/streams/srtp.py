"""SRTP and SRTCP (RFC 3711; AES-GCM by RFC 7714): key derivation, the sender of the fan-out hot path, the
receiver.

The sender works on a whole group of packets at once, since the path from there on is one `sendmsg` with
UDP_SEGMENT. For GCM the AEAD of `cryptography` is the fastest there is from Python; for AES-CM with HMAC-SHA1
it is libsrtp (by pylibsrtp), called at offsets on one buffer that all senders share. One thread only.

A packet index is 48 bits: roll-over counter << 16 | sequence number (RFC 3711 section 3.3.1). The caller owns
it: an (ssrc, index) pair must never seal two different packets, because with GCM that gives the key away (RFC
7714 section 8.1).
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pylibsrtp import Policy, Session
from pylibsrtp._binding import ffi, lib  # no other way to protect at an offset, without two copies a packet

from gateway.errors import ProtocolError

__all__ = ["SEND_WINDOW", "Buffers", "Profile", "SrtpKeys", "SrtpReceiver", "SrtpSender", "derive_key"]

Buffers = list[bytes | memoryview]

RTP_HEADER_SIZE, RTCP_HEADER_SIZE = 12, 8
GCM_TAG_SIZE = 16
CM_TAG_SIZE = 10
MAX_INDEX = (1 << 48) - 1
# A kernel takes 64 KiB in one GSO send; the room behind it is what libsrtp may write as trailer.
MAX_GROUP_SIZE = 65536
# How far back a packet may be sent again for a NACK when the client has no RTX (same index, same
# ciphertext); two seconds of a 2 Mbps stream. libsrtp shifts the whole window for each packet: 8192 would cost
# 0.7 us more than 512.
SEND_WINDOW = 512
RECEIVE_WINDOW = 1024
MAX_RECEIVED_SIZE = 1500
_REPLAYS = (9, 10)  # srtp_err_status_replay_fail, srtp_err_status_replay_old
# A publisher has two or three SSRCs a track; each new one costs a libsrtp stream.
MAX_RECEIVED_SSRCS = 32


class Profile(StrEnum):
    """SRTP protection profiles by the names that OpenSSL uses (RFC 5764 section 4.1.2, RFC 7714 section
    14.2).
    """

    AEAD_AES_128_GCM = "SRTP_AEAD_AES_128_GCM"
    AES128_CM_SHA1_80 = "SRTP_AES128_CM_SHA1_80"

    @property
    def key_length(self) -> int:
        """Octets of a master and of a session key."""
        return 16

    @property
    def salt_length(self) -> int:
        """Octets of a master and of a session salt."""
        return 12 if self is Profile.AEAD_AES_128_GCM else 14


_LIBSRTP_PROFILES = {
    Profile.AEAD_AES_128_GCM: Policy.SRTP_PROFILE_AEAD_AES_128_GCM,
    Profile.AES128_CM_SHA1_80: Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
}


def derive_key(master_key: bytes, master_salt: bytes, label: int, length: int) -> bytes:
    """AES-CM key derivation at key derivation rate 0 (RFC 3711 section 4.3).

    A 96-bit GCM salt is padded with zeros (RFC 7714 section 11).
    """
    counter = bytearray(master_salt.ljust(14, b"\0") + b"\0\0")
    counter[7] ^= label
    return Cipher(algorithms.AES(master_key), modes.CTR(bytes(counter))).encryptor().update(bytes(length))


@dataclass(frozen=True, slots=True, kw_only=True)
class SrtpKeys:
    """The keys of one direction. Auth keys are empty for GCM. Nothing of it appears in repr()."""

    profile: Profile
    master_key: bytes = field(repr=False)
    master_salt: bytes = field(repr=False)
    rtp_key: bytes = field(repr=False)
    rtp_salt: bytes = field(repr=False)
    rtp_auth_key: bytes = field(repr=False)
    rtcp_key: bytes = field(repr=False)
    rtcp_salt: bytes = field(repr=False)
    rtcp_auth_key: bytes = field(repr=False)

    @classmethod
    def derive(cls, profile: Profile, master_key: bytes, master_salt: bytes) -> SrtpKeys:
        """Session keys from what DTLS exported. Labels 0-2 for RTP, 3-5 for RTCP."""
        auth = 0 if profile is Profile.AEAD_AES_128_GCM else 20
        key, salt = profile.key_length, profile.salt_length
        lengths = (key, auth, salt, key, auth, salt)
        # Counter mode by hand: the blocks of all six labels through one cipher, which costs more than they do.
        padded = master_salt.ljust(14, b"\0")
        blocks = b"".join(
            padded[:7] + bytes((padded[7] ^ label,)) + padded[8:] + count.to_bytes(2, "big")
            for label, length in enumerate(lengths)
            for count in range(-(-length // 16))
        )
        stream = Cipher(algorithms.AES(master_key), modes.ECB()).encryptor().update(blocks)  # noqa: S305
        derived = []
        for length in lengths:
            derived.append(stream[:length])
            stream = stream[-(-length // 16) * 16 :]
        return cls(
            profile=profile,
            master_key=master_key,
            master_salt=master_salt,
            rtp_key=derived[0],
            rtp_auth_key=derived[1],
            rtp_salt=derived[2],
            rtcp_key=derived[3],
            rtcp_auth_key=derived[4],
            rtcp_salt=derived[5],
        )


def _session(keys: SrtpKeys, *, outbound: bool) -> Session:
    policy = Policy(
        key=keys.master_key + keys.master_salt,
        ssrc_type=Policy.SSRC_ANY_OUTBOUND if outbound else Policy.SSRC_ANY_INBOUND,
        srtp_profile=_LIBSRTP_PROFILES[keys.profile],
    )
    policy.allow_repeat_tx = outbound
    policy.window_size = SEND_WINDOW if outbound else RECEIVE_WINDOW
    return Session(policy)


class SrtpSender(ABC):
    """Seals what one link sends. `SrtpSender.create(keys)` gives the one for the negotiated profile.

    segment_overhead: octets that a payload grows by on its way to a datagram: RTP header and tag. lane: what the
    compiled loop seals and sends with, None for these here.
    """

    segment_overhead: int
    lane: object | None = None

    @staticmethod
    def create(keys: SrtpKeys) -> SrtpSender:
        if keys.profile is Profile.AEAD_AES_128_GCM:
            return GcmSender(keys)
        return CmSender(keys)

    @abstractmethod
    def seal_group(
        self,
        payloads: Sequence[bytes],
        *,
        first_index: int,
        timestamp: int,
        ssrc: int,
        payload_type: int,
        marker: bool,
    ) -> Buffers:
        """Seal consecutive packets of one timestamp; the marker goes on the last.

        Returns buffers for sendmsg which are the datagrams laid end to end. They are valid until the next
        call of any sender.
        timestamp: 32 bits. Raises ValueError, with AES-CM only: over MAX_GROUP_SIZE, or for an
        index more than SEND_WINDOW behind the newest of its ssrc.
        """

    @abstractmethod
    def protect_rtcp(self, compound: bytes) -> bytes:
        """One compound RTCP packet as SRTCP."""


_HEADER = struct.Struct("!BBHII")
_pack_header_into = _HEADER.pack_into
# The same header as a 96-bit integer.
_VERSION_2 = 2 << 94
_MARKER = 1 << 87
_NEXT_SEQUENCE_NUMBER = 1 << 64


class GcmSender(SrtpSender):
    """AEAD_AES_128_GCM."""

    __slots__ = ("_encrypt", "_encrypt_rtcp", "_rtcp_index", "_rtcp_salt", "_salt")

    segment_overhead = RTP_HEADER_SIZE + GCM_TAG_SIZE

    def __init__(self, keys: SrtpKeys) -> None:
        self._encrypt = AESGCM(keys.rtp_key).encrypt
        self._salt = int.from_bytes(keys.rtp_salt, "big")
        self._encrypt_rtcp = AESGCM(keys.rtcp_key).encrypt
        self._rtcp_salt = int.from_bytes(keys.rtcp_salt, "big")
        self._rtcp_index = 0

    def seal_group(
        self,
        payloads: Sequence[bytes],
        *,
        first_index: int,
        timestamp: int,
        ssrc: int,
        payload_type: int,
        marker: bool,
    ) -> Buffers:
        # Hot: 1 us a packet, of which 0.7 are the cipher itself. Locals only, no call that isn't needed; header
        # and nonce are counted up as integers, which is cheaper than packing five fields.
        before_wrap = 0x10000 - (first_index & 0xFFFF)
        if len(payloads) > before_wrap:
            rest = {"timestamp": timestamp, "ssrc": ssrc, "payload_type": payload_type}
            return [
                *self.seal_group(payloads[:before_wrap], first_index=first_index, marker=False, **rest),
                *self.seal_group(
                    payloads[before_wrap:], first_index=first_index + before_wrap, marker=marker, **rest
                ),
            ]
        encrypt = self._encrypt
        nonce = self._salt ^ (ssrc << 48)  # the 48-bit index is XORed below (RFC 7714 section 8.1)
        index = first_index
        fields = _VERSION_2 | payload_type << 80 | (index & 0xFFFF) << 64 | timestamp << 32 | ssrc
        last = first_index + len(payloads) - 1 if marker else -1
        buffers: Buffers = []
        append = buffers.append
        for payload in payloads:
            if index == last:
                fields |= _MARKER
            header = fields.to_bytes(12, "big")
            append(header)
            append(encrypt((nonce ^ index).to_bytes(12, "big"), payload, header))
            index += 1
            fields += _NEXT_SEQUENCE_NUMBER
        return buffers

    def protect(self, header: bytes, payload: bytes, index: int) -> bytes:
        """Ciphertext and tag of one packet whose RTP header (with extension) is given."""
        ssrc = int.from_bytes(header[8:12], "big")
        return self._encrypt((self._salt ^ (ssrc << 48) ^ index).to_bytes(12, "big"), payload, header)

    def protect_rtcp(self, compound: bytes) -> bytes:
        # RFC 7714 section 9: the first 8 octets stay clear; they and the E flag with the index are
        # authenticated.
        index = self._rtcp_index
        self._rtcp_index = index + 1
        ssrc = int.from_bytes(compound[4:8], "big")
        trailer = (0x80000000 | index).to_bytes(4, "big")
        nonce = (self._rtcp_salt ^ (ssrc << 48) ^ index).to_bytes(12, "big")
        return compound[:8] + self._encrypt_rtcp(nonce, compound[8:], compound[:8] + trailer) + trailer


# libsrtp protects in place: all AES-CM senders of this process share one buffer, refilled by each call.
_cm_data = ffi.new("unsigned char[]", MAX_GROUP_SIZE + 256)
_cm_buffer = ffi.buffer(_cm_data)
_cm_view = memoryview(_cm_buffer)
_cm_length = ffi.new("int *")


class CmSender(SrtpSender):
    """AES_CM_128_HMAC_SHA1_80.

    Libsrtp keeps the roll-over counter itself, so an ssrc must start below index 65536.
    """

    __slots__ = ("_handle", "_highest", "_session")

    segment_overhead = RTP_HEADER_SIZE + CM_TAG_SIZE

    def __init__(self, keys: SrtpKeys) -> None:
        self._session = _session(keys, outbound=True)
        self._handle = self._session._srtp[0]
        self._highest: dict[int, int] = {}

    def seal_group(
        self,
        payloads: Sequence[bytes],
        *,
        first_index: int,
        timestamp: int,
        ssrc: int,
        payload_type: int,
        marker: bool,
    ) -> Buffers:
        count = len(payloads)
        self._follow(ssrc, first_index, count)
        data, buffer, length, handle = _cm_data, _cm_buffer, _cm_length, self._handle
        protect, pack_into = lib.srtp_protect, _pack_header_into
        if sum(map(len, payloads)) + count * self.segment_overhead > MAX_GROUP_SIZE:
            raise ValueError("a group must fit into 64 KiB")
        index = first_index
        last = first_index + count - 1 if marker else -1
        offset = 0
        for payload in payloads:
            second = payload_type | 0x80 if index == last else payload_type
            pack_into(buffer, offset, 0x80, second, index & 0xFFFF, timestamp, ssrc)
            end = offset + 12 + len(payload)
            buffer[offset + 12 : end] = payload
            length[0] = end - offset
            if protect(handle, data + offset, length):
                raise ValueError("libsrtp refused a packet: sent too long ago to be sent again")
            offset = end + 10
            index += 1
        return [_cm_view[:offset]]

    def protect(self, header: bytes, payload: bytes, index: int) -> bytes:
        """Ciphertext and tag of one packet whose RTP header (with extension) is given."""
        self._follow(int.from_bytes(header[8:12], "big"), index, 1)
        return bytes(self._session.protect(header + payload))[len(header) :]

    def protect_rtcp(self, compound: bytes) -> bytes:
        return bytes(self._session.protect_rtcp(compound))

    def _follow(self, ssrc: int, first_index: int, count: int) -> None:
        """Make sure that libsrtp will guess the index that the caller means (RFC 3711 section 3.3.1)."""
        highest = self._highest.get(ssrc)
        if highest is None:
            if first_index > 0xFFFF:
                raise ValueError("an ssrc must start with roll-over counter 0")
            highest = first_index
        if abs(first_index - highest) >= 0x8000:
            raise ValueError("index jumps by half the sequence number space")
        self._highest[ssrc] = max(highest, first_index + count - 1)


class SrtpReceiver:
    """Opens what one link receives, with replay windows. Raises only ProtocolError."""

    __slots__ = ("_handle", "_session", "_ssrcs")

    def __init__(self, keys: SrtpKeys) -> None:
        self._session = _session(keys, outbound=False)
        self._handle = self._session._srtp[0]
        self._ssrcs: set[bytes] = set()

    def unprotect(self, packet: bytes) -> bytes:
        """The RTP packet in one SRTP packet."""
        return self._open(packet, packet[8:12], RTP_HEADER_SIZE, "srtp", lib.srtp_unprotect)

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """The compound RTCP packet in one SRTCP packet."""
        return self._open(packet, packet[4:8], RTCP_HEADER_SIZE, "srtcp", lib.srtp_unprotect_rtcp)

    def _open(
        self, packet: bytes, ssrc: bytes, least: int, what: str, unprotect: Callable[..., int]
    ) -> bytes:
        # Hot while people speak: libsrtp opens in place, in the buffer that all share, without pylibsrtp's copies.
        size = len(packet)
        if size < least:
            raise ProtocolError(f"{what}_truncated", size)
        known = ssrc in self._ssrcs
        if not known and len(self._ssrcs) >= MAX_RECEIVED_SSRCS:
            raise ProtocolError(f"{what}_too_many_ssrcs", least - 4, ssrc=ssrc.hex())
        if size > MAX_RECEIVED_SIZE:
            raise _refused(what, "too_long", packet, ssrc)
        _cm_buffer[:size] = packet
        _cm_length[0] = size
        status = unprotect(self._handle, _cm_data, _cm_length)
        if status:
            raise _refused(what, "replay" if status in _REPLAYS else "authentication", packet, ssrc)
        if not known:
            self._ssrcs.add(ssrc)
        return bytes(_cm_buffer[: _cm_length[0]])


def _refused(what: str, kind: str, packet: bytes, ssrc: bytes) -> ProtocolError:
    """Replays are ordinary on a network; the label tells them from forgeries. RTCP has no sequence number in clear."""
    number = int.from_bytes(packet[2:4], "big") if what == "srtp" else 0
    return ProtocolError(f"{what}_{kind}", sequence_number=number, ssrc=ssrc.hex())
