"""Role x area x type of event, against one readable table: what isn't in `EVENT_ACTIONS` can't be published, what is in it
must have a row here. Words as in test_rights: `yes` of any place, `area` in street A only, `home` in the own community only,
`part` where it takes part, `shown` the cameras that residents are shown, `no` never. A role that may not open the channel
hears nothing whatever its row says: its cells say so.
"""

from __future__ import annotations

import pytest

from gateway.access import Action, Principal, Resource, Role, Visibility, authorize
from gateway.http.events import EVENT_ACTIONS, Event, EventChannel

STREET_A, STREET_B = "510117001", "510117002"
PLACES = {
    "a1": ("510117", STREET_A, "510117001001"),
    "a2": ("510117", STREET_A, "510117001002"),
    "b1": ("510117", STREET_B, "510117002001"),
    "nowhere": (),
}
IN = {"yes": set(PLACES), "area": {"a1", "a2"}, "home": {"a1"}, "part": set(), "no": set()}
ROLES = ("operator", "desk", "leader", "worker", "volunteer", "stb", "service", "admin")
TABLE = {
    # type, action                  operator desk leader worker volunteer stb service admin
    ("alarm", "alarm.list"):       "yes area area part no   no no no",
    ("incident", "incident.list"): "yes area area part part no no no",
    ("task", "task.list"):         "yes area area part part no no no",
    ("audience", "alarm.list"):    "yes area area part no   no no no",
    ("audience", "task.list"):     "yes area area part part no no no",
    ("call", "call.list"):         "yes area area part no   no no no",
    ("ring", "call.list"):         "yes area area part no   no no no",
    ("ring_end", "call.list"):     "yes area area part no   no no no",
    ("camera", "camera.list"):     "yes area area home no   no no yes",
    ("worker", "worker.list"):     "yes area area no   no   no no no",
}  # fmt: skip


def principal(role: str) -> Principal:
    """As in test_rights: desk and leader have street A, whoever lives or works somewhere does in a1."""
    area = STREET_A if role in ("desk", "leader") else None
    return Principal(sub="me", role=Role(role), area=area, lineage=PLACES["a1"])


def event(kind: str, action: Action, resource: Resource, to: frozenset[str] | None = None) -> Event:
    return Event(seq=1, type=kind, at_ms=0, frame="{}", action=action, resource=resource, to=to)


def hears(role: str, one: Event) -> bool:
    who = principal(role)
    may_listen = authorize(who, Action.EVENTS_OPEN, Resource(kind="events", id="channel")).allowed
    return may_listen and one.concerns(who)


def test_every_type_of_event_has_its_row_and_no_other() -> None:
    assert set(TABLE) == {
        (kind, str(action)) for kind, actions in EVENT_ACTIONS.items() for action in actions
    }


def test_what_has_no_row_is_not_published() -> None:
    events = EventChannel(epoch="e", now_ms=lambda: 0, lag_ms=lambda: 0.0)
    for kind, action in (("household", None), ("alarm", Action.CAMERA_LIST), ("worker", Action.ALARM_LIST)):
        with pytest.raises(ValueError):
            events.publish(kind, {}, resource=Resource(kind="x", id="1"), action=action)
    assert events.seq == 0


@pytest.mark.parametrize(("kind", "action"), TABLE)
@pytest.mark.parametrize("role", ROLES)
def test_who_hears(kind: str, action: str, role: str) -> None:
    word = dict(zip(ROLES, TABLE[kind, action].split(), strict=True))[role]
    named = Action(action)
    for place, lineage in PLACES.items():
        apart = Resource(kind=kind, id="1", lineage=lineage, participants=frozenset({"you"}), owner="you")
        assert hears(role, event(kind, named, apart)) == (place in IN[word]), place
        for mine in (
            Resource(kind=kind, id="1", lineage=lineage, participants=frozenset({"me"})),
            Resource(kind=kind, id="1", lineage=lineage, owner="me"),
        ):
            assert hears(role, event(kind, named, mine)) == (word != "no"), place
            # For somebody else's phone only: nobody else hears it, whatever he may otherwise.
            assert not hears(role, event(kind, named, mine, to=frozenset({"you"})))


def test_residents_are_shown_cameras_but_have_no_channel() -> None:
    shown = Resource(kind="camera", id="1", lineage=PLACES["a1"], visible_to=Visibility.DISTRICT)
    one = event("camera", Action.CAMERA_LIST, shown)
    assert one.concerns(principal("stb"))
    assert not hears("stb", one)
