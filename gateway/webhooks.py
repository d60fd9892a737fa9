"""Webhooks: what is told to police, urban management, environment and IoT platforms, how it is signed, when it is tried
again. Pure.

Signed as Standard Webhooks 1.0 asks (https://www.standardwebhooks.com): headers `Webhook-Id`, `Webhook-Timestamp` (seconds)
and `Webhook-Signature: v1,BASE64(HMAC-SHA256(secret, id.timestamp.body))`. The id is the same at each attempt, so a
receiver drops repeats by it; the timestamp is that of the attempt.

A hook gets the news of its areas and kinds, one message for each new state: `alarm.new`, `alarm.acknowledged` ...
`incident.reported` ... `incident.archived`. What is told names no resident, contact or operator. Test alarms and presses
with a wrong signature are told to nobody.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.settings import WebhookSettings

__all__ = [
    "ATTEMPTS",
    "Hook",
    "back_off_s",
    "complaints",
    "event_of",
    "headers",
    "hooks_of",
    "is_reachable",
    "message_body",
    "wants",
]

Json = Mapping[str, Any]
ATTEMPTS = 12
"""With the pauses below about a day and a half; then the message is dead until an administrator tries it again."""
BACK_OFF_S = 5.0
BACK_OFF_CAP_S = 6 * 3600.0
_SHARED = {
    "alarm": (
        "id", "kind", "silent", "handling", "condition", "place", "street", "community", "grid", "received_at", "group_id",
        "outcome", "severity", "police", "incident_id", "closed_at",
    ),
    "incident": (
        "id", "number", "type", "severity", "police", "state", "alarm_id", "place_label", "position", "street", "community",
        "grid", "reported_at", "changed_at", "ended_at", "transferred_to",
    ),
}  # fmt: skip
_STATE = {"alarm": "handling", "incident": "state"}
_KIND = {"alarm": "kind", "incident": "type"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One receiver. areas, kinds, events: empty means all; networks: private ones that may be dialled."""

    name: str
    url: str
    secret: bytes = field(repr=False)
    areas: frozenset[str]
    kinds: frozenset[str]
    events: tuple[str, ...]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def hooks_of(settings: Sequence[WebhookSettings], secrets: Mapping[str, str]) -> tuple[Hook, ...]:
    """secrets: by name; one like `whsec_...` is base64, any other is taken as it is (UTF-8)."""
    return tuple(
        Hook(
            name=one.name,
            url=one.url,
            secret=_key(secrets[one.secret]),
            areas=frozenset(one.areas),
            kinds=frozenset(one.kinds),
            events=one.events,
            networks=tuple(ipaddress.ip_network(text) for text in one.networks),
        )
        for one in settings
    )


def complaints(
    settings: Sequence[WebhookSettings], secrets: Mapping[str, str], areas: Collection[str]
) -> list[tuple[int, str, str]]:
    """(index, key, what is wrong) of what can only be judged beside the other files."""
    found: list[tuple[int, str, str]] = []
    names: set[str] = set()
    for at, one in enumerate(settings):
        if not one.name or one.name in names:
            found.append((at, "name", "should be there and be another one's than of those above"))
        names.add(one.name)
        if not one.url:
            found.append((at, "url", "is required"))
        if one.secret not in secrets:
            found.append((at, "secret", f"{one.secret!r} is no name under credentials in secrets.yaml"))
        elif len(_key(secrets[one.secret])) < 16:
            found.append((at, "secret", "its password in secrets.yaml is shorter than 16 bytes"))
        unknown = [code for code in one.areas if code not in areas]
        found += [(at, "areas", f"{code!r} is no area of the district") for code in unknown]
        for pattern in one.events:
            kind, _, state = pattern.partition(".")
            if kind not in _SHARED or not state:
                found.append((at, "events", f"{pattern!r} should be like alarm.* or incident.transferred"))
    return found


def event_of(type: str, data: Json) -> str | None:
    """`alarm.new`, `incident.transferred` ...; None for what is never told."""
    if type not in _SHARED:
        return None
    if type == "alarm" and (data["kind"] == "test" or not data["verified"]):
        return None
    if type == "incident" and data["type"] == "test":
        return None
    return f"{type}.{str(data[_STATE[type]]).lower()}"


def wants(hook: Hook, type: str, event: str, data: Json, lineage: Sequence[str]) -> bool:
    """Whether this news is for that receiver."""
    if hook.areas and not hook.areas.intersection(lineage):
        return False
    if hook.kinds and data[_KIND[type]] not in hook.kinds:
        return False
    return not hook.events or event in hook.events or f"{type}.*" in hook.events


def message_body(type: str, event: str, data: Json, now_ms: int) -> bytes:
    """JSON `{type, timestamp, data}` with what is shared of the alarm or incident."""
    at = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).isoformat(timespec="milliseconds")
    shared = {key: data.get(key) for key in _SHARED[type]}
    return msgspec.json.encode({"type": event, "timestamp": at, "data": shared})


def headers(secret: bytes, message_id: str, now_s: int, body: bytes) -> dict[str, str]:
    signed = f"{message_id}.{now_s}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return {
        "Content-Type": "application/json",
        "Webhook-Id": message_id,
        "Webhook-Timestamp": str(now_s),
        "Webhook-Signature": f"v1,{signature}",
    }


def back_off_s(attempts: int, share: float) -> float:
    """Before the next attempt: exponential with full jitter. share: random, 0 to 1."""
    return share * min(BACK_OFF_CAP_S, BACK_OFF_S * float(2**attempts))


def is_reachable(address: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """A public address, or one of the networks named. What wraps an IPv4 address is judged by that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if any(ip.version == network.version and ip in network for network in networks):
        return True
    if isinstance(ip, ipaddress.IPv6Address) and (ip.sixtofour is not None or ip.teredo is not None):
        return False
    return ip.is_global and not ip.is_multicast


def _key(text: str) -> bytes:
    if text.startswith("whsec_"):
        try:
            return base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            return b""
    return text.encode()
