"""The table of rights: every row, and above all what isn't in it."""

from __future__ import annotations

import pytest

from gateway.access import RULES, Action, Principal, Resource, Role, Scope, Visibility, authorize, require
from gateway.errors import NotAllowed

HERE = ("510117", "510117001", "510117001001", "510117001001001")
NEXT_GRID = ("510117", "510117001", "510117001001", "510117001001002")
NEXT_COMMUNITY = ("510117", "510117001", "510117001002", "510117001002001")
NEXT_STREET = ("510117", "510117002", "510117002001", "510117002001001")
PLACES = (HERE, NEXT_GRID, NEXT_COMMUNITY, NEXT_STREET)


def who(role: Role, area: str | None = None, lineage: tuple[str, ...] = HERE) -> Principal:
    return Principal(sub="me", role=role, area=area, lineage=lineage)


def camera(lineage: tuple[str, ...], visible_to: Visibility = Visibility.NONE, **more: object) -> Resource:
    return Resource(kind="camera", id="cam001", lineage=lineage, visible_to=visible_to, **more)  # type: ignore[arg-type]


def seen(principal: Principal | None, action: Action = Action.CAMERA_VIEW) -> list[bool]:
    """Which of the four places' cameras, none shown to residents, the principal may see."""
    return [bool(authorize(principal, action, camera(place))) for place in PLACES]


def test_every_action_has_a_row_and_every_row_an_action() -> None:
    assert set(RULES) == set(Action)


def test_an_action_without_a_row_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, Action.SESSION_READ)  # type: ignore[arg-type]
    assert not authorize(who(Role.OPERATOR), Action.SESSION_READ, Resource(kind="session"))


PUBLIC = {
    Action.HEALTH_READ,
    Action.OPENAPI_READ,
    Action.STATIC_READ,
    Action.PRESS_SIGNED,
    Action.CALL_RECEIPT,
    Action.SESSION_CREATE,
    Action.MEDIA_PREFLIGHT,
    Action.PAGE_INDEX,
    Action.PAGE_LOGIN,
}


@pytest.mark.parametrize("action", Action)
def test_nobody_may_do_what_is_not_public(action: Action) -> None:
    for resource in (Resource.collection("x"), Resource(kind="x", id="1", lineage=HERE)):
        assert bool(authorize(None, action, resource)) == (action in PUBLIC)


def test_metrics_from_this_machine_or_by_role() -> None:
    near, far = Resource(kind="metrics", loopback=True), Resource(kind="metrics")
    assert authorize(None, Action.METRICS_READ, near)
    assert not authorize(None, Action.METRICS_READ, far)
    allowed = {role for role in Role if authorize(who(role), Action.METRICS_READ, far)}
    assert allowed == {Role.SERVICE, Role.ADMIN}


def test_staff_see_their_area_and_no_more() -> None:
    for role in (Role.OPERATOR, Role.DESK, Role.LEADER):
        assert seen(who(role)) == [True, True, True, True]
        assert seen(who(role, "510117")) == [True, True, True, True]
        assert seen(who(role, "510117001")) == [True, True, True, False]
        assert seen(who(role, "510117001001")) == [True, True, False, False]
        assert seen(who(role, "510117001001001")) == [True, False, False, False]
        assert seen(who(role, "999999")) == [False] * 4


def test_a_place_unknown_belongs_to_the_whole_district_only() -> None:
    assert authorize(who(Role.OPERATOR), Action.CAMERA_VIEW, camera(()))
    assert not authorize(who(Role.DESK, "510117"), Action.CAMERA_VIEW, camera(()))
    for role in (Role.WORKER, Role.STB):
        nowhere = who(role, lineage=())
        assert not authorize(nowhere, Action.CAMERA_VIEW, camera((), Visibility.DISTRICT))


@pytest.mark.parametrize("role", [Role.VOLUNTEER, Role.SERVICE, Role.ADMIN])
def test_who_never_gets_a_picture(role: Role) -> None:
    for action in (Action.CAMERA_VIEW, Action.CAMERA_SNAPSHOT, Action.CALL_WATCH):
        shown = camera(HERE, Visibility.DISTRICT, participants=frozenset({"me"}))
        assert not authorize(who(role), action, shown)


def test_worker_sees_the_own_community_and_where_he_takes_part() -> None:
    assert seen(who(Role.WORKER)) == [True, True, False, False]
    far = camera(NEXT_STREET, participants=frozenset({"me"}))
    assert authorize(who(Role.WORKER), Action.CAMERA_VIEW, far)
    assert not authorize(
        who(Role.WORKER), Action.CAMERA_VIEW, camera(NEXT_STREET, participants=frozenset({"you"}))
    )


