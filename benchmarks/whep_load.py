"""Light WHEP viewers as a load: `python -m benchmarks.whep_load --url http://.../whep/{camera} ...` in a process of its own.

ICE checks and consent, DTLS, receiver reports; packets are counted by the clear part of their headers, not decrypted, and
sockets are polled, since the sender would pay for waking their reader: a hundred viewers of 2 Mbps cost a tenth of a core,
so that the gateway beside them is what gets measured. Prints a JSON line when all play (`{"event": "steady"}`) and one with
the counts `--seconds` later, then leaves. A first frame is a whole keyframe: the gateway starts with nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import re
import socket
import struct
import sys
import time

import aiohttp
from aioice import stun
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from pylibsrtp import Policy, Session

UFRAG, PASSWORD = "load", "l" * 24
PROFILES = {"gcm": b"SRTP_AEAD_AES_128_GCM", "cm": b"SRTP_AES128_CM_SHA1_80"}
SALT_LENGTHS = {"gcm": 12, "cm": 14}
CONSENT_S = 4.0
REPORT_S = 1.0
POLL_S = 0.002
ATTEMPTS = 4  # a page asks again when it is told to
RETRANSMIT_S = 0.3
MTU = 1200
OFFER = """v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
m=video 9 UDP/TLS/RTP/SAVPF 102 103
c=IN IP4 0.0.0.0
a=rtcp-mux
a=mid:0
a=recvonly
a=setup:actpass
a=ice-ufrag:{ufrag}
a=ice-pwd:{password}
a=fingerprint:sha-256 {fingerprint}
a=rtpmap:102 H264/90000
a=rtcp-fb:102 nack
a=rtcp-fb:102 nack pli
a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
a=rtpmap:103 rtx/90000
a=fmtp:103 apt=102
"""


def identity(profile: bytes) -> tuple[SSL.Context, str]:
    """One client certificate for all viewers, and its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "load")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    context.use_privatekey(key)
    context.use_certificate(certificate)
    context.set_tlsext_use_srtp(profile)
    context.set_options(SSL.OP_NO_QUERY_MTU)
    return context, certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def reporter(connection: SSL.Connection) -> Session:
    """What seals the receiver reports of a client: its keys are the first half of what DTLS exports (RFC 5764)."""
    gcm = connection.get_selected_srtp_profile() == PROFILES["gcm"]
    salt = SALT_LENGTHS["gcm" if gcm else "cm"]
    block = connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (16 + salt))
    return Session(
        Policy(
            key=block[:16] + block[32 : 32 + salt],
            ssrc_type=Policy.SSRC_ANY_OUTBOUND,
            srtp_profile=Policy.SRTP_PROFILE_AEAD_AES_128_GCM
            if gcm
            else Policy.SRTP_PROFILE_AES128_CM_SHA1_80,
        )
    )


class Refused(Exception):
    """The gateway would not have this viewer."""


class Viewer:
    """One session. packets, frames: of video since it began; worst_gap_s: between two frames while `counting`; retried:
    how often it was told to come again."""

    counting = False
    offer = OFFER
    retried = 0

    def __init__(self, context: SSL.Context) -> None:
        self.packets = self.octets = self.frames = 0
        self.worst_gap_s = 0.0
        self.first_ms: float | None = None
        self.playing = asyncio.Event()
        self._posted_at = 0.0
        self._last_frame_at: float | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._ssl = SSL.Connection(context, None)
        self._ssl.set_connect_state()
        self._ssl.set_ciphertext_mtu(MTU)
        self._reporter: Session | None = None
        self._ssrc = self._sequence = 0
        self.playing_at = 0.0
        self._remote = ("", "")
        self._buffer = bytearray(2048)

    async def join(self, http: aiohttp.ClientSession, url: str, fingerprint: str) -> None:
        """From the offer to the first packet."""
        offer = self.offer.format(ufrag=UFRAG, password=PASSWORD, fingerprint=fingerprint).replace(
            "\n", "\r\n"
        )
        for attempt in range(ATTEMPTS):
            self._posted_at = time.monotonic()
            async with http.post(url, data=offer, headers={"Content-Type": "application/sdp"}) as reply:
                answer = await reply.text()
                if reply.status == 201:
                    break
                if reply.status not in (409, 429, 503) or attempt == ATTEMPTS - 1:
                    raise Refused(f"{url}: {reply.status} {answer[:200]}")
                self.retried += 1
                await asyncio.sleep(float(reply.headers.get("Retry-After", "1")))

        def find(pattern: str) -> str:
            found = re.search(pattern, answer)
            if found is None:
                raise SystemExit(f"the answer has no {pattern}")
            return found[1]

        self._remote = find(r"a=ice-ufrag:(\S+)"), find(r"a=ice-pwd:(\S+)")
        host, port = find(r"a=candidate:.* (\S+ \d+) typ host").split()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect((host, int(port)))
        async with asyncio.timeout(20):
            while not self.playing.is_set():
                self._check()
                if self._reporter is None:
                    self._handshake(b"")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRANSMIT_S):
                        await self.playing.wait()

    async def keep_consent(self) -> None:
        while True:
            await asyncio.sleep(CONSENT_S)
            self._check()

    async def keep_reporting(self) -> None:
        """A receiver report of one block, as browsers send it (RFC 3550 section 6.4.2)."""
        while True:
            await asyncio.sleep(REPORT_S)
            if self._reporter is not None:
                report = struct.pack("!BBHIIIIIII", 0x81, 201, 7, 1, self._ssrc, 0, self._sequence, 0, 0, 0)
                self._send(self._reporter.protect_rtcp(report))

    def close(self) -> None:
        self._socket.close()

    def _check(self) -> None:
        """RFC 8445 section 7.2: a nominating check; later the same renews consent (RFC 7675)."""
        message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        message.attributes["USERNAME"] = f"{self._remote[0]}:{UFRAG}"
        message.attributes["PRIORITY"] = 1
        message.attributes["ICE-CONTROLLING"] = 5
        message.attributes["USE-CANDIDATE"] = None
        message.add_message_integrity(self._remote[1].encode())
        message.add_fingerprint()
        self._send(bytes(message))

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(data)

    def _handshake(self, datagram: bytes) -> None:
        if datagram:
            self._ssl.bio_write(datagram)
        else:
            with contextlib.suppress(SSL.Error):
                self._ssl.DTLSv1_handle_timeout()
        try:
            self._ssl.do_handshake()
            if self._reporter is None:
                self._reporter = reporter(self._ssl)
        except SSL.WantReadError:
            pass
        try:
            flight = self._ssl.bio_read(65536)
        except SSL.WantReadError:
            return
        start = end = 0  # as browsers do: records share a datagram up to the MTU
        while end < len(flight):
            length = 13 + int.from_bytes(flight[end + 11 : end + 13], "big")
            if end > start and end + length - start > MTU:
                self._send(flight[start:end])
                start = end
            end += length
        self._send(flight[start:])

    def read(self) -> None:
        """Everything that came."""
        receive, buffer = self._socket.recv_into, self._buffer
        while True:
            try:
                length = receive(buffer)
            except (BlockingIOError, ConnectionRefusedError):
                return
            first = buffer[0]
            if 127 < first < 192:
                if 64 <= buffer[1] & 0x7F < 96:
                    continue
                self.packets += 1
                self.octets += length
                if buffer[1] & 0x80:
                    self._frame()
            elif 19 < first < 64:
                self._handshake(bytes(buffer[:length]))

    def _frame(self) -> None:
        now = time.monotonic()
        self.frames += 1
        if self.first_ms is None:
            self.first_ms = (now - self._posted_at) * 1000
            self.playing_at = now
            self._ssrc = int.from_bytes(self._buffer[8:12], "big")
            self.playing.set()
        if self._last_frame_at is not None and self.counting:
            self.worst_gap_s = max(self.worst_gap_s, now - self._last_frame_at)
        self._last_frame_at = now
        self._sequence = int.from_bytes(self._buffer[2:4], "big")


