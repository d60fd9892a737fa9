"""The DTLS server against an OpenSSL client in memory, over lossy paths, with time advanced by hand."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from gateway.errors import ProtocolError
from gateway.streams.dtls import (
    HANDSHAKE_TIMEOUT_S,
    MTU,
    RETRANSMIT_FIRST_S,
    Certificate,
    DtlsServer,
    DtlsState,
)
from gateway.streams.srtp import Profile, SrtpKeys


@cache
def server_certificate() -> Certificate:
    return Certificate()


@cache
def client_identity() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    return key, certificate


class Client:
    """A DTLS client that keeps its datagrams apart."""

    def __init__(self, profiles: bytes = b"SRTP_AEAD_AES_128_GCM:SRTP_AES128_CM_SHA1_80") -> None:
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        key, certificate = client_identity()
        context.use_privatekey(key)
        context.use_certificate(certificate)
        if profiles:
            context.set_tlsext_use_srtp(profiles)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        self.ssl = SSL.Connection(context, None)
        self.ssl.set_connect_state()
        self.ssl.set_ciphertext_mtu(MTU)
        self.done = False

    def receive(self, *datagrams: bytes) -> list[bytes]:
        for datagram in datagrams:
            self.ssl.bio_write(datagram)
            self._step()
        if not datagrams:
            self._step()
        out = []
        while True:
            try:
                out.append(self.ssl.bio_read(65536))
            except SSL.WantReadError:
                return out

    def _step(self) -> None:
        try:
            self.ssl.do_handshake()
            self.done = True
        except SSL.WantReadError:
            pass


def fingerprint(algorithm: hashes.HashAlgorithm | None = None) -> str:
    return client_identity()[1].fingerprint(algorithm or hashes.SHA256()).hex(":")


def server(algorithm: str = "sha-256", value: str | None = None) -> DtlsServer:
    return DtlsServer(
        server_certificate(), fingerprint_algorithm=algorithm, fingerprint=value or fingerprint()
    )


def handshake(client: Client, dtls: DtlsServer, keep: Callable[[bytes], bool] = lambda _: True) -> None:
    """Exchange flights until both are done; our timer fires whenever nothing else happens."""
    now = 0.0
    pending = client.receive()
    for _ in range(30):
        answers = [out for datagram in pending for out in dtls.receive(datagram, now)]
        if dtls.state is not DtlsState.HANDSHAKE and not answers:
            return
        if not answers and dtls.state is DtlsState.HANDSHAKE:
            now = dtls.next_deadline() or now
            answers = dtls.handle_timeout(now)
        assert all(len(answer) <= MTU for answer in answers)
        pending = client.receive(*[answer for answer in answers if keep(answer)])


@pytest.mark.parametrize("profile", list(Profile))
def test_both_sides_derive_the_same_keys(profile: Profile) -> None:
    client, dtls = Client(profile.encode()), server()
    handshake(client, dtls)
    assert dtls.state is DtlsState.CONNECTED
    assert dtls.keys is not None
    assert dtls.next_deadline() is None
    key, salt = profile.key_length, profile.salt_length
    block = client.ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
    assert dtls.keys.remote == SrtpKeys.derive(profile, block[:key], block[2 * key : 2 * key + salt])
    assert dtls.keys.local == SrtpKeys.derive(profile, block[key : 2 * key], block[2 * key + salt :])


def test_gcm_is_preferred_whatever_the_client_prefers() -> None:
    client, dtls = Client(b"SRTP_AES128_CM_SHA1_80:SRTP_AEAD_AES_128_GCM"), server()
    handshake(client, dtls)
    assert dtls.keys is not None
    assert dtls.keys.local.profile is Profile.AEAD_AES_128_GCM


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("sha-256", hashes.SHA256()), ("SHA-384", hashes.SHA384()), ("sha-512", hashes.SHA512())],
)
def test_fingerprint_algorithms(name: str, algorithm: hashes.HashAlgorithm) -> None:
    client, dtls = Client(), server(name, fingerprint(algorithm))
    handshake(client, dtls)
    assert dtls.state is DtlsState.CONNECTED


def test_another_certificate_than_offered_fails() -> None:
    client, dtls = Client(), server(value=":".join(["00"] * 32))
    handshake(client, dtls)
    assert dtls.state is DtlsState.FAILED
    assert dtls.keys is None
    assert dtls.failure is not None
    assert "fingerprint mismatch" in dtls.failure
    with pytest.raises(SSL.ZeroReturnError):  # and the client was told
        client.ssl.recv(100)


def test_no_srtp_profile_fails() -> None:
    client, dtls = Client(b""), server()
    handshake(client, dtls)
    assert dtls.state is DtlsState.FAILED
    assert dtls.failure == "DTLS without a common SRTP profile"


@pytest.mark.parametrize(
    ("algorithm", "value"),
    [("md5", "00"), ("sha-256", "zz"), ("sha-256", "00:11"), ("sha-512", ":".join(["00"] * 32))],
)
def test_fingerprints_that_cannot_be_checked(algorithm: str, value: str) -> None:
    with pytest.raises(ProtocolError):
        server(algorithm, value)


def test_a_lost_flight_is_sent_again_by_our_own_timer() -> None:
    client, dtls = Client(), server()
    lost = iter([False, False])  # the two datagrams of the first flight, or as many as there are
    handshake(client, dtls, keep=lambda _: next(lost, True))
    assert dtls.state is DtlsState.CONNECTED
    assert dtls.retransmissions >= 1


def test_the_timer_backs_off_and_gives_up() -> None:
    client, dtls = Client(), server()
    assert dtls.next_deadline() is None
    for datagram in client.receive():
        dtls.receive(datagram, 100.0)
    times = []
    while dtls.state is DtlsState.HANDSHAKE:
        now = dtls.next_deadline()
        assert now is not None
        dtls.handle_timeout(now)
        times.append(now - 100.0)
    first = RETRANSMIT_FIRST_S
    assert times[:4] == [first, first * 3, first * 7, first * 15]
    assert times[-1] == HANDSHAKE_TIMEOUT_S
    assert dtls.failure is not None
    assert "unfinished" in dtls.failure


def test_close_notify_both_ways() -> None:
    client, dtls = Client(), server()
    handshake(client, dtls)
    client.ssl.shutdown()
    for datagram in client.receive():
        dtls.receive(datagram, 1.0)
    assert dtls.state is DtlsState.CLOSED
    assert dtls.failure is not None
    assert "close_notify" in dtls.failure

    client, dtls = Client(), server()
    handshake(client, dtls)
    for datagram in dtls.close():
        client.ssl.bio_write(datagram)
    with pytest.raises(SSL.ZeroReturnError):
        client.ssl.recv(100)
    assert dtls.close() == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bit_flips_never_raise(data: st.DataObject) -> None:
    client, dtls = Client(), server()
    first = bytearray(b"".join(client.receive()))
    for _ in range(data.draw(st.integers(1, 4))):
        bit = data.draw(st.integers(0, len(first) * 8 - 1))
        first[bit // 8] ^= 1 << bit % 8
    dtls.receive(bytes(first), 0.0)
    assert dtls.keys is None
    assert dtls.state is not DtlsState.CONNECTED
    dtls.receive(data.draw(st.binary(max_size=100)), 0.0)


def test_garbage_does_not_disturb_an_association() -> None:
    client, dtls = Client(), server()
    handshake(client, dtls)
    for garbage in (
        b"\x16",
        b"\x16\xfe\xfd" + bytes(10),
        b"\x17\xfe\xfd" + b"\xff" * 200,
        bytes([22]) * 1500,
    ):
        dtls.receive(garbage, 1.0)
    assert dtls.state is DtlsState.CONNECTED
