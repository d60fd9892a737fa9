"""The audit trail: append-only, each entry bound to the one before it by SHA-256.

An entry's hash covers the hash before it, so a changed, removed or inserted entry breaks the chain from there
on; triggers refuse UPDATE and DELETE to anyone who comes through SQL. What a chain can't show by itself is a
cut tail: keep the head that `verify_audit` returns (id and hash) elsewhere and hand it back as `anchor` the
next time.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    select,
)

from gateway.store import Prepared, defer, deferred, metadata

__all__ = ["AuditReport", "audit", "audit_table", "entry_digest", "verify_audit"]

audit_table = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
)
Index("ix_audit_subject", audit_table.c.subject, audit_table.c.id)

GENESIS = bytes(32)
_HEAD = Prepared(select(audit_table.c.id, audit_table.c.hash).order_by(audit_table.c.id.desc()).limit(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """entries: how many are sound. broken_at: id of the first that isn't, with `reason`; None when the chain
    holds.

    head: id and hex hash of the last sound entry, the anchor for the next verification.
    """

    entries: int
    broken_at: int | None
    reason: str
    head: tuple[int, str]


def audit(
    connection: Connection,
    *,
    who: str,
    action: str,
    subject: str,
    detail: Mapping[str, object] | None = None,
    now_ms: int,
) -> int:
    """Appends one entry in the transaction of `connection`, which must be the writer's. Returns its id.

    It can be read in the same transaction after `store.flush`.

    who: `operator/zhang`, `stb/000123`, `system`. action: dotted verb (`alarm.acknowledge`). subject:
    `alarm/01J...`.
    """
    waiting = deferred(connection, audit_table)
    if waiting:
        number, previous = int(waiting[-1]["id"]) + 1, waiting[-1]["hash"]
    else:
        head = _HEAD.first(connection, {})
        number, previous = (1, GENESIS) if head is None else (int(head[0]) + 1, head[1])
    text = msgspec.json.encode(detail or {}, order="sorted").decode()
    entry = {
        "id": number,
        "at": now_ms,
        "who": who,
        "action": action,
        "subject": subject,
        "detail": text,
        "previous": previous,
        "hash": entry_digest(previous, number, now_ms, who, action, subject, text),
    }
    defer(connection, audit_table, entry)
    return number


def verify_audit(path: Path | str, *, anchor: tuple[int, str] | None = None) -> AuditReport:
    """Walks the whole chain of the database file, offline and read-only. Blocking: minutes for very long
    trails.
    """
    connection = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "SELECT id, at, who, action, subject, detail, previous, hash FROM audit ORDER BY id"
        )
        previous, sound = GENESIS, 0
        for number, at, who, action, subject, detail, link, digest in rows:
            reason = ""
            if number != sound + 1:
                reason = f"entry {sound + 1} is missing"
            elif link != previous:
                reason = "not linked to the entry before it"
            elif digest != entry_digest(previous, number, at, who, action, subject, detail):
                reason = "its content was changed"
            elif anchor is not None and number == anchor[0] and digest.hex() != anchor[1]:
                reason = "not the entry that the anchor names"
            if reason:
                return AuditReport(
                    entries=sound, broken_at=number, reason=reason, head=(sound, previous.hex())
                )
            previous, sound = digest, number
        if anchor is not None and sound < anchor[0]:
            return AuditReport(
                entries=sound,
                broken_at=sound + 1,
                reason=f"cut before the anchor {anchor[0]}",
                head=(sound, previous.hex()),
            )
        return AuditReport(entries=sound, broken_at=None, reason="", head=(sound, previous.hex()))
    finally:
        connection.close()


def entry_digest(
    previous: bytes, number: int, at: int, who: str, action: str, subject: str, detail: str
) -> bytes:
    """What an entry hashes to; `detail` as it is stored."""
    # JSON of a list: unambiguous where fields meet, unlike joining by a separator.
    return hashlib.sha256(previous + msgspec.json.encode([number, at, who, action, subject, detail])).digest()
