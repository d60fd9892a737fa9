"""Calls at the HTTP edge: who may open, claim, join and hang up, in the contract's JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from aiohttp import web
from ulid import ULID

from gateway.access import Action, Principal, Resource, Role, authorize, require
from gateway.errors import Conflict, NotFound, ProtocolError
from gateway.geo import Datum, Position, from_datum
from gateway.http.routes import Exchange, Route, json_response
from gateway.intercom.model import Call, Participant
from gateway.intercom.switchboard import AlarmBrief, IncidentBrief, Switchboard
from gateway.intercom.view import call_view, participants
from gateway.notify import RECEIPTS, Receipt

__all__ = ["CallsEdge", "OpenCall", "call_resource"]


class OpenCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /api/v1/calls`. An operator: alarm_id rings its plan, worker_id that worker, about the alarm_id or the incident_id.
    A gridworker: neither, the desks ring."""

    alarm_id: str | None = None
    incident_id: str | None = None
    worker_id: str | None = None


class Place(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    lat: float
    lon: float
    datum: Datum


class Answer(msgspec.Struct, kw_only=True):
    """`device` tells two phones of one person apart; pages send a random id that they keep."""

    device: str = ""


def call_resource(call: Call) -> Resource:
    """The call for `authorize`: its place, and everybody whom it rang or who is in it."""
    return Resource(
        kind="call", id=call.id, lineage=tuple(call.lineage), participants=frozenset(participants(call))
    )


def participant(principal: Principal) -> Participant:
    name = principal.name or (f"居民 {principal.sub}" if principal.role is Role.STB else principal.sub)
    return Participant(id=principal.sub, name=name, role=principal.role)


PressId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{0,64}\Z")]


class Sos(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /api/v1/workers/me/sos`. `id`: made by the phone, the same for each try."""

    id: PressId = ""
    position: Place | None = None
    note: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


class CallsEdge:
    """Routes of calls. `brief_of(alarm_id)` describes an alarm, brief_of_incident an incident; `whereabouts(worker)` tells where a calling worker is;
    `box_of(alarm_id)` is the box that raised it; `help(worker, id, position, note)` raises its alarm and rings; `receipt(headers, body)` reads what the
    provider signed."""

    def __init__(
        self,
        switchboard: Switchboard,
        *,
        brief_of: Callable[[str], Awaitable[AlarmBrief]],
        brief_of_incident: Callable[[str], Awaitable[AlarmBrief | IncidentBrief]],
        whereabouts: Callable[[str], tuple[tuple[str, ...], tuple[float, float] | None, str]],
        is_silent: Callable[[str], Awaitable[bool]],
        box_of: Callable[[str], Awaitable[str | None]],
        help: Callable[[Participant, str, Position | None, str], Awaitable[Call]],
        receipt: Callable[[Mapping[str, str], bytes], Receipt],
    ) -> None:
        self._switchboard = switchboard
        self._box_of = box_of
        self._is_silent = is_silent
        self._help = help
        self._receipt = receipt
        self._brief_of = brief_of
        self._brief_of_incident = brief_of_incident
        self._whereabouts = whereabouts

    async def resource(self, request: web.Request) -> Resource:
        """The call named in the path."""
        return await self._resource(await self._switchboard.get(request.match_info["call_id"]))

    async def _resource(self, call: Call) -> Resource:
        """The box that raised the alarm takes part: an OK there opens its microphone."""
        resource = call_resource(call)
        box = await self._box_of(call.alarm_id) if call.alarm_id is not None else None
        return resource if box is None else replace(resource, participants=resource.participants | {box})

    async def leg_resource(self, request: web.Request) -> Resource:
        """The leg named in the path; its owner is its participant."""
        call = await self._switchboard.get(request.match_info["call_id"])
        leg = call.leg(request.match_info["leg_id"])
        if leg is None:
            raise NotFound("no such leg in this call")
        return Resource(kind="leg", id=leg.id, lineage=tuple(call.lineage), owner=leg.participant.id)

    def routes(self) -> list[Route]:
        def calls(request: web.Request) -> Resource:
            return Resource.collection("call")

        def opening(request: web.Request) -> Resource:
            """Opening is authorized in the handler, when the body has told what for."""
            return Resource(kind="session")

        def own(request: web.Request) -> Resource:
            return Resource(kind="worker", id="me")

        def signed(request: web.Request) -> Resource:
            return Resource(kind="receipt")

        base = "/api/v1/calls"
        one = base + "/{call_id}"
        rows: list[Route] = [
            Route(
                method="GET", path=base, action=Action.CALL_LIST, handler=self._list, resource=calls,
                summary="Calls, newest first (?open=1: only those going on; ?missed=1: a gridworker's missed ones)",
            ),
            Route(
                method="POST", path=base, action=Action.SESSION_READ, handler=self._open, resource=opening,
                summary="Ring a gridworker, an alarm's plan, or (as a gridworker) the command center",
                request=OpenCall, success=201,
            ),
            Route(
                method="GET", path=one, action=Action.CALL_READ, handler=self._read, resource=self.resource,
                summary="One call",
            ),
            Route(
                method="POST", path="/api/v1/workers/me/sos", action=Action.WORKER_SOS, handler=self._sos, resource=own,
                summary="A gridworker calls for help: the desks ring until one answers", request=Sos, success=201,
            ),
            Route(
                method="POST", path=RECEIPTS, action=Action.CALL_RECEIPT, handler=self._receipted, resource=signed,
                summary="The provider: what became of a notice (signed)", request=Receipt,
            ),
            Route(
                method="POST", path=f"{one}/received", action=Action.CALL_RECEIVED, handler=self._received,
                resource=self.resource, summary="The phone rings", request=Answer,
            ),
        ]  # fmt: skip
        for verb, action, handler, summary in (
            ("claim", Action.CALL_CLAIM, self._claim, "Answer; one wins, the others get 409 with `taken_by`"),
            ("decline", Action.CALL_DECLINE, self._decline, "Not me: the next one rings"),
            ("join", Action.CALL_JOIN, self._join, "Take a place in the room"),
            (
                "hangup",
                Action.CALL_HANGUP,
                self._hangup,
                "End it on both sides, or leave if other desks stay",
            ),
        ):
            rows.append(
                Route(
                    method="POST", path=f"{one}/{verb}", action=action, handler=handler, resource=self.resource,
                    summary=summary, request=Answer,
                )
            )  # fmt: skip
        return rows

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        if exchange.query("missed") and who.role is Role.WORKER:
            found = await self._switchboard.missed(who.sub, since_ms=0)
        else:
            found = await self._switchboard.calls(only_open=exchange.query("open") == "1")
        asks_box = who.role is Role.STB  # of a call that is no box's business none is looked up
        seen = [
            c
            for c in found
            if authorize(
                who, Action.CALL_LIST, await self._resource(c) if asks_box else call_resource(c)
            ).allowed
        ]
        return json_response({"calls": [self._view(call, who) for call in seen]})

    async def _read(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(self._view(await self._call(exchange), exchange.who))

    async def _open(self, exchange: Exchange) -> web.StreamResponse:
        who, wanted = exchange.who, await exchange.body(OpenCall)
        by = participant(who)
        if who.role is Role.WORKER:
            lineage, position, label = self._whereabouts(who.sub)
            require(who, Action.CALL_OPEN, Resource(kind="call", lineage=lineage, owner=who.sub))
            call = await self._switchboard.call_center(
                by, lineage=lineage, position=position, place_label=label
            )
        else:
            brief = await self._about(wanted)
            if brief is not None:
                lineage = brief.lineage
            elif wanted.worker_id:
                lineage = self._whereabouts(wanted.worker_id)[0]
            else:
                raise ProtocolError("name an alarm_id, an incident_id or a worker_id")
            require(who, Action.CALL_OPEN, Resource(kind="call", lineage=tuple(lineage)))
            if wanted.worker_id:
                call = await self._switchboard.dispatch(wanted.worker_id, by, brief=brief)
            else:
                assert brief is not None  # noqa: S101 - narrowed above
                if isinstance(brief, IncidentBrief):
                    raise ProtocolError("this incident has no alarm whose plan could ring: name a worker_id")
                call = await self._switchboard.ring_for_alarm(brief, by)
        return json_response(self._view(call, who), status=201)

    async def _about(self, wanted: OpenCall) -> AlarmBrief | IncidentBrief | None:
        if wanted.alarm_id:
            return await self._brief_of(wanted.alarm_id)
        return await self._brief_of_incident(wanted.incident_id) if wanted.incident_id else None

    async def _sos(self, exchange: Exchange) -> web.StreamResponse:
        """The alarm is on disk before anybody is rung: should the rest fail here, it escalates and rings by itself."""
        who, said = exchange.who, await exchange.body(Sos)
        fix = None
        if said.position is not None:
            try:
                fix = from_datum(said.position.lat, said.position.lon, said.position.datum)
            except ValueError as error:
                raise ProtocolError(f"position: {error}") from None
        call = await self._help(participant(who), said.id or str(ULID()), fix, said.note)
        return json_response(self._view(call, who), status=201)

    async def _received(self, exchange: Exchange) -> web.StreamResponse:
        call = await self._switchboard.delivered(exchange.path("call_id"), exchange.who.sub, "event")
        return json_response(self._view(call, exchange.who))

    async def _receipted(self, exchange: Exchange) -> web.StreamResponse:
        receipt = self._receipt(exchange.request.headers, await exchange.request.read())
        error = (receipt.error or "failed")[:200] if receipt.status == "failed" else ""
        with contextlib.suppress(Conflict):  # the call is over: nobody needs to know any more
            await self._switchboard.delivered(receipt.call, receipt.worker, receipt.channel, error=error)
        return json_response({})

    async def _claim(self, exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.body(Answer)
        call = await self._switchboard.claim(
            exchange.path("call_id"), participant(exchange.who), device=answer.device
        )
        return json_response(self._view(call, exchange.who))

    async def _decline(self, exchange: Exchange) -> web.StreamResponse:
        call = await self._switchboard.decline(exchange.path("call_id"), exchange.who.sub)
        return json_response(self._view(call, exchange.who))

    async def _join(self, exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.body(Answer)
        if exchange.who.role is Role.STB:
            about = (await self._call(exchange)).alarm_id
            if about is not None and await self._is_silent(about):
                raise Conflict("the call of a silent alarm is not for its box: a voice would give it away")
        call = await self._switchboard.join(
            exchange.path("call_id"), participant(exchange.who), device=answer.device
        )
        return json_response(self._view(call, exchange.who))

    async def _hangup(self, exchange: Exchange) -> web.StreamResponse:
        call = await self._switchboard.hangup(exchange.path("call_id"), participant(exchange.who))
        return json_response(self._view(call, exchange.who))

    async def _call(self, exchange: Exchange) -> Call:
        return await self._switchboard.get(exchange.path("call_id"))

    @staticmethod
    def _view(call: Call, who: Principal) -> dict[str, Any]:
        own = call.leg_of(who.sub)
        view = call_view(call, leg=own.id if own is not None else None)
        if who.role is Role.STB:
            view |= {
                "rung": [],
                "position": None,
            }  # who else was asked, and where, is not the resident's business
        return view
