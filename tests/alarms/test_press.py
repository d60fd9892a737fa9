"""gateway.alarms.press: golden message, signature, refusals; nothing but ProtocolError for anything else."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from conftest import KEY, press_body
from hypothesis import given
from hypothesis import strategies as st

from gateway.alarms.press import (
    Kind,
    Press,
    mqtt_password,
    parse_cancel,
    parse_correction,
    parse_press,
    sign,
    signed_text,
    verify,
)
from gateway.errors import ProtocolError

GOLDEN = (
    b'{"v":1,"sid":"510117-0001","pid":"a1","seq":7,"ts":1790000000000,"kind":"theft","cam":"cam001","silent":true,'
    b'"sig":"00ff","new_field":[1]}'
)


def test_golden_press() -> None:
    assert parse_press(GOLDEN) == Press(
        v=1,
        sid="510117-0001",
        pid="a1",
        seq=7,
        ts=1790000000000,
        kind=Kind.THEFT,
        cam="cam001",
        silent=True,
        sig="00ff",
    )


def test_signed_texts_of_the_contract() -> None:
    assert signed_text(parse_press(GOLDEN)) == "press|510117-0001|a1|7|1790000000000|theft|cam001|1"
    plain = parse_press(press_body(silent=0))
    assert signed_text(plain) == "press|b0|p1|1|1790000000000|help||0"
    cancel = parse_cancel(b'{"sid":"s","pid":"p","ts":5,"sig":"x"}')
    assert signed_text(cancel) == "cancel|s|p|5"
    correction = parse_correction(b'{"sid":"s","pid":"p","place":"household","ts":5,"sig":"x"}')
    assert signed_text(correction) == "place|s|p|household|5"


def test_verification() -> None:
    press = parse_press(press_body(cam="c1", silent=True))
    assert verify(KEY, press)
    assert not verify(b"other", press)
    assert not verify(KEY, replace(press, pid="p2"))
    assert not verify(KEY, replace(press, sig=press.sig.upper()))
    assert not verify(KEY, replace(press, sig="é"))
    assert sign(KEY, "x") == hmac.new(KEY, b"x", hashlib.sha256).hexdigest()
    assert mqtt_password(KEY, "b0") == hmac.new(KEY, b"mqtt|b0", hashlib.sha256).hexdigest()


def test_sid_comes_from_the_topic_and_must_not_be_contradicted() -> None:
    body = json.loads(press_body())
    del body["sid"]
    assert parse_press(json.dumps(body).encode(), sid="b0").sid == "b0"
    with pytest.raises(ProtocolError, match="malformed"):
        parse_press(json.dumps(body).encode())
    with pytest.raises(ProtocolError, match="wrong_sid"):
        parse_press(press_body(sid="b1"), sid="b0")


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"pid": ""},
        {"pid": "x" * 65},
        {"pid": "a|b"},
        {"pid": "a\n"},
        {"sid": "a/b"},
        {"seq": -1},
        {"seq": 1.5},
        {"seq": True},
        {"ts": 2**60},
        {"ts": "5"},
        {"kind": "party"},
        {"cam": "a|b"},
        {"silent": 2},
        {"sig": ""},
        {"sig": "x" * 200},
        {"pad": "x" * 1024},
    ],
)
def test_refused_fields(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        parse_press(json.dumps({**json.loads(press_body()), **change}).encode())


@given(st.binary(max_size=200) | st.integers(0, len(GOLDEN)).map(lambda n: GOLDEN[:n]))
def test_anything_else_is_a_protocol_error(raw: bytes) -> None:
    if raw == GOLDEN:
        return
    with pytest.raises(ProtocolError):
        parse_press(raw)


@given(st.integers(0, len(GOLDEN) * 8 - 1))
def test_a_flipped_bit_is_a_protocol_error_or_breaks_the_signature(bit: int) -> None:
    raw = bytearray(press_body(cam="c1"))
    bit %= len(raw) * 8
    raw[bit // 8] ^= 1 << bit % 8
    try:
        press = parse_press(bytes(raw))
    except ProtocolError:
        return
    # What still verifies says the same: the flip hit a name of an optional field or white space.
    assert not verify(KEY, press) or signed_text(press) == signed_text(parse_press(press_body(cam="c1")))
