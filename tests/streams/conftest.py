"""Both ways to send: `send_loop` runs a test with the compiled loop and as if it had never been built."""

from __future__ import annotations

import pytest

from gateway.streams import compiled


@pytest.fixture(params=["compiled", "python"])
def send_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(compiled, "_fan", None)
    elif not compiled.available():
        pytest.skip("the compiled loop was not built here")
    return request.param
