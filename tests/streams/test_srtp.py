"""Key derivation and packets against the vectors of RFC 3711 and RFC 7714, and against libsrtp."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams.srtp import GcmSender, Profile, SrtpKeys, SrtpReceiver, SrtpSender, derive_key

MASTER = bytes.fromhex("E1F97A0D3E018BE0D64FA32C06DE4139")
SALT = bytes.fromhex("0EC675AD498AFEEBB6960B3AABE6")
RFC7714_KEYS = SrtpKeys(
    profile=Profile.AEAD_AES_128_GCM,
    master_key=b"",
    master_salt=b"",
    rtp_key=bytes(range(16)),
    rtp_salt=b"Quid pro quo",
    rtp_auth_key=b"",
    rtcp_key=bytes(range(16)),
    rtcp_salt=b"Quid pro quo",
    rtcp_auth_key=b"",
)


def keys(profile: Profile) -> SrtpKeys:
    return SrtpKeys.derive(profile, MASTER, SALT[: profile.salt_length])


def datagrams(sender: SrtpSender, payloads: list[bytes], **arguments: int) -> list[bytes]:
    joined = b"".join(
        sender.seal_group(
            payloads, timestamp=90000, ssrc=0xCAFEBABE, payload_type=96, marker=True, **arguments
        )
    )
    out, offset = [], 0
    for payload in payloads:
        end = offset + len(payload) + sender.segment_overhead
        out.append(joined[offset:end])
        offset = end
    assert offset == len(joined)
    return out


def test_key_derivation_of_rfc_3711_b3() -> None:
    assert derive_key(MASTER, SALT, 0, 16).hex().upper() == "C61E7A93744F39EE10734AFE3FF7A087"
    assert derive_key(MASTER, SALT, 2, 14).hex().upper() == "30CBBC08863D8C85D49DB34A9AE1"
    assert derive_key(MASTER, SALT, 1, 20).hex().upper() == "CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"


def test_rtp_of_rfc_7714_16_1_1() -> None:
    sealed = GcmSender(RFC7714_KEYS).protect(
        bytes.fromhex("8040f17b8041f8d35501a0b2"), b"Gallia est omnis divisa in partes tres", 0xF17B
    )
    assert sealed.hex() == (
        "f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b36de3adf8833"
        "899d7f27beb16a9152cf765ee4390cce"
    )


def test_rtcp_of_rfc_7714_17_1() -> None:
    sender = GcmSender(RFC7714_KEYS)
    sender._rtcp_index = 0x5D4
    compound = bytes.fromhex(
        "81c8000d4d6172734e5450314e545032525450200000042a0000e9304c756e61"
    ) + bytes.fromhex("deadbeef" * 5)
    assert sender.protect_rtcp(compound).hex() == (
        "81c8000d4d61727363e94885dcdab67ca727d7662f6b7e997ff5c0f76c06f32dc676a5f1730d6fda4ce09b4686303ded0bb9275bc84a"
        "a45896cf4d2fc5abf87245d9eade800005d4"
    )


def test_keys_never_show_in_repr() -> None:
    shown = repr(keys(Profile.AEAD_AES_128_GCM))
    assert "profile" in shown
    assert "key" not in shown


@pytest.mark.parametrize("profile", list(Profile))
def test_groups_are_read_by_libsrtp(profile: Profile) -> None:
    sender, receiver = SrtpSender.create(keys(profile)), SrtpReceiver(keys(profile))
    index = 65530  # runs over the sequence number's end
    for _ in range(3):
        payloads = [bytes([n]) * 700 for n in range(5)] + [b"short"]
        for n, packet in enumerate(datagrams(sender, payloads, first_index=index)):
            plain = receiver.unprotect(packet)
            first, second, sequence, timestamp, ssrc = struct.unpack("!BBHII", plain[:12])
            assert (first, second, sequence) == (0x80, 0xE0 if n == 5 else 0x60, index + n & 0xFFFF)
            assert (timestamp, ssrc, plain[12:]) == (90000, 0xCAFEBABE, payloads[n])
        index += len(payloads)
    compound = bytes.fromhex("80c90001cafebabe81ca0002cafebabe0102677700")[:20]
    assert [receiver.unprotect_rtcp(sender.protect_rtcp(compound)) for _ in range(3)] == [compound] * 3


@pytest.mark.parametrize("profile", list(Profile))
def test_a_resent_packet_is_the_same_packet(profile: Profile) -> None:
    sender = SrtpSender.create(keys(profile))
    first = datagrams(sender, [b"a" * 50, b"b" * 50], first_index=7)
    assert datagrams(sender, [b"a" * 50, b"b" * 50], first_index=7) == first
    header = first[0][:12]
    assert header + sender.protect(header, b"a" * 50, 7) == first[0]


@pytest.mark.parametrize("profile", list(Profile))
def test_replays_are_refused_and_named(profile: Profile) -> None:
    receiver = SrtpReceiver(keys(profile))
    (packet,) = datagrams(SrtpSender.create(keys(profile)), [b"x"], first_index=9)
    receiver.unprotect(packet)
    with pytest.raises(ProtocolError, match="srtp_replay"):
        receiver.unprotect(packet)


@pytest.mark.parametrize("profile", list(Profile))
@given(st.data())
def test_bit_flips_raise_only_protocol_error(profile: Profile, data: st.DataObject) -> None:
    sender, receiver = SrtpSender.create(keys(profile)), SrtpReceiver(keys(profile))
    (packet,) = datagrams(sender, [b"payload of a packet"], first_index=9)
    for sealed, unprotect in (
        (packet, receiver.unprotect),
        (sender.protect_rtcp(bytes.fromhex("80c90001cafebabe")), receiver.unprotect_rtcp),
    ):
        bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            unprotect(bytes(flipped))
        with pytest.raises(ProtocolError):
            unprotect(sealed[: bit // 8])


def test_ssrcs_are_bounded() -> None:
    sender, receiver = GcmSender(keys(Profile.AEAD_AES_128_GCM)), SrtpReceiver(keys(Profile.AEAD_AES_128_GCM))
    with pytest.raises(ProtocolError, match="too_many_ssrcs"):
        for ssrc in range(100):
            header = struct.pack("!BBHII", 0x80, 96, 1, 0, ssrc)
            receiver.unprotect(header + sender.protect(header, b"x", 1))


def test_oversized_packets_raise_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="too_long"):
        SrtpReceiver(keys(Profile.AEAD_AES_128_GCM)).unprotect(b"\x80" + bytes(2000))


def test_aes_cm_refuses_an_index_that_libsrtp_would_misread() -> None:
    sender = SrtpSender.create(keys(Profile.AES128_CM_SHA1_80))
    with pytest.raises(ValueError):
        datagrams(sender, [b"x"], first_index=70000)
    datagrams(sender, [b"x"], first_index=1)
    with pytest.raises(ValueError):
        datagrams(sender, [b"x"], first_index=40000)
    with pytest.raises(ValueError):
        datagrams(sender, [bytes(1400)] * 60, first_index=2)


def test_aes_cm_refuses_what_is_too_old_to_be_sent_again() -> None:
    sender = SrtpSender.create(keys(Profile.AES128_CM_SHA1_80))
    for index in range(1, 1300, 50):
        datagrams(sender, [b"x"] * 50, first_index=index)
    datagrams(sender, [b"x"], first_index=900)
    with pytest.raises(ValueError, match="too long ago"):
        datagrams(sender, [b"x"], first_index=3)
