"""Reaching a phone that says nothing: one webhook to a provider of SMS, voice calls and push, and its receipts.

    POST {notify.url}
    X-Gateway-Timestamp: UTC seconds       X-Gateway-Signature: sha256=hex(HMAC-SHA256(secret, timestamp + "." + body))
    {id, call, worker: {id, name, phone}, channels: [sms|voice|push], kind, place_label, until, receipts}

The provider answers 2xx when it has it and posts what became of each channel to `receipts`, signed in the same way with the
same secret: {call, worker, channel, status: delivered|failed, error?}. `id` is the same if the webhook is repeated.
Redirects are not followed: a provider that moved is a mistake in gateway.yaml, not a reason to send phone numbers elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from gateway.catalog import Catalog
from gateway.errors import NotAllowed, ProtocolError, Unavailable
from gateway.settings import NotifySettings

__all__ = ["RECEIPTS", "Provider", "Receipt", "make_provider", "notified_by", "read_receipt", "sign"]

MAX_AGE_S = 300
"""How old (or early) a signature may be."""
RECEIPTS = "/api/v1/notify/receipts"

Json = dict[str, Any]


class Receipt(msgspec.Struct, kw_only=True):
    """What became of one channel."""

    call: str
    worker: str
    channel: str
    status: str
    error: str = ""


def sign(secret: str, timestamp: int, body: bytes) -> str:
    text = str(timestamp).encode() + b"." + body
    return "sha256=" + hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def read_receipt(secret: str, timestamp: str, signature: str, body: bytes, *, now_s: float) -> Receipt:
    """A signed receipt. Raises NotAllowed for a signature that is wrong or old, ProtocolError for what it signs."""
    if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > 12:
        raise NotAllowed("X-Gateway-Timestamp should be UTC seconds", authenticated=False)
    expected = sign(secret, int(timestamp), body) if secret else ""
    if not expected or not hmac.compare_digest(expected.encode(), signature.encode()):
        raise NotAllowed("this signature is not the provider's", authenticated=False)
    if abs(now_s - int(timestamp)) > MAX_AGE_S:
        raise NotAllowed("this signature is too old", authenticated=False)
    try:
        receipt = msgspec.json.decode(body, type=Receipt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"receipt: {error}") from None
    if receipt.status not in ("delivered", "failed"):
        raise ProtocolError("status must be delivered or failed")
    return receipt


class Provider:
    """Hands notices over. `deliver` is for the outbox: it raises Unavailable to be tried again."""

    def __init__(
        self,
        url: str,
        *,
        secret: Callable[[], str],
        phone_of: Callable[[str], str],
        receipts_url: Callable[[], str],
        timeout_s: float,
        now_s: Callable[[], float],
    ) -> None:
        """secret: as it is now (a reload may change it). phone_of(worker_id): empty if none is known."""
        self._url = url
        self._secret = secret
        self._phone_of = phone_of
        self._receipts_url = receipts_url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._now_s = now_s
        self.counters = {"sent": 0, "failed": 0}

    def read(self, headers: Mapping[str, str], body: bytes) -> Receipt:
        """A receipt that came in."""
        timestamp, signature = (headers.get(f"X-Gateway-{name}", "") for name in ("Timestamp", "Signature"))
        return read_receipt(self._secret(), timestamp, signature, body, now_s=self._now_s())

    async def deliver(self, notice: Json) -> None:
        """One notice, as intercom.ledger writes it."""
        ring = notice["message"]
        body = msgspec.json.encode(
            {
                "id": ring["mid"],
                "call": ring["call"],
                "worker": {
                    "id": notice["worker_id"],
                    "name": notice["name"],
                    "phone": self._phone_of(notice["worker_id"]),
                },
                "channels": notice["channels"],
                "kind": ring["kind"],
                "place_label": ring["place_label"],
                "until": notice["until"],
                "receipts": self._receipts_url(),
            }
        )
        timestamp = int(self._now_s())
        headers = {
            "Content-Type": "application/json",
            "X-Gateway-Timestamp": str(timestamp),
            "X-Gateway-Signature": sign(self._secret(), timestamp, body),
        }
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.counters["failed"] += 1
            raise Unavailable(f"the provider can't be reached: {error}", retry_after_s=1) from None
        if not 200 <= status < 300:
            self.counters["failed"] += 1
            raise Unavailable(f"the provider answered {status}", retry_after_s=1)
        self.counters["sent"] += 1


def notified_by(settings: NotifySettings) -> tuple[str, ...]:
    """Channels of the provider; none if there is no provider."""
    return settings.channels if settings.url else ()


def make_provider(
    settings: NotifySettings, catalog: Callable[[], Catalog], *, base_url: Callable[[], str]
) -> Provider:
    """As gateway.yaml says. Without a url nothing is ever handed to it."""

    def secret() -> str:
        credential = catalog().secrets.credentials.get(settings.secret)
        return credential.password if credential is not None else ""

    def phone_of(worker_id: str) -> str:
        worker = catalog().district.gridworkers.get(worker_id)
        return worker.phone if worker is not None else ""

    return Provider(
        settings.url,
        secret=secret,
        phone_of=phone_of,
        receipts_url=lambda: (settings.receipts or base_url()).rstrip("/") + RECEIPTS,
        timeout_s=settings.timeout_s,
        now_s=time.time,
    )
