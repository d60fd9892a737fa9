"""DTLS-SRTP server (RFC 5764, RFC 6347) over pyOpenSSL memory BIOs. Sans-I/O: datagrams in, datagrams out.

One `Certificate` with one `SSL.Context` serves the whole process. The version is pinned to DTLS 1.2. OpenSSL
writes a whole flight into one memory BIO; it is cut at record boundaries into datagrams of at most MTU bytes,
because receivers read one datagram at a time.

The retransmission timer is our own, driven by `now`: OpenSSL's reads the clock of the machine and starts at a
whole second. A lost flight is sent again byte by byte; a record that did arrive the first time is dropped by
the peer's replay check (RFC 6347 4.1.2.6). The last flight of a server is not on the timer: OpenSSL sends it
again when the client repeats its own (section 4.2.4).
"""

from __future__ import annotations

import contextlib
import datetime
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from gateway.errors import ProtocolError
from gateway.streams.srtp import Profile, SrtpKeys

__all__ = ["FINGERPRINT_HASHES", "MTU", "Certificate", "DtlsServer", "DtlsState", "SrtpKeyPair"]

MTU = 1200
RECORD_HEADER = 13
READ_SIZE = 16384
DTLS1_2_VERSION = 0xFEFD  # RFC 6347 section 4.1; pyOpenSSL has names for TLS alone
RETRANSMIT_FIRST_S = 0.25
RETRANSMIT_MAX_S = 4.0
HANDSHAKE_TIMEOUT_S = 15.0

FINGERPRINT_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha-256": hashes.SHA256,
    "sha-384": hashes.SHA384,
    "sha-512": hashes.SHA512,
}
# Passive: our order decides. Every browser takes GCM, which is the cheapest for us.
PROFILES: tuple[Profile, ...] = (Profile.AEAD_AES_128_GCM, Profile.AES128_CM_SHA1_80)
CIPHERS = b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-SHA"


class Certificate:
    """The self-signed ECDSA P-256 certificate of this process, and the SSL context made of it."""

    def __init__(self, *, profiles: Sequence[Profile] = PROFILES) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
        today = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - datetime.timedelta(days=30))  # clocks of peers differ
            .not_valid_after(today + datetime.timedelta(days=3650))  # outlives every uptime
            .sign(key, hashes.SHA256())
        )
        self.fingerprint_algorithm = "sha-256"
        self.fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        context.set_min_proto_version(DTLS1_2_VERSION)
        context.set_max_proto_version(DTLS1_2_VERSION)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_QUERY_MTU | SSL.OP_NO_RENEGOTIATION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # Certificates are self-signed: identity is the fingerprint in the offer, compared after the handshake
        # (RFC 8122).
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.use_certificate(certificate)
        context.use_privatekey(key)
        context.set_cipher_list(CIPHERS)
        context.set_tlsext_use_srtp(":".join(profiles).encode())
        self._context = context

    def connection(self) -> SSL.Connection:
        """A fresh server connection over memory BIOs."""
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(MTU)
        return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class SrtpKeyPair:
    """local: what we send with; remote: what the peer sends with."""

    local: SrtpKeys
    remote: SrtpKeys


class DtlsState(StrEnum):
    HANDSHAKE = "handshake"
    CONNECTED = "connected"
    CLOSED = "closed"  # close_notify of the peer, or close()
    FAILED = "failed"


