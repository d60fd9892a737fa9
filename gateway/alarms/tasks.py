"""Tasks of helpers within an incident, from the offer to the verification, with feedback and photos.

A dispatch of an incident offers a task in the same transaction (`offer`); the phone hears of it over MQTT
`w/{wid}/task` and by the event `task`. What its owner does moves the incident on: who sets out or arrives begins the
handling, the last one done submits it. Who did a task doesn't verify it. Photos are kept as files named by their SHA-256 below the
data directory, so the same picture is stored once and a changed one is found out.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    Table,
    Text,
    func,
    insert,
    select,
    update,
)

from gateway import outbox
from gateway.alarms import records
from gateway.alarms.announce import Json, Stage, announce_alarm, announce_event, announce_stage
from gateway.alarms.policy import Actor
from gateway.alarms.records import Row
from gateway.alarms.task import TASK_ENDS, TaskEvent, TaskState, change_task
from gateway.audit import audit
from gateway.errors import NotAllowed, NotFound, ProtocolError, Unavailable
from gateway.store import Store, metadata

__all__ = [
    "KIND_TASK",
    "MAX_PHOTOS",
    "MAX_PHOTO_BYTES",
    "TaskDesk",
    "has_task_by",
    "keep_photo",
    "offer_task",
    "photo_path",
    "photo_table",
    "photo_type",
    "settle_tasks",
    "task_table",
    "task_view",
]

KIND_TASK = "task"
MAX_PHOTO_BYTES = 4 * 1024 * 1024
MAX_PHOTOS = 12
_MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"), (b"RIFF", "image/webp"))

task_table = Table(
    "task",
    metadata,
    Column("id", Text, primary_key=True),
    Column("incident_id", Text, nullable=False, index=True),
    Column("assignee", Text, nullable=False),
    Column("assignee_name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("feedback", Text, nullable=False),
    Column("offered_by", Text, nullable=False),
    Column("offered_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    Column("accepted_at", BigInteger),
    Column("on_scene_at", BigInteger),
    Column("done_at", BigInteger),
    Column("changed_at", BigInteger, nullable=False),
)
Index("ix_task_assignee", task_table.c.assignee, task_table.c.offered_at)
photo_table = Table(
    "task_photo",
    metadata,
    Column("task_id", Text, primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
_STAMPS = {
    TaskState.ACCEPTED: "accepted_at",
    TaskState.ON_SCENE: "on_scene_at",
    TaskState.DONE: "done_at",
}
Case = Callable[[Connection, str, str, Any], None]
"""(connection, incident id, what: handle | submit, actor): moves the incident if its table allows it."""


def task_view(row: Row, incident: Row, photos: list[Json]) -> Json:
    """The contract's Task."""
    position = None if incident["lat"] is None else {"lat": incident["lat"], "lon": incident["lon"]}
    return {
        **{k: v for k, v in row.items() if k not in ("assignee", "assignee_name", "role")},
        "assignee": {"id": row["assignee"], "name": row["assignee_name"], "role": row["role"]},
        "incident": {
            key: incident[key]
            for key in ("id", "number", "type", "severity", "place_label", "state", "alarm_id")
        },
        "position": position,
        "photos": photos,
    }


def offer_task(
    c: Connection,
    task_id: str,
    incident: Row,
    *,
    assignee: str,
    name: str,
    role: str,
    by: Any,
    note: str,
    now_ms: int,
    expires_at: int | None,
) -> Row:
    """A new task in the caller's transaction. The same helper twice while the first task is open: that one."""
    open_states = [state for state in TaskState if state not in TASK_ENDS]
    same = select(task_table).where(
        task_table.c.incident_id == incident["id"],
        task_table.c.assignee == assignee,
        task_table.c.state.in_(open_states),
    )
    known = c.execute(same).mappings().first()
    if known is not None:
        return dict(known)
    row: Row = {
        "id": task_id,
        "incident_id": incident["id"],
        "assignee": assignee,
        "assignee_name": name,
        "role": role,
        "state": TaskState.OFFERED,
        "note": note,
        "feedback": "",
        "offered_by": str(by),
        "offered_at": now_ms,
        "expires_at": expires_at,
        "accepted_at": None,
        "on_scene_at": None,
        "done_at": None,
        "changed_at": now_ms,
    }
    c.execute(insert(task_table), row)
    _log(c, row, "offer", str(by), now_ms, assignee=assignee)
    _announce(c, row, incident, "offer")
    return row


