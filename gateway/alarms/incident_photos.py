"""Photos of an incident itself: what a gridworker shows of the event that he reports, before there is any task.

Kept like the photos of tasks: the file by its SHA-256, on disk before its row; a line on the incident's trail.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, Table, Text, insert, select

from gateway.alarms import records
from gateway.alarms.policy import Actor
from gateway.alarms.tasks import MAX_PHOTOS, keep_photo, photo_path, photo_type
from gateway.audit import audit
from gateway.errors import NotFound, ProtocolError, Unavailable
from gateway.store import Store, metadata

__all__ = ["IncidentPhotos", "incident_photo_table"]

Json = dict[str, Any]

incident_photo_table = Table(
    "incident_photo",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)


class IncidentPhotos:
    """`folder` is that of the tasks' photos: the same picture is the same file."""

    def __init__(self, store: Store, *, folder: Path, clock: Callable[[], int]) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock

    async def reporter(self, incident_id: str) -> str:
        """`role/sub` of who reported it. Raises NotFound."""
        row = await self._store.read(lambda c: records.load_incident(c, incident_id))
        return str(row["reported_by"])

    async def add(self, incident_id: str, data: bytes, by: Actor) -> Json:
        """The same photo again changes nothing. Raises ProtocolError, NotFound, Unavailable (disk full)."""
        media_type = photo_type(data)
        digest = hashlib.sha256(data).hexdigest()
        now_ms = self._clock()
        try:
            await asyncio.to_thread(keep_photo, self._folder, digest, data)
        except OSError as error:
            raise Unavailable(f"cannot store the photo: {error.strerror}") from error

        def step(c: Connection) -> Json:
            records.load_incident(c, incident_id)
            held = _photos(c, incident_id)
            known = next((photo for photo in held if photo["sha256"] == digest), None)
            if known is not None:
                return known
            if len(held) >= MAX_PHOTOS:
                raise ProtocolError(f"an incident takes {MAX_PHOTOS} photos")
            photo = {
                "sha256": digest,
                "media_type": media_type,
                "size": len(data),
                "by": str(by),
                "at": now_ms,
            }
            c.execute(insert(incident_photo_table), {**photo, "incident_id": incident_id})
            subject, detail = f"incident/{incident_id}", {"sha256": digest}
            audit(c, who=str(by), action="incident.photo", subject=subject, detail=detail, now_ms=now_ms)
            return photo

        return await self._store.write(step)

    async def all(self, incident_id: str) -> list[Json]:
        return await self._store.read(lambda c: _photos(c, incident_id))

    async def file(self, incident_id: str, digest: str) -> tuple[Path, str]:
        """File and media type. Raises NotFound."""
        for photo in await self.all(incident_id):
            if photo["sha256"] == digest:
                return photo_path(self._folder, digest), photo["media_type"]
        raise NotFound(f"no photo {digest} of incident {incident_id}")


def _photos(c: Connection, incident_id: str) -> list[Json]:
    t = incident_photo_table.c
    rows = c.execute(
        select(t.sha256, t.media_type, t.size, t.by, t.at).where(t.incident_id == incident_id).order_by(t.at)
    )
    return [dict(row) for row in rows.mappings()]
