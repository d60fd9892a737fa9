"""The rules of the lite agent, one a test, with time advanced by hand."""

from __future__ import annotations

import aioice.stun

from gateway.streams import stun
from gateway.streams.ice import (
    CHECK_TIMEOUT_S,
    CONSENT_S,
    MAX_PATHS,
    SILENT_PAIR_S,
    CheckResult,
    IceCredentials,
    IceSession,
    IceState,
)

LOCAL = IceCredentials(ufrag="ours", pwd="p" * 24)
RENEWED = IceCredentials(ufrag="new1", pwd="q" * 24)
SOURCE = ("192.0.2.9", 4000)


def request(
    *,
    local: IceCredentials = LOCAL,
    remote: str = "them",
    use: bool = False,
    controlled: bool = False,
    pwd: str | None = None,
) -> stun.BindingRequest:
    message = aioice.stun.Message(aioice.stun.Method.BINDING, aioice.stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{local.ufrag}:{remote}"
    message.attributes["PRIORITY"] = 1
    message.attributes["ICE-CONTROLLED" if controlled else "ICE-CONTROLLING"] = 5
    if use:
        message.attributes["USE-CANDIDATE"] = None
    message.add_message_integrity((pwd or local.pwd).encode())
    return stun.parse_request(bytes(message))


def session() -> IceSession[str]:
    return IceSession(local=LOCAL, remote_ufrag="them", now=0.0)


def check(agent: IceSession[str], path: str, now: float, *, use: bool = False) -> CheckResult[str]:
    return agent.receive_request(request(use=use), path, SOURCE, now)


def test_any_checked_path_serves_before_nomination() -> None:
    agent = session()
    assert check(agent, "a", 1.0).moved
    assert agent.state is IceState.CHECKED
    assert check(agent, "b", 1.1).moved
    assert agent.receive_data("a")  # the ClientHello came over a: answer there
    assert agent.selected == "a"
    assert not agent.receive_data("never checked")


def test_last_use_candidate_wins() -> None:
    agent = session()
    check(agent, "a", 1.0, use=True)
    assert agent.state is IceState.NOMINATED
    assert not check(agent, "b", 1.1).moved
    assert not agent.receive_data("b")
    assert agent.selected == "a"
    assert check(agent, "b", 1.2, use=True).moved
    assert (agent.selected, agent.moves) == ("b", 1)


def test_silent_pair_gives_way_to_one_being_checked() -> None:
    agent = session()
    check(agent, "a", 0.0, use=True)
    assert not check(agent, "b", SILENT_PAIR_S - 0.1).moved
    assert check(agent, "b", SILENT_PAIR_S + 0.1).moved


def test_consent_is_renewed_by_requests_and_ends_in_silence() -> None:
    agent = session()
    check(agent, "a", 1.0, use=True)
    check(agent, "a", 20.0)
    agent.handle_timeout(20.0 + CONSENT_S - 0.01)
    assert agent.failure is None
    assert agent.next_deadline() == 20.0 + CONSENT_S
    agent.handle_timeout(20.0 + CONSENT_S)
    assert agent.failure is not None
    assert "consent" in agent.failure
    assert agent.next_deadline() is None
    assert check(agent, "a", 60.0).response is None


def test_no_check_at_all() -> None:
    agent = session()
    agent.handle_timeout(CHECK_TIMEOUT_S)
    assert agent.failure is not None
    assert "no connectivity check" in agent.failure


def test_forgeries_are_met_with_silence() -> None:
    agent = session()
    for forged in (request(pwd="x" * 24), request(remote="else")):
        result = agent.receive_request(forged, "a", SOURCE, 5.0)
        assert result.response is None
        assert not result.accepted
    assert agent.state is IceState.WAITING
    assert agent.next_deadline() == CHECK_TIMEOUT_S


def test_a_controlled_peer_is_told_of_the_conflict() -> None:
    result = session().receive_request(request(controlled=True), "a", SOURCE, 1.0)
    assert result.response is not None
    assert not result.accepted
    parsed = aioice.stun.parse_message(result.response)
    assert parsed.check_message_integrity(LOCAL.pwd.encode())
    assert parsed.attributes["ERROR-CODE"][0] == 487


def test_restart_keeps_both_generations_until_the_first_check_of_the_new() -> None:
    agent = session()
    check(agent, "a", 1.0, use=True)
    assert agent.restart(local=RENEWED, remote_ufrag="again") is None
    assert (agent.local, agent.ufrags) == (RENEWED, ("ours", "new1"))
    assert check(agent, "a", 2.0).accepted
    assert agent.selected == "a"
    result = agent.receive_request(request(local=RENEWED, remote="again"), "b", SOURCE, 3.0)
    assert result.moved
    assert result.retired_ufrag == "ours"
    assert agent.ufrags == ("new1",)
    assert check(agent, "a", 4.0).response is None


def test_a_second_restart_replaces_the_first() -> None:
    agent = session()
    agent.restart(local=RENEWED, remote_ufrag="again")
    third = IceCredentials(ufrag="new2", pwd="r" * 24)
    assert agent.restart(local=third, remote_ufrag="more") == "new1"
    assert agent.ufrags == ("ours", "new2")


def test_paths_are_bounded_and_the_selected_one_stays() -> None:
    agent = session()
    check(agent, "selected", 0.0, use=True)
    dropped = [path for n in range(MAX_PATHS + 5) for path in check(agent, f"p{n}", 0.1).dropped]
    assert dropped == [f"p{n}" for n in range(6)]
    assert len(agent.paths) == MAX_PATHS
    assert agent.selected == "selected"


def test_a_lost_path_gives_way_to_the_latest_checked() -> None:
    agent = session()
    check(agent, "a", 0.0)
    check(agent, "b", 0.1, use=True)
    agent.forget("b")
    assert agent.selected == "a"
    agent.forget("a")
    assert agent.selected is None


def test_consent_lasts_as_long_as_is_configured() -> None:
    agent: IceSession[str] = IceSession(local=LOCAL, remote_ufrag="them", now=0.0, consent_s=5.0)
    assert agent.next_deadline() == CHECK_TIMEOUT_S
    check(agent, "a", 10.0)
    assert agent.next_deadline() == 15.0
    agent.handle_timeout(15.0)
    assert agent.failure == "consent lost: no connectivity check for 5 s"


def test_rtcp_on_a_new_path_moves_there_once_the_old_one_is_abandoned() -> None:
    """A NAT rebinding: consent checks without USE-CANDIDATE come from the new address, then reports."""
    agent = session()
    check(agent, "old", 1.0, use=True)
    assert not check(agent, "new", 6.0).moved
    assert not agent.receive_data("never checked")
    assert agent.receive_data("new")
    assert agent.selected == "new"
    assert not agent.receive_data("old")  # a straggler does not lead back


def test_rtcp_on_another_path_moves_nothing_while_the_selected_one_is_checked() -> None:
    agent = session()
    check(agent, "a", 1.0, use=True)
    check(agent, "b", 2.0)
    check(agent, "a", 2.5)
    assert not agent.receive_data("b")
    assert agent.selected == "a"
