"""Tasks, photos, follow-up and figures of the closed loop at the HTTP edge."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import BodyPartReader, web

from gateway.access import Action, Resource, authorize
from gateway.alarms.casework import CaseDesk
from gateway.alarms.statistics import By, Statistics, to_csv
from gateway.alarms.task import TaskEvent
from gateway.alarms.tasks import MAX_PHOTO_BYTES, TaskDesk
from gateway.errors import NotAllowed, ProtocolError
from gateway.http.alarms import actor
from gateway.http.routes import Exchange, Handler, Route, json_response

__all__ = ["TASK_REPLIES", "CasesEdge", "photo_bytes"]

TASK_STEPS: dict[str, tuple[TaskEvent, Action]] = {
    "accept": (TaskEvent.ACCEPT, Action.TASK_ACT),
    "decline": (TaskEvent.DECLINE, Action.TASK_ACT),
    "en_route": (TaskEvent.SET_OUT, Action.TASK_ACT),
    "on_scene": (TaskEvent.ARRIVE, Action.TASK_ACT),
    "done": (TaskEvent.FINISH, Action.TASK_ACT),
    "verify": (TaskEvent.VERIFY, Action.INCIDENT_VERIFY),
    "redo": (TaskEvent.REDO, Action.INCIDENT_VERIFY),
    "revoke": (TaskEvent.REVOKE, Action.TASK_ASSIGN),
}
TASK_REPLIES = {name: event for name, (event, action) in TASK_STEPS.items() if action is Action.TASK_ACT}
"""`act` of `w/{wid}/reply` with a `task`."""
LIST_LIMIT = 500


class Feedback(msgspec.Struct, kw_only=True):
    feedback: str = ""


class FollowUp(msgspec.Struct, kw_only=True):
    """A phone note of a desk, or the resident's own answer: then with `sid`, `pid`, `ts` and `sig` over
    `follow_up|sid|pid|incident|satisfied|ts` (satisfied 0 or 1)."""

    satisfied: bool
    note: str = ""
    sid: str | None = None
    pid: str = ""
    ts: int = 0
    sig: str = ""


class CasesEdge:
    """`names(code)` of areas and helpers; `verify_box(sid, text, signature)` checks a box's signature."""

    def __init__(
        self,
        cases: CaseDesk,
        tasks: TaskDesk,
        statistics: Statistics,
        *,
        full_lineage: Callable[[tuple[str, ...]], tuple[str, ...]],
        names: Callable[[str], str],
        duties: tuple[str, ...],
        verify_box: Callable[[str, str, str], bool],
    ) -> None:
        self._cases = cases
        self._tasks = tasks
        self._statistics = statistics
        self._full_lineage = full_lineage
        self._names = names
        self._duties = duties
        self._verify_box = verify_box

    async def _task(self, request: web.Request) -> Resource:
        task_id = request.match_info["task_id"]
        lineage, assignee = await self._tasks.scope(task_id)
        return Resource(kind="task", id=task_id, lineage=self._full_lineage(lineage), owner=assignee)

    async def _incident(self, request: web.Request) -> Resource:
        incident_id = request.match_info["incident_id"]
        lineage = self._full_lineage(await self._cases.lineage(incident_id))
        return Resource(kind="incident", id=incident_id, lineage=lineage)

    def routes(self) -> list[Route]:
        one, case = "/api/v1/tasks/{task_id}", "/api/v1/incidents/{incident_id}"
        return [
            Route(
                method="GET", path="/api/v1/tasks", action=Action.TASK_LIST, handler=self._list,
                resource=lambda _: Resource.collection("task"), summary="Tasks, newest first; ?incident= ?open=1 ?mine=1",
            ),
            Route(
                method="GET", path=one, action=Action.TASK_LIST, handler=self._read, resource=self._task,
                summary="One task with its photos",
            ),
            *(
                Route(
                    method="POST", path=f"{one}/{name}", action=action, handler=self._stepper(event), resource=self._task,
                    summary=f"The task: {name}", request=Feedback,
                )
                for name, (event, action) in TASK_STEPS.items()
            ),
            Route(
                method="POST", path=f"{one}/photos", action=Action.TASK_ACT, handler=self._photo_in, resource=self._task,
                summary="A photo: JPEG, PNG or WebP as the body, or multipart with one file", media="image/jpeg",
                success=201, streams=True,
            ),
            Route(
                method="GET", path=f"{one}/photos/{{sha256:[0-9a-f]{{64}}}}", action=Action.TASK_LIST,
                handler=self._photo_out, resource=self._task, summary="A photo",
            ),
            Route(
                method="POST", path=f"{case}/follow_up", action=Action.PRESS_SIGNED, handler=self._follow_up,
                resource=self._incident, summary="回访: a desk's phone note, or the resident's signed answer",
                request=FollowUp,
            ),
            Route(
                method="GET", path=f"{case}/merge_suggestions", action=Action.INCIDENT_MERGE, handler=self._suggest,
                resource=self._incident, summary="Open incidents near by in place and time",
            ),
            Route(
                method="GET", path="/api/v1/duties", action=Action.SESSION_READ, handler=self._list_duties,
                resource=lambda _: Resource(kind="session"), summary="What a gridworker may report",
            ),
            Route(
                method="GET", path="/api/v1/statistics", action=Action.STATISTICS_READ, handler=self._figures,
                resource=lambda _: Resource.collection("statistics"),
                summary="Figures and ranking: ?by=worker|community|street&month=YYYY-MM&format=csv",
            ),
        ]  # fmt: skip

    # -- tasks --------------------------------------------------------------------------------------------------

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who

        def visible(lineage: tuple[str, ...], assignee: str) -> bool:
            resource = Resource(kind="task", id="listed", lineage=self._full_lineage(lineage), owner=assignee)
            return authorize(who, Action.TASK_LIST, resource).allowed

        limit = exchange.query("limit", "100")
        if not limit.isdecimal() or not 1 <= int(limit) <= LIST_LIMIT:
            raise ProtocolError(f"limit must be 1..{LIST_LIMIT}")
        found = await self._tasks.list(
            assignee=who.sub if exchange.query("mine") == "1" else None,
            incident_id=exchange.query("incident") or None,
            open_only=exchange.query("open") == "1",
            limit=int(limit),
            visible=visible,
        )
        return json_response({"tasks": found})

    async def _read(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(await self._tasks.get(exchange.path("task_id")))

    def _stepper(self, event: TaskEvent) -> Handler:
        async def step(exchange: Exchange) -> web.StreamResponse:
            said = await exchange.body(Feedback)
            by = actor(exchange.who)
            return json_response(
                await self._tasks.act(exchange.path("task_id"), event, by, feedback=said.feedback[:2000])
            )

        return step

    async def _photo_in(self, exchange: Exchange) -> web.StreamResponse:
        data = await photo_bytes(exchange.request)
        photo = await self._tasks.add_photo(exchange.path("task_id"), data, actor(exchange.who))
        return json_response(photo, status=201)

    async def _photo_out(self, exchange: Exchange) -> web.StreamResponse:
        path, media_type = await self._tasks.photo(exchange.path("task_id"), exchange.path("sha256"))
        data = await asyncio.to_thread(path.read_bytes)
        headers = {
            "Cache-Control": "private, max-age=31536000, immutable",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=data, content_type=media_type, headers=headers)

    # -- the closed loop ----------------------------------------------------------------------------------------

    async def _follow_up(self, exchange: Exchange) -> web.StreamResponse:
        said = await exchange.body(FollowUp)
        incident_id = exchange.path("incident_id")
        if said.sid is not None:
            text = f"follow_up|{said.sid}|{said.pid}|{incident_id}|{int(said.satisfied)}|{said.ts}"
            if not self._verify_box(said.sid, text, said.sig):
                raise NotAllowed("bad_signature", authenticated=False)
            source = f"stb/{said.sid}"
            view = await self._cases.follow_up(
                incident_id, source, satisfied=said.satisfied, note=said.note[:500], source=source
            )
        else:
            decision = authorize(exchange.principal, Action.INCIDENT_FOLLOW_UP, exchange.resource)
            if not decision.allowed:
                raise NotAllowed(decision.reason, authenticated=exchange.principal is not None)
            by = str(actor(exchange.who))
            view = await self._cases.follow_up(
                incident_id, by, satisfied=said.satisfied, note=said.note[:500]
            )
        return json_response(
            {key: view[key] for key in ("id", "number", "state", "satisfied", "follow_up_at")}
        )

    async def _suggest(self, exchange: Exchange) -> web.StreamResponse:
        found = await self._cases.merge_suggestions(exchange.path("incident_id"))
        return json_response({"incidents": found})

    async def _list_duties(self, exchange: Exchange) -> web.StreamResponse:
        return json_response({"duties": self._duties})

    async def _figures(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        try:
            by = By(exchange.query("by", By.COMMUNITY))
        except ValueError:
            raise ProtocolError(f"by must be one of {', '.join(By)}") from None
        month = exchange.query("month") or self._statistics.this_month()

        def visible(lineage: tuple[str, ...]) -> bool:
            resource = Resource(kind="statistics", id="listed", lineage=self._full_lineage(lineage))
            return authorize(who, Action.STATISTICS_READ, resource).allowed

        entries = await self._statistics.figures(by, month, visible=visible, name=self._names)
        if exchange.query("format") == "csv":
            name = f"statistics-{by}-{month}.csv"
            return web.Response(
                text=to_csv(entries),
                content_type="text/csv",
                headers={
                    "Content-Disposition": f'attachment; filename="{name}"',
                    "Cache-Control": "no-store",
                },
            )
        return json_response({"by": by, "month": month, "entries": entries})


async def photo_bytes(request: web.Request) -> bytes:
    """The picture alone, at most MAX_PHOTO_BYTES. Raises ProtocolError. Never more than that is held."""
    if request.content_type == "multipart/form-data":
        part = await (await request.multipart()).next()
        if not isinstance(part, BodyPartReader):
            raise ProtocolError("a form with one file is expected")
        read: Callable[[int], Awaitable[bytes]] = part.read_chunk
    else:
        read = request.content.read
    data = bytearray()
    while chunk := await read(65_536):
        data += chunk
        if len(data) > MAX_PHOTO_BYTES:
            raise ProtocolError("too_long", MAX_PHOTO_BYTES)
    return bytes(data)
