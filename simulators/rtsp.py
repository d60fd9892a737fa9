"""The server's side of RTSP 1.0 (RFC 2326), without I/O: requests out of bytes, digest check, replies and
SDP.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = [
    "Authenticator",
    "Interleaved",
    "Request",
    "RequestParser",
    "Transport",
    "response",
    "session_description",
]

MAX_REQUEST = 16 * 1024

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Stream Not Found",
    405: "Method Not Allowed",
    453: "Not Enough Bandwidth",
    454: "Session Not Found",
    455: "Method Not Valid In This State",
    459: "Aggregate Operation Not Allowed",
    461: "Unsupported Transport",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names in lower case."""

    method: str
    uri: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path without its leading and trailing slash."""
        return urlsplit(self.uri).path.strip("/")


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A frame that the client sent on an interleaved channel (RFC 2326 section 10.12): a receiver report."""

    channel: int
    payload: bytes


class BadRequest(ValueError):
    """The client does not speak RTSP; the connection is given up."""


class RequestParser:
    """Cuts a byte stream into requests and interleaved frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Request | Interleaved]:
        """Yields what is complete. Raises BadRequest on what can't become a request."""
        buffer = self._buffer
        buffer += data
        while buffer:
            if buffer[0] == 0x24:
                if len(buffer) < 4:
                    return
                end = 4 + int.from_bytes(buffer[2:4], "big")
                if len(buffer) < end:
                    return
                frame = Interleaved(buffer[1], bytes(buffer[4:end]))
                del buffer[:end]
                yield frame
                continue
            if buffer[:2] == b"\r\n":  # stray line ends between requests are common
                del buffer[:2]
                continue
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > MAX_REQUEST:
                    raise BadRequest("no end of header")
                return
            request, length = _parse_header(bytes(buffer[:end]))
            if len(buffer) < end + 4 + length:
                return
            del buffer[: end + 4 + length]
            yield request


def _parse_header(head: bytes) -> tuple[Request, int]:
    lines = head.decode("utf-8", "replace").split("\r\n")
    first = lines[0].split(" ")
    if len(first) != 3 or not first[2].startswith("RTSP/"):
        raise BadRequest(lines[0][:80])
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(line[:80])
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_REQUEST:
        raise BadRequest("content-length")
    return Request(method=first[0], uri=first[1], headers=headers), int(length)


def response(
    status: int, request: Request | None, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """One reply, with the request's CSeq."""
    lines = [f"RTSP/1.0 {status} {REASONS[status]}"]
    if request is not None:
        lines.append(f"CSeq: {request.headers.get('cseq', '0')}")
    for name, value in (headers or {}).items():
        lines += [f"{name}: {part}" for part in value.split("\n")]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


# -- transport (RFC 2326 section 12.39) --


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """What a client asked for: an interleaved pair of channels, or its pair of UDP ports."""

    interleaved: tuple[int, int] | None = None
    client_port: tuple[int, int] | None = None

    @classmethod
    def parse(cls, value: str) -> Transport | None:
        """The first alternative that we can serve, else None."""
        for spec in value.split(","):
            parameters = [part.strip().lower() for part in spec.split(";")]
            options = dict(part.partition("=")[::2] for part in parameters[1:])
            if "multicast" in options:
                continue
            if parameters[0] == "rtp/avp/tcp":
                pair = _pair(options.get("interleaved", "0-1"), limit=256)
                if pair:
                    return cls(interleaved=pair)
            elif parameters[0] in ("rtp/avp", "rtp/avp/udp"):
                pair = _pair(options.get("client_port", ""), limit=65536)
                if pair:
                    return cls(client_port=pair)
        return None


def _pair(value: str, *, limit: int) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", value)
    if match is None:
        return None
    first = int(match[1])
    second = int(match[2]) if match[2] else first + 1
    return (first, second) if first < limit and second < limit else None


# -- digest (RFC 2617, RFC 7616) --


class Authenticator:
    """Checks Digest credentials. algorithms: of MD5 and SHA-256, one challenge each, in that order."""

    def __init__(
        self, username: str, password: str, *, realm: str = "farm", algorithms: tuple[str, ...] = ("MD5",)
    ) -> None:
        self._username, self._password, self._realm = username, password, realm
        self._algorithms = algorithms

    def challenge(self, nonce: str, *, stale: bool = False) -> str:
        """The value(s) of WWW-Authenticate, one a line."""
        extra = ", stale=TRUE" if stale else ""
        return "\n".join(
            f'Digest realm="{self._realm}", nonce="{nonce}"'
            + ("" if algorithm == "MD5" else f', algorithm={algorithm}, qop="auth"')
            + extra
            for algorithm in self._algorithms
        )

    def accepts(self, request: Request, nonce: str) -> bool:
        """Whether the request proves the password for this nonce."""
        scheme, _, rest = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "digest":
            return False
        given = {
            name.lower(): quoted or plain
            for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', rest)
        }
        algorithm = given.get("algorithm", "MD5").upper()
        if algorithm not in self._algorithms or given.get("nonce") != nonce:
            return False
        if given.get("username") != self._username or given.get("realm") != self._realm:
            return False
        expected = digest(algorithm, self._username, self._realm, self._password, request.method, given)
        return hmac.compare_digest(expected, given.get("response", "").lower())


def digest(
    algorithm: str, username: str, realm: str, password: str, method: str, given: Mapping[str, str]
) -> str:
    """The `response` of RFC 7616 section 3.4.1 for the uri, nonce and qop in `given`."""

    def h(text: str) -> str:
        return hashlib.new("md5" if algorithm == "MD5" else "sha256", text.encode()).hexdigest()

    first = h(f"{username}:{realm}:{password}")
    second = h(f"{method}:{given.get('uri', '')}")
    if given.get("qop"):
        middle = f"{given.get('nonce')}:{given.get('nc')}:{given.get('cnonce')}:{given['qop']}"
    else:
        middle = str(given.get("nonce"))
    return h(f"{first}:{middle}:{second}")


# -- SDP (RFC 8866, RFC 6184 section 8.2) --


def session_description(
    *, name: str, host: str, profile_level_id: str, parameter_sets: str, fps: int, audio: bool
) -> bytes:
    """What DESCRIBE answers: one H.264 track and perhaps one of G.711 A-law."""
    fmtp = f"packetization-mode=1;profile-level-id={profile_level_id};sprop-parameter-sets={parameter_sets}"
    lines = [
        "v=0",
        f"o=- 1 1 IN IP4 {host}",
        f"s={name}",
        "c=IN IP4 0.0.0.0",
        "t=0 0",
        "a=control:*",
        "a=range:npt=now-",
        "m=video 0 RTP/AVP 96",
        "a=rtpmap:96 H264/90000",
        f"a=fmtp:96 {fmtp}",
        f"a=framerate:{fps}",
        "a=control:trackID=0",
    ]
    if audio:
        lines += ["m=audio 0 RTP/AVP 8", "a=rtpmap:8 PCMA/8000", "a=ptime:40", "a=control:trackID=1"]
    return ("\r\n".join(lines) + "\r\n").encode()
