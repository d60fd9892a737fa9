"""Evidence at the HTTP edge: clips, their media, hold and release, the export."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from gateway.access import Action, Principal, Resource, authorize, may_ever, require
from gateway.errors import NotAllowed, NotFound, ProtocolError, Unavailable
from gateway.evidence.bundle import write_bundle
from gateway.evidence.desk import EvidenceDesk
from gateway.evidence.tables import ClipState, Row, clip_view, lineage_of
from gateway.http.routes import Exchange, Route, json_response
from gateway.witness import Witness

__all__ = ["EvidenceEdge"]

MAX_CLIPS = 500
VIEW_AGAIN_S = 60.0
"""A player reads a clip in many pieces: one view a minute is on record, before its first byte."""
VIEWS_KEPT = 4_096
EXPORTS_AT_ONCE = 2


class Why(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    reason: str


class ExportOf(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Exactly one of the three."""

    reason: str
    alarm_id: str | None = None
    incident_id: str | None = None
    call_id: str | None = None


Record = Callable[[Principal, str, str, dict[str, Any]], Awaitable[None]]


class EvidenceEdge:
    """Routes of evidence. record(principal, action, subject, detail): a line on the audit trail, on disk when it returns."""

    def __init__(self, witness: Witness, *, record: Record, scratch: Path, clock: Callable[[], int]) -> None:
        """scratch: where exports are put together."""
        self._witness = witness
        self._desk: EvidenceDesk = witness.desk
        self._record = record
        self._scratch = scratch
        self._clock = clock
        self._views: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._exports = asyncio.Semaphore(EXPORTS_AT_ONCE)

    def routes(self) -> list[Route]:
        def clips(request: web.Request) -> Resource:
            return Resource.collection("evidence")

        async def clip(request: web.Request) -> Resource:
            return _resource(await self._desk.clip(request.match_info["clip_id"]))

        def body_decides(request: web.Request) -> Resource:
            return Resource(kind="session")

        base = "/api/v1/evidence"
        one = base + "/{clip_id}"
        return [
            Route(
                method="GET", path=base, action=Action.EVIDENCE_READ, handler=self._list, resource=clips,
                summary="Clips, newest first (?alarm_id= ?incident_id= ?call_id= ?limit=)",
            ),
            Route(
                method="GET", path=one, action=Action.EVIDENCE_READ, handler=self._read, resource=clip,
                summary="One clip",
            ),
            Route(
                method="GET", path=f"{one}/media", action=Action.EVIDENCE_READ, handler=self._media, resource=clip,
                summary="What was recorded (Range is understood)", media="video/mp4",
            ),
            Route(
                method="POST", path=f"{one}/hold", action=Action.EVIDENCE_HOLD, handler=self._hold, resource=clip,
                summary="Keep it until it is released", request=Why,
            ),
            Route(
                method="POST", path=f"{one}/release", action=Action.EVIDENCE_HOLD, handler=self._release, resource=clip,
                summary="Let the retention decide again", request=Why,
            ),
            Route(
                method="POST", path=f"{base}/export", action=Action.SESSION_READ, handler=self._export,
                resource=body_decides, summary="A ZIP with clips, timeline and audit excerpt", request=ExportOf,
                media="application/zip",
            ),
        ]  # fmt: skip

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        limit = exchange.query("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit) <= MAX_CLIPS:
            raise ProtocolError(f"limit must be 1..{MAX_CLIPS}")
        rows = await self._desk.clips(
            alarm_id=exchange.query("alarm_id") or None,
            incident_id=exchange.query("incident_id") or None,
            call_id=exchange.query("call_id") or None,
            limit=int(limit),
        )
        seen = [
            clip_view(row)
            for row in rows
            if authorize(exchange.who, Action.EVIDENCE_READ, _resource(row)).allowed
        ]
        return json_response({"evidence": seen})

    async def _read(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(clip_view(await self._desk.clip(exchange.path("clip_id"))))

    async def _media(self, exchange: Exchange) -> web.StreamResponse:
        row = await self._desk.clip(exchange.path("clip_id"))
        path = self._desk.path_of(row)
        if not await asyncio.to_thread(path.is_file):
            raise NotFound("the file of this clip is gone")
        await self._viewed(exchange.who, row["id"])
        headers = {
            "Content-Type": row["media_type"],
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'inline; filename="{row["id"]}{path.suffix}"',
        }
        return web.FileResponse(path, headers=headers, chunk_size=1 << 18)

    async def _viewed(self, principal: Principal, clip_id: str) -> None:
        key = (principal.sub, clip_id)
        now = self._clock() / 1000
        if now - self._views.get(key, float("-inf")) < VIEW_AGAIN_S:
            return
        await self._record(principal, "evidence.view", f"evidence/{clip_id}", {})
        self._views[key] = now
        self._views.move_to_end(key)
        if len(self._views) > VIEWS_KEPT:
            self._views.popitem(last=False)

    async def _hold(self, exchange: Exchange) -> web.StreamResponse:
        row = await self._desk.hold(exchange.path("clip_id"), _who(exchange.who), await _reason(exchange))
        return json_response(clip_view(row))

    async def _release(self, exchange: Exchange) -> web.StreamResponse:
        row = await self._desk.release(exchange.path("clip_id"), _who(exchange.who), await _reason(exchange))
        return json_response(clip_view(row))

    # -- export -----------------------------------------------------------------------------------------------------

    async def _export(self, exchange: Exchange) -> web.StreamResponse:
        who, said = exchange.who, await exchange.body(ExportOf)
        if not may_ever(who, Action.EVIDENCE_EXPORT):
            raise NotAllowed(f"role {who.role} may not {Action.EVIDENCE_EXPORT}")
        of = {"alarm_id": said.alarm_id, "incident_id": said.incident_id, "call_id": said.call_id}
        named = {key: value for key, value in of.items() if value is not None}
        if len(named) != 1:
            raise ProtocolError("name one of alarm_id, incident_id, call_id")
        if not said.reason.strip():
            raise ProtocolError("an export needs a reason")
        ((kind, subject_id),) = named.items()
        lineage = await self._witness.lineage(**of)
        require(who, Action.EVIDENCE_EXPORT, Resource(kind="evidence", id=subject_id, lineage=lineage))
        async with self._exports:
            path = await self._write(who, said.reason.strip(), kind, subject_id)
        with contextlib.ExitStack() as cleaning:
            cleaning.callback(path.unlink, missing_ok=True)
            return await self._send(exchange, path, f"evidence-{subject_id}.zip")

    async def _write(self, who: Principal, reason: str, kind: str, subject_id: str) -> Path:
        of = {"alarm_id": None, "incident_id": None, "call_id": None} | {kind: subject_id}
        timeline, audit = await self._witness.timeline(**of)
        rows = [
            row
            for row in await self._desk.clips(**of, limit=MAX_CLIPS)
            if row["state"] == ClipState.COMPLETE
            and authorize(who, Action.EVIDENCE_EXPORT, _resource(row)).allowed
        ]
        size = sum(row["size"] or 0 for row in rows)
        if size > self._desk.keeping.free_octets // 2:
            raise Unavailable("too little free disk to put this export together", retry_after_s=60)
        subject = kind.removesuffix("_id") + "/" + subject_id
        head = {"subject": subject, "exported_at": self._clock(), "by": _who(who), "reason": reason}
        clips = [(clip_view(row), self._desk.path_of(row)) for row in reversed(rows)]
        path = await asyncio.to_thread(_scratch_file, self._scratch)
        try:
            digest = await asyncio.to_thread(
                write_bundle, path, clips, head=head, timeline=timeline, audit=audit
            )
            detail = {"reason": reason, "clips": [row["id"] for row in rows], "manifest_sha256": digest}
            await self._record(who, "evidence.export", subject, detail)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    async def _send(self, exchange: Exchange, path: Path, name: str) -> web.StreamResponse:
        """Sent before it returns: the file goes away after that."""
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/zip",
                "Content-Disposition": f'attachment; filename="{name}"',
                "Cache-Control": "no-store",
            }
        )
        response.content_length = (await asyncio.to_thread(path.stat)).st_size
        await response.prepare(exchange.request)
        file = await asyncio.to_thread(path.open, "rb")
        try:
            while chunk := await asyncio.to_thread(file.read, 1 << 20):
                await response.write(chunk)
        finally:
            file.close()
        await response.write_eof()
        return response


def _resource(row: Row) -> Resource:
    return Resource(kind="evidence", id=row["id"], lineage=lineage_of(row))


def _who(principal: Principal) -> str:
    return f"{principal.role}/{principal.sub}"


async def _reason(exchange: Exchange) -> str:
    reason = (await exchange.body(Why)).reason.strip()
    if not reason or len(reason) > 500:
        raise ProtocolError("reason must have 1 to 500 characters")
    return reason


def _scratch_file(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".zip", delete=False) as file:
        return Path(file.name)
