"""Clips in the database: one row for each file, and its JSON of docs/contract.md."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    Table,
    Text,
    insert,
    select,
    update,
)

from gateway.errors import NotFound
from gateway.evidence.recording import Gap
from gateway.store import metadata

__all__ = [
    "ClipKind",
    "ClipState",
    "Row",
    "add",
    "change",
    "clip_view",
    "clips_table",
    "expired",
    "find",
    "gaps_text",
    "known_cameras",
    "lineage_of",
    "load",
    "name_incident",
    "of_recording",
    "oldest",
    "unfinished",
]

Row = dict[str, Any]


class ClipKind(StrEnum):
    CAMERA = "camera"
    CALL = "call"


class ClipState(StrEnum):
    RECORDING = "recording"
    COMPLETE = "complete"
    FAILED = "failed"
    PRUNED = "pruned"


clips_table = Table(
    "evidence_clips",
    metadata,
    Column("id", Text, primary_key=True),
    Column("recording_id", Text, nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("alarm_id", Text, index=True),
    Column("incident_id", Text, index=True),
    Column("call_id", Text, index=True),
    Column("camera_id", Text),
    Column("name", Text, nullable=False),
    Column("lineage", Text, nullable=False),
    Column("ordered_at", BigInteger, nullable=False),
    Column("pressed_at", BigInteger),
    Column("until_at", BigInteger),
    Column("from_at", BigInteger),
    Column("to_at", BigInteger),
    Column("media_type", Text),
    Column("file", Text),
    Column("size", BigInteger),
    Column("sha256", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("preroll_s", Float, nullable=False),
    Column("gaps", Text, nullable=False),
    Column("hold_by", Text),
    Column("hold_at", BigInteger),
    Column("hold_reason", Text),
    Column("expires_at", BigInteger),
)
Index("ix_evidence_clips_state", clips_table.c.state, clips_table.c.expires_at)

_c = clips_table.c
_PRUNABLE = (_c.state == ClipState.COMPLETE.value, _c.hold_at.is_(None))


def add(connection: Connection, row: Row) -> None:
    connection.execute(insert(clips_table), row)


def change(connection: Connection, clip_id: str, **values: Any) -> None:
    connection.execute(update(clips_table).where(_c.id == clip_id).values(**values))


def load(connection: Connection, clip_id: str) -> Row:
    """Raises NotFound."""
    row = connection.execute(select(clips_table).where(_c.id == clip_id)).mappings().first()
    if row is None:
        raise NotFound(f"no clip {clip_id}")
    return dict(row)


def find(
    connection: Connection,
    *,
    alarm_id: str | None = None,
    incident_id: str | None = None,
    call_id: str | None = None,
    limit: int,
) -> list[Row]:
    """Newest first."""
    query = select(clips_table).order_by(_c.ordered_at.desc(), _c.id.desc()).limit(limit)
    for column, value in ((_c.alarm_id, alarm_id), (_c.incident_id, incident_id), (_c.call_id, call_id)):
        if value is not None:
            query = query.where(column == value)
    return _rows(connection, query)


def of_recording(connection: Connection, recording_id: str) -> list[Row]:
    query = select(clips_table).where(_c.recording_id == recording_id).order_by(_c.number)
    return _rows(connection, query)


def unfinished(connection: Connection) -> list[Row]:
    """What an earlier process was writing."""
    return _rows(connection, select(clips_table).where(_c.state == ClipState.RECORDING.value))


def expired(connection: Connection, now_ms: int, limit: int) -> list[Row]:
    """Kept long enough, and held by nobody."""
    query = select(clips_table).where(*_PRUNABLE, _c.expires_at <= now_ms).order_by(_c.expires_at)
    return _rows(connection, query.limit(limit))


def oldest(connection: Connection, before_ms: int, limit: int) -> list[Row]:
    """What may go first when the disk runs full."""
    query = select(clips_table).where(*_PRUNABLE, _c.to_at < before_ms).order_by(_c.to_at)
    return _rows(connection, query.limit(limit))


def known_cameras(connection: Connection, alarm_id: str) -> set[str]:
    """The cameras that are or were recorded for this alarm."""
    query = select(_c.camera_id).where(_c.alarm_id == alarm_id, _c.kind == ClipKind.CAMERA.value)
    return set(connection.execute(query).scalars())


def name_incident(connection: Connection, alarm_id: str, incident_id: str) -> None:
    connection.execute(
        update(clips_table)
        .where(_c.alarm_id == alarm_id, _c.incident_id.is_distinct_from(incident_id))
        .values(incident_id=incident_id)
    )


def clip_view(row: Row) -> dict[str, Any]:
    """Clip of the contract."""
    view = {
        name: row[name]
        for name in (
            "id", "kind", "alarm_id", "incident_id", "call_id", "camera_id", "name", "from_at", "to_at", "media_type",
            "size", "sha256", "state", "reason", "preroll_s", "expires_at",
        )
    }  # fmt: skip
    view["gaps"] = msgspec.json.decode(row["gaps"])
    view["hold"] = (
        None
        if row["hold_at"] is None
        else {"by": row["hold_by"], "at": row["hold_at"], "reason": row["hold_reason"]}
    )
    return view


def lineage_of(row: Row) -> tuple[str, ...]:
    return msgspec.json.decode(row["lineage"], type=tuple[str, ...])


def gaps_text(gaps: Sequence[Gap]) -> str:
    return msgspec.json.encode(gaps).decode()


def _rows(connection: Connection, query: Any) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]
