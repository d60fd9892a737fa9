"""RTSP 1.0 client (RFC 2326), sans-I/O: messages, interleaved framing, SDP, and the session as a table.

    session = Session(url, ...)
    effects = session.start(now)                          # [Send(b"OPTIONS ...")]
    effects = session.receive(message, now)               # Send | Playing | Failed
    effects = session.on_time(now)                        # when session.next_deadline() has come
    session.teardown()                                    # bytes to send on every exit

Bytes come in through next_message(), which slices one RTSP message or one interleaved frame out of a buffer without copying
more than that message. A session asks in the order OPTIONS, DESCRIBE, SETUP (video, then audio that can be passed on), PLAY,
and then keeps itself alive. It answers a 401 once, and tries anew only for `stale`; what else it fails on is told by Failed,
whose remedy says what may help: another transport, another URL, a new session, a pause, a long pause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

from gateway.errors import ProtocolError
from gateway.streams.digest import Authorizer, choose, parse_challenges

__all__ = [
    "Failed",
    "Frame",
    "Message",
    "Playing",
    "Remedy",
    "Send",
    "Session",
    "Track",
    "Transport",
    "next_message",
    "parse_description",
    "passes_through",
    "resolve_control",
    "without_credentials",
]

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
MAX_GARBAGE_BYTES = 64 * 1024
ANSWER_TIMEOUT_S = 5.0
USER_AGENT = "district-gateway"

_STATUS = re.compile(r"RTSP/1\.[0-9] +([0-9]{3})(?: (.*))?$")
_REQUEST = re.compile(r"([A-Z_]{3,20}) +(\S+) +RTSP/1\.[0-9]$")
_START = re.compile(
    rb"RTSP/1\.|(?:OPTIONS|ANNOUNCE|REDIRECT|GET_PARAMETER|SET_PARAMETER|TEARDOWN|PLAY|PAUSE) "
)
_LONGEST_START = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A response (status is its code) or a request of the server (status 0). Header names are lower case."""

    status: int = 0
    reason: str = ""
    method: str = ""
    uri: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def get(self, name: str, default: str = "") -> str:
        """The first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """An interleaved frame (RFC 2326 section 10.12): the payload lies at start:stop of the buffer it was found in."""

    channel: int
    start: int
    stop: int


def next_message(buffer: bytearray, start: int, end: int) -> tuple[Message | Frame | None, int]:
    """The message that begins at `start` and where the next begins; None if more bytes are needed.

    Bytes that start neither a frame nor a message are stepped over (some cameras leave rubbish between frames); the caller
    limits how many. Raises ProtocolError for a head or body beyond all reason.
    """
    while start < end:
        first = buffer[start]
        if first == 0x24:
            if end - start < 4:
                return None, start
            stop = start + 4 + (buffer[start + 2] << 8 | buffer[start + 3])
            if stop > end:
                return None, start
            return Frame(channel=buffer[start + 1], start=start + 4, stop=stop), stop
        if first in b"\r\n":
            start += 1
            continue
        if _START.match(buffer, start, end):
            return _message(buffer, start, end)
        if end - start < _LONGEST_START and _may_start(bytes(buffer[start:end])):
            return None, start
        start += 1
    return None, start


_STARTS = (
    *tuple(
        f"{word} ".encode()
        for word in (
            "OPTIONS",
            "ANNOUNCE",
            "REDIRECT",
            "GET_PARAMETER",
            "SET_PARAMETER",
            "TEARDOWN",
            "PLAY",
            "PAUSE",
        )
    ),
    b"RTSP/1.",
)


def _may_start(head: bytes) -> bool:
    return any(word.startswith(head) for word in _STARTS)


def _message(buffer: bytearray, start: int, end: int) -> tuple[Message | None, int]:
    window = bytes(buffer[start : min(end, start + MAX_HEAD_BYTES)])
    match = re.search(rb"\r?\n\r?\n", window)
    if match is None:
        if len(window) >= MAX_HEAD_BYTES:
            raise ProtocolError("oversized_head", start)
        return None, start
    lines = re.split(r"\r?\n", window[: match.start()].decode("utf-8", "replace"))
    headers: list[tuple[str, str]] = []
    for line in lines[1:]:
        if line[:1] in (" ", "\t") and headers:  # folded, RFC 2326 section 4.2 by RFC 2068
            headers[-1] = (headers[-1][0], f"{headers[-1][1]} {line.strip()}")
            continue
        name, colon, value = line.partition(":")
        if colon and name.strip():
            headers.append((name.strip().lower(), value.strip()))
    length_text = next((value for name, value in headers if name == "content-length"), "0")
    if not re.fullmatch(r"[0-9]{1,9}", length_text):
        raise ProtocolError("bad_content_length", start)
    length = int(length_text)
    if length > MAX_BODY_BYTES:
        raise ProtocolError("oversized_body", start)
    body_at = start + match.end()
    if body_at + length > end:
        return None, start
    body = bytes(buffer[body_at : body_at + length])
    if status := _STATUS.match(lines[0]):
        message = Message(status=int(status[1]), reason=status[2] or "", headers=tuple(headers), body=body)
    elif request := _REQUEST.match(lines[0]):
        message = Message(method=request[1], uri=request[2], headers=tuple(headers), body=body)
    else:
        raise ProtocolError("bad_start_line", start)
    return message, body_at + length


# -- SDP ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One payload type of one `m=` section (RFC 8866). control: absolute URL once resolved, as written before."""

    media: str
    payload_type: int
    encoding: str
    clock_rate: int
    channels: int = 1
    parameters: dict[str, str] = field(default_factory=dict)
    control: str = ""


