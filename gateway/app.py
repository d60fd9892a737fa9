"""The composition root: builds every part, wires the packages with callables, and starts them in the order that matters.

Presses first: database, broker and alarm desk are up before the first camera is dialled, and none of them waits for
video. Nothing imports this module but the console script.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import signal
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy import select
from ulid import ULID

from gateway.access import Action, Principal, Resource, Role
from gateway.alarms import announce, records
from gateway.alarms.broker import GATEWAY_USER, Broker, BrokerSettings
from gateway.alarms.casework import CaseDesk
from gateway.alarms.desk import AlarmDesk
from gateway.alarms.dispatch import Duty, WorkerChoice, rank_workers
from gateway.alarms.mqtt import Incoming, MqttClient, MqttSettings
from gateway.alarms.policy import Actor, AlarmSettings
from gateway.alarms.press import sign
from gateway.alarms.roster import Roster, WorkerView, parse_location
from gateway.alarms.statistics import Statistics
from gateway.alarms.tasks import TaskDesk
from gateway.audit import audit
from gateway.catalog import Catalog
from gateway.config import ServeOptions
from gateway.errors import GatewayError, NotFound, ProtocolError, Unavailable
from gateway.geo import Position
from gateway.http.alarms import AlarmsEdge
from gateway.http.calls import CallsEdge
from gateway.http.cases import TASK_REPLIES, CasesEdge
from gateway.http.events import EventChannel
from gateway.http.media import WHEP_SESSIONS, WHIP_SESSIONS, LiveCameras, MediaEdge
from gateway.http.metrics import Metrics
from gateway.http.openapi import openapi_route
from gateway.http.pages import Health, page_routes, security_headers
from gateway.http.people import PeopleEdge, worker_json
from gateway.http.reach import AudienceReach
from gateway.http.routes import Edge, Exchange, Route, same_origin
from gateway.http.session import SessionsEdge
from gateway.identity import Keyring, LoginThrottle, device_password
from gateway.intercom.model import CallSettings
from gateway.intercom.switchboard import AlarmBrief, Audience, Switchboard
from gateway.outbox import Courier
from gateway.settings import MqttMode, Settings
from gateway.store import Store
from gateway.streams.cameras import CameraState, CameraSupervisor, DialLimits, State
from gateway.streams.dtls import Certificate
from gateway.streams.link import MediaPort
from gateway.streams.pictures import Snapshots
from gateway.streams.plane import MediaPlane, PlaneLimits
from gateway.streams.session import SessionKind
from gateway.streams.whep import IceServer, SessionEndpoint

__all__ = ["serve"]

log = logging.getLogger(__name__)

LAG_PROBE_S = 0.5
LAG_LIMIT_MS = 1_000.0
"""Above it /readyz fails: a front door should send viewers elsewhere."""
EVENT_ACTIONS = {
    "alarm": Action.ALARM_LIST,
    "incident": Action.INCIDENT_LIST,
    "task": Action.TASK_LIST,
    "audience": Action.ALARM_LIST,
    "call": Action.CALL_LIST,
    "ring": Action.CALL_LIST,
    "ring_end": Action.CALL_LIST,
}


def serve(options: ServeOptions) -> None:
    """Run the gateway until SIGTERM or SIGINT. Raises GatewayError when it can't start."""
    asyncio.run(_serve(options))


async def _serve(options: ServeOptions) -> None:
    # The database's and the MQTT client's threads make many short calls into C, each of which gives the interpreter lock
    # away; with the default of 5 ms they'd wait that long for the loop to give it back, packet by packet.
    sys.setswitchinterval(0.0002)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    store = await Store.open(
        options.data.path / "gateway.db", busy_deadline_s=_settings(options).storage.busy_s
    )
    try:
        port = await _open_media_port(_settings(options))
        try:
            await Gateway(options, store, port).run(stopping)
        finally:
            await port.close()
    finally:
        await store.close()


async def _open_media_port(settings: Settings) -> MediaPort:
    media = settings.media
    return await MediaPort.open(
        [(address, media.udp_port) for address in media.addresses or (settings.http.host,)],
        certificate=Certificate(),
        announce=[(host, 0) for host in media.announce],
        tcp=media.tcp,
    )


def _settings(options: ServeOptions) -> Settings:
    return options.configuration.settings


def now_ms() -> int:
    """UTC milliseconds of the server's clock."""
    return time.time_ns() // 1_000_000


