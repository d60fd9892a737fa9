"""The evidence desk: what is recorded, in which state each clip is, and how long it stays.

Every leg of a call is recorded from its first packet until it leaves; around an alarm the chosen cameras are, up to
`after_ms` after the press. Recording happens where the media is (`order.RecordingOrder`, `order.News`); here are the rows,
written before the order goes out, so that after a kill each file is known and each row is made true again: `start` probes
what was unfinished. A clip is one file; a recording that had to begin anew (the picture's size changed, a restart) has
several.

What can't be written (no room, a muxer that fails) waits: its row says `failed` and why, once, and it is tried again as
soon as the disk has room, after an error at `RETRY_FIRST_S`, doubled up to `RETRY_MOST_S`, until its time is over or the
leg has left. The row without a file that stands for the wait becomes the clip of what is written in the end, and says
how much too late it begins.

The root wires it with callables; it knows neither streams nor alarms nor calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from gateway.audit import audit
from gateway.errors import Conflict, GatewayError, NotFound, Unavailable
from gateway.evidence import tables
from gateway.evidence.keeping import Keeping, KeepingPolicy
from gateway.evidence.order import LOST, WRITING, Finished, News, RecordingOrder
from gateway.evidence.recording import Begun, Segment, hash_file, probe
from gateway.evidence.tables import ClipKind, ClipState, Row
from gateway.store import Store

__all__ = ["AlarmScene", "EvidenceDesk", "EvidencePolicy", "LegScene"]

logger = logging.getLogger(__name__)

PREROLL_SLACK_MS = 500
RETRY_S = 1.0
"""How long evidence rests when the database can't be written."""
RETRY_FIRST_S, RETRY_MOST_S = 2.0, 60.0
"""After how long a recording that failed is tried again: doubled each time, never more than the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePolicy:
    """after_ms: how long cameras are recorded after a press; cameras: how many of them for an alarm; at_once: camera
    recordings at one time, more are refused and say so; preroll_ms: what is asked of the time before the press."""

    keeping: KeepingPolicy
    after_ms: int = 120_000
    cameras: int = 4
    at_once: int = 100
    preroll_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmScene:
    """An alarm as evidence needs it. cameras: (id, name), the best first."""

    alarm_id: str
    incident_id: str | None
    lineage: tuple[str, ...]
    pressed_at: int
    cameras: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegScene:
    """A leg of a call as evidence needs it. name: of the participant."""

    call_id: str
    alarm_id: str | None
    incident_id: str | None
    lineage: tuple[str, ...]
    name: str


@dataclass(slots=True, kw_only=True)
class _Running:
    """A recording that the media plane has. clip_id: the row of its newest file."""

    source_id: str
    clip_id: str
    number: int = 0
    until_at: int | None = None
    done: int = 0
    waited: _Waiting | None = None


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A recording that could not be written and shall be. clip_id: its row without a file, None if each has one; number: of
    the file that comes next; since: when the failing began; not_before: no try until then (UTC ms)."""

    clip_id: str | None
    number: int
    until_at: int | None
    reason: str
    since: int
    attempt: int
    not_before: int