def has_task_by(c: Connection, incident_id: str, offered_by: str, assignee: str) -> bool:
    """Whether this was offered once, whatever became of it."""
    t = task_table.c
    query = select(t.id).where(
        t.incident_id == incident_id, t.offered_by == offered_by, t.assignee == assignee
    )
    return c.execute(query).first() is not None


def settle_tasks(
    c: Connection, incident: Row, event: TaskEvent, by: Any, now_ms: int, *, only: frozenset[TaskState]
) -> None:
    """Moves every task of the incident that is in one of these states: verified, done again, revoked."""
    for mapping in (
        c.execute(select(task_table).where(task_table.c.incident_id == incident["id"])).mappings().all()
    ):
        if TaskState(mapping["state"]) in only:
            _move(c, dict(mapping), incident, event, str(by), now_ms)


class TaskDesk:
    """`move_incident` is CaseDesk's: what a task means for its incident, in the same transaction."""

    def __init__(self, store: Store, *, photos: Path, move_incident: Case, clock: Callable[[], int]) -> None:
        self._store = store
        self._photos = photos
        self._move_incident = move_incident
        self._clock = clock

    async def act(self, task_id: str, event: TaskEvent, by: Actor, *, feedback: str = "") -> Json:
        """One transition by its owner, or VERIFY/REDO/REVOKE by a desk. Again what is so already: no change.

        Raises Conflict, NotFound, NotAllowed (who did it doesn't verify it).
        """
        now_ms = self._clock()

        def step(c: Connection) -> Json:
            row, incident = _load(c, task_id)
            if event in (TaskEvent.VERIFY, TaskEvent.REDO) and row["assignee"] == by.sub:
                raise NotAllowed("处置人不能核查自己的任务")
            if _REPEATED.get(event) == row["state"]:
                return _view(c, row, incident)
            values = {"feedback": feedback} if feedback else {}
            row = _move(c, row, incident, event, str(by), now_ms, **values)
            if event in (TaskEvent.SET_OUT, TaskEvent.ARRIVE):
                self._move_incident(c, incident["id"], "handle", by)
                if event is TaskEvent.ARRIVE:
                    records.stamp_incident(c, incident["id"], "on_scene_at", now_ms)
            elif event is TaskEvent.FINISH and not _others_at_work(c, row):
                self._move_incident(c, incident["id"], "submit", by)
            elif event is TaskEvent.ACCEPT and incident["alarm_id"] and row["role"] == "worker":
                _tell_resident(c, incident["alarm_id"], row, now_ms)
            return _view(c, row, _load(c, task_id)[1])

        return await self._store.write(step)

    async def list(
        self,
        *,
        assignee: str | None = None,
        incident_id: str | None = None,
        open_only: bool = False,
        limit: int = 100,
        visible: Callable[[tuple[str, ...], str], bool] = lambda lineage, assignee: True,
    ) -> list[Json]:
        """Newest first. `visible(lineage, assignee)` says whether the caller may see it."""

        def query(c: Connection) -> list[Json]:
            statement = select(task_table).order_by(task_table.c.offered_at.desc(), task_table.c.id.desc())
            if assignee is not None:
                statement = statement.where(task_table.c.assignee == assignee)
            if incident_id is not None:
                statement = statement.where(task_table.c.incident_id == incident_id)
            if open_only:
                statement = statement.where(task_table.c.state.not_in(list(TASK_ENDS)))
            found: list[Json] = []
            for mapping in c.execute(statement).mappings():
                row = dict(mapping)
                incident = records.load_incident(c, row["incident_id"])
                if visible(records.lineage_of(incident), row["assignee"]):
                    found.append(_view(c, row, incident))
                    if len(found) >= limit:
                        break
            return found

        return await self._store.read(query)

    async def get(self, task_id: str) -> Json:
        """Raises NotFound."""
        return await self._store.read(lambda c: _view(c, *_load(c, task_id)))

    async def scope(self, task_id: str) -> tuple[tuple[str, ...], str]:
        """Lineage and assignee, for authorize(). Raises NotFound."""
        row, incident = await self._store.read(lambda c: _load(c, task_id))
        return records.lineage_of(incident), row["assignee"]

    async def add_photo(self, task_id: str, data: bytes, by: Actor) -> Json:
        """Stores a JPEG, PNG or WebP. Raises ProtocolError, NotFound; Unavailable when the disk is full."""
        media_type = photo_type(data)
        digest = hashlib.sha256(data).hexdigest()
        now_ms = self._clock()
        try:
            await asyncio.to_thread(keep_photo, self._photos, digest, data)
        except OSError as exc:
            raise Unavailable(f"cannot store the photo: {exc.strerror}") from exc

        def step(c: Connection) -> Json:
            row, _ = _load(c, task_id)
            held = photos_of(c, task_id)
            if any(photo["sha256"] == digest for photo in held):
                return next(photo for photo in held if photo["sha256"] == digest)
            if len(held) >= MAX_PHOTOS:
                raise ProtocolError(f"a task takes {MAX_PHOTOS} photos")
            photo = {
                "sha256": digest,
                "media_type": media_type,
                "size": len(data),
                "by": str(by),
                "at": now_ms,
            }
            c.execute(insert(photo_table), {**photo, "task_id": task_id})
            _log(c, row, "photo", str(by), now_ms, sha256=digest)
            return photo

        return await self._store.write(step)

    async def photo(self, task_id: str, digest: str) -> tuple[Path, str]:
        """File and media type. Raises NotFound."""
        held = await self._store.read(lambda c: photos_of(c, task_id))
        found = next((photo for photo in held if photo["sha256"] == digest), None)
        if found is None:
            raise NotFound(f"no photo {digest} of task {task_id}")
        return photo_path(self._photos, digest), found["media_type"]

    async def run(self) -> None:
        """Until cancelled: tasks that nobody answers expire."""
        while True:
            await asyncio.sleep(1.0)
            await self.expire()

    async def expire(self) -> int:
        """Expires what is overdue now; how many."""
        now_ms = self._clock()
        due = select(task_table.c.id).where(
            task_table.c.expires_at <= now_ms, task_table.c.state == TaskState.OFFERED
        )

        def step(c: Connection) -> int:
            overdue = c.execute(due).scalars().all()
            for task_id in overdue:
                row, incident = _load(c, task_id)
                _move(c, row, incident, TaskEvent.EXPIRE, "system", now_ms)
            return len(overdue)

        try:
            if not await self._store.read(lambda c: c.execute(due.limit(1)).first()):
                return 0
            return await self._store.write(step)
        except Unavailable:
            return 0


