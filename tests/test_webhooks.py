"""What is told to whom, how it is signed, and which addresses may be dialled."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Files, check_files
from gateway.settings import WebhookSettings
from gateway.webhooks import (
    BACK_OFF_CAP_S,
    Hook,
    back_off_s,
    complaints,
    event_of,
    headers,
    hooks_of,
    is_reachable,
    message_body,
    wants,
)

SECRETS = {"plain": "x" * 16, "standard": "whsec_" + base64.b64encode(b"k" * 24).decode(), "short": "x"}
ALARM: dict[str, Any] = {
    "id": "A1", "kind": "theft", "silent": True, "handling": "NEW", "condition": "ACTIVE", "verified": True,
    "place": {"kind": "household", "label": "幸福里1号"}, "street": "s", "community": "c", "grid": "g",
    "received_at": 1, "acknowledged_by": {"sub": "zhang", "name": "张三"}, "dispatched": {"name": "王一"},
}  # fmt: skip


def hook(**chosen: Any) -> Hook:
    return hooks_of([WebhookSettings(name="h", url="https://x.example", secret="plain", **chosen)], SECRETS)[
        0
    ]


def test_signature_of_the_standards_own_example() -> None:
    # https://github.com/standard-webhooks/standard-webhooks spec, "Signature scheme", verified by hand with hmac.
    [one] = hooks_of(
        [WebhookSettings(name="h", url="u", secret="s")], {"s": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    )
    body = b'{"test": 2432232314}'
    said = headers(one.secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert said["Webhook-Signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert said["Webhook-Id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert said["Webhook-Timestamp"] == "1614265330"


def test_areas_kinds_and_events_limit_what_a_hook_gets() -> None:
    for chosen, wanted in (
        ({}, True), ({"areas": ("c",)}, True), ({"areas": ("elsewhere",)}, False), ({"kinds": ("theft",)}, True),
        ({"kinds": ("fire",)}, False), ({"events": ("alarm.*",)}, True), ({"events": ("alarm.new",)}, True),
        ({"events": ("alarm.closed", "incident.*")}, False),
    ):  # fmt: skip
        assert wants(hook(**chosen), "alarm", "alarm.new", ALARM, ("d", "s", "c")) is wanted, chosen


def test_drills_forged_presses_and_tasks_are_told_to_nobody() -> None:
    assert event_of("alarm", ALARM) == "alarm.new"
    assert event_of("alarm", {**ALARM, "kind": "test"}) is None
    assert event_of("alarm", {**ALARM, "verified": False}) is None
    assert event_of("incident", {"type": "test", "state": "REPORTED"}) is None
    assert event_of("incident", {"type": "消防隐患", "state": "TRANSFERRED"}) == "incident.transferred"
    assert event_of("task", {}) is None


def test_no_person_is_named_in_what_is_shared() -> None:
    told = json.loads(message_body("alarm", "alarm.new", ALARM, 1_790_000_000_123))
    assert told["type"] == "alarm.new"
    assert told["timestamp"] == "2026-09-21T14:13:20.123+00:00"
    assert told["data"]["place"]["label"] == "幸福里1号"
    assert "张三" not in str(told)
    assert "王一" not in str(told)


@given(attempts=st.integers(1, 60), share=st.floats(0, 1))
def test_pauses_grow_to_a_bound_and_are_jittered(attempts: int, share: float) -> None:
    assert 0 <= back_off_s(attempts, share) <= min(BACK_OFF_CAP_S, 5.0 * 2**attempts)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%1",
     "fd00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "2002:7f00:1::", "::"],
)  # fmt: skip
def test_private_addresses_are_not_dialled_unless_listed(address: str) -> None:
    assert not is_reachable(address, ())


def test_public_and_listed_addresses_are_dialled() -> None:
    listed = hook(networks=("10.20.0.0/16", "fd00::/8")).networks
    assert is_reachable("93.184.216.34", ())
    assert is_reachable("2606:2800:220:1:248:1893:25c8:1946", ())
    assert is_reachable("10.20.3.4", listed)
    assert is_reachable("::ffff:10.20.3.4", listed)
    assert is_reachable("fd12::1", listed)
    assert not is_reachable("10.21.3.4", listed)


def test_plain_secrets_are_taken_as_they_are() -> None:
    said = headers(hook().secret, "m", 5, b"body")
    expected = hmac.new(b"x" * 16, b"m.5.body", hashlib.sha256).digest()
    assert said["Webhook-Signature"] == "v1," + base64.b64encode(expected).decode()


def test_mistakes_are_named_by_file_line_and_key(tmp_path: Path) -> None:
    (tmp_path / "cameras.yaml").write_text("cameras: [{id: c, main: 'rtsp://127.0.0.1/x'}]\n")
    (tmp_path / "gateway.yaml").write_text(
        "webhooks:\n"
        "  - {name: police, url: 'https://a:b@x.example', secret: hook}\n"
        "  - {name: police, url: 'ftp://x', secret: none, areas: ['1'], events: [opened], networks: [10.0.0.1/8]}\n"
    )
    (tmp_path / "secrets.yaml").write_text("credentials: {hook: {username: x, password: short}}\n")
    (tmp_path / "secrets.yaml").chmod(0o600)
    text = "\n".join(str(one) for one in check_files(Files.beside(tmp_path / "cameras.yaml")))
    for wanted in (
        ":2: webhooks[0].url: holds a user name or password", ":2: webhooks[0].secret: its password in secrets.yaml is shorter",
        ":3: webhooks[1].name: ", ":3: webhooks[1].url: should begin with", ":3: webhooks[1].secret: 'none' is no name",
        ":3: webhooks[1].areas: '1' is no area", ":3: webhooks[1].events: 'opened' should be like",
        "is no network like",
    ):  # fmt: skip
        assert wanted in text, (wanted, text)
    assert "a:b" not in text
    assert complaints([], {}, ()) == []