class EvidenceDesk:
    """All evidence of this gateway. `await start()` once, then `await run()`; every method is for the loop's thread.

    record(order), stop(recording_id): the media plane. recorded(source_id, yes): a source is being written, or no more.
    leg_scene(source_id): the leg of a call, None if there is no such (any more). clock: UTC milliseconds.
    """

    def __init__(
        self,
        store: Store,
        directory: Path,
        policy: EvidencePolicy,
        *,
        record: Callable[[RecordingOrder], Awaitable[None]],
        stop: Callable[[str], Awaitable[None]],
        recorded: Callable[[str, bool], None],
        leg_scene: Callable[[str], Awaitable[LegScene | None]],
        clock: Callable[[], int],
        new_id: Callable[[int], str],
    ) -> None:
        self._wake = asyncio.Event()
        self.keeping = Keeping(store, directory, policy.keeping, clock=clock, on_room=self._wake.set)
        self._store = store
        self._directory = directory
        self._policy = policy
        self._record, self._stop = record, stop
        self._recorded = recorded
        self._leg_scene = leg_scene
        self._clock = clock
        self._new_id = new_id
        self._running: dict[str, _Running] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._sources: dict[str, str] = {}  # legs of calls: source id -> recording id
        # Bounded by the recordings there are: a few entries for each.
        self._work: deque[Callable[[], Awaitable[None]]] = deque()
        self.counters = {"begun": 0, "complete": 0, "failed": 0, "refused": 0}

    @property
    def running(self) -> int:
        """Recordings that are being written."""
        return len(self._running)

    # -- what happens -----------------------------------------------------------------------------------------------

    def on_news(self, news: News) -> None:
        """The media plane's word on a recording."""
        self.soon(lambda: self._on_news(news))

    def on_tracks(self, source_id: str, tracks: Iterable[str]) -> None:
        """What a source publishes by now. The first packet of a call's leg begins its recording."""
        if source_id.startswith("call/") and tuple(tracks) and source_id not in self._sources:
            self.soon(lambda: self._begin_leg(source_id))

    def on_call(self, call: dict[str, Any]) -> None:
        """A call as its JSON says. Legs that left are recorded no longer."""
        for leg in call["legs"]:
            if leg["left_at"] is not None:
                recording_id = self._sources.pop(f"call/{call['id']}/{leg['id']}", None)
                if recording_id is not None:
                    self.soon(lambda recording_id=recording_id: self._end(recording_id))  # type: ignore[misc]

    async def record_cameras(self, scene: AlarmScene) -> None:
        """Record the cameras of an alarm. The same alarm again records only cameras that it had not."""
        now_ms = self._clock()
        until = scene.pressed_at + self._policy.after_ms
        if until <= now_ms:
            return
        known = await self._store.read(lambda connection: tables.known_cameras(connection, scene.alarm_id))
        for camera_id, name in scene.cameras[: max(0, self._policy.cameras - len(known))]:
            if camera_id in known:
                continue
            row = self._row(
                ClipKind.CAMERA,
                f"camera/{camera_id}",
                name,
                scene.lineage,
                alarm_id=scene.alarm_id,
                incident_id=scene.incident_id,
            )
            row |= {"camera_id": camera_id, "pressed_at": scene.pressed_at, "until_at": until}
            busy = sum(one.until_at is not None for one in self._running.values())
            await self._order(row, refused="too_many_recordings" if busy >= self._policy.at_once else None)

    async def name_incident(self, alarm_id: str, incident_id: str) -> None:
        """The alarm became this incident."""
        await self._store.write(lambda c: tables.name_incident(c, alarm_id, incident_id))

    # -- running ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make true what an earlier process left: probe its files, and record on where the time is not over."""
        left = await self._store.read(tables.unfinished)
        for recording_id in dict.fromkeys(row["recording_id"] for row in left):
            await self._recover(recording_id, "interrupted")
        await self.keeping.look()

    async def run(self) -> None:
        """Until cancelled; what the media plane has told by then is still written."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.keeping.run(), name="evidence-keeping")
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._wait_s()):
                            await self._wake.wait()
                    self._wake.clear()
                    self._wake_waiting()
                    await self._do_work()
        finally:
            await self._do_work()

    def soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this after what waits. It is done again if the database can't be written."""
        self._work.append(work)
        self._wake.set()

    def _wait_s(self) -> float | None:
        """Until a recording that failed is due again; None: nothing is, or there is no room for any."""
        due = min((one.not_before for one in self._waiting.values()), default=None)
        if due is None or self.keeping.refusal is not None:
            return None
        return max(0.0, (due - self._clock()) / 1000)

    def _wake_waiting(self) -> None:
        now_ms = self._clock()
        for recording_id, one in tuple(self._waiting.items()):
            if one.until_at is not None and one.until_at <= now_ms:
                del self._waiting[recording_id]
            elif self.keeping.refusal is None and one.not_before <= now_ms:
                # Until it has been tried it is not due again: a database that is away must not make this loop spin.
                one.not_before = now_ms + round(RETRY_MOST_S * 1000)
                self.soon(lambda recording_id=recording_id: self._try_again(recording_id))  # type: ignore[misc]

    async def _do_work(self) -> None:
        """In order. The only place where the exceptions of one recording end."""
        while self._work:
            work = self._work[0]
            try:
                await work()
            except Unavailable as error:
                logger.warning("evidence waits: %s", error)
                asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)
                return
            except Exception:
                logger.exception("a step of evidence failed")
            self._work.popleft()

    # -- recordings -------------------------------------------------------------------------------------------------

    async def _begin_leg(self, source_id: str) -> None:
        if source_id in self._sources:
            return
        scene = await self._leg_scene(source_id)
        if scene is None:
            return
        row = self._row(
            ClipKind.CALL,
            source_id,
            scene.name,
            scene.lineage,
            alarm_id=scene.alarm_id,
            incident_id=scene.incident_id,
        )
        self._sources[source_id] = row["recording_id"]
        await self._order({**row, "call_id": scene.call_id})

    async def _order(
        self, row: Row, *, refused: str | None = None, number: int = 1, waited: _Waiting | None = None
    ) -> None:
        """The row first, then the order: whatever is written later has somebody who knows it."""
        no_room = self.keeping.refusal
        refused = refused or no_room
        if refused:
            row |= {"state": ClipState.FAILED.value, "reason": refused, "to_at": self._clock()}
            self.counters["refused"] += 1
            logger.error("%s is not recorded: %s", row["source_id"], refused)
        known = waited is not None and waited.clip_id == row["id"]
        await self._store.write(
            lambda connection: (
                tables.change(connection, row["id"], **row) if known else tables.add(connection, row)
            )
        )
        self._waiting.pop(row["recording_id"], None)
        if refused:
            if no_room:
                self._wait(row, str(row["id"]), number=number, reason=no_room, pause_s=0.0, waited=waited)
            else:
                self._forget(row["recording_id"], row["source_id"])
            return
        order = RecordingOrder(
            id=row["recording_id"],
            source_id=row["source_id"],
            file=_stem(row),
            until_ms=row["until_at"],
            pressed_at=row["pressed_at"] or 0 if number == 1 and self._policy.preroll_ms else 0,
            first_number=number,
        )
        self._running[order.id] = _Running(
            source_id=order.source_id,
            clip_id=row["id"],
            number=number,
            until_at=row["until_at"],
            waited=waited,
        )
        self.counters["begun"] += 1
        try:
            await self._record(order)
        except GatewayError as error:
            await self._on_news(News(recording_id=order.id, finished=Finished(reason=str(error))))

    def _wait(
        self,
        row: Row,
        clip_id: str | None,
        *,
        number: int,
        reason: str,
        pause_s: float,
        waited: _Waiting | None,
    ) -> None:
        """Try this recording again later. waited: it failed before, and has written nothing since."""
        now_ms = self._clock()
        self._waiting[row["recording_id"]] = _Waiting(
            clip_id=clip_id,
            number=number,
            until_at=row["until_at"],
            reason=reason,
            since=now_ms if waited is None else waited.since,
            attempt=1 if waited is None else waited.attempt + 1,
            not_before=now_ms + round(pause_s * 1000),
        )
        self._tell_unwritten(row["source_id"])
        self._wake.set()

    async def _try_again(self, recording_id: str) -> None:
        waited = self._waiting.get(recording_id)
        if waited is None:
            return  # the leg has left
        if self.keeping.refusal is not None:
            waited.not_before = self._clock()  # the room that there was is gone: with the next that comes
            return
        rows = await self._store.read(lambda connection: tables.of_recording(connection, recording_id))
        again = {"state": ClipState.RECORDING.value, "to_at": None, "number": waited.number}
        fresh = {**_fresh(rows[0]), "id": f"{recording_id}-{waited.number}"}
        row = next((row for row in rows if row["id"] == waited.clip_id), fresh)
        await self._order({**row, **again}, number=waited.number, waited=waited)

    async def _end(self, recording_id: str) -> None:
        """The leg has left."""
        if self._waiting.pop(recording_id, None) is not None:
            return
        with contextlib.suppress(NotFound):
            await self._stop(recording_id)

    async def _on_news(self, news: News) -> None:
        running = self._running.get(news.recording_id)
        if running is None:
            return  # told again after it was over
        if news.begun is not None:
            await self._on_begun(news.recording_id, running, news.begun)
        elif news.segment is not None:
            await self._on_segment(running, news.recording_id, news.segment)
        elif news.finished is not None:
            await self._on_finished(news.recording_id, running, news.finished.reason)

    async def _on_begun(self, recording_id: str, running: _Running, begun: Begun) -> None:
        first_file = begun.number == running.number and not running.done
        clip_id = running.clip_id if first_file else f"{recording_id}-{begun.number}"
        waited = running.waited

        def write(connection: Connection) -> None:
            first = tables.of_recording(connection, recording_id)[0]
            values = {
                "file": begun.file,
                "media_type": begun.media_type,
                "from_at": begun.started_at,
                **self._preroll(first, begun),
            }
            if not first_file:
                tables.add(connection, {**_fresh(first), "id": clip_id, "number": begun.number, **values})
                return
            if waited is not None:  # what was in the way when it should have begun
                late = f"begun_late: {(begun.started_at - waited.since) / 1000:.1f} s: {waited.reason}"
                values["reason"] = "; ".join(filter(None, (values.get("reason"), late)))
            tables.change(connection, clip_id, **values)

        await self._store.write(write)
        running.clip_id, running.number, running.waited = clip_id, begun.number, None
        self._recorded(running.source_id, True)

    def _preroll(self, row: Row, begun: Begun) -> Row:
        """How much of the time before the press is there; if less than was asked for, that is named."""
        if row["pressed_at"] is None:
            return {}
        before_ms = max(0, row["pressed_at"] - begun.started_at)
        wanted_ms = self._policy.preroll_ms if begun.number == 1 else 0
        missing = wanted_ms > 0 and before_ms + PREROLL_SLACK_MS < wanted_ms
        reason = f"preroll_missing: {before_ms / 1000:.1f} s of {wanted_ms / 1000:g} s" if missing else ""
        return {"preroll_s": before_ms / 1000, "reason": reason}

    async def _on_segment(self, running: _Running, recording_id: str, segment: Segment) -> None:
        clip_id = running.clip_id

        def write(connection: Connection) -> None:
            row = tables.load(connection, clip_id)
            gone_ms = sum(gap.to_at - gap.from_at for gap in segment.gaps)
            gaps = f"gaps: {len(segment.gaps)}, {gone_ms / 1000:.1f} s" if segment.gaps else ""
            tables.change(
                connection,
                clip_id,
                state=ClipState.COMPLETE.value,
                to_at=segment.ended_at,
                size=segment.size,
                sha256=segment.sha256,
                gaps=tables.gaps_text(segment.gaps),
                reason="; ".join(filter(None, (row["reason"], gaps))),
                expires_at=segment.ended_at + self._policy.keeping.retention_ms,
            )

        await self._store.write(write)
        running.done += 1
        self.counters["complete"] += 1

    async def _on_finished(self, recording_id: str, running: _Running, reason: str) -> None:
        if reason == LOST:
            self._forget(recording_id, running.source_id)
            await self._recover(recording_id, LOST)
            return
        now_ms = self._clock()

        def write(connection: Connection) -> Row:
            row = tables.load(connection, running.clip_id)
            if row["state"] == ClipState.RECORDING.value:
                tables.change(
                    connection, row["id"], state=ClipState.FAILED.value, reason=reason, to_at=now_ms
                )
            elif reason and reason != "stopped":
                told = "; ".join(filter(None, (row["reason"], reason)))
                tables.change(connection, row["id"], reason=told)
            return row

        row = await self._store.write(write)
        if not running.done:
            self.counters["failed"] += 1
        if self._wanted(running, recording_id, reason, now_ms):
            attempt = 0 if running.waited is None else running.waited.attempt
            pause_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** min(attempt, 10))
            logger.warning("%s is recorded again in %g s: %s", running.source_id, pause_s, reason)
            del self._running[recording_id]
            empty = None if row["file"] else str(row["id"])
            number = running.number + (empty is None)
            self._wait(row, empty, number=number, reason=reason, pause_s=pause_s, waited=running.waited)
        else:
            self._forget(recording_id, running.source_id)

    def _wanted(self, running: _Running, recording_id: str, reason: str, now_ms: int) -> bool:
        """Whether what ended so shall go on. A camera that can't be had is tried again where it is recorded."""
        if running.until_at is None:
            return self._sources.get(running.source_id) == recording_id and reason not in ("", "stopped")
        return running.until_at > now_ms and reason.startswith(WRITING)

    def _forget(self, recording_id: str, source_id: str) -> None:
        self._running.pop(recording_id, None)
        if self._sources.get(source_id) == recording_id:
            del self._sources[source_id]
        self._tell_unwritten(source_id)

    def _tell_unwritten(self, source_id: str) -> None:
        if source_id.startswith("call/"):
            self._recorded(source_id, False)

    async def _recover(self, recording_id: str, why: str) -> None:
        """The process that wrote it is gone. What plays is complete up to there, what does not has failed."""
        rows = await self._store.read(lambda connection: tables.of_recording(connection, recording_id))
        first, now_ms = rows[0], self._clock()
        files = await asyncio.to_thread(_files_of, self._directory, _stem(first))
        by_number = {row["number"]: row for row in rows}
        for number, file in files.items():
            row = by_number.get(number)
            if row is None:  # killed between the file and its row
                row = {**_fresh(first), "id": f"{recording_id}-{number}", "number": number}
                await self._store.write(lambda connection, row=row: tables.add(connection, row))  # type: ignore[misc]
                by_number[number] = row
            if row["state"] == ClipState.RECORDING.value:
                by_number[number] = {**row, "file": file}
        for row in by_number.values():
            if row["state"] == ClipState.RECORDING.value:
                values = await asyncio.to_thread(self._judge, row, why, now_ms)
                await self._store.write(
                    lambda connection, clip=row["id"], values=values: tables.change(
                        connection, clip, **values
                    )  # type: ignore[misc]
                )
                self.counters["complete" if values["state"] == ClipState.COMPLETE else "failed"] += 1
        if first["until_at"] is not None and first["until_at"] > now_ms:
            number = max(by_number) + 1
            await self._order(
                {**_fresh(first), "id": f"{recording_id}-{number}", "number": number}, number=number
            )

    def _judge(self, row: Row, why: str, now_ms: int) -> Row:
        """Blocking. What can be said of a file that nobody finished."""
        path = self._directory / row["file"] if row["file"] else None
        played_ms = None if path is None else probe(path)
        if path is None or played_ms is None:
            return {
                "state": ClipState.FAILED.value,
                "reason": f"{why}: nothing that plays was written",
                "to_at": row["to_at"] or now_ms,
            }
        size, digest = hash_file(path, sync=True)
        from_at = row["from_at"] or round(path.stat().st_mtime * 1000) - played_ms
        return {
            "state": ClipState.COMPLETE.value,
            "reason": "; ".join(filter(None, (row["reason"], why))),
            "file": row["file"],
            "media_type": row["media_type"] or _media_type(path),
            "from_at": from_at,
            "to_at": from_at + played_ms,
            "size": size,
            "sha256": digest,
            "expires_at": from_at + played_ms + self._policy.keeping.retention_ms,
        }

    def _row(
        self,
        kind: ClipKind,
        source_id: str,
        name: str,
        lineage: Sequence[str],
        *,
        alarm_id: str | None,
        incident_id: str | None,
    ) -> Row:
        now_ms = self._clock()
        clip_id = self._new_id(now_ms)
        empty = dict.fromkeys(column.name for column in tables.clips_table.c)
        return {
            **empty,
            "id": clip_id,
            "recording_id": clip_id,
            "number": 1,
            "kind": kind.value,
            "source_id": source_id,
            "alarm_id": alarm_id,
            "incident_id": incident_id,
            "name": name,
            "lineage": msgspec.json.encode(lineage).decode(),
            "ordered_at": now_ms,
            "state": ClipState.RECORDING.value,
            "reason": "",
            "preroll_s": 0.0,
            "gaps": "[]",
        }

    # -- reading and holding ----------------------------------------------------------------------------------------

    async def clips(
        self,
        *,
        alarm_id: str | None = None,
        incident_id: str | None = None,
        call_id: str | None = None,
        limit: int = 100,
    ) -> list[Row]:
        """Newest first; the caller leaves out what the principal may not see."""
        return await self._store.read(
            lambda connection: tables.find(
                connection, alarm_id=alarm_id, incident_id=incident_id, call_id=call_id, limit=limit
            )
        )

    async def clip(self, clip_id: str) -> Row:
        """Raises NotFound."""
        return await self._store.read(lambda connection: tables.load(connection, clip_id))

    def path_of(self, row: Row) -> Path:
        """Its file. Raises Conflict while there is none, or no more."""
        if row["state"] in (ClipState.FAILED, ClipState.PRUNED) or not row["file"]:
            raise Conflict(f"this clip has no media: it is {row['state']}", state=row["state"])
        return self._directory / str(row["file"])

    async def hold(self, clip_id: str, by: str, reason: str) -> Row:
        """Keep it until it is released, whatever the policy says. Raises Conflict if it is gone already."""
        return await self._set_hold(clip_id, by, reason, on=True)

    async def release(self, clip_id: str, by: str, reason: str) -> Row:
        return await self._set_hold(clip_id, by, reason, on=False)

    async def _set_hold(self, clip_id: str, by: str, reason: str, *, on: bool) -> Row:
        now_ms = self._clock()

        def write(connection: Connection) -> Row:
            row = tables.load(connection, clip_id)
            if on and row["state"] == ClipState.PRUNED.value:
                raise Conflict("this clip was pruned", state=row["state"])
            if on != (row["hold_at"] is not None):
                hold = (by, now_ms, reason) if on else (None, None, None)
                values = dict(zip(("hold_by", "hold_at", "hold_reason"), hold, strict=True))
                tables.change(connection, clip_id, **values)
                audit(
                    connection,
                    who=by,
                    action="evidence.hold" if on else "evidence.release",
                    subject=f"evidence/{clip_id}",
                    detail={"reason": reason},
                    now_ms=now_ms,
                )
            return tables.load(connection, clip_id)

        return await self._store.write(write)


def _stem(row: Row) -> str:
    """Path of a recording's files without extension: by day, since a directory of a year's clips serves nobody."""
    return f"{row['ordered_at'] // 86_400_000}/{row['recording_id']}"


def _fresh(first: Row) -> Row:
    """A row for a further file of the same recording."""
    return {
        **first,
        **dict.fromkeys(
            ("from_at", "to_at", "media_type", "file", "size", "sha256", "expires_at", "hold_by", "hold_at")
        ),
        "hold_reason": None,
        "state": ClipState.RECORDING.value,
        "reason": "",
        "preroll_s": 0.0,
        "gaps": "[]",
    }


def _files_of(directory: Path, stem: str) -> dict[int, str]:
    """Number -> relative path of what there is of a recording. Blocking."""
    found = {}
    base = directory / stem
    for path in base.parent.glob(f"{base.name}*"):
        number = path.stem.removeprefix(base.name).removeprefix("-")
        if not number or number.isdecimal():
            found[int(number or 1)] = str(path.relative_to(directory))
    return found


def _media_type(path: Path) -> str:
    return {".webm": "video/webm", ".mov": "video/quicktime"}.get(path.suffix, "video/mp4")