@pytest.mark.parametrize(
    ("visible_to", "expected"),
    [
        (Visibility.NONE, [False, False, False, False]),
        (Visibility.COMMUNITY, [True, True, False, False]),
        (Visibility.STREET, [True, True, True, False]),
        (Visibility.DISTRICT, [True, True, True, True]),
    ],
)
def test_resident_sees_what_is_shown_to_him(visible_to: Visibility, expected: list[bool]) -> None:
    box = who(Role.STB)
    for action in (Action.CAMERA_LIST, Action.CAMERA_VIEW, Action.CAMERA_SNAPSHOT):
        assert [bool(authorize(box, action, camera(place, visible_to))) for place in PLACES] == expected
    other_district = ("510100", *HERE[1:])
    assert not authorize(box, Action.CAMERA_VIEW, camera(other_district, visible_to))


def test_a_collection_may_be_asked_for_but_never_stands_for_its_items() -> None:
    desk = who(Role.DESK, "510117001")
    assert authorize(desk, Action.CAMERA_LIST, Resource.collection("camera"))
    assert not authorize(desk, Action.CAMERA_VIEW, Resource.collection("camera"))
    assert not authorize(desk, Action.ALARM_TRIAGE, Resource.collection("alarm"))
    assert not authorize(who(Role.STB), Action.ALARM_LIST, Resource.collection("alarm"))


def test_household_card_only_for_those_who_act() -> None:
    open_alarm = Resource(kind="alarm", id="A", lineage=HERE, participants=frozenset({"me"}))
    closed = Resource(kind="alarm", id="A", lineage=HERE)
    for role in (Role.OPERATOR, Role.DESK, Role.WORKER):
        assert authorize(who(role), Action.ALARM_HOUSEHOLD, open_alarm)
        assert not authorize(who(role), Action.ALARM_HOUSEHOLD, closed)
    for role in (Role.LEADER, Role.VOLUNTEER, Role.STB, Role.SERVICE, Role.ADMIN):
        assert not authorize(who(role), Action.ALARM_HOUSEHOLD, open_alarm)


def test_call_claim_and_own_leg() -> None:
    rung = Resource(kind="call", id="C", lineage=NEXT_STREET, participants=frozenset({"me"}))
    other = Resource(kind="call", id="C", lineage=HERE, participants=frozenset({"you"}))
    assert authorize(who(Role.WORKER), Action.CALL_CLAIM, rung)
    assert not authorize(who(Role.WORKER), Action.CALL_CLAIM, other)
    own, others = Resource(kind="leg", id="L", owner="me"), Resource(kind="leg", id="L", owner="you")
    for role in (Role.OPERATOR, Role.DESK, Role.LEADER, Role.WORKER, Role.STB):
        assert authorize(who(role), Action.CALL_PUBLISH, own)
        assert not authorize(who(role), Action.CALL_PUBLISH, others)
    assert not authorize(who(Role.VOLUNTEER), Action.CALL_PUBLISH, own)


def test_a_device_touches_its_own_topics_only() -> None:
    mine, yours = (Resource(kind="topic", id=f"stb/{sid}/press", owner=sid) for sid in ("me", "you"))
    assert authorize(who(Role.STB), Action.MQTT_TOPIC, mine)
    assert not authorize(who(Role.STB), Action.MQTT_TOPIC, yours)
    assert not authorize(who(Role.OPERATOR), Action.MQTT_TOPIC, mine)


PAGES = {
    Action.PAGE_WALL: {Role.OPERATOR, Role.DESK, Role.LEADER},
    Action.PAGE_DESK: {Role.OPERATOR, Role.DESK, Role.LEADER},
    Action.PAGE_STB: {Role.STB},
    Action.PAGE_WORKER: {Role.WORKER, Role.VOLUNTEER},
}


@pytest.mark.parametrize("action", PAGES)
def test_each_page_has_its_users(action: Action) -> None:
    assert {role for role in Role if authorize(who(role), action, Resource(kind="page"))} == PAGES[action]


def test_only_admin_administers() -> None:
    for action in Action:
        if action.startswith("admin.") or action is Action.CAMERA_MANAGE:
            allowed = {role for role in Role if authorize(who(role), action, Resource(kind="admin", id="x"))}
            assert allowed == {Role.ADMIN}


def test_no_role_reaches_beyond_its_area_by_any_action() -> None:
    """Whatever row says AREA: an outside resource is denied, an inside one allowed, for every such role
    and action.
    """
    for action, row in RULES.items():
        for role, scope in row.items():
            if scope is Scope.AREA:
                desk = who(Role(role), "510117001")
                assert authorize(desk, action, Resource(kind="x", id="1", lineage=HERE))
                assert not authorize(desk, action, Resource(kind="x", id="1", lineage=NEXT_STREET))


def test_require_tells_unknown_from_unauthorized() -> None:
    require(who(Role.OPERATOR), Action.CAMERA_VIEW, camera(HERE))
    with pytest.raises(NotAllowed) as unknown:
        require(None, Action.CAMERA_VIEW, camera(HERE))
    with pytest.raises(NotAllowed) as denied:
        require(who(Role.SERVICE), Action.CAMERA_VIEW, camera(HERE))
    assert (unknown.value.authenticated, denied.value.authenticated) == (False, True)
