"""What pages keep and load: layouts by user, volunteers by area, photos of reports, a base map that the policy allows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from running_gateway import Bench, running_gateway

from gateway.http.pages import security_headers

JPEG = b"\xff\xd8\xff\xe0" + b"picture" * 10


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with running_gateway(tmp_path_factory.mktemp("pages")) as running:
        await running.fill()
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE = {"name": "校门", "layout": 4, "tiles": ["a1-none", None, None, "b1-none"]}
TOUR = {"name": "早", "stops": ["校门"], "dwell_s": 15}


async def test_layouts_belong_to_the_user_and_survive_the_session(bench: Bench) -> None:
    ann, other = bench.bearer("operator", "ann"), bench.bearer("operator", "bob")
    path = "/api/v1/me/layouts"
    assert await bench.call("GET", path, ann) == (200, {"layouts": [], "tours": []})
    kept = {"layouts": [ONE], "tours": [TOUR]}
    assert await bench.call("PUT", path, ann, json=kept) == (200, kept)
    assert await bench.call("GET", path, bench.bearer("operator", "ann")) == (200, kept)
    assert await bench.call("GET", path, other) == (200, {"layouts": [], "tours": []})
    assert (await bench.call("PUT", path, ann, json={}))[0] == 200
    assert await bench.call("GET", path, ann) == (200, {"layouts": [], "tours": []})


@pytest.mark.parametrize(
    "wrong",
    [
        {"layouts": [{**ONE, "layout": 5}]},
        {"layouts": [ONE, ONE]},
        {"layouts": [{**ONE, "tiles": [None] * 26}]},
        {"layouts": [ONE], "tours": [{**TOUR, "stops": ["没有"]}]},
        {"layouts": [ONE], "tours": [{**TOUR, "dwell_s": 1}]},
        {"layouts": [{**ONE, "more": 1}]},
    ],
    ids=["size", "twins", "tiles", "stop", "dwell", "unknown"],
)
async def test_a_wrong_layout_changes_nothing(bench: Bench, wrong: dict[str, object]) -> None:
    who, path = bench.bearer("operator", "carl"), "/api/v1/me/layouts"
    await bench.call("PUT", path, who, json={"layouts": [ONE]})
    assert (await bench.call("PUT", path, who, json=wrong))[0] == 400
    assert (await bench.call("GET", path, who))[1]["layouts"] == [ONE]


async def test_a_reporter_adds_photos_and_others_of_the_street_see_them(bench: Bench) -> None:
    worker = bench.bearer("worker", "wa")
    _, made = await bench.call(
        "POST",
        "/api/v1/incidents",
        worker,
        json={"type": "公共设施", "lat": 30.81, "lon": 103.81, "datum": "wgs84"},
    )
    path = f"/api/v1/incidents/{made['id']}/photos"
    for _ in range(2):  # the same photo again, as after a lost answer
        async with bench.client.post(
            path, data=JPEG, headers={**worker, "Content-Type": "image/jpeg"}
        ) as answer:
            assert answer.status == 201, await answer.text()
            photo = await answer.json()
    desk = bench.bearer("operator", "op")
    _, found = await bench.call("GET", path, desk)
    assert [p["sha256"] for p in found["photos"]] == [photo["sha256"]]
    async with bench.client.get(f"{path}/{photo['sha256']}", headers=desk) as answer:
        assert (await answer.read(), answer.content_type) == (JPEG, "image/jpeg")
    other = bench.bearer("worker", "wb")
    async with bench.client.post(path, data=JPEG, headers={**other, "Content-Type": "image/jpeg"}) as answer:
        assert answer.status == 403
    async with bench.client.post(
        path, data=b"no photo", headers={**worker, "Content-Type": "image/jpeg"}
    ) as answer:
        assert answer.status == 400


async def test_the_district_names_its_base_map(bench: Bench) -> None:
    _, district = await bench.call("GET", "/api/v1/district", bench.bearer("operator", "op"))
    assert district["map"] == {"tile_urls": [], "datum": "wgs84"}


async def test_the_policy_opens_exactly_the_hosts_of_the_tiles() -> None:
    urls = tuple(f"https://t{n}.example.org/{{z}}/{{x}}/{{y}}?tk=key" for n in (0, 1))
    policy = security_headers(tls=True, tile_urls=urls)["Content-Security-Policy"]
    assert "connect-src 'self' https://t0.example.org https://t1.example.org;" in policy
    assert "tk=key" not in policy
    assert "example" not in security_headers(tls=True)["Content-Security-Policy"]


async def test_hls_counts_its_viewers_and_says_what_is_wrong(bench: Bench) -> None:
    operator = bench.bearer("operator", "op")
    status, said = await bench.call("GET", "/hls/a1-none/index.m3u8?format=avi", operator)
    assert (status, said["detail"]) == (400, "stream must be main or sub, format ts or mp4")
    assert (await bench.call("GET", "/hls/a1-none/etc.passwd", operator))[0] == 404
    assert (await bench.call("GET", "/hls/nobody/index.m3u8", operator))[0] == 404
    status, said = await bench.call("GET", "/hls/a1-none/index.m3u8", bench.bearer("stb", "box-b1"))
    assert status == 403


async def test_the_service_worker_holds_no_answer_of_the_api() -> None:
    built = (Path(__file__).parents[2] / "gateway/web/src/sw.js").read_text()
    assert "/api" not in built.replace("an answer of the API", "")
