"""SDP of WHEP and WHIP: offers in, answers out (RFC 8866, RFC 9429, RFC 9725), and the trickle fragments of
PATCH (RFC 8840).

Only what a passive, lite, bundling server needs is kept. Candidates of offers are ignored: a lite agent sends
no checks, so it doesn't matter where the peer believes to live. Every size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import ProtocolError

__all__ = [
    "Answer",
    "Candidate",
    "CodecDescription",
    "Direction",
    "Fragment",
    "H264Choice",
    "MediaSection",
    "Offer",
    "SendTrack",
    "choose_codec",
    "choose_h264",
    "parse_fragment",
    "parse_offer",
    "write_answer",
    "write_fragment",
]

MAX_SIZE = 64 * 1024
MAX_LINE = 4096
MAX_LINES = 2000
MAX_SECTIONS = 16
MAX_CODECS = 128

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`{|}~0-9A-Za-z]{1,64}")  # RFC 8866 section 9, bounded
_ICE_CHARS = re.compile(r"[A-Za-z0-9+/]+")
_PAYLOAD_TYPES = re.compile(r"\d{1,3}")
_HOST_PORT = re.compile(r"\d{1,5}(/\d+)?")
_ENCODING = re.compile(r"([A-Za-z0-9_.\-]{1,32})/(\d{1,6})(?:/(\d{1,2}))?")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){15,63}")


class Direction(StrEnum):
    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecDescription:
    """One payload type of a media section.

    Parameters: from a=fmtp, keys in lower case. feedback: from a=rtcp-fb.
    """

    payload_type: int
    encoding: str
    clock_rate: int
    channels: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    feedback: tuple[str, ...] = ()

    @property
    def rtpmap(self) -> str:
        channels = f"/{self.channels}" if self.channels != 1 else ""
        return f"{self.encoding}/{self.clock_rate}{channels}"

    @property
    def fmtp(self) -> str:
        return ";".join(f"{key}={value}" if value else key for key, value in self.parameters.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSection:
    """One m= section of an offer.

    ICE and DTLS attributes are inherited from the session level where missing.
    """

    kind: str
    port: int
    protocol: str
    formats: tuple[str, ...]
    mid: str
    direction: Direction
    codecs: tuple[CodecDescription, ...]
    extensions: Mapping[str, int]
    ice_ufrag: str | None
    ice_pwd: str | None = field(repr=False)
    fingerprint_algorithm: str | None
    fingerprint: str | None
    setup: str | None
    rtcp_mux: bool
    rtcp_mux_only: bool
    ssrcs: tuple[int, ...]
    fid_groups: tuple[tuple[int, int], ...]
    rids: tuple[str, ...]
    simulcast: str | None

    def codec(self, payload_type: int) -> CodecDescription:
        return next(codec for codec in self.codecs if codec.payload_type == payload_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A checked offer: its bundle has one set of ICE and DTLS parameters, found in `transport`."""

    media: tuple[MediaSection, ...]
    bundle: tuple[str, ...]
    ice_options: tuple[str, ...]
    transport: MediaSection

    @property
    def ice_ufrag(self) -> str:
        return self.transport.ice_ufrag or ""

    @property
    def ice_pwd(self) -> str:
        return self.transport.ice_pwd or ""

    @property
    def fingerprint_algorithm(self) -> str:
        return self.transport.fingerprint_algorithm or ""

    @property
    def fingerprint(self) -> str:
        return self.transport.fingerprint or ""

    def first(self, kind: str) -> MediaSection | None:
        """The first section of a kind (audio, video) that is offered at all."""
        return next((section for section in self.media if section.kind == kind and section.port), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One local host candidate. protocol: `udp`, or `tcp` (always passive, RFC 6544)."""

    host: str
    port: int
    protocol: str = "udp"

    def line(self, number: int) -> str:
        """candidate-attribute of RFC 8839 section 5.1.

        UDP is preferred over TCP, earlier ones over later ones.
        """
        foundation = number + 1
        if self.protocol == "udp":
            priority = (126 << 24) | ((65535 - number) << 8) | 255
            return f"candidate:{foundation} 1 udp {priority} {self.host} {self.port} typ host"
        # RFC 6544 section 4.2: direction preference 4 for passive in the upper bits of the local preference.
        priority = (90 << 24) | ((4 << 13 | (8191 - number)) << 8) | 255
        return f"candidate:{foundation} 1 tcp {priority} {self.host} {self.port} typ host tcptype passive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A trickle-ice-sdpfrag (RFC 8840). Without credentials it only carried candidates."""

    ice_ufrag: str | None
    ice_pwd: str | None = field(repr=False)
    candidates: int = 0

    def is_restart(self, current_ufrag: str) -> bool:
        """Whether it asks for an ICE restart of a session whose peer had `current_ufrag` (RFC 9725 section
        4.3.2).
        """
        return self.ice_ufrag is not None and self.ice_pwd is not None and self.ice_ufrag != current_ufrag


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTrack:
    """What an answered section will send.

    SSRCs, and names for RTCP and the page. rtx_ssrc: None without RTX.
    """

    ssrc: int
    rtx_ssrc: int | None
    cname: str
    stream_id: str
    track_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One accepted section: payload types in order, and what it sends (None for recvonly)."""

    payload_types: tuple[int, ...]
    direction: Direction
    track: SendTrack | None = None
    extensions: tuple[str, ...] = ()
    feedback: tuple[str, ...] = ("nack", "nack pli", "ccm fir")


@dataclass(frozen=True, slots=True, kw_only=True)
class H264Choice:
    """exact: the offered profile is the source's. rtx: payload type of its RTX, if offered."""

    payload_type: int
    rtx: int | None
    exact: bool


# --- parsing --------------------------------------------------------------------------------


class _Lines:
    """The `a=` and other lines of one section, with their line numbers."""

    def __init__(self) -> None:
        self.attributes: list[tuple[int, str, str]] = []

    def all(self, name: str) -> Iterable[tuple[int, str]]:
        return ((number, value) for number, key, value in self.attributes if key == name)

    def one(self, name: str) -> tuple[int, str] | None:
        return next(iter(self.all(name)), None)

    def value(self, name: str) -> str | None:
        found = self.one(name)
        return None if found is None else found[1]

    def has(self, name: str) -> bool:
        return self.one(name) is not None


def _split(text: str) -> list[tuple[int, str, str]]:
    """(line number, type letter, value) of each line. Lone LF is taken too, as RFC 8866 section 5 advises."""
    if len(text) > MAX_SIZE:
        raise ProtocolError("sdp_too_long", 0)
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line:
            continue
        if number > MAX_LINES or len(line) > MAX_LINE:
            raise ProtocolError("sdp_too_long", number)
        if len(line) < 2 or line[1] != "=" or not line.isprintable():
            raise ProtocolError("sdp_line", number)
        lines.append((number, line[0], line[2:]))
    return lines


def _attribute(value: str) -> tuple[str, str]:
    key, _, rest = value.partition(":")
    return key, rest.strip()


def parse_offer(text: str) -> Offer:
    """Parse and check the offer of a WHEP or WHIP client.

    Raises ProtocolError with the line number as offset.
    """
    lines = _split(text)
    if not lines or lines[0][1:] != ("v", "0"):
        raise ProtocolError("sdp_version", 1)
    session = _Lines()
    sections: list[tuple[int, str, _Lines]] = []
    current = session
    for number, letter, value in lines:
        if letter == "m":
            if len(sections) == MAX_SECTIONS:
                raise ProtocolError("sdp_too_many_sections", number)
            current = _Lines()
            sections.append((number, value, current))
        elif letter == "a":
            current.attributes.append((number, *_attribute(value)))
    if not sections:
        raise ProtocolError("sdp_no_media", lines[-1][0])

    media = tuple(
        _section(number, value, own, session, index) for index, (number, value, own) in enumerate(sections)
    )
    mids = [section.mid for section in media]
    if len(set(mids)) != len(mids):
        raise ProtocolError("sdp_duplicate_mid", sections[0][0])
    bundle: tuple[str, ...] = ()
    for number, value in session.all("group"):
        semantics, *members = value.split() or [""]
        if semantics == "BUNDLE":
            if not set(members) <= set(mids):
                raise ProtocolError("sdp_bundle_unknown_mid", number)
            bundle = tuple(members)
            break
    return Offer(
        media=media,
        bundle=bundle,
        ice_options=tuple((session.value("ice-options") or "").split()),
        transport=_transport(media, bundle, sections),
    )


def _transport(
    media: tuple[MediaSection, ...], bundle: tuple[str, ...], sections: list[tuple[int, str, _Lines]]
) -> MediaSection:
    """The section whose ICE and DTLS attributes rule.

    The first of the bundle (RFC 9143 section 7.2.1), or the only one.
    """
    tagged = next((section for section in media if section.mid == bundle[0]), None) if bundle else None
    chosen = tagged or next((section for section in media if section.port), media[0])
    line = sections[media.index(chosen)][0]
    live = [section for section in media if section.port and section.mid not in bundle]
    if len(live) > 1 or (bundle and live):
        raise ProtocolError("sdp_no_bundle", line)
    if not chosen.ice_ufrag or not chosen.ice_pwd:
        raise ProtocolError("sdp_no_ice_credentials", line)
    if not chosen.fingerprint:
        raise ProtocolError("sdp_no_fingerprint", line)
    if chosen.setup not in ("actpass", "active"):
        raise ProtocolError("sdp_setup", line, setup=chosen.setup)
    if not (chosen.rtcp_mux or chosen.rtcp_mux_only):
        raise ProtocolError("sdp_no_rtcp_mux", line)
    return chosen


def _section(line: int, value: str, own: _Lines, session: _Lines, index: int) -> MediaSection:
    words = value.split()
    if len(words) < 4 or not _TOKEN.fullmatch(words[0]) or not _HOST_PORT.fullmatch(words[1]):
        raise ProtocolError("sdp_media_line", line)
    kind, port, protocol, formats = words[0], int(words[1].partition("/")[0]), words[2], tuple(words[3:])
    if port > 65535 or len(formats) > MAX_CODECS:
        raise ProtocolError("sdp_media_line", line)
    mid = own.value("mid") or str(index)
    if not _TOKEN.fullmatch(mid):
        raise ProtocolError("sdp_mid", line)
    ufrag, pwd = _credentials(own, session)
    algorithm, fingerprint = _fingerprint(own, session)
    direction = next(
        (Direction(key) for _, key, _ in (*own.attributes, *session.attributes) if key in set(Direction)),
        Direction.SENDRECV,
    )
    simulcast = own.value("simulcast")
    return MediaSection(
        kind=kind,
        port=port,
        protocol=protocol,
        formats=formats,
        mid=mid,
        direction=direction,
        codecs=_codecs(formats, own) if "RTP/" in protocol else (),
        extensions=_extensions(own, session),
        ice_ufrag=ufrag,
        ice_pwd=pwd,
        fingerprint_algorithm=algorithm,
        fingerprint=fingerprint,
        setup=own.value("setup") or session.value("setup"),
        rtcp_mux=own.has("rtcp-mux"),
        rtcp_mux_only=own.has("rtcp-mux-only"),
        ssrcs=_ssrcs(own),
        fid_groups=_fid_groups(own),
        rids=tuple(
            value.split()[0]
            for _, value in own.all("rid")
            if value.split() and _TOKEN.fullmatch(value.split()[0])
        ),
        simulcast=simulcast,
    )


def _credentials(own: _Lines, session: _Lines) -> tuple[str | None, str | None]:
    found = []
    for name, low in (("ice-ufrag", 4), ("ice-pwd", 22)):
        entry = own.one(name) or session.one(name)
        if entry is not None:
            number, value = entry
            if not low <= len(value) <= 256 or not _ICE_CHARS.fullmatch(value):
                raise ProtocolError(f"sdp_{name.replace('-', '_')}", number)
        found.append(None if entry is None else entry[1])
    return found[0], found[1]


def _fingerprint(own: _Lines, session: _Lines) -> tuple[str | None, str | None]:
    """The strongest fingerprint that we can check (RFC 8122 section 5.1)."""
    best: tuple[str, str] | None = None
    for number, value in (
        *own.all("fingerprint"),
        *(() if own.has("fingerprint") else session.all("fingerprint")),
    ):
        algorithm, _, digest = value.partition(" ")
        algorithm, digest = algorithm.lower(), digest.strip()
        if not _FINGERPRINT.fullmatch(digest):
            raise ProtocolError("sdp_fingerprint", number)
        size = {"sha-256": 32, "sha-384": 48, "sha-512": 64}.get(algorithm)
        if size is None:
            continue
        if len(digest) != size * 3 - 1:
            raise ProtocolError("sdp_fingerprint", number)
        if best is None or algorithm > best[0]:
            best = (algorithm, digest.upper())
    return best if best is not None else (None, None)


def _number(text: str, limit: int, reason: str, line: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > limit:
        raise ProtocolError(reason, line)
    return int(text)


def _codecs(formats: tuple[str, ...], own: _Lines) -> tuple[CodecDescription, ...]:
    rtpmaps: dict[str, re.Match[str]] = {}
    for number, value in own.all("rtpmap"):
        payload_type, _, encoding = value.partition(" ")
        match = _ENCODING.fullmatch(encoding.strip())
        if match is None:
            raise ProtocolError("sdp_rtpmap", number)
        rtpmaps[payload_type] = match
    parameters: dict[str, dict[str, str]] = {}
    for _, value in own.all("fmtp"):
        payload_type, _, rest = value.partition(" ")
        pairs = (part.strip().partition("=") for part in rest.split(";") if part.strip())
        parameters[payload_type] = {key.strip().lower(): content.strip() for key, _, content in pairs}
    feedback: dict[str, list[str]] = {}
    for _, value in own.all("rtcp-fb"):
        payload_type, _, rest = value.partition(" ")
        feedback.setdefault(payload_type, []).append(rest.strip())
    codecs = []
    for text in formats:
        match = rtpmaps.get(text) or _static(text)
        if match is None or not _PAYLOAD_TYPES.fullmatch(text) or int(text) > 127:
            continue  # a format that can't be named can't be chosen
        codecs.append(
            CodecDescription(
                payload_type=int(text),
                encoding=match[1],
                clock_rate=int(match[2]),
                channels=int(match[3] or 1),
                parameters=parameters.get(text, {}),
                feedback=(*feedback.get("*", ()), *feedback.get(text, ())),
            )
        )
    return tuple(codecs)


def _static(text: str) -> re.Match[str] | None:
    """The static payload types of RFC 3551 section 6 that we can pass on; they need no rtpmap."""
    name = {"0": "PCMU/8000", "8": "PCMA/8000"}.get(text)
    return _ENCODING.fullmatch(name) if name else None


def _extensions(own: _Lines, session: _Lines) -> dict[str, int]:
    extensions: dict[str, int] = {}
    for number, value in (*own.all("extmap"), *session.all("extmap")):
        words = value.split()
        if len(words) < 2:
            raise ProtocolError("sdp_extmap", number)
        extensions.setdefault(words[1], _number(words[0].partition("/")[0], 4351, "sdp_extmap", number))
    return extensions


def _ssrcs(own: _Lines) -> tuple[int, ...]:
    return tuple(
        dict.fromkeys(
            _number(value.partition(" ")[0], 0xFFFFFFFF, "sdp_ssrc", n) for n, value in own.all("ssrc")
        )
    )


def _fid_groups(own: _Lines) -> tuple[tuple[int, int], ...]:
    groups = []
    for number, value in own.all("ssrc-group"):
        semantics, *members = value.split() or [""]
        if semantics == "FID":
            if len(members) != 2:
                raise ProtocolError("sdp_ssrc_group", number)
            ids = [_number(member, 0xFFFFFFFF, "sdp_ssrc_group", number) for member in members]
            groups.append((ids[0], ids[1]))
    return tuple(groups)


def parse_fragment(text: str) -> Fragment:
    """Parse a trickle-ice-sdpfrag (RFC 8840 section 9). Raises ProtocolError."""
    lines = _Lines()
    for number, letter, value in _split(text):
        if letter == "a":
            lines.attributes.append((number, *_attribute(value)))
        elif letter not in "m":
            raise ProtocolError("sdpfrag_line", number)
    ufrag, pwd = _credentials(lines, _Lines())
    if (ufrag is None) != (pwd is None):
        raise ProtocolError("sdpfrag_credentials", 0)
    return Fragment(ice_ufrag=ufrag, ice_pwd=pwd, candidates=sum(1 for _ in lines.all("candidate")))


# --- choosing -------------------------------------------------------------------------------

# Profiles by how much of ITU-T H.264 Annex A a decoder must know. A decoder of a higher one plays the lower
# ones too.
_PROFILE_RANK = {0x42: 0, 0x4D: 1, 0x58: 1, 0x64: 2, 0x6E: 3, 0x7A: 4, 0xF4: 5}
_CONSTRAINED = 0x40  # constraint_set1_flag: with Baseline it means Constrained Baseline


def choose_h264(section: MediaSection, profile_level_id: str | None) -> H264Choice | None:
    """The offered H.264 payload type nearest to the source's profile (hex, as in SDP); None: no H.264 that we
    can send.

    Only packetization-mode 1 will do, since we send FU-A. Levels are ignored: cameras announce 4.0 and more
    where browsers offer 3.1, and play them. An exact profile wins; then the nearest higher one; then the
    highest of the lower ones.
    """
    source = _profile(profile_level_id)
    best: tuple[tuple[int, int, int], CodecDescription, bool] | None = None
    for position, codec in enumerate(section.codecs):
        if codec.encoding.upper() != "H264" or codec.clock_rate != 90000:
            continue
        if codec.parameters.get("packetization-mode", "0") != "1":
            continue
        offered = _profile(codec.parameters.get("profile-level-id")) or (0x42, False)
        exact = source is not None and offered == source
        if source is None or exact:
            score = (0, 0, position)
        elif offered[0] == source[0]:
            score = (1, 0, position)
        else:
            distance = _PROFILE_RANK.get(offered[0], 6) - _PROFILE_RANK.get(source[0], 2)
            score = (2, distance, position) if distance >= 0 else (3, -distance, position)
        if best is None or score < best[0]:
            best = (score, codec, exact)
    if best is None:
        return None
    return H264Choice(
        payload_type=best[1].payload_type, rtx=_rtx(section, best[1].payload_type), exact=best[2]
    )


def _profile(profile_level_id: str | None) -> tuple[int, bool] | None:
    """(profile_idc, constrained baseline)."""
    if not profile_level_id or not re.fullmatch(r"[0-9A-Fa-f]{6}", profile_level_id):
        return None
    idc, constraints = int(profile_level_id[:2], 16), int(profile_level_id[2:4], 16)
    return idc, idc == 0x42 and bool(constraints & _CONSTRAINED)


def _rtx(section: MediaSection, payload_type: int) -> int | None:
    for codec in section.codecs:
        if codec.encoding.lower() == "rtx" and codec.parameters.get("apt") == str(payload_type):
            return codec.payload_type
    return None


def choose_codec(section: MediaSection, encoding: str) -> tuple[int, int | None] | None:
    """The first payload type of an encoding name, with its RTX; None if it isn't offered."""
    for codec in section.codecs:
        if codec.encoding.lower() == encoding.lower():
            return codec.payload_type, _rtx(section, codec.payload_type)
    return None


# --- writing --------------------------------------------------------------------------------


def write_answer(
    offer: Offer,
    answers: Mapping[str, Answer],
    *,
    session_id: int,
    ice_ufrag: str,
    ice_pwd: str,
    fingerprint: str,
    candidates: Sequence[Candidate],
    fingerprint_algorithm: str = "sha-256",
) -> str:
    """The answer to an offer.

    answers: by mid; all other sections rejected with port 0.
    session_id: 62 random bits (RFC 9429 section
    5.2.1).
    """
    accepted = [section.mid for section in offer.media if section.mid in answers]
    lines = [
        "v=0",
        f"o=- {session_id} 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=ice-lite",
        "a=msid-semantic:WMS *",
    ]
    if offer.bundle:
        lines.append(" ".join(("a=group:BUNDLE", *(mid for mid in offer.bundle if mid in answers))))
    for section in offer.media:
        answer = answers.get(section.mid)
        if answer is None:
            lines += _rejected(section)
            continue
        formats = " ".join(map(str, answer.payload_types))
        lines += [
            f"m={section.kind} 9 {section.protocol} {formats}",
            "c=IN IP4 0.0.0.0",
            f"a=mid:{section.mid}",
            f"a={answer.direction}",
            "a=rtcp-mux",
        ]
        lines += [
            "a=rtcp-rsize",
            f"a=ice-ufrag:{ice_ufrag}",
            f"a=ice-pwd:{ice_pwd}",
            f"a=fingerprint:{fingerprint_algorithm} {fingerprint}",
            "a=setup:passive",
        ]
        lines += _codec_lines(section, answer)
        lines += [
            f"a=extmap:{section.extensions[uri]} {uri}"
            for uri in answer.extensions
            if uri in section.extensions
        ]
        if answer.track is not None:
            lines += _track_lines(answer.track)
        if (
            section.mid == accepted[0]
        ):  # the bundle shares one transport: its first section carries the candidates
            lines += [f"a={candidate.line(number)}" for number, candidate in enumerate(candidates)]
            lines.append("a=end-of-candidates")
    return "\r\n".join(lines) + "\r\n"


def _rejected(section: MediaSection) -> list[str]:
    first = section.formats[0] if _TOKEN.fullmatch(section.formats[0]) else "0"
    return [
        f"m={section.kind} 0 {section.protocol} {first}",
        "c=IN IP4 0.0.0.0",
        "a=inactive",
        f"a=mid:{section.mid}",
    ]


def _codec_lines(section: MediaSection, answer: Answer) -> list[str]:
    lines = []
    for payload_type in answer.payload_types:
        codec = section.codec(payload_type)
        lines.append(f"a=rtpmap:{payload_type} {codec.rtpmap}")
        if codec.parameters:
            lines.append(f"a=fmtp:{payload_type} {codec.fmtp}")
        if codec.encoding.lower() != "rtx":
            # Only what was offered may be answered (RFC 4585 section 4.2).
            lines += [
                f"a=rtcp-fb:{payload_type} {kind}" for kind in answer.feedback if kind in codec.feedback
            ]
    return lines


def _track_lines(track: SendTrack) -> list[str]:
    lines = [f"a=msid:{track.stream_id} {track.track_id}"]
    if track.rtx_ssrc is not None:
        lines.append(f"a=ssrc-group:FID {track.ssrc} {track.rtx_ssrc}")
    lines.append(f"a=ssrc:{track.ssrc} cname:{track.cname}")
    if track.rtx_ssrc is not None:
        lines.append(f"a=ssrc:{track.rtx_ssrc} cname:{track.cname}")
    return lines


def write_fragment(
    *, ice_ufrag: str, ice_pwd: str, candidates: Sequence[Candidate], mid: str = "0", kind: str = "audio"
) -> str:
    """The answer to a restart (RFC 9725 section 4.3.3): new credentials and the candidates, all of them."""
    lines = [
        "a=ice-lite",
        f"a=ice-ufrag:{ice_ufrag}",
        f"a=ice-pwd:{ice_pwd}",
        f"m={kind} 9 UDP/TLS/RTP/SAVPF 0",
        f"a=mid:{mid}",
    ]
    lines += [f"a={candidate.line(number)}" for number, candidate in enumerate(candidates)]
    lines.append("a=end-of-candidates")
    return "\r\n".join(lines) + "\r\n"
