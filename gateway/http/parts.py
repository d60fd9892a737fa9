"""What the metrics read of the running gateway; the composition root has these."""

from __future__ import annotations

from typing import Protocol

from gateway.alarms.desk import AlarmDesk
from gateway.devices import Devices
from gateway.http.events import EventChannel
from gateway.http.pages import Health
from gateway.intercom.switchboard import Switchboard
from gateway.notify import Provider
from gateway.sharing import Sharing
from gateway.store import Store
from gateway.streams.media_service import MediaService
from gateway.witness import Witness

__all__ = ["Parts"]


class Parts(Protocol):
    """None where a part is not up yet or is off."""

    store: Store
    desk: AlarmDesk
    events: EventChannel
    devices: Devices
    media: MediaService
    sharing: Sharing
    witness: Witness
    switchboard: Switchboard
    provider: Provider

    @property
    def lag_ms(self) -> float: ...

    def health(self) -> Health: ...
