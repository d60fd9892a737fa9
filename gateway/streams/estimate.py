"""How much a publisher's path carries, by what is lost on it: the loss-based controller of draft-ietf-rmcat-gcc-02 section 6.

Below 2 % of loss the estimate grows by 8 % a report, above 10 % it falls by half of the loss, in between it stays. It never
asks for more than 1.5 times what really comes (and a floor), so that it does not run away while the publisher sends little, nor
less than what sound and a postage stamp of a picture need. A path that delays instead of losing shows as jitter far above
that of its best times, or as a queue that stands, and counts as loss. Pure: one call for each report.
"""

from __future__ import annotations

__all__ = ["PathEstimate"]

LOW_LOSS, HIGH_LOSS = 0.02, 0.10
GROWTH = 1.08
LEAST_BPS = 100_000
HEADROOM, HEADROOM_FLOOR_BPS = 1.5, 300_000
QUEUE_JITTER_S = 0.1
QUEUE_S, QUEUE_SHARE = 0.2, 0.3
"""A queue that never empties delays every retransmission beyond its use: 15 % off what comes (GCC's beta) drains it."""


class PathEstimate:
    """`bps`: what the publisher may send, all tracks together."""

    def __init__(self, most_bps: int) -> None:
        self._most_bps = most_bps
        self.bps = most_bps

    def report(
        self, *, fraction_lost: float, received_bps: float, jitter_s: float, queue_s: float = 0.0
    ) -> int:
        """Of the time since the last report: share lost (0 to 1), media that came, interarrival jitter (RFC 3550), least
        time that packets waited in the path's queue."""
        queued = queue_s > QUEUE_S
        if fraction_lost > HIGH_LOSS or jitter_s > QUEUE_JITTER_S or queued:
            share = max(fraction_lost, QUEUE_SHARE if queued else HIGH_LOSS)
            # Half of the loss off what is allowed; but allowing more than comes through would ask for loss to go on.
            self.bps = int(min(self.bps, max(received_bps, LEAST_BPS)) * (1 - share / 2))
        elif fraction_lost < LOW_LOSS and queue_s <= QUEUE_S / 2:
            limit = max(received_bps * HEADROOM, HEADROOM_FLOOR_BPS, self.bps if received_bps == 0 else 0)
            self.bps = int(min(self.bps * GROWTH, max(limit, self.bps)))
        self.bps = max(LEAST_BPS, min(self._most_bps, self.bps))
        return self.bps
