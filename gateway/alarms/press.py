"""What a box may say: presses, cancels and corrections of the place. Parsing, canonical strings, signatures.
Pure.

Unknown fields are ignored (a newer box must not lose its alarm to an older gateway), everything known is
strict and bounded. A message is at most MAX_BYTES long. Signatures: lower-case hex HMAC-SHA256 with the box's
key over the fields joined by `|`; no field can contain that character, so the string is unambiguous.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

import msgspec

from gateway.errors import ProtocolError

__all__ = [
    "MAX_BYTES",
    "Cancel",
    "Correction",
    "Kind",
    "PlaceKind",
    "Press",
    "Refusal",
    "mqtt_password",
    "parse_cancel",
    "parse_correction",
    "parse_press",
    "sign",
    "signed_text",
    "verify",
]

MAX_BYTES = 1024
PressId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
DeviceId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Signature = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Kind(StrEnum):
    """`sos` is a gridworker's call for help, which comes by its session; no box can say it."""

    HELP = "help"
    THEFT = "theft"
    FIRE = "fire"
    MEDICAL = "medical"
    TEST = "test"
    SOS = "sos"


class PlaceKind(StrEnum):
    """What an alarm's place is named after."""

    CAMERA = "camera"
    HOUSEHOLD = "household"
    POINT = "point"


class Refusal(StrEnum):
    """`reason` of an ack with stage `refused`. Stable: boxes and metrics know them."""

    MALFORMED = "malformed"
    UNKNOWN_BOX = "unknown_box"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_PRESS = "unknown_press"
    CANNOT_PROCESS = "cannot_process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """One key pressed on a box. ts: the box's clock, which is not to be trusted. cam: the camera watched
    full screen, or None.
    """

    v: Literal[1]
    sid: DeviceId
    pid: PressId
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    ts: Milliseconds
    kind: Kind
    sig: Signature
    cam: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:-]{0,64}\Z")] | None = None
    silent: bool | Annotated[int, msgspec.Meta(ge=0, le=1)] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The resident takes the press back."""

    sid: DeviceId
    pid: PressId
    ts: Milliseconds
    sig: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """The resident says whether it happens in the picture or at home."""

    sid: DeviceId
    pid: PressId
    place: Literal["camera", "household"]
    ts: Milliseconds
    sig: Signature


Message = TypeVar("Message", Press, Cancel, Correction)


def parse_press(raw: bytes, *, sid: str | None = None) -> Press:
    """Raises ProtocolError. `sid`: known from the MQTT topic, where the body need not repeat it but must
    not contradict it.
    """
    press = _parse(raw, Press, sid)
    if press.kind is Kind.SOS:
        raise ProtocolError("malformed", detail="kind sos is a gridworker's, not a box's")
    return press


def parse_cancel(raw: bytes, *, sid: str | None = None) -> Cancel:
    """As parse_press."""
    return _parse(raw, Cancel, sid)


def parse_correction(raw: bytes, *, sid: str | None = None) -> Correction:
    """As parse_press."""
    return _parse(raw, Correction, sid)


def signed_text(message: Press | Cancel | Correction) -> str:
    """The canonical string under the signature (contract section 4)."""
    if isinstance(message, Press):
        m = message
        return f"press|{m.sid}|{m.pid}|{m.seq}|{m.ts}|{m.kind}|{m.cam or ''}|{int(m.silent)}"
    if isinstance(message, Correction):
        return f"place|{message.sid}|{message.pid}|{message.place}|{message.ts}"
    return f"cancel|{message.sid}|{message.pid}|{message.ts}"


def sign(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


def verify(key: bytes, message: Press | Cancel | Correction) -> bool:
    """In constant time over the signature's content."""
    try:
        return hmac.compare_digest(sign(key, signed_text(message)), message.sig)
    except TypeError:  # compare_digest takes ASCII strings only
        return False


def mqtt_password(key: bytes, device_id: str) -> str:
    """The broker's password of a device, derived so that one stored secret serves both (contract section
    2).
    """
    return sign(key, f"mqtt|{device_id}")


def _parse(raw: bytes, kind: type[Message], sid: str | None) -> Message:
    if len(raw) > MAX_BYTES:
        raise ProtocolError("too_long", MAX_BYTES)
    try:
        fields = msgspec.json.decode(raw, type=dict[str, object])
        if sid is not None and fields.setdefault("sid", sid) != sid:
            raise ProtocolError("wrong_sid", sid=sid)
        return msgspec.convert(fields, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ProtocolError("malformed", detail=str(exc)[:200]) from None
