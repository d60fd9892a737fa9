"""Tokens, codes, revocation, passwords and limits."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import jwt
import pytest
from argon2 import PasswordHasher

from gateway.access import Principal, Role
from gateway.errors import NotAllowed, TooMany
from gateway.identity import (
    MAX_TOKENS_READ,
    JoinLimits,
    Keyring,
    LoginThrottle,
    Revocations,
    TokenKind,
    device_password,
    verify_password,
)

KEY = bytes(range(32))
NOW = 1_800_000_000.0
DESK = Principal(sub="d1", role=Role.DESK, area="510117001", supervisor=True, name="赵")
keyring = Keyring(KEY, leeway_s=30)


def test_round_trip() -> None:
    token = keyring.verify(keyring.issue(DESK, TokenKind.ACCESS, now_s=NOW, ttl_s=60), now_s=NOW)
    assert token.principal == DESK
    assert (token.issued_at_s, token.expires_at_s) == (NOW, NOW + 60)
    session = keyring.verify(keyring.issue(DESK, TokenKind.SESSION, now_s=NOW, ttl_s=60), now_s=NOW)
    assert session.principal.session


def test_valid_from_issue_to_expiry_with_leeway() -> None:
    text = keyring.issue(DESK, TokenKind.ACCESS, now_s=NOW, ttl_s=60)
    for now_s in (NOW - 29, NOW, NOW + 89):
        keyring.verify(text, now_s=now_s)
    for now_s in (NOW - 32, NOW + 90):
        with pytest.raises(NotAllowed):
            keyring.verify(text, now_s=now_s)


def test_a_token_read_before_still_expires_and_is_forgotten_in_the_end() -> None:
    keyring = Keyring(KEY, leeway_s=0)
    text = keyring.issue(DESK, TokenKind.ACCESS, now_s=1000, ttl_s=60)
    first = keyring.verify(text, now_s=1000)
    assert keyring.verify(text, now_s=1059) is first
    with pytest.raises(NotAllowed, match="expired"):
        keyring.verify(text, now_s=1060)
    with pytest.raises(NotAllowed, match="kind"):
        keyring.verify(text, now_s=1000, kinds=frozenset({TokenKind.CODE}))
    for _ in range(MAX_TOKENS_READ):
        keyring.verify(keyring.issue(DESK, TokenKind.ACCESS, now_s=1000, ttl_s=60), now_s=1000)
    assert keyring.verify(text, now_s=1000) is not first


def test_a_code_works_only_as_a_code() -> None:
    code = keyring.issue(DESK, TokenKind.CODE, now_s=NOW, ttl_s=60)
    assert keyring.verify(code, now_s=NOW, kinds=frozenset({TokenKind.CODE})).principal == DESK
    with pytest.raises(NotAllowed):
        keyring.verify(code, now_s=NOW)


def claims(**change: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"iss": "gateway", "typ": "access", "sub": "x", "role": "desk", "jti": "j"}
    whole = base | {"iat": int(NOW), "exp": int(NOW) + 60} | change
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "other"},
        {"iss": None},
        {"role": "king"},
        {"role": None},
        {"sub": None},
        {"sub": ""},
        {"typ": "other"},
        {"typ": None},
        {"exp": None},
        {"exp": "soon"},
        {"iat": None},
        {"jti": None},
        {"area": ""},
        {"area": 510117},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"typ": "session"},
    ],
)
def test_claims_that_are_wrong(change: dict[str, Any]) -> None:
    keyring.verify(jwt.encode(claims(), KEY, algorithm="HS256"), now_s=NOW)
    with pytest.raises(NotAllowed) as error:
        keyring.verify(jwt.encode(claims(**change), KEY, algorithm="HS256"), now_s=NOW)
    assert not error.value.authenticated


def test_another_key_no_algorithm_or_any_flipped_character() -> None:
    good = jwt.encode(claims(), KEY, algorithm="HS256")
    bad = [
        jwt.encode(claims(), bytes(32), algorithm="HS256"),
        jwt.encode(claims(), None, algorithm="none"),
        "",
        "a.b.c",
    ]
    bad += [jwt.encode(claims(), KEY * 2, algorithm="HS512"), "é.é.é"]
    # The last character of each part may hold unused bits of base64, so it is left out.
    ends = {i for i, c in enumerate(good + ".") if c == "."}
    for i in range(len(good)):
        if not {i, i + 1} & ends:
            bad.append(good[:i] + ("A" if good[i] != "A" else "B") + good[i + 1 :])
    for text in bad:
        with pytest.raises(NotAllowed):
            keyring.verify(text, now_s=NOW)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError):
        Keyring(b"short")


def test_revocation_of_one_session_and_of_all() -> None:
    revoked = Revocations()
    one, other = (
        keyring.verify(keyring.issue(DESK, TokenKind.SESSION, now_s=NOW, ttl_s=60), now_s=NOW)
        for _ in range(2)
    )
    revoked.revoke_session(one.principal.session, until_s=one.expires_at_s)
    assert (revoked.is_revoked(one.principal), revoked.is_revoked(other.principal)) == (True, False)
    revoked.revoke_all("d1", now_s=NOW)
    later = keyring.verify(keyring.issue(DESK, TokenKind.ACCESS, now_s=NOW + 1, ttl_s=60), now_s=NOW + 1)
    assert (revoked.is_revoked(other.principal), revoked.is_revoked(later.principal)) == (True, False)
    revoked.prune(NOW + 61)
    assert revoked.is_revoked(one.principal)  # by revoke_all still


def test_passwords_plain_hashed_and_missing() -> None:
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("秘密")
    assert verify_password(hashed, "秘密")
    assert verify_password("秘密", "秘密")
    for stored in (hashed, "秘密", "", None, "$argon2id$broken"):
        assert not verify_password(stored, "wrong")
        assert not verify_password(stored, "")
    assert not verify_password("x", "\ud800")


def test_device_password_is_the_contracts() -> None:
    assert device_password(KEY, "stb0001") == hmac.new(KEY, b"mqtt|stb0001", "sha256").hexdigest()
    assert device_password(KEY, "stb0001") != device_password(KEY, "stb0002")


def test_lock_out_doubles_and_ends() -> None:
    throttle = LoginThrottle(failures=3, lockout_s=60)

    def wait(now_s: float) -> float:
        try:
            throttle.check("sub:wang", "address:a", now_s=now_s)
        except TooMany as error:
            return error.retry_after_s
        return 0.0

    for _ in range(2):
        throttle.failed("sub:wang", now_s=0)
    assert wait(0) == 0
    throttle.failed("sub:wang", now_s=0)
    assert (wait(0), wait(59), wait(60)) == (60, 1, 0)
    throttle.failed("sub:wang", now_s=60)
    assert wait(60) == 120
    for _ in range(30):
        throttle.failed("sub:wang", now_s=100)
    assert wait(100) == 900
    throttle.failed("sub:wang", now_s=100 + 3_601)
    assert wait(100 + 3_601) == 0
    throttle.succeeded("sub:wang")
    throttle.check("sub:other", now_s=0)


def test_throttle_is_bounded() -> None:
    throttle = LoginThrottle(failures=1, limit=2)
    for key in "abc":
        throttle.failed(key, now_s=0)
    throttle.check("a", now_s=0)
    with pytest.raises(TooMany):
        throttle.check("c", now_s=0)


def test_join_limits_by_role_and_principal() -> None:
    limits = JoinLimits(lambda who: {Role.STB: 2}.get(who.role, 0), rate=1000)
    box, other = Principal(sub="s1", role=Role.STB), Principal(sub="s2", role=Role.STB)
    limits.join(box, now_s=0)
    limits.join(box, now_s=0)
    with pytest.raises(TooMany):
        limits.join(box, now_s=1)
    limits.join(other, now_s=1)
    limits.leave(box)
    limits.join(box, now_s=2)
    assert (limits.joined(box), limits.joined(other)) == (2, 1)
    with pytest.raises(TooMany):
        limits.join(Principal(sub="x", role=Role.SERVICE), now_s=2)
    limits.leave(other)
    with pytest.raises(ValueError):
        limits.leave(other)


def test_joins_a_second_are_limited_after_a_burst_and_say_when_to_come_back() -> None:
    limits = JoinLimits(lambda who: 3, rate=2)
    page, other = Principal(sub="s1", role=Role.STB), Principal(sub="s2", role=Role.STB)
    for _ in range(3):
        limits.join(page, now_s=10)
        limits.leave(page)
    with pytest.raises(TooMany) as refused:
        limits.join(page, now_s=10.1)
    assert refused.value.retry_after_s == pytest.approx(0.4)
    limits.join(other, now_s=10.1)  # nobody else waits for it
    limits.join(page, now_s=10.5)
    with pytest.raises(TooMany):
        limits.join(page, now_s=10.5)


def test_join_limits_hold_no_more_than_who_is_there() -> None:
    limits = JoinLimits(lambda who: 3, rate=2)
    for number in range(5_000):
        limits.join(Principal(sub=f"s{number}", role=Role.STB), now_s=number / 10)
        if number != 7:
            limits.leave(Principal(sub=f"s{number}", role=Role.STB))
    assert len(limits._joined) <= 1_024 + 600 + 1
    assert limits.joined(Principal(sub="s7", role=Role.STB)) == 1


def test_a_token_of_json_bombs_or_of_megabytes_is_refused_not_decoded() -> None:
    nested = base64.urlsafe_b64encode(b"[" * 1400).rstrip(b"=").decode()
    for text in (f"{nested}.{nested}.x", "a" * 5_000_000, f"{nested}.."):
        with pytest.raises(NotAllowed):
            keyring.verify(text, now_s=NOW)


def test_a_fingerprint_tells_parts_apart_and_needs_the_key() -> None:
    assert keyring.fingerprint("ab", "c") != keyring.fingerprint("a", "bc")
    assert keyring.fingerprint("ab", "c") == keyring.fingerprint("ab", "c")
    assert Keyring(bytes(32)).fingerprint("ab", "c") != keyring.fingerprint("ab", "c")


def test_the_lock_out_is_more_patient_with_an_address_than_with_one_who_guesses() -> None:
    throttle = LoginThrottle(failures=2, lockout_s=60, patience={"address": 3})
    for _ in range(5):
        throttle.failed("address:office", now_s=NOW)
    throttle.check("address:office", now_s=NOW)
    throttle.failed("address:office", now_s=NOW)
    with pytest.raises(TooMany):
        throttle.check("address:office", now_s=NOW)
    throttle.forgive("address:office")
    throttle.check("address:office", now_s=NOW)