_REPEATED = {
    TaskEvent.ACCEPT: TaskState.ACCEPTED,
    TaskEvent.DECLINE: TaskState.DECLINED,
    TaskEvent.SET_OUT: TaskState.EN_ROUTE,
    TaskEvent.ARRIVE: TaskState.ON_SCENE,
    TaskEvent.FINISH: TaskState.DONE,
    TaskEvent.VERIFY: TaskState.VERIFIED,
    TaskEvent.REVOKE: TaskState.REVOKED,
}
"""A phone in a cellar sends again what has already been taken: no conflict."""


def photos_of(c: Connection, task_id: str) -> list[Json]:
    p = photo_table.c
    rows = c.execute(
        select(p.sha256, p.media_type, p.size, p.by, p.at).where(p.task_id == task_id).order_by(p.at)
    )
    return [dict(row) for row in rows.mappings()]


def _load(c: Connection, task_id: str) -> tuple[Row, Row]:
    row = c.execute(select(task_table).where(task_table.c.id == task_id)).mappings().first()
    if row is None:
        raise NotFound(f"no task {task_id}")
    return dict(row), records.load_incident(c, row["incident_id"])


def _view(c: Connection, row: Row, incident: Row) -> Json:
    return task_view(row, incident, photos_of(c, row["id"]))


