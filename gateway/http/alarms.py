"""Alarms and incidents at the HTTP edge. The signed press needs no token: its signature is its credential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from gateway.access import Action, Principal, Resource, authorize, require
from gateway.alarms.alarm import Handling, Outcome
from gateway.alarms.call_back import NOTE_LIMIT
from gateway.alarms.call_back import Outcome as CallBackOutcome
from gateway.alarms.casework import CaseDesk
from gateway.alarms.desk import AlarmDesk
from gateway.alarms.incident import IncidentState, Transition
from gateway.alarms.policy import Actor
from gateway.errors import ProtocolError
from gateway.geo import Datum, Position, from_datum
from gateway.http.routes import Exchange, Handler, Resolver, Route, json_response
from gateway.participants import Participants

__all__ = ["AlarmsEdge", "actor"]

LIST_LIMIT = 500


class Shown(msgspec.Struct, kw_only=True):
    console: str


class Triage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    outcome: Outcome
    type: str | None = None
    severity: Literal[1, 2, 3, 4] | None = None
    police: Literal["yes", "no", "undetermined"] | None = None
    merged_into: str | None = None
    note: str = ""


class CalledBack(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """unreachable needs a note: what was done instead."""

    outcome: CallBackOutcome
    note: Annotated[str, msgspec.Meta(max_length=NOTE_LIMIT)] = ""


class Note(msgspec.Struct, kw_only=True):
    note: str = ""


class Report(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An incident by hand: from the operator's map, or a gridworker's 上报. The position names its datum.

    report_id: the sender's own name for the report, so that it can be sent again until it is answered."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    lon: Annotated[float, msgspec.Meta(ge=-180, le=180)]
    datum: Datum
    severity: Literal[1, 2, 3, 4] = 2
    police: Literal["yes", "no", "undetermined"] = "undetermined"
    place_label: Annotated[str, msgspec.Meta(max_length=200)] = ""
    note: Annotated[str, msgspec.Meta(max_length=NOTE_LIMIT)] = ""
    report_id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")] | None = None


class Move(msgspec.Struct, kw_only=True):
    """A transition of an incident; `detail` is what belongs to it (worker, satisfied, score, to, into)."""

    note: Annotated[str, msgspec.Meta(max_length=NOTE_LIMIT)] = ""
    detail: dict[str, Any] = {}


TRANSITION_ACTIONS: dict[Transition, Action] = {
    Transition.DISPATCH: Action.INCIDENT_DISPATCH,
    Transition.HANDLE: Action.INCIDENT_HANDLE,
    Transition.SUBMIT: Action.INCIDENT_HANDLE,
    Transition.REOPEN: Action.INCIDENT_VERIFY,
    Transition.RATE: Action.INCIDENT_RATE,
    Transition.ARCHIVE: Action.INCIDENT_ARCHIVE,
    Transition.TRANSFER: Action.INCIDENT_TRANSFER,
    Transition.TAKE_BACK: Action.INCIDENT_TRANSFER,
    Transition.SUSPEND: Action.INCIDENT_SUSPEND,
    Transition.RESUME: Action.INCIDENT_SUSPEND,
    Transition.MERGE: Action.INCIDENT_MERGE,
    Transition.CANCEL: Action.INCIDENT_CANCEL,
}


def actor(principal: Principal) -> Actor:
    return Actor(sub=principal.sub, name=principal.name or principal.sub, role=principal.role)


class AlarmsEdge:
    """Routes of alarms and incidents. `full_lineage` orders area codes; `locate(position)` gives the lineage of a place;
    `participants` of an open alarm may see its household; `duties`: what a gridworker may report."""

    def __init__(
        self,
        desk: AlarmDesk,
        cases: CaseDesk,
        *,
        full_lineage: Callable[[tuple[str, ...]], tuple[str, ...]],
        locate: Callable[[Position], tuple[str, ...]],
        participants: Participants,
        duties: tuple[str, ...],
    ) -> None:
        self._duties = duties
        self._desk = desk
        self._cases = cases
        self._full_lineage = full_lineage
        self._locate = locate
        self._participants = participants

    async def resource(self, request: web.Request) -> Resource:
        alarm_id = request.match_info["alarm_id"]
        lineage = self._full_lineage(await self._desk.lineage(alarm_id))
        taking_part = await self._participants.of_alarm(alarm_id)
        return Resource(kind="alarm", id=alarm_id, lineage=lineage, participants=taking_part)

    async def incident(self, request: web.Request) -> Resource:
        incident_id = request.match_info["incident_id"]
        lineage = self._full_lineage(await self._cases.lineage(incident_id))
        taking_part = await self._participants.of_incident(incident_id)
        return Resource(kind="incident", id=incident_id, lineage=lineage, participants=taking_part)

    def routes(self) -> list[Route]:
        def fixed(kind: str) -> Resolver:
            return lambda request: Resource.collection(kind)

        signed: Resolver = lambda request: Resource(kind="press")  # noqa: E731
        alarms, one = "/api/v1/alarms", "/api/v1/alarms/{alarm_id}"
        incidents, case = "/api/v1/incidents", "/api/v1/incidents/{incident_id}"

        def row(
            method: str, path: str, action: Action, handler: Handler, resource: Resolver, summary: str,
            request: type | None = None, *, csrf: bool = True, success: int = 200,
        ) -> Route:  # fmt: skip
            return Route(
                method=method, path=path, action=action, handler=handler, resource=resource, summary=summary,
                request=request, csrf=csrf, success=success,
            )  # fmt: skip

        return [
            row("GET", alarms, Action.ALARM_LIST, self._list, fixed("alarm"), "Alarms, newest first"),
            row("POST", alarms, Action.PRESS_SIGNED, self._press, signed, "The second path of a press", csrf=False),
            row("GET", one, Action.ALARM_READ, self._read, self.resource, "One alarm with timeline, cameras, people"),
            row("POST", f"{one}/cancel", Action.PRESS_SIGNED, self._cancel, signed, "The resident cancels", csrf=False),
            row("POST", f"{one}/place", Action.PRESS_SIGNED, self._place, signed, "The resident corrects the place",
                csrf=False),
            row("POST", f"{one}/shown", Action.ALARM_SHOWN, self._shown, self.resource,
                "A visible console has rendered it", Shown),
            row("POST", f"{one}/acknowledge", Action.ALARM_ACKNOWLEDGE, self._acknowledge, self.resource, "Take it"),
            row("POST", f"{one}/unacknowledge", Action.ALARM_ACKNOWLEDGE, self._unacknowledge, self.resource,
                "Give it back"),
            row("POST", f"{one}/triage", Action.ALARM_TRIAGE, self._triage, self.resource, "Decide what it is", Triage),
            row("POST", f"{one}/call_back", Action.ALARM_CLOSE, self._call_back, self.resource,
                "A cancelled alarm's call-back was made", CalledBack),
            row("POST", f"{one}/close", Action.ALARM_CLOSE, self._close, self.resource, "Close it", Note),
            row("GET", incidents, Action.INCIDENT_LIST, self._incidents, fixed("incident"), "Incidents, newest first"),
            row("POST", incidents, Action.SESSION_READ, self._report, lambda request: Resource(kind="session"),
                "Report an incident by hand", Report, success=201),
            row("GET", case, Action.INCIDENT_READ, self._case, self.incident, "One incident"),
            *(
                row("POST", f"{case}/{transition.value}", action, self._mover(transition), self.incident,
                    f"The closed loop: {transition.value}", Move)
                for transition, action in TRANSITION_ACTIONS.items()
            ),
        ]  # fmt: skip

    # -- boxes --------------------------------------------------------------------------------------------------

    async def _press(self, exchange: Exchange) -> web.StreamResponse:
        return _receipt(await self._desk.press(await exchange.request.read(), "http"))

    async def _cancel(self, exchange: Exchange) -> web.StreamResponse:
        return _receipt(await self._desk.cancel(await exchange.request.read(), "http"))

    async def _place(self, exchange: Exchange) -> web.StreamResponse:
        return _receipt(await self._desk.correct_place(await exchange.request.read()))

    # -- desks --------------------------------------------------------------------------------------------------

    async def _list(self, exchange: Exchange) -> web.StreamResponse:
        who = exchange.who
        handling = exchange.query("handling")
        try:
            wanted = Handling(handling) if handling else None
        except ValueError:
            raise ProtocolError(f"handling must be one of {', '.join(Handling)}") from None
        found = await self._desk.list(
            handling=wanted,
            open_only=exchange.query("open") == "1",
            limit=_limit(exchange),
            visible=self._sees(who, Action.ALARM_LIST, await self._participants.alarms_of(who.sub)),
        )
        return json_response({"alarms": found})

    async def _read(self, exchange: Exchange) -> web.StreamResponse:
        household = authorize(exchange.who, Action.ALARM_HOUSEHOLD, exchange.resource).allowed
        view = await self._desk.get(
            exchange.path("alarm_id"), include_household=household, viewer=actor(exchange.who)
        )
        return json_response(view)

    async def _shown(self, exchange: Exchange) -> web.StreamResponse:
        shown = await exchange.body(Shown)
        by = actor(exchange.who)
        return json_response(await self._desk.shown(exchange.path("alarm_id"), shown.console, by))

    async def _acknowledge(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(await self._desk.acknowledge(exchange.path("alarm_id"), actor(exchange.who)))

    async def _unacknowledge(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(await self._desk.unacknowledge(exchange.path("alarm_id"), actor(exchange.who)))

    async def _triage(self, exchange: Exchange) -> web.StreamResponse:
        said = await exchange.body(Triage)
        view = await self._desk.triage(
            exchange.path("alarm_id"), actor(exchange.who), outcome=said.outcome, type=said.type,
            severity=said.severity, police=said.police, merged_into=said.merged_into, note=said.note,
        )  # fmt: skip
        return json_response(view)

    async def _close(self, exchange: Exchange) -> web.StreamResponse:
        said = await exchange.body(Note)
        return json_response(
            await self._desk.close(exchange.path("alarm_id"), actor(exchange.who), note=said.note)
        )

    async def _call_back(self, exchange: Exchange) -> web.StreamResponse:
        said, by = await exchange.body(CalledBack), actor(exchange.who)
        note = said.note.strip()
        return json_response(
            await self._desk.call_back(exchange.path("alarm_id"), by, outcome=said.outcome, note=note)
        )

    # -- incidents ----------------------------------------------------------------------------------------------

    async def _incidents(self, exchange: Exchange) -> web.StreamResponse:
        who, state = exchange.who, exchange.query("state")
        try:
            wanted = IncidentState(state) if state else None
        except ValueError:
            raise ProtocolError(f"state must be one of {', '.join(IncidentState)}") from None
        found = await self._cases.list(
            state=wanted,
            limit=_limit(exchange),
            visible=self._sees(who, Action.INCIDENT_LIST, await self._participants.incidents_of(who.sub)),
        )
        return json_response({"incidents": found})

    async def _report(self, exchange: Exchange) -> web.StreamResponse:
        who, said = exchange.who, await exchange.body(Report)
        position = from_datum(said.lat, said.lon, said.datum)
        lineage = self._locate(position)
        by_hand = Resource(kind="incident", id="new", lineage=lineage)
        if who.role == "worker" and said.type not in self._duties:
            raise ProtocolError(f"type must be one of {', '.join(self._duties)}")
        if not authorize(who, Action.INCIDENT_REPORT, by_hand).allowed:
            require(who, Action.INCIDENT_CREATE, by_hand)
        district, street, community, grid = (*lineage[:4], None, None, None, None)[:4]
        view = await self._cases.report(
            actor(who), type=said.type, severity=said.severity, police=said.police, position=position,
            place_label=said.place_label, district=district, street=street, community=community, grid=grid, note=said.note,
            report_id=said.report_id,
        )  # fmt: skip
        return json_response(view, status=201)

    async def _case(self, exchange: Exchange) -> web.StreamResponse:
        return json_response(await self._cases.get(exchange.path("incident_id")))

    def _mover(self, transition: Transition) -> Handler:
        async def move(exchange: Exchange) -> web.StreamResponse:
            said = await exchange.body(Move)
            view = await self._cases.move(
                exchange.path("incident_id"),
                transition,
                actor(exchange.who),
                note=said.note,
                detail=said.detail,
            )
            return json_response(view)

        return move

    def _sees(
        self, who: Principal, action: Action, own: frozenset[str]
    ) -> Callable[[tuple[str, ...], str], bool]:
        """own: ids of those in which this principal takes part."""

        def visible(lineage: tuple[str, ...], one: str) -> bool:
            taking_part = frozenset({who.sub}) if one in own else frozenset()
            kind = action.partition(".")[0]
            resource = Resource(
                kind=kind, id=one, lineage=self._full_lineage(lineage), participants=taking_part
            )
            return authorize(who, action, resource).allowed

        return visible


def _limit(exchange: Exchange) -> int:
    text = exchange.query("limit", "100")
    if not text.isdecimal() or not 1 <= int(text) <= LIST_LIMIT:
        raise ProtocolError(f"limit must be 1..{LIST_LIMIT}")
    return int(text)


def _receipt(ack: dict[str, Any]) -> web.Response:
    """The ack is the answer; a refusal is an answer too, with a status that a box can act on."""
    if ack.get("stage") != "refused":
        return json_response(ack)
    reason = ack.get("reason")
    status = {"bad_signature": 403, "unknown_box": 403, "cannot_process": 503}.get(str(reason), 400)
    return json_response(ack, status=status)