class DtlsServer:
    """The server side of one DTLS association.

    Nothing that a peer sends raises: a fatal error leads to FAILED with the reason in `failure`, and what is
    returned (an alert) should still be sent.
    """

    def __init__(self, certificate: Certificate, *, fingerprint_algorithm: str, fingerprint: str) -> None:
        """The fingerprint is the one of the peer's certificate from its offer.

        Raises ProtocolError if it can't be checked.
        """
        algorithm = FINGERPRINT_HASHES.get(fingerprint_algorithm.lower())
        if algorithm is None:
            raise ProtocolError("fingerprint_algorithm", algorithm=fingerprint_algorithm[:32])
        try:
            self._expected = bytes.fromhex(fingerprint.replace(":", ""))
        except ValueError:
            raise ProtocolError("fingerprint_value") from None
        if len(self._expected) * 8 != int(fingerprint_algorithm[-3:]):
            raise ProtocolError("fingerprint_value")
        self._algorithm = algorithm
        self._certificate = certificate
        self._ssl: SSL.Connection | None = None  # made by the first datagram: most of a link's memory
        self.state = DtlsState.HANDSHAKE
        self.failure: str | None = None
        self.keys: SrtpKeyPair | None = None
        self.retransmissions = 0
        self._flight: list[bytes] = []
        self._interval = RETRANSMIT_FIRST_S
        self._retransmit_at: float | None = None
        self._give_up_at: float | None = None

    def receive(self, datagram: bytes, now: float) -> list[bytes]:
        """Take one datagram (first byte 20-63); returns datagrams to send."""
        if self.state in (DtlsState.CLOSED, DtlsState.FAILED):
            return []
        if self._give_up_at is None:
            self._give_up_at = now + HANDSHAKE_TIMEOUT_S
        try:
            self._connection.bio_write(datagram)
            if self.state is DtlsState.HANDSHAKE:
                self._connection.do_handshake()
                self._connected()
            else:
                self._drain()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self._fail(f"DTLS handshake failed: {_reason(error)}")
        out = self._take()
        if self.state is not DtlsState.HANDSHAKE:
            self._flight, self._retransmit_at = [], None
        elif out:
            self._flight = out
            self._interval = RETRANSMIT_FIRST_S
            self._retransmit_at = now + self._interval
        return out

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which handle_timeout() is due; None when there is nothing to wait for."""
        if self.state is not DtlsState.HANDSHAKE or self._give_up_at is None:
            return None
        return self._give_up_at if self._retransmit_at is None else min(self._retransmit_at, self._give_up_at)

    def handle_timeout(self, now: float) -> list[bytes]:
        """Send the last flight again when it is due; give up after HANDSHAKE_TIMEOUT_S."""
        if self.state is not DtlsState.HANDSHAKE:
            return []
        if self._give_up_at is not None and now >= self._give_up_at:
            self._fail(f"DTLS handshake unfinished after {HANDSHAKE_TIMEOUT_S:.0f} s")
            return []
        if self._retransmit_at is None or now < self._retransmit_at:
            return []
        self._interval = min(self._interval * 2, RETRANSMIT_MAX_S)
        self._retransmit_at = now + self._interval
        self.retransmissions += 1
        return self._flight

    def close(self) -> list[bytes]:
        """Say close_notify (RFC 5246 section 7.2.1); returns datagrams to send."""
        if self.state not in (DtlsState.HANDSHAKE, DtlsState.CONNECTED):
            return []
        if self._ssl is None:
            self.state = DtlsState.CLOSED
            return []
        with contextlib.suppress(SSL.Error):  # in mid-handshake there is nothing to close
            self._ssl.shutdown()
        self.state = DtlsState.CLOSED
        return self._take()

    def release(self) -> None:
        """Let go of OpenSSL's state; the object only keeps its state and reason."""
        self._ssl = None
        self.keys = None
        self._flight = []

    @property
    def _connection(self) -> SSL.Connection:
        if self._ssl is None:
            self._ssl = self._certificate.connection()
        return self._ssl

    def _connected(self) -> None:
        connection = self._connection
        certificate = connection.get_peer_certificate(as_cryptography=True)
        if certificate is None or not hmac.compare_digest(
            certificate.fingerprint(self._algorithm()), self._expected
        ):
            with contextlib.suppress(SSL.Error):
                connection.shutdown()  # the peer believes to be connected: tell it
            self._fail("DTLS fingerprint mismatch: the peer's certificate is not the one in its offer")
            return
        name = connection.get_selected_srtp_profile().decode()
        if name not in PROFILES:
            self._fail("DTLS without a common SRTP profile")
            return
        profile = Profile(name)
        key, salt = profile.key_length, profile.salt_length
        block = connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
        # client key, server key, client salt, server salt (RFC 5764 section 4.2); we are the server.
        salts = block[2 * key :]
        self.keys = SrtpKeyPair(
            local=SrtpKeys.derive(profile, block[key : 2 * key], salts[salt:]),
            remote=SrtpKeys.derive(profile, block[:key], salts[:salt]),
        )
        self.state = DtlsState.CONNECTED

    def _drain(self) -> None:
        """Read and drop application data (no data channels here) until the BIO is empty."""
        try:
            while True:
                self._connection.recv(MTU * 2)
        except SSL.ZeroReturnError:
            self.state = DtlsState.CLOSED
            self.failure = "closed by the peer (DTLS close_notify)"
        except SSL.WantReadError:
            raise
        except SSL.Error as error:
            self._fail(f"DTLS alert: {_reason(error)}")

    def _fail(self, reason: str) -> None:
        self.state = DtlsState.FAILED
        self.failure = reason

    def _take(self) -> list[bytes]:
        """Empty the outgoing BIO and cut it at record boundaries into datagrams of at most MTU bytes."""
        data = b""
        with contextlib.suppress(SSL.Error):  # WantRead: the BIO is empty
            while len(data) % READ_SIZE == 0:
                data += self._connection.bio_read(READ_SIZE)
        datagrams: list[bytes] = []
        start = offset = 0
        while offset + RECORD_HEADER <= len(data):
            end = offset + RECORD_HEADER + int.from_bytes(data[offset + 11 : offset + 13], "big")
            if end - start > MTU and offset > start:
                datagrams.append(data[start:offset])
                start = offset
            offset = end
        if offset > start:
            datagrams.append(data[start:offset])
        return datagrams


def _reason(error: SSL.Error) -> str:
    """The last OpenSSL reason in words, e.g. `tlsv1 alert unknown ca`."""
    queue = error.args[0] if error.args else ()
    if isinstance(queue, list | tuple) and queue:
        return str(queue[-1][-1])
    return type(error).__name__