def _move(
    c: Connection, row: Row, incident: Row, event: TaskEvent, by: str, now_ms: int, **more: object
) -> Row:
    state = change_task(TaskState(row["state"]), event)
    values: Row = {"state": state, "changed_at": now_ms, "expires_at": None, **more}
    if state in _STAMPS:
        values[_STAMPS[state]] = now_ms
    c.execute(update(task_table).where(task_table.c.id == row["id"]).values(**values))
    row = {**row, **values}
    _log(c, row, event, by, now_ms, **more)
    _announce(c, row, incident, event)
    return row


def _log(c: Connection, row: Row, event: str, by: str, now_ms: int, **detail: object) -> None:
    subject, named = f"task/{row['id']}", {"incident": row["incident_id"], **detail}
    audit(c, who=by, action=f"task.{event}", subject=subject, detail=named, now_ms=now_ms)


def _announce(c: Connection, row: Row, incident: Row, act: str) -> None:
    view = _view(c, row, incident)
    announce_event(c, "task", view, records.lineage_of(incident), owner=row["assignee"])
    if row["role"] == "worker" and act in ("offer", TaskEvent.REVOKE, TaskEvent.REDO, TaskEvent.EXPIRE):
        message = {
            "mid": f"{row['id']}-{act}-{row['changed_at']}",
            "task": row["id"],
            "act": act,
            "exp": row["expires_at"] or row["changed_at"] + 86_400_000,
            **{key: view[key] for key in ("incident", "position", "note")},
        }
        outbox.add(c, KIND_TASK, f"w/{row['assignee']}", {"worker": row["assignee"], "message": message})


def _others_at_work(c: Connection, row: Row) -> bool:
    working = [TaskState.ACCEPTED, TaskState.EN_ROUTE, TaskState.ON_SCENE]
    query = select(func.count()).where(
        task_table.c.incident_id == row["incident_id"],
        task_table.c.id != row["id"],
        task_table.c.state.in_(working),
    )
    return bool(c.execute(query).scalar())


def _tell_resident(c: Connection, alarm_id: str, row: Row, now_ms: int) -> None:
    """The box hears who comes, unless somebody is on the way already."""
    alarm = records.load(c, alarm_id)
    if alarm["worker_id"] is not None or alarm["closed_at"] is not None:
        return
    alarm = records.update_alarm(
        c, alarm, worker_id=row["assignee"], worker_name=row["assignee_name"], eta_s=0
    )
    records.add_timeline(
        c, alarm_id, at=now_ms, event="dispatched", by=f"worker/{row['assignee']}", task=row["id"]
    )
    announce_stage(c, alarm, Stage.DISPATCHED, now_ms)
    announce_alarm(c, alarm, records.load_deadlines(c, alarm_id))


def photo_type(data: bytes) -> str:
    """Media type of a photo that may be kept. Raises ProtocolError."""
    media_type = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if media_type is None:
        raise ProtocolError("a photo must be JPEG, PNG or WebP")
    if len(data) > MAX_PHOTO_BYTES:
        raise ProtocolError("too_long", MAX_PHOTO_BYTES)
    return media_type


def photo_path(directory: Path, digest: str) -> Path:
    return directory / digest[:2] / digest


def keep_photo(directory: Path, digest: str, data: bytes) -> None:
    """Whole or not at all, and on disk before its row is."""
    path = photo_path(directory, digest)
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{digest}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
