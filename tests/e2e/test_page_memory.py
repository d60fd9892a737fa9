"""The wall's memory, for seconds; `make memory` does the same for longer. The judge is tested as well: it must be able to fail."""

from __future__ import annotations

import pytest
from page_memory import HEAP_SLACK, Sample, run, verdict
from running_product import Product

pytestmark = pytest.mark.browser


def sample(number: int, heap: int, nodes: int = 4000) -> Sample:
    return Sample(at_s=number, alarms=number, heap=heap, nodes=nodes, listeners=300)


def test_a_page_that_grows_is_found_and_one_that_breathes_is_not() -> None:
    assert "heap" in verdict([sample(n, 20_000_000 + n * HEAP_SLACK) for n in range(4)])
    assert "nodes" in verdict([sample(n, 20_000_000, 4000 + n * 300) for n in range(4)])
    assert verdict([sample(n, 20_000_000 + (n % 2) * 5_000_000) for n in range(4)]) == ""


@pytest.mark.realtime
async def test_the_wall_stays_flat_under_alarms(product: Product) -> None:
    samples = await run(product, seconds=0, pause_s=0, every=8)
    assert verdict(samples) == "", "\n".join(map(str, samples))