_STATIC = {
    0: ("PCMU", 8000),
    3: ("GSM", 8000),
    8: ("PCMA", 8000),
    9: ("G722", 8000),
    26: ("JPEG", 90000),
    33: ("MP2T", 90000),
}


def parse_description(body: bytes) -> tuple[str, list[Track]]:
    """(session-level control, tracks). Lines that make no sense are left out; no `m=` at all raises ProtocolError."""
    session_control = ""
    sections: list[tuple[str, list[int], list[str]]] = []
    for line in re.split(r"[\r\n]+", body.decode("utf-8", "replace")):
        key, _, value = line.strip().partition("=")
        if key == "m":
            words = value.split()
            if len(words) >= 4:
                formats = [
                    int(word) for word in words[3:] if word.isascii() and word.isdigit() and int(word) < 128
                ]
                sections.append((words[0].lower(), formats, []))
        elif key == "a":
            if sections:
                sections[-1][2].append(value)
            elif value.startswith("control:"):
                session_control = value[8:].strip()
    if not sections:
        raise ProtocolError("sdp_without_media", 0)
    tracks: list[Track] = []
    for media, formats, attributes in sections:
        control = next((value[8:].strip() for value in attributes if value.startswith("control:")), "")
        maps = _by_payload_type(attributes, "rtpmap:")
        parameters = _by_payload_type(attributes, "fmtp:")
        for payload_type in formats:
            encoding, clock_rate, channels = _rtpmap(maps.get(payload_type, ""), payload_type)
            fmtp = dict(
                _parameter(part) for part in parameters.get(payload_type, "").split(";") if part.strip()
            )
            if (
                not encoding
                and media == "video"
                and ("sprop-parameter-sets" in fmtp or "packetization-mode" in fmtp)
            ):
                encoding, clock_rate = "H264", 90_000  # rtpmap missing or unreadable
            tracks.append(
                Track(
                    media=media,
                    payload_type=payload_type,
                    encoding=encoding,
                    clock_rate=clock_rate,
                    channels=channels,
                    parameters=fmtp,
                    control=control,
                )
            )
    return session_control, tracks