async def poll(viewers: list[Viewer], every_s: float = POLL_S) -> None:
    """Reads those who have a socket, over and over."""
    while True:
        for viewer in viewers:
            viewer.read()
        await asyncio.sleep(every_s)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def run(options: argparse.Namespace) -> None:
    context, fingerprint = identity(PROFILES[options.srtp])
    viewers = [Viewer(context) for _ in range(options.count)]
    headers = {"Authorization": f"Bearer {options.token}"}
    async with aiohttp.ClientSession(headers=headers) as http, asyncio.TaskGroup() as tasks:
        joined: list[Viewer] = []
        background = [tasks.create_task(poll(joined))]
        print(json.dumps({"event": "joining"}), flush=True)
        failed: list[Viewer] = []
        for number, viewer in enumerate(viewers):
            joined.append(viewer)
            camera = f"cam{number % options.cameras:03}"
            try:
                await viewer.join(http, options.url.replace("{camera}", camera), fingerprint)
            except (Refused, TimeoutError) as error:
                print(f"a viewer failed: {str(error) or 'no picture came'}", file=sys.stderr)
                failed.append(viewer)
                joined.remove(viewer)
                continue
            background.append(tasks.create_task(viewer.keep_consent()))
            background.append(tasks.create_task(viewer.keep_reporting()))
        retried = sum(viewer.retried for viewer in viewers)
        viewers = [viewer for viewer in viewers if viewer not in failed]
        if not viewers:
            raise SystemExit("not one viewer got a picture")
        await asyncio.sleep(options.settle)
        before = [(viewer.packets, viewer.octets, viewer.frames) for viewer in viewers]
        Viewer.counting = True
        began, cpu = time.monotonic(), time.process_time()
        watched = sum(began - viewer.playing_at for viewer in viewers)
        print(json.dumps({"event": "steady", "viewer_seconds": watched}), flush=True)
        await asyncio.sleep(options.seconds)
        seconds = time.monotonic() - began
        sums = [
            sum(now) - sum(then)
            for now, then in zip(
                zip(*((viewer.packets, viewer.octets, viewer.frames) for viewer in viewers), strict=True),
                zip(*before, strict=True),
                strict=True,
            )
        ]
        result = {
            "event": "end",
            "seconds": seconds,
            "viewers": sum(viewer.frames > then[2] for viewer, then in zip(viewers, before, strict=True)),
            "failed": len(failed),
            "retried": retried,
            "packets": sums[0],
            "mbps": sums[1] * 8e-6 / seconds,
            "fps": sums[2] / seconds / len(viewers),
            "worst_gap_ms_p95": quantile([viewer.worst_gap_s * 1000 for viewer in viewers], 0.95),
            "first_ms_p50": quantile([viewer.first_ms or 0.0 for viewer in viewers], 0.5),
            "first_ms_p95": quantile([viewer.first_ms or 0.0 for viewer in viewers], 0.95),
            "load_percent": (time.process_time() - cpu) / seconds * 100,
        }
        print(json.dumps(result), flush=True)
        for task in background:
            task.cancel()
        for viewer in (*viewers, *failed):
            viewer.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="{camera} becomes cam000, cam001 ...")
    parser.add_argument("--token", required=True)
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--settle", type=float, default=3)
    parser.add_argument("--srtp", choices=PROFILES, default="gcm")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(run(arguments()))
