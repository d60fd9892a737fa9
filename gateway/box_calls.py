"""What a resident's box is told of the call about its alarm: that somebody has answered, and that it may join.

`call` {id, state, joinable} stands in `GET /api/v1/stb/me` and in the box's retained `stb/{sid}/state`. Alarms and calls
don't know each other, so it is put in where both are known: each state that the alarm desk publishes gets what is true
of its call at that moment, and when a call changes, the state is announced anew by the alarm's own outbox, so that the
newest state is also the last one. A silent alarm's call is never joinable: a voice from the set would give it away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from gateway.alarms import announce, follow_up, records
from gateway.alarms.deliveries import Publication, PublishMqtt
from gateway.errors import NotFound
from gateway.intercom.model import Call, CallState
from gateway.store import Store

__all__ = ["BoxCalls"]

Json = dict[str, Any]

JOINABLE = (CallState.CLAIMED, CallState.CONNECTING, CallState.ACTIVE, CallState.RECONNECTING)


class BoxCalls:
    """open_calls: those going on, from memory. publish: to the broker."""

    def __init__(
        self, store: Store, open_calls: Callable[[], Collection[Call]], publish: PublishMqtt
    ) -> None:
        self._store = store
        self._open_calls = open_calls
        self._publish = publish
        # Alarms whose call somebody is in -> what the box was told last; bounded by those calls that go on.
        self._told: dict[str, Json] = {}

    def of_alarm(self, alarm_id: str, *, silent: bool = False) -> Json | None:
        """The alarm's call as its box may know it: {id, state, joinable}. The answered one, if there are several."""
        about = [call for call in self._open_calls() if call.alarm_id == alarm_id]
        if not about:
            return None
        call = max(about, key=lambda call: (call.state in JOINABLE, call.opened_at))
        return {
            "id": call.id,
            "state": call.state.value,
            "joinable": call.state in JOINABLE and not silent,
        }

    def of_box(self, ack: Mapping[str, Any] | None) -> Json | None:
        """As of_alarm, of the ack that the box's page resumes from."""
        return None if ack is None else self.of_alarm(str(ack["alarm"]), silent=bool(ack.get("silent")))

    async def publish(self, publications: Sequence[Publication]) -> None:
        """As PublishMqtt; the states of boxes whose alarm has a call say so."""
        await self._publish([self._with_call(one) for one in publications])

    def _with_call(self, publication: Publication) -> Publication:
        topic, payload, qos, retain = publication
        if not (retain and payload and self._told and topic.endswith("/state")):
            return publication
        state = msgspec.json.decode(payload, type=dict[str, Any])
        # In a storm of presses most alarms have a call that only rings: for those none is looked up.
        alarm_id = str(state.get("alarm"))
        call = self.of_alarm(alarm_id, silent=bool(state.get("silent"))) if alarm_id in self._told else None
        return (
            publication
            if call is None
            else (topic, msgspec.json.encode({**state, "call": call}), qos, retain)
        )

    async def call_changed(self, view: Json) -> None:
        """A call as its JSON says, perhaps again. A call that nobody is in yet (it rings) is no news for a box."""
        alarm_id = view["alarm_id"]
        if alarm_id is None or (alarm_id not in self._told and not view["legs"]):
            return
        call = self.of_alarm(alarm_id)
        if call is not None and call == self._told.setdefault(alarm_id, {}):
            return
        await self._store.write(lambda connection: _announce(connection, alarm_id))
        if call is None:
            self._told.pop(alarm_id, None)
        else:
            self._told[alarm_id] = call


def _announce(connection: Connection, alarm_id: str) -> None:
    """The state of the alarm's box once more, unless there is none to show, or it is asked for its 回访 now."""
    try:
        row = records.load(connection, alarm_id)
    except NotFound:
        return
    source = str(row["source"])
    if not source.startswith("stb/") or not row["verified"] or row["closed_at"] is not None:
        return
    if follow_up.asked_of(connection, source) is None:
        announce.announce_state(connection, row, follow_up.state_now(connection, row))