def _by_payload_type(attributes: list[str], prefix: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for value in attributes:
        if value.startswith(prefix):
            number, _, rest = value[len(prefix) :].strip().partition(" ")
            if number.isascii() and number.isdigit() and len(number) < 4:
                found.setdefault(int(number), rest.strip())
    return found


def _rtpmap(value: str, payload_type: int) -> tuple[str, int, int]:
    encoding, *rest = value.split("/")
    encoding = encoding.strip().upper()
    numbers = [
        int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
        for text in map(str.strip, rest)
    ]
    if not encoding:
        encoding, clock_rate = _STATIC.get(payload_type, ("", 0))
        return encoding, clock_rate, 1
    return encoding, numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 and numbers[1] else 1


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.strip().partition("=")
    return name.strip().lower(), value.strip()


def resolve_control(base: str, control: str) -> str:
    """RFC 2326 appendix C.1.1 as cameras mean it: a relative control is appended, also behind a query."""
    if not control or control == "*":
        return base
    if re.match(r"rtsps?://", control, re.IGNORECASE):
        return control
    if control.startswith("?"):
        return base + control
    return base + ("" if base.endswith("/") else "/") + control.removeprefix("/")


def without_credentials(url: str) -> str:
    """The URL that may stand in requests and logs."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


# -- session -----------------------------------------------------------------------------------------------------------


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class Remedy(StrEnum):
    """What may help after a failure."""

    PAUSE = "pause"
    LONG_PAUSE = "long_pause"
    NEW_SESSION = "new_session"
    OTHER_TRANSPORT = "other_transport"
    OTHER_STREAM = "other_stream"  # what this one sends no browser decodes; the camera's other stream may do
    REDIRECT = "redirect"


class State(StrEnum):
    INIT = "init"
    OPTIONS = "options"
    DESCRIBE = "describe"
    SETUP = "setup"
    PLAY = "play"
    PLAYING = "playing"
    ENDED = "ended"


class Input(StrEnum):
    START = "start"
    OK = "ok"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


# (state, input) -> next state. SETUP repeats itself while tracks are left; an unsupported OPTIONS is no loss.
TRANSITIONS: dict[tuple[State, Input], State] = {
    (State.INIT, Input.START): State.OPTIONS,
    (State.OPTIONS, Input.OK): State.DESCRIBE,
    (State.OPTIONS, Input.UNSUPPORTED): State.DESCRIBE,
    (State.DESCRIBE, Input.OK): State.SETUP,
    (State.SETUP, Input.OK): State.PLAY,
    (State.PLAY, Input.OK): State.PLAYING,
    (State.PLAYING, Input.OK): State.PLAYING,
    (State.PLAYING, Input.UNSUPPORTED): State.PLAYING,
    **{(state, Input.FAILED): State.ENDED for state in State if state not in (State.INIT, State.ENDED)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTrack:
    """A track after SETUP. channel: interleaved RTP channel (RTCP is the next). server_ports: RTP, RTCP over UDP."""

    track: Track
    channel: int
    server_ports: tuple[int, int] | None
    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Playing:
    tracks: tuple[ActiveTrack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """reason: stable text for state and metrics. location: where REDIRECT points."""

    reason: str
    remedy: Remedy
    location: str | None = None


Effect = Send | Playing | Failed


class Session:
    """One RTSP session over one connection.

    url: without credentials. udp_ports: for UDP, the client's (RTP, RTCP) ports of each track, video first.
    cnonce: fresh random text (RFC 7616 section 3.4). transcodable: audio that is taken if none can be passed through.
    """

    def __init__(
        self,
        url: str,
        *,
        transport: Transport = Transport.TCP,
        username: str | None = None,
        password: str = "",
        cnonce: str,
        udp_ports: Sequence[tuple[int, int]] = (),
        audio: bool = True,
        transcodable: Callable[[Track], bool] = lambda track: False,
    ) -> None:
        self._url = self._base = url
        self._transport = transport
        self._username = username
        self._password = password
        self._cnonce = cnonce
        self._udp_ports = udp_ports
        self._audio = audio
        self._transcodable = transcodable
        self._state = State.INIT
        self._authorizer: Authorizer | None = None
        self._cseq = 0
        self._request: tuple[str, str, tuple[str, ...]] | None = None
        self._tries = 0
        self._deadline: float | None = None
        self._session_id: str | None = None
        self._timeout_s = 60.0
        self._keep_alive_method = "OPTIONS"
        self._wanted: list[Track] = []
        self._active: list[ActiveTrack] = []
        self._aggregate = url
        self.ignored: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        return self._state

    @property
    def tracks(self) -> tuple[ActiveTrack, ...]:
        return tuple(self._active)

    @property
    def cseq(self) -> int:
        return self._cseq

    @property
    def asked(self) -> str:
        """The method whose answer is awaited."""
        return self._request[0] if self._request is not None else "nothing"

    def next_deadline(self) -> float | None:
        """When on_time() wants to be called, in the clock of `now`."""
        return self._deadline

    def start(self, now: float) -> list[Effect]:
        self._move(Input.START)
        return [self._ask("OPTIONS", self._url, now)]

    def on_time(self, now: float) -> list[Effect]:
        """An answer is overdue, or a keep-alive is due."""
        if self._deadline is None or now < self._deadline:
            return []
        if self._state is State.PLAYING and self._request is None:
            return [self._ask(self._keep_alive_method, self._aggregate, now)]
        if self._state is State.PLAYING:
            # Cameras that never answer keep-alives but play on exist: the data deadline watches them.
            self._request = None
            self._deadline = now + self._keep_alive_s()
            return []
        return self._fail(f"no answer to {self.asked}", Remedy.PAUSE)

    def teardown(self) -> bytes:
        """The last request; empty if the server holds no session of ours."""
        if self._session_id is None:
            return b""
        self._state = State.ENDED
        self._deadline = None
        data = self._write("TEARDOWN", self._aggregate, ())
        self._session_id = None
        return data

    def receive(self, message: Message, now: float) -> list[Effect]:
        if message.method:
            return [self._answer(message)]
        if self._state in (State.INIT, State.ENDED) or self._request is None:
            return []
        cseq = message.get("cseq")
        if cseq.isascii() and cseq.isdigit() and int(cseq[:10]) != self._cseq:
            return []  # late answer to something given up
        method = self._request[0]
        status = message.status
        if 100 <= status < 200:
            return []
        if status == 401:
            return self._unauthorised(message, now)
        self._request = None
        if 200 <= status < 300:
            return self._accepted(method, message, now)
        if 300 <= status < 400:
            location = message.get("location")
            if re.match(r"rtsps?://", location, re.IGNORECASE):
                return self._fail(f"{status} redirected", Remedy.REDIRECT, location)
            return self._fail(f"{status} redirected nowhere", Remedy.PAUSE)
        if method == "OPTIONS" and self._state is State.OPTIONS:
            self._move(Input.UNSUPPORTED)
            return [self._ask("DESCRIBE", self._url, now, ("Accept: application/sdp",))]
        text = f"{status} {message.reason.strip().lower()[:60]}".strip()
        if status == 454:
            return self._fail("454 session not found", Remedy.NEW_SESSION)
        if self._state is State.PLAYING:
            self._move(Input.UNSUPPORTED)
            self._keep_alive_method = "OPTIONS" if method == "GET_PARAMETER" else "GET_PARAMETER"
            self._deadline = now + self._keep_alive_s()
            return []
        if status == 461:
            return self._fail("461 unsupported transport", Remedy.OTHER_TRANSPORT)
        if status in (403, 404):
            return self._fail({403: "403 forbidden", 404: "404 not found"}[status], Remedy.LONG_PAUSE)
        return self._fail(text, Remedy.PAUSE)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _accepted(self, method: str, message: Message, now: float) -> list[Effect]:
        state = self._state
        if state is State.PLAYING:
            self._move(Input.OK)
            self._deadline = now + self._keep_alive_s()
            return []
        if method == "OPTIONS":
            public = message.get("public").upper()
            if "GET_PARAMETER" in public:
                self._keep_alive_method = "GET_PARAMETER"
            self._move(Input.OK)
            return [self._ask("DESCRIBE", self._url, now, ("Accept: application/sdp",))]
        if method == "DESCRIBE":
            return self._described(message, now)
        if method == "SETUP":
            return self._set_up(message, now)
        self._move(Input.OK)
        self._deadline = now + self._keep_alive_s()
        return [Playing(tracks=tuple(self._active))]

    def _described(self, message: Message, now: float) -> list[Effect]:
        base = (message.get("content-base") or message.get("content-location")).strip()
        self._base = base if re.match(r"rtsps?://", base, re.IGNORECASE) else self._url
        self._base = without_credentials(self._base)
        try:
            control, tracks = parse_description(message.body)
        except ProtocolError as error:
            return self._fail(error.reason.replace("_", " "), Remedy.PAUSE)
        self._aggregate = resolve_control(self._base, control)
        videos = [track for track in tracks if track.media == "video"]
        video = next((track for track in videos if track.encoding == "H264"), None)
        if video is None:
            named = ", ".join(dict.fromkeys(track.encoding or "unknown" for track in videos))
            if not named:
                return self._fail("no video", Remedy.LONG_PAUSE)
            return self._fail(f"codec {named} not supported", Remedy.OTHER_STREAM)
        self._wanted = [video]
        audios = [track for track in tracks if track.media == "audio"]
        usable = [track for track in audios if passes_through(track)]
        usable += [track for track in audios if self._transcodable(track)]
        if self._audio and usable:
            self._wanted.append(usable[0])
        else:
            self.ignored = tuple(dict.fromkeys(track.encoding for track in audios if track.encoding))
        self._move(Input.OK)
        return [self._ask_setup(now)]

    def _ask_setup(self, now: float) -> Send:
        index = len(self._active)
        if self._transport is Transport.TCP:
            transport = f"RTP/AVP/TCP;unicast;interleaved={2 * index}-{2 * index + 1}"
        else:
            rtp, rtcp = self._udp_ports[index]
            transport = f"RTP/AVP;unicast;client_port={rtp}-{rtcp}"
        return self._ask(
            "SETUP",
            resolve_control(self._base, self._wanted[index].control),
            now,
            (f"Transport: {transport}",),
        )

    def _set_up(self, message: Message, now: float) -> list[Effect]:
        session_id, *options = message.get("session").split(";")
        if session_id.strip():
            self._session_id = session_id.strip()[:256]
        for option in options:
            name, _, value = option.strip().partition("=")
            if name.lower() == "timeout" and re.fullmatch(r"[0-9]{1,6}", value.strip()):
                self._timeout_s = min(3600.0, max(4.0, float(value)))
        index = len(self._active)
        transport = message.get("transport")
        channel = 2 * index
        if match := re.search(r"interleaved=(\d{1,3})", transport):
            channel = int(match[1])
        if channel > 255 or any(active.channel == channel for active in self._active):
            return self._fail("bad interleaved channel", Remedy.PAUSE)
        if (
            self._transport is Transport.TCP
            and transport
            and "TCP" not in transport.upper()
            and "interleaved" not in transport
        ):
            return self._fail("camera chose another transport", Remedy.OTHER_TRANSPORT)
        ports = re.search(r"server_port=(\d{1,5})(?:-(\d{1,5}))?", transport)
        source = re.search(r"source=([^;\s]+)", transport)
        server_ports = None
        if ports and 0 < int(ports[1]) < 65536 and int(ports[2] or 0) < 65536:
            server_ports = (int(ports[1]), int(ports[2] or min(65535, int(ports[1]) + 1)))
        self._active.append(
            ActiveTrack(
                track=self._wanted[index],
                channel=channel,
                server_ports=server_ports,
                source=source[1] if source else None,
            )
        )
        if len(self._active) < len(self._wanted):
            return [self._ask_setup(now)]
        self._move(Input.OK)
        return [self._ask("PLAY", self._aggregate, now, ("Range: npt=0.000-",))]

    def _unauthorised(self, message: Message, now: float) -> list[Effect]:
        request = self._request
        if request is None:
            return []
        self._request = None
        challenges = parse_challenges(message.all("www-authenticate"))
        challenge = choose(challenges)
        if self._username is None:
            return self._fail("401 unauthorised: no credentials configured", Remedy.LONG_PAUSE)
        if challenge is None:
            return self._fail("401 unauthorised: unknown scheme", Remedy.LONG_PAUSE)
        # One try with the password; a second only if the server says that merely the nonce was old, or if the nonce
        # we had been using all along was replaced without saying so (this request's first 401).
        if self._tries >= (2 if challenge.stale else 1):
            return self._fail("401 unauthorised", Remedy.LONG_PAUSE)
        self._authorizer = Authorizer(
            challenge, username=self._username, password=self._password, cnonce=self._cnonce
        )
        method, uri, extra = request
        tries = self._tries + 1
        effect = self._ask(method, uri, now, extra)
        self._tries = tries
        return [effect]

    def _answer(self, request: Message) -> Send:
        """Servers may ask too (RFC 2326 section 10.1); refuse politely what we don't do."""
        known = request.method in ("OPTIONS", "GET_PARAMETER", "SET_PARAMETER")
        head = "RTSP/1.0 200 OK" if known else "RTSP/1.0 501 Not Implemented"
        cseq = re.sub(r"[^0-9]", "", request.get("cseq"))[:10]
        return Send(data=f"{head}\r\nCSeq: {cseq}\r\n\r\n".encode())

    # -- small parts -----------------------------------------------------------------------------------------------

    def _move(self, given: Input) -> None:
        try:
            self._state = TRANSITIONS[self._state, given]
        except KeyError:
            raise ProtocolError("illegal_transition", None, state=self._state, input=given) from None

    def _fail(self, reason: str, remedy: Remedy, location: str | None = None) -> list[Effect]:
        self._move(Input.FAILED)
        self._deadline = None
        self._request = None
        return [Failed(reason=reason, remedy=remedy, location=location)]

    def _keep_alive_s(self) -> float:
        return min(self._timeout_s / 2, 30.0)

    def _ask(self, method: str, uri: str, now: float, extra: tuple[str, ...] = ()) -> Send:
        self._request = (method, uri, extra)
        self._tries = 0
        self._deadline = now + ANSWER_TIMEOUT_S
        return Send(data=self._write(method, uri, extra))

    def _write(self, method: str, uri: str, extra: tuple[str, ...]) -> bytes:
        self._cseq += 1
        lines = [f"{method} {uri} RTSP/1.0", f"CSeq: {self._cseq}", f"User-Agent: {USER_AGENT}"]
        if self._authorizer is not None:
            lines.append(f"Authorization: {self._authorizer.header(method, uri)}")
        if self._session_id is not None:
            lines.append(f"Session: {self._session_id}")
        # A camera's control attribute or realm ends up in these lines: no line break may come with it.
        clean = [re.sub(r"[\r\n]", "", line) for line in (*lines, *extra)]
        return ("\r\n".join(clean) + "\r\n\r\n").encode()


def passes_through(track: Track) -> bool:
    """Browsers take this sound as it is: G.711 (RFC 7874 section 3) or Opus."""
    if track.encoding in ("PCMU", "PCMA"):
        return track.clock_rate == 8000 and track.channels == 1
    return track.encoding == "OPUS" and track.clock_rate == 48_000
