"""RFC 7616 and 2617 examples and the challenges that cameras send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.digest import Authorizer, choose, parse_challenges


def test_rfc_7616_example() -> None:
    """Section 3.9.1, both algorithms."""
    both = parse_challenges(
        [
            'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, '
            'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
            'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"',
            'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=MD5, '
            'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
            'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"',
        ]
    )
    expected = {
        "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
        "MD5": "8ca523f5e9506fed4657c9700eebdbec",
    }
    for challenge in both:
        header = Authorizer(
            challenge,
            username="Mufasa",
            password="Circle of Life",
            cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        ).header("GET", "/dir/index.html")
        assert f'response="{expected[challenge.algorithm]}"' in header
        assert "qop=auth, nc=00000001" in header
    assert choose(both) is both[0]


def test_rfc_2069_without_qop() -> None:
    """RFC 2617 section 3.2.2.1: without qop there is neither nc nor cnonce."""
    (challenge,) = parse_challenges(
        ['Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"']
    )
    header = Authorizer(challenge, username="Mufasa", password="CircleOfLife", cnonce="x").header(
        "GET", "/dir/index.html"
    )
    assert 'response="1949323746fe6a43ef61f9606e7febea"' in header
    assert "cnonce" not in header


@pytest.mark.parametrize(
    ("value", "schemes", "best"),
    [
        ('Digest realm="a", nonce="b", Basic realm="c"', ["digest", "basic"], "digest"),
        ('Basic realm="c", Digest realm="a", nonce="b", stale="TRUE"', ["basic", "digest"], "digest"),
        ('Basic realm="/"', ["basic"], "basic"),
        ('Digest realm="IP Camera(C1234)", nonce="b", algorithm="SHA-512-256"', ["digest"], None),
        ('Digest realm="a"', ["digest"], None),
        ('Digest realm="a", nonce="b", qop="auth-int"', ["digest"], None),
        ("Negotiate", ["negotiate"], None),
        ("", [], None),
        (',,, ="', [], None),
    ],
)
def test_several_challenges_in_one_header(value: str, schemes: list[str], best: str | None) -> None:
    challenges = parse_challenges([value])
    assert [challenge.scheme for challenge in challenges] == schemes
    chosen = choose(challenges)
    assert (chosen.scheme if chosen else None) == best


def test_quotes_are_unescaped_and_escaped_again() -> None:
    (challenge,) = parse_challenges([r'Digest realm="a \"b\" \\ c", nonce="n"'])
    assert challenge.realm == 'a "b" \\ c'
    assert r'realm="a \"b\" \\ c"' in Authorizer(challenge, username="u", password="p", cnonce="x").header(
        "M", "u"
    )


@given(st.lists(st.text(max_size=80), max_size=4))
def test_any_text_is_only_ignored(values: list[str]) -> None:
    choose(parse_challenges(values))
