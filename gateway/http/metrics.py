"""Prometheus text of what the parts count. Base units, `gateway_` names, no id of a session or person as a label.

Nothing is counted here: the parts own their counters and this module reads them at each scrape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from gateway import __version__
from gateway.certificates import Certificate
from gateway.http.routes import Edge
from gateway.streams.verdict import Verdict

if TYPE_CHECKING:
    from gateway.http.parts import Parts

__all__ = ["Metrics"]


class Metrics:
    """A collector over the running parts."""

    def __init__(self, parts: Parts, certificates: Sequence[Certificate] = ()) -> None:
        self._parts = parts
        self._certificates = certificates
        self._edge: Edge | None = None
        self._registry = CollectorRegistry()
        ProcessCollector(namespace="gateway", registry=self._registry)
        self._registry.register(self)

    def text(self, edge: Edge) -> bytes:
        self._edge = edge
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing at registration: the parts are not up yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        parts = self._parts
        build = GaugeMetricFamily(
            "gateway_build_info", "Version of the gateway, always 1", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build
        health = parts.health()
        yield _gauge("gateway_ready", "Whether presses and viewers are accepted", float(health.ready))
        yield _gauge("gateway_event_loop_lag_seconds", "How late the event loop is", parts.lag_ms / 1000)
        yield _gauge(
            "gateway_disk_free_bytes", "Left for the data directory", health.parts["disk_free_bytes"]
        )
        yield _gauge(
            "gateway_clock_ahead_seconds",
            "How far our clock is ahead of the machine's since that was set back",
            health.parts["clock_ahead_ms"] / 1000,
        )
        yield _gauge("gateway_tasks", "Tasks of the event loop", len(asyncio.all_tasks()))
        yield self._certificate_ends()
        yield from self._cameras()
        yield from self._pictures()
        yield from self._media()
        yield from self._alarms()
        yield from self._evidence()
        yield from self._rings()
        yield from self._http()

    def _certificate_ends(self) -> Metric:
        family = GaugeMetricFamily(
            "gateway_certificate_not_after_timestamp_seconds",
            "When a certificate of the settings ends, as read at the start",
            labels=["setting"],
        )
        for one in self._certificates:
            family.add_metric([one.setting], one.ends.timestamp())
        return family

    def _cameras(self) -> Iterator[Metric]:
        states = CounterLike("gateway_cameras", "Cameras by state", "state")
        for camera in self._parts.media.states():
            states.add(camera.state)
        yield states.gauge()
        counters = self._parts.media.counters()
        yield _counter("gateway_rtsp_dials_total", "Connections begun to cameras", counters.dials)
        failures = CounterMetricFamily(
            "gateway_rtsp_failures_total", "Pulls that ended, by reason", labels=["reason"]
        )
        for reason, count in counters.failures.items():
            failures.add_metric([reason], count)
        yield failures
        yield _counter(
            "gateway_rtsp_received_bytes_total", "Bytes of media from cameras", counters.received_bytes
        )
        yield _counter("gateway_rtsp_packets_total", "RTP packets from cameras", counters.packets)
        yield _counter(
            "gateway_rtsp_lost_packets_total", "RTP packets missing from cameras", counters.lost_packets
        )
        yield _counter("gateway_rtsp_access_units_total", "Pictures from cameras", counters.access_units)
        yield _counter("gateway_rtsp_keyframes_total", "Keyframes from cameras", counters.keyframes)
        yield _counter(
            "gateway_rtsp_timestamp_jumps_total", "Timelines that were re-anchored", counters.timestamp_jumps
        )

    def _pictures(self) -> Iterator[Metric]:
        media = self._parts.media
        verdicts = CounterLike("gateway_camera_pictures", "Cameras by verdict on their picture", "verdict")
        for verdict in Verdict:
            verdicts.add(verdict, 0)
        for camera in media.states():
            picture = media.picture(camera.camera_id)
            if picture is not None:
                verdicts.add(picture.verdict)
        yield verdicts.gauge()
        counters = media.picture_counters()
        checks = CounterMetricFamily(
            "gateway_picture_checks_total", "Looks at a camera's cached keyframe by result", labels=["result"]
        )
        for result in ("judged", "unchanged", "absent", "undecodable"):
            checks.add_metric([result], getattr(counters, result))
        yield checks
        yield _counter(
            "gateway_picture_late_total", "Looks put off to stay within the CPU share", counters.late
        )
        yield _counter("gateway_picture_cpu_seconds_total", "CPU time spent on pictures", counters.cpu_s)

    def _media(self) -> Iterator[Metric]:
        media = self._parts.media
        counts = media.counts()
        sessions = CounterLike("gateway_media_sessions", "WebRTC sessions by kind", "kind")
        for session in media.sessions():
            sessions.add(session.kind)
        yield sessions.gauge()
        answered = CounterMetricFamily(
            "gateway_media_answers_total", "Offers answered by kind", labels=["kind"]
        )
        for kind, count in counts.answered.items():
            answered.add_metric([str(kind)], count)
        yield answered
        closed = CounterMetricFamily(
            "gateway_media_closed_total", "Sessions ended by reason", labels=["reason"]
        )
        for reason, count in counts.closed.items():
            closed.add_metric([reason], count)
        yield closed
        events = CounterMetricFamily(
            "gateway_media_port_events_total", "What happened at the port", labels=["event"]
        )
        for name, count in counts.port.items():
            events.add_metric([name], count)
        yield events
        yield from self._workers()

    def _workers(self) -> Iterator[Metric]:
        """Only with several worker processes."""
        workers = self._parts.media.workers()
        if not workers:
            return
        families = (
            GaugeMetricFamily("gateway_worker_up", "Whether a media worker serves", labels=["worker"]),
            GaugeMetricFamily(
                "gateway_worker_loop_lag_seconds", "How late its event loop is", labels=["worker"]
            ),
            GaugeMetricFamily("gateway_worker_cameras", "Cameras of a media worker", labels=["worker"]),
            GaugeMetricFamily("gateway_worker_sessions", "Sessions of a media worker", labels=["worker"]),
        )
        restarts = CounterMetricFamily(
            "gateway_worker_restarts_total", "Times a media worker was started again", labels=["worker"]
        )
        for worker in workers:
            label = [str(worker.number)]
            figures = (float(worker.port is not None), worker.lag_ms / 1000, worker.cameras, worker.sessions)
            for family, value in zip(families, figures, strict=True):
                family.add_metric(label, value)
            restarts.add_metric(label, worker.restarts)
        yield from families
        yield restarts

    def _alarms(self) -> Iterator[Metric]:
        parts = self._parts
        store = parts.store.health()
        yield _gauge("gateway_store_writable", "Whether the database takes writes", float(store.writable))
        yield _gauge("gateway_store_waiting_writes", "Writes not yet committed", store.waiting)
        yield _counter("gateway_store_commits_total", "Transactions on disk", store.commits)
        yield _counter("gateway_store_writes_total", "Writes in them", store.writes)
        for name, count in parts.desk.counters.items():
            yield _counter(f"gateway_alarm_{name}_total", f"Alarm path: {name}", count)
        mqtt = parts.devices.client
        if mqtt is not None:
            yield _gauge("gateway_mqtt_up", "Whether the broker is connected", float(mqtt.is_up))
            for name, count in mqtt.counters.items():
                yield _counter(f"gateway_mqtt_{name}_total", f"MQTT messages {name}", count)
        messages = CounterMetricFamily(
            "gateway_webhook_messages_total",
            "Attempts to tell a platform by result",
            labels=["hook", "result"],
        )
        for hook, results in parts.sharing.counters.items():
            for result, count in results.items():
                messages.add_metric([hook, result], count)
        yield messages
        yield _gauge("gateway_event_pages", "Pages on the event channel", parts.events.readers())

    def _evidence(self) -> Iterator[Metric]:
        desk = self._parts.witness.desk
        for name, count in desk.counters.items():
            yield _counter(f"gateway_evidence_{name}_total", f"Recordings {name}", count)
        pruned = CounterMetricFamily(
            "gateway_evidence_pruned_total", "Clips pruned, by reason", labels=["reason"]
        )
        for reason, count in desk.keeping.pruned.items():
            pruned.add_metric([reason], count)
        yield pruned
        yield _gauge("gateway_evidence_recordings", "Recordings that are being written", desk.running)
        yield _gauge("gateway_evidence_free_bytes", "Free disk where evidence lies", desk.keeping.free_octets)
        refused = float(desk.keeping.refusal is not None)
        yield _gauge("gateway_evidence_refused", "Whether nothing is recorded for want of disk", refused)
        held = self._parts.media.preroll_octets()
        yield _gauge("gateway_evidence_preroll_bytes", "Memory that the pre-roll takes", held)

    def _rings(self) -> Iterator[Metric]:
        """How rings came to phones: `event` and `mqtt` by the phone's own word, the others by the provider's."""
        receipts, provider = self._parts.switchboard.receipts, self._parts.provider
        rings = CounterMetricFamily(
            "gateway_ring_receipts_total",
            "Rings that reached a phone or could not",
            labels=["channel", "result"],
        )
        for result, counts in (("delivered", receipts.delivered), ("failed", receipts.failed)):
            for channel, count in counts.items():
                rings.add_metric([channel, result], count)
        yield rings
        spent = CounterMetricFamily(
            "gateway_ring_receipt_seconds_total", "From ring to receipt, summed", labels=["channel"]
        )
        for channel, seconds in receipts.seconds.items():
            spent.add_metric([channel], seconds)
        yield spent
        notices = CounterMetricFamily(
            "gateway_notices_total", "Webhooks to the provider by result", labels=["result"]
        )
        for result, count in provider.counters.items():
            notices.add_metric([result], count)
        yield notices

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "gateway_http_requests_total", "Requests by route and status", labels=["route", "status"]
        )
        if self._edge is not None:
            for (route, status), count in self._edge.counts.items():
                requests.add_metric([route, str(status)], count)
        yield requests


class CounterLike:
    """Counts things by one label and gives them as a gauge family."""

    def __init__(self, name: str, text: str, label: str) -> None:
        self._family = (name, text, label)
        self._counts: dict[str, int] = {}

    def add(self, value: Any, count: int = 1) -> None:
        self._counts[str(value)] = self._counts.get(str(value), 0) + count

    def gauge(self) -> Metric:
        name, text, label = self._family
        family = GaugeMetricFamily(name, text, labels=[label])
        for value, count in self._counts.items():
            family.add_metric([value], count)
        return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