class Gateway:
    """All parts of one gateway process. Built once, run once."""

    def __init__(self, options: ServeOptions, store: Store, media_port: MediaPort) -> None:
        configuration = options.configuration
        self.options = options
        self.settings = configuration.settings
        self.store = store
        self.catalog = Catalog(configuration.cameras, configuration.district, configuration.secrets)
        self.draining = False
        self._lag_ms = 0.0
        self._tasks: asyncio.TaskGroup | None = None
        self.events = EventChannel(
            epoch=str(ULID()), now_ms=now_ms, lag_ms=lambda: self._lag_ms, presence=self._on_page
        )
        alarms = AlarmSettings.of(self.settings.alarms, self.settings.dispatch)
        self._dispatch = alarms.dispatch
        self.roster = Roster(
            store,
            alarms.dispatch,
            on_change=self._on_worker,
            inside=lambda grid, position: self.catalog.district.locate(position).grid == grid,
        )
        self.broker = self._make_broker()
        self.mqtt: MqttClient | None = None
        self.desk = AlarmDesk(
            store,
            self.catalog.world,
            alarms,
            roster=self.roster,
            camera_health=self._camera_healthy,
            publish_mqtt=self._publish_mqtt,
            publish_event=self._publish_alarm_event,
            ring=self._ring_plan,
            reach=AudienceReach(self.events, lambda: self.catalog, alarms.volunteer_radius_m, now_ms).tell,
            clock=now_ms,
        )
        self.cases = CaseDesk(
            store,
            clock=now_ms,
            new_id=lambda at: str(ULID.from_timestamp(at / 1000)),
            name_of=self._helper_name,
            action_ms=alarms.action_ms,
            task_offer_ms=alarms.task_offer_ms,
        )
        self.tasks = TaskDesk(
            store, photos=options.data.path / "photos", move_incident=self.cases.move_if_legal, clock=now_ms
        )
        self.switchboard = Switchboard(
            store,
            CallSettings(**asdict(self.settings.calls)),
            rank=self._rank_for_call,
            pick=self._pick_for_call,
            ring=self._ring_phone,
            publish_event=self._publish_call_event,
            close_media=self._close_media,
            on_accepted=self._on_accepted,
            on_no_answer=self._on_no_answer,
            on_opened=self.desk.on_call,
            on_missed=self._on_missed,
            clock=now_ms,
        )
        self.calls_courier = Courier(store, self.switchboard.deliveries())
        self.media_port = media_port
        self.plane = MediaPlane(
            media_port,
            acquire=lambda camera_id, name: self.supervisor.acquire(camera_id, name),
            release=lambda camera_id, name: self.supervisor.release(camera_id, name),
            on_source_change=self.switchboard.media_changed,
            on_session_closed=self._on_session_closed,
            limits=PlaneLimits(sessions=self.settings.media.sessions),
        )
        self.supervisor = CameraSupervisor(
            configuration.cameras,
            {name: (c.username, c.password) for name, c in configuration.secrets.credentials.items()},
            self.plane.sink_of,
            limits=_dial_limits(self.settings),
            on_state=self._on_camera,
        )
        self.cameras = LiveCameras(
            catalog=lambda: self.catalog,
            state=self.supervisor.state,
            watchers=self.plane.watchers,
            jpeg=Snapshots(self.plane.keyframe).jpeg,
        )
        self.sessions = SessionsEdge(
            Keyring(options.data.secret("signing.key"), leeway_s=self.settings.access.leeway_s),
            store,
            lambda: self.catalog,
            LoginThrottle(
                failures=self.settings.access.login_failures, lockout_s=self.settings.access.login_lockout_s
            ),
            now_s=time.time,
            session_s=self.settings.access.session_s,
            secure=bool(self.settings.http.tls_cert),
            revoked=self._on_revoked,
        )
        self.media_edge: MediaEdge | None = None

    @property
    def lag_ms(self) -> float:
        """How late the event loop is, in milliseconds."""
        return self._lag_ms

    # -- running ------------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Start in the order that matters, say so, and wait for `stopping`."""
        await self.sessions.load()
        await self.roster.load(self.catalog.world.workers())
        if self.broker is not None:
            await self.broker.start()
        runner = await self._open_http()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                running = [
                    tasks.create_task(self._watch_lag(), name="loop-lag"),
                    tasks.create_task(self.desk.run(), name="alarm-desk"),
                    tasks.create_task(self.cases.run(), name="incidents"),
                    tasks.create_task(self.tasks.run(), name="tasks"),
                    tasks.create_task(self._run_calls(), name="switchboard"),
                    tasks.create_task(self.plane.run(), name="media-plane"),
                ]
                if self.broker is not None:
                    running.append(tasks.create_task(self.broker.run(), name="broker"))
                if self.settings.mqtt.mode is not MqttMode.OFF:
                    self.mqtt = self._make_mqtt()
                    running.append(tasks.create_task(self.mqtt.run(), name="mqtt"))
                    running.append(tasks.create_task(self._beat(), name="mqtt-health"))
                running.append(tasks.create_task(self.supervisor.run(), name="cameras"))
                gc.collect()
                gc.freeze()  # what lives as long as the process is never looked at again: shorter pauses
                log.info("ready at %s", self.base_url)
                await stopping.wait()
                log.info("stopping")
                self.draining = True
                self.events.revoke(lambda _: True, "restart")
                for task in reversed(running):
                    task.cancel()
        finally:
            self._tasks = None
            await runner.cleanup()
            if self.broker is not None:
                await self.broker.stop()

    async def _run_calls(self) -> None:
        await self.switchboard.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.switchboard.run(), name="calls")
            tasks.create_task(self.calls_courier.run(), name="calls-outbox")

    async def _watch_lag(self) -> None:
        """How late the loop wakes us: the one number that tells whether it is blocked."""
        while True:
            due = time.monotonic() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            self._lag_ms = max(0.0, (time.monotonic() - due) * 1000)

    async def _beat(self) -> None:
        """`gw/health`, every ten seconds and at each change of the database's health."""
        while True:
            if self.mqtt is not None and self.mqtt.is_up:
                try:
                    await self.mqtt.publish_health(
                        db=self.store.health().writable, lag_ms=round(self._lag_ms)
                    )
                except Unavailable as error:
                    log.debug("health is not published: %s", error)
            await asyncio.sleep(10)

    def _background(self, work: Any, name: str) -> None:
        """Work that nobody waits for, owned by the gateway. Its failure is logged, never silent."""
        if self._tasks is None:
            work.close()
            return

        async def guarded() -> None:
            try:
                await work
            except GatewayError as error:
                log.error("%s failed: %s", name, error)

        self._tasks.create_task(guarded(), name=name)

    # -- parts --------------------------------------------------------------------------------------------------

    def _make_broker(self) -> Broker | None:
        mqtt = self.settings.mqtt
        if mqtt.mode is not MqttMode.SUPERVISED:
            return None
        secrets = self.catalog.secrets
        devices: Mapping[str, bytes] = {**secrets.boxes, **secrets.workers}
        return Broker(
            self.options.data.path / "broker",
            BrokerSettings(host=mqtt.host, port=mqtt.port, root=mqtt.root),
            passwords={device: device_password(key, device) for device, key in devices.items()},
            gateway_password=self.options.data.secret("broker.key").hex(),
            on_denied=self._on_denied,
        )

    def _make_mqtt(self) -> MqttClient:
        mqtt = self.settings.mqtt
        if self.broker is not None:
            settings = MqttSettings(
                host=self.broker.host,
                port=self.broker.port,
                username=GATEWAY_USER,
                password=self.options.data.secret("broker.key").hex(),
                client_id=GATEWAY_USER,
                root=mqtt.root,
            )
        else:
            host, port, tls = _broker_url(mqtt.url, mqtt.tls_ca)
            credential = self.catalog.secrets.credentials.get(mqtt.credentials)
            settings = MqttSettings(
                host=host,
                port=port,
                username=credential.username if credential else "",
                password=credential.password if credential else "",
                root=mqtt.root,
                tls=tls,
            )
        return MqttClient(
            settings,
            {
                "stb/+/press": self._on_press,
                "stb/+/cancel": self._on_cancel,
                "stb/+/presence": self._on_presence,
                "w/+/loc": self._on_location,
                "w/+/duty": self._on_duty,
                "w/+/reply": self._on_reply,
            },
        )

    async def _open_http(self) -> web.AppRunner:
        http = self.settings.http
        edge = Edge(
            authenticate=self.sessions.authenticate,
            security_headers=security_headers(tls=bool(http.tls_cert)),
        )
        alarms = AlarmsEdge(
            self.desk,
            self.cases,
            full_lineage=self.catalog.full_lineage,
            locate=lambda position: self.catalog.district.locate(position).lineage,
            participants=self._alarm_participants,
            helpers=self.tasks.helpers,
            duties=self.settings.alarms.duties,
        )
        cases = CasesEdge(
            self.cases,
            self.tasks,
            Statistics(self.store, clock=now_ms),
            full_lineage=self.catalog.full_lineage,
            names=self._display_name,
            duties=self.settings.alarms.duties,
            verify_box=self._verify_box,
        )
        calls = CallsEdge(self.switchboard, brief_of=self._brief_of, whereabouts=self._whereabouts)
        whep = SessionEndpoint(
            self.plane,
            SessionKind.WATCH,
            session_path=lambda session_id: f"{WHEP_SESSIONS}/{session_id}",
            ice_servers=self._ice_servers,
        )
        whip = SessionEndpoint(
            self.plane,
            SessionKind.PUBLISH,
            session_path=lambda session_id: f"{WHIP_SESSIONS}/{session_id}",
            ice_servers=self._ice_servers,
        )
        self.media_edge = MediaEdge(
            cameras=self.cameras,
            whep=whep,
            whip=whip,
            ice_servers=self._ice_servers,
            join_limit=self._join_limit,
            viewed=self._viewed,
            own_leg=self.switchboard.own_leg,
            watchable_leg=self.switchboard.watchable_leg,
            call_resource=calls.resource,
            leg_resource=calls.leg_resource,
            draining=lambda: self.draining,
        )
        people = PeopleEdge(
            lambda: self.catalog,
            self.roster,
            rank=lambda position, limit: self.desk.workers_at(position, limit=limit),
            duty_changed=self._duty_changed,
            last_ack=self._last_ack,
            now_ms=now_ms,
            mqtt_on=self.settings.mqtt.mode is not MqttMode.OFF,
        )
        metrics = Metrics(self)
        for routes in (self.sessions, alarms, cases, calls, self.media_edge, people):
            edge.add(routes.routes())
        edge.add(
            page_routes(
                health=self.health,
                metrics=lambda: metrics.text(edge),
                broker_address=self._broker_address,
                ca_certificate=Path(http.tls_ca) if http.tls_ca else None,
            )
        )
        edge.add([self._events_route(), openapi_route(lambda: edge.routes)])
        runner = web.AppRunner(
            edge.app, access_log=None, handle_signals=False, shutdown_timeout=http.shutdown_s
        )
        await runner.setup()
        tls = None
        if http.tls_cert:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(http.tls_cert, http.tls_key)
        try:
            await web.TCPSite(runner, http.host, http.port, ssl_context=tls, reuse_address=True).start()
        except OSError as error:
            await runner.cleanup()
            raise GatewayError(
                f"HTTP port {http.port} on {http.host} can't be used: {error.strerror}"
            ) from None
        port = runner.addresses[0][1]
        self.base_url = f"{'https' if tls else 'http'}://{http.host}:{port}"
        return runner

    def _events_route(self) -> Route:
        async def events(exchange: Exchange) -> web.StreamResponse:
            if not same_origin(exchange.request):
                raise ProtocolError("this WebSocket is for pages of this server")
            return await self.events.serve(exchange.request, exchange.who)

        return Route(
            method="GET", path="/api/v1/events", action=Action.EVENTS_OPEN, handler=events,
            resource=lambda _: Resource(kind="events", id="channel"), summary="The event channel (WebSocket)",
        )  # fmt: skip

    # -- health -------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """`ready` ignores cameras: a gateway without video still takes presses."""
        store = self.store.health()
        reasons = []
        if self.draining:
            reasons.append("draining")
        if not store.writable:
            reasons.append(f"database: {store.reason}")
        if self._lag_ms > LAG_LIMIT_MS:
            reasons.append(f"the loop is {self._lag_ms:.0f} ms late")
        mqtt_up = self.mqtt is not None and self.mqtt.is_up
        if not mqtt_up:
            off = self.settings.mqtt.mode is MqttMode.OFF
            reasons.append("mqtt is off: presses by HTTP only" if off else "no connection to the broker")
        states = [state.state for state in self.supervisor.states()]
        return Health(
            ready=not reasons or (reasons == ["mqtt is off: presses by HTTP only"]),
            reasons=tuple(reasons),
            parts={
                "db": store.writable,
                "mqtt": mqtt_up,
                "lag_ms": round(self._lag_ms, 1),
                "cameras": {state.value: states.count(state) for state in State},
                "sessions": len(self.plane),
            },
        )

    def _broker_address(self) -> tuple[str, int] | None:
        if self.broker is not None:
            return self.broker.host, self.broker.port
        if self.settings.mqtt.mode is MqttMode.EXTERNAL:
            host, port, tls = _broker_url(self.settings.mqtt.url, self.settings.mqtt.tls_ca)
            return None if tls else (host, port)
        return None

    # -- devices over MQTT --------------------------------------------------------------------------------------

    async def _publish_mqtt(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if self.mqtt is None:
            if self.settings.mqtt.mode is MqttMode.OFF:
                return  # nobody could be listening; the box polls its HTTP answer
            raise Unavailable("no connection to the broker yet", retry_after_s=1)
        await self.mqtt.publish(topic, payload, qos, retain)

    async def _on_press(self, message: Incoming) -> None:
        await self.desk.press(message.payload, "mqtt", message.device)

    async def _on_cancel(self, message: Incoming) -> None:
        ack = await self.desk.cancel(message.payload, "mqtt", message.device)
        if ack.get("stage") == announce.Stage.CANCELLED and ack.get("alarm"):
            await self.switchboard.cancel_alarm(str(ack["alarm"]))

    async def _on_presence(self, message: Incoming) -> None:
        """A box's presence is retained at the broker; the gateway needs only that the topic is allowed."""

    async def _on_location(self, message: Incoming) -> None:
        self.roster.locate(message.device, parse_location(message.payload), now_ms=now_ms())

    async def _on_duty(self, message: Incoming) -> None:
        said = _decode(message.payload)
        try:
            duty = Duty(str(said.get("duty")))
        except ValueError:
            raise ProtocolError(f"duty must be one of {', '.join(Duty)}", device=message.device) from None
        await self.roster.set_duty(message.device, duty, now_ms=now_ms())
        await self._duty_changed(message.device, duty)

    async def _on_reply(self, message: Incoming) -> None:
        said = _decode(message.payload)
        task_id, act = said.get("task"), TASK_REPLIES.get(str(said.get("act")))
        if not isinstance(task_id, str):
            await self.switchboard.reply(message.device, said)
        elif act is not None and (await self.tasks.scope(task_id))[1] == message.device:
            name = self._helper_name(message.device) or message.device
            by = Actor(sub=message.device, name=name, role=Role.WORKER)
            await self.tasks.act(task_id, act, by, feedback=str(said.get("note") or "")[:2000])

    def _on_denied(self, client: str, topic: str) -> None:
        """A device wrote where it may not (product.md section 6 row 5)."""
        log.warning("broker refused %s on %s", client, topic)
        self._background(self.desk.on_denied(client, topic), "audit-denied")

    # -- alarms and calls ---------------------------------------------------------------------------------------

    async def _publish_alarm_event(self, type: str, data: dict[str, Any], lineage: tuple[str, ...]) -> None:
        assignee = data.get("assignee")
        resource = Resource(
            kind=type,
            id=str(data.get("id")),
            lineage=self.catalog.full_lineage(lineage),
            owner=assignee["id"] if assignee else None,
        )
        self.events.publish(type, data, action=EVENT_ACTIONS[type], resource=resource)

    def _helper_name(self, sub: str) -> str | None:
        """Name of a gridworker or volunteer."""
        district = self.catalog.district
        known = district.gridworkers.get(sub) or district.volunteers.get(sub)
        return None if known is None else known.name

    def _display_name(self, code: str) -> str:
        """Of an area or a helper, for the figures."""
        area = self.catalog.district.areas.get(code)
        return area.name if area else self._helper_name(code) or code

    def _verify_box(self, sid: str, text: str, signature: str) -> bool:
        key = self.catalog.world.box_key(sid)
        return key is not None and hmac.compare_digest(sign(key, text).encode(), signature.encode())

    async def _publish_call_event(self, type: str, data: dict[str, Any], audience: Audience) -> None:
        resource = Resource(
            kind="call",
            id=str(data.get("id") or data.get("call_id")),
            lineage=self.catalog.full_lineage(audience.lineage),
            participants=frozenset(audience.participants) | ({audience.only} if audience.only else set()),
        )
        to = None if audience.only is None else [audience.only]
        self.events.publish(type, data, action=EVENT_ACTIONS[type], resource=resource, to=to)

    async def _ring_plan(self, payload: dict[str, Any]) -> None:
        """The commit of an alarm opens its call and rings by itself."""
        lineage = self.catalog.full_lineage(tuple(payload["lineage"]))
        await self.switchboard.open_for_alarm(AlarmBrief.from_payload({**payload, "lineage": lineage}))

    def _rank_for_call(
        self, position: tuple[float, float] | None, grid: str | None, exclude: frozenset[str]
    ) -> list[WorkerChoice]:
        where = _position(position) or (self.catalog.district.centroid(grid) if grid else None)
        if where is None:
            return []
        return rank_workers(
            self._dispatch,
            self.roster.states(),
            where,
            grid=grid or self.catalog.world.area_at(where).grid,
            now_ms=now_ms(),
            exclude=exclude,
            busy_too=True,
            limit=50,
        )

    def _pick_for_call(self, worker_id: str, position: tuple[float, float] | None) -> WorkerChoice | None:
        site = next((w for w in self.catalog.world.workers() if w.id == worker_id), None)
        if site is None:
            return None
        where = _position(position) or site.centroid
        if where is None:
            return None
        chosen = [state for state in self.roster.states() if state.id == worker_id]
        ranked = rank_workers(
            self._dispatch, chosen, where, grid=site.grid, now_ms=now_ms(), busy_too=True, limit=1
        )
        return ranked[0] if ranked else None

    async def _ring_phone(self, worker_id: str, message: dict[str, Any]) -> None:
        topic = f"{self.settings.mqtt.root}/w/{worker_id}/call"
        await self._publish_mqtt(topic, msgspec.json.encode(message), 1, False)

    async def _on_accepted(self, alarm_id: str, worker_id: str, name: str, eta_s: float | None) -> None:
        worker = Actor(sub=worker_id, name=name, role=Role.WORKER)
        await self.desk.on_dispatch_accepted(alarm_id, worker, round(eta_s or 0))

    async def _on_no_answer(self, alarm_id: str, reason: str) -> None:
        """That nobody comes is told to the desk at once; the alarm's own escalation goes on beside it."""
        await self.desk.on_no_answer(alarm_id, reason)

    async def _on_missed(self, call_id: str, worker_id: str | None, alarm_id: str | None) -> None:
        log.info("call %s was missed by %s", call_id, worker_id or "the desk", extra={"alarm_id": alarm_id})

    async def _alarm_row(self, alarm_id: str) -> records.Row:
        return await self.store.read(lambda connection: records.load(connection, alarm_id))

    async def _alarm_participants(self, alarm_id: str) -> frozenset[str]:
        """Who may see the household card: the acknowledging operator and the claiming gridworker, until it closes."""
        row = await self._alarm_row(alarm_id)
        if row["closed_at"] is not None:
            return frozenset()
        return frozenset(sub for sub in (row["acknowledged_sub"], row["worker_id"]) if sub)

    async def _brief_of(self, alarm_id: str) -> AlarmBrief:
        row = await self._alarm_row(alarm_id)
        position = records.position_of(row)
        return AlarmBrief(
            alarm_id=alarm_id,
            place_label=row["place_label"],
            position=None if position is None else (position.lat, position.lon),
            lineage=self.catalog.full_lineage(records.lineage_of(row)),
            grid=row["grid"],
            incident_id=row["incident_id"],
        )

    async def _last_ack(self, sid: str) -> dict[str, Any] | None:
        table = records.alarm_table
        query = (
            select(table)
            .where(table.c.source == f"stb/{sid}", table.c.closed_at.is_(None), table.c.verified.is_(True))
            .order_by(table.c.received_at.desc())
            .limit(1)
        )
        row = await self.store.read(lambda connection: connection.execute(query).mappings().first())
        if row is None:
            return None
        stage = announce.stage_of(dict(row))
        return {
            "pid": row["press_id"], "alarm": row["id"], "stage": stage, "message": announce.words(stage, dict(row)),
            "silent": bool(row["silent"]),
        }  # fmt: skip

    def _whereabouts(self, worker_id: str) -> tuple[tuple[str, ...], tuple[float, float] | None, str]:
        worker = self.catalog.district.gridworkers.get(worker_id)
        if worker is None:
            raise NotFound(f"no gridworker {worker_id!r}")
        position = self.roster.view(worker_id, now_ms()).position
        grid = self.catalog.district.areas.get(worker.grid or "")
        label = grid.name if grid else worker.name
        return (
            self.catalog.district.lineage(worker.grid),
            None if position is None else (position.lat, position.lon),
            label,
        )

    async def _duty_changed(self, worker_id: str, duty: Duty) -> None:
        if duty is Duty.OFF:
            await self.switchboard.worker_off_duty(worker_id)

    def _on_worker(self, view: WorkerView) -> None:
        self.events.publish(
            "worker",
            worker_json(view),
            action=Action.WORKER_LIST,
            resource=self.catalog.worker_resource(view.id),
            keep=False,
        )

    def _on_page(self, principal: Principal, connected: bool) -> None:
        if principal.role is Role.WORKER:
            self.roster.set_online(principal.sub, connected, now_ms=now_ms())

    # -- video --------------------------------------------------------------------------------------------------

    def _camera_healthy(self, camera_id: str) -> bool:
        try:
            return self.supervisor.state(camera_id).state is not State.DOWN
        except NotFound:
            return False

    def _on_camera(self, state: CameraState) -> None:
        self.events.publish(
            "camera",
            self.cameras.view(state.camera_id),
            action=Action.CAMERA_LIST,
            resource=self.catalog.resource(state.camera_id),
            keep=False,
        )

    def _on_session_closed(self, session_id: str, reason: str) -> None:
        if self.media_edge is not None:
            self.media_edge.session_closed(session_id)

    def _close_media(self, owner: str) -> None:
        self.plane.close_owned_by(owner, reason="call_ended")

    def _on_revoked(self, concerned: Callable[[Principal], bool], reason: str) -> None:
        self.events.revoke(concerned, reason)
        if self.media_edge is not None:
            for session_id in self.media_edge.sessions_where(concerned):
                self.plane.close(session_id, reason="revoked")

    async def _viewed(self, principal: Principal, camera_id: str) -> None:
        """Every view of a camera is on record. The viewer does not wait for the disk."""
        at = now_ms()
        self._background(
            self.store.write(
                lambda connection: audit(
                    connection,
                    who=f"{principal.role}/{principal.sub}",
                    action="camera.view",
                    subject=f"camera/{camera_id}",
                    detail={},
                    now_ms=at,
                )
            ),
            "audit-view",
        )

    def _join_limit(self, principal: Principal) -> int:
        access = self.settings.access
        match principal.role:
            case Role.STB:
                return access.joins_stb
            case Role.WORKER:
                return access.joins_worker
            case Role.OPERATOR | Role.DESK | Role.LEADER:
                return access.joins_staff
        return 0

    def _ice_servers(self, owner: str) -> list[IceServer]:
        """`owner` asks; the servers' credentials are by name from secrets.yaml."""
        servers = []
        for server in self.settings.media.ice_servers:
            credential = self.catalog.secrets.credentials.get(server.credentials)
            servers += [
                IceServer(
                    url=url,
                    username=credential.username if credential else None,
                    credential=credential.password if credential else None,
                )
                for url in server.urls
            ]
        return servers


def _decode(payload: bytes) -> dict[str, Any]:
    """A small JSON object from a device. Raises ProtocolError."""
    try:
        said = msgspec.json.decode(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError("malformed", detail=str(error)[:200]) from None
    if not isinstance(said, dict):
        raise ProtocolError("malformed", detail="an object is expected")
    return said


def _position(pair: tuple[float, float] | None) -> Position | None:
    return None if pair is None else Position(lat=pair[0], lon=pair[1])


def _broker_url(url: str, ca: str) -> tuple[str, int, ssl.SSLContext | None]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    tls = ssl.create_default_context(cafile=ca or None) if parts.scheme == "mqtts" else None
    return parts.hostname or "127.0.0.1", parts.port or (8883 if tls else 1883), tls


def _dial_limits(settings: Settings) -> DialLimits:
    ingest = settings.ingest
    return DialLimits(
        dials=ingest.dial_limit,
        connections_per_host=ingest.host_connections,
        backoff_first_s=ingest.backoff_first_s,
        backoff_most_s=ingest.backoff_max_s,
        connect_timeout_s=ingest.connect_timeout_s,
        data_timeout_s=ingest.stall_timeout_s,
        grace_s=ingest.idle_grace_s,
        first_keyframe_timeout_s=ingest.first_keyframe_s,
    )
