"""The composition root: builds every part, wires the packages with callables, and starts them in the order that matters.

Presses first: database, broker and alarm desk are up before the first camera is dialled, and none of them waits for
video. Nothing imports this module but the console script.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web
from ulid import ULID

from gateway.access import Action, Principal, Resource, Role
from gateway.alarms.casework import CaseDesk
from gateway.alarms.desk import AlarmDesk
from gateway.alarms.dispatch import Duty
from gateway.alarms.policy import Actor, AlarmSettings
from gateway.alarms.roster import Roster, WorkerView
from gateway.alarms.statistics import Statistics
from gateway.alarms.tasks import TaskDesk
from gateway.audit import audit
from gateway.box_calls import BoxCalls
from gateway.callout import Callout
from gateway.catalog import Catalog
from gateway.certificates import certificates
from gateway.clock import SteadyClock
from gateway.config import Configuration, ServeOptions
from gateway.devices import Devices, handlers_of
from gateway.errors import ConfigError, GatewayError, NotAllowed, NotFound, Unavailable
from gateway.http.admin import AdminEdge
from gateway.http.alarms import AlarmsEdge
from gateway.http.calls import CallsEdge
from gateway.http.cases import TASK_REPLIES, CasesEdge
from gateway.http.events import EventChannel
from gateway.http.evidence import EvidenceEdge
from gateway.http.grants import CallCameras, CameraGrants, GrantsEdge
from gateway.http.media import WHEP_SESSIONS, WHIP_SESSIONS, LiveCameras, MediaEdge, ViewTrail
from gateway.http.metrics import Metrics
from gateway.http.openapi import openapi_route
from gateway.http.page_parts import page_part_routes
from gateway.http.pages import Health, page_routes, security_headers
from gateway.http.people import PeopleEdge, worker_json
from gateway.http.reach import AudienceReach
from gateway.http.routes import Edge, Exchange, Route, same_origin
from gateway.http.session import SessionsEdge
from gateway.http.webhooks import WebhooksEdge
from gateway.identity import JoinLimits, Keyring, LoginThrottle
from gateway.intercom.model import CallSettings
from gateway.intercom.switchboard import Audience, Switchboard
from gateway.media_setup import credentials_of, ice_servers, make_media
from gateway.memory import keep_tidy, settle
from gateway.news import AlarmNews
from gateway.notify import make_provider, notified_by
from gateway.outbox import Courier
from gateway.participants import Participants
from gateway.prewarm import Prewarm
from gateway.reload import Reloader
from gateway.ringing import Ringing
from gateway.settings import Settings
from gateway.sharing import Sharing
from gateway.store import Store
from gateway.streams.cameras import CameraState
from gateway.streams.media_service import MediaCallbacks
from gateway.streams.pictures import Snapshots
from gateway.streams.session import SessionKind
from gateway.streams.whep import IceServer, SessionEndpoint
from gateway.vitals import Vitals
from gateway.webhooks import hooks_of
from gateway.witness import Witness

__all__ = ["serve"]

log = logging.getLogger(__name__)

GC_ALLOCATIONS = 5_000
"""A storm makes so many objects that collections at the default of 700 took a tenth of the CPU; at 20,000 each held the loop up to 60 ms."""
CLOCK = SteadyClock(lambda: time.time_ns() // 1_000_000, lambda: time.monotonic_ns() / 1e6)
LAG_PROBE_S = 0.5
RIGHTS_CHECK_S = 2.0
LINGER_S = 2.0
"""How long the rest of a body is waited for whose request was refused."""


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
        gateway = Gateway(options, store)
        loop.add_signal_handler(signal.SIGHUP, gateway.reload_soon)
        try:
            await gateway.media.open()
            await gateway.run(stopping)
        finally:
            await gateway.media.close()
    finally:
        await store.close()


def _settings(options: ServeOptions) -> Settings:
    return options.configuration.settings


def now_ms() -> int:
    """UTC milliseconds of the server's clock, which never goes back."""
    return CLOCK.now_ms()


class Gateway:
    """All parts of one gateway process. Built once, run once."""

    def __init__(self, options: ServeOptions, store: Store) -> None:
        configuration = options.configuration
        self.options = options
        self.settings = configuration.settings
        self.store = store
        self.catalog = Catalog(configuration.cameras, configuration.district, configuration.secrets)
        self.reloader = Reloader(options.files, configuration, self._apply)
        self.draining = False
        self._lag_ms = 0.0
        self._tasks: asyncio.TaskGroup | None = None
        self.events = EventChannel(
            epoch=str(ULID()),
            now_ms=now_ms,
            lag_ms=lambda: self._lag_ms,
            presence=self._on_page,
            replay=self.settings.http.event_replay,
            heartbeat_s=self.settings.http.heartbeat_s,
        )
        alarms = AlarmSettings.of(self.settings.alarms, self.settings.dispatch)
        self.roster = Roster(
            store,
            alarms.dispatch,
            on_change=self._on_worker,
            inside=lambda grid, position: self.catalog.district.locate(position).grid == grid,
        )
        self.devices = Devices(
            self.settings.mqtt,
            configuration.secrets,
            options.data,
            on_denied=self._on_denied,
            health=lambda: (store.health().writable, self._lag_ms),
        )
        self.participants = Participants(store)
        self.callout = Callout(lambda: self.catalog, store, self.roster, alarms.dispatch, now_ms=now_ms)
        self.box_calls = BoxCalls(store, lambda: self.switchboard.open_calls(), self.devices.publish_all)
        self.desk = AlarmDesk(
            store,
            self.catalog.world,
            alarms,
            roster=self.roster,
            camera_health=lambda camera_id: self.cameras.healthy(camera_id),
            may_watch=lambda sid, camera_id: self.cameras.shown_to(sid, camera_id),
            talked_about=lambda: self.switchboard.alarms_at_a_desk(),
            publish_mqtt=self.box_calls.publish,
            publish_events=lambda events: self.news.publish(events),
            ring=lambda plans: self.ringing.plans(plans),
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
        self.provider = make_provider(
            self.settings.notify, lambda: self.catalog, base_url=lambda: self.base_url
        )
        self.switchboard = Switchboard(
            store,
            CallSettings(**asdict(self.settings.calls), notify=notified_by(self.settings.notify)),
            rank=self.callout.rank,
            pick=self.callout.pick,
            ring=self.devices.ring,
            ring_all=self.devices.ring_all,
            publish_event=self._publish_call_event,
            close_media=self._close_media,
            on_accepted=self._on_accepted,
            on_released=self.desk.on_dispatch_released,
            on_no_answer=self._on_no_answer,
            on_opened=self.desk.on_call,
            on_missed=self._on_missed,
            on_hung_up=self.cases.on_hung_up,
            notify=self.provider.deliver,
            clock=now_ms,
        )
        self.ringing = Ringing(
            lambda: self.catalog,
            alarms=self.desk,
            calls=self.switchboard,
            callout=self.callout,
            roster=self.roster,
            now_ms=now_ms,
        )
        passwords = {name: one.password for name, one in configuration.secrets.credentials.items()}
        self.sharing = Sharing(store, hooks_of(self.settings.webhooks, passwords), clock=now_ms)
        self.calls_courier = Courier(store, self.switchboard.deliveries(), batched=self.switchboard.batches())
        self.media = make_media(
            options,
            MediaCallbacks(
                state=self._on_camera,
                source_change=lambda source_id, tracks: self.witness.source_changed(source_id, tracks),
                session_closed=self._on_session_closed,
                picture=self._on_camera_news,
                recording=lambda news: self.witness.desk.on_news(news),
            ),
        )
        self.prewarm = Prewarm(
            cameras_of=self.desk.cameras_of,
            warm=self.media.warm,
            again_s=self.settings.ingest.idle_grace_s / 2 or 1.0,
            clock=now_ms,
        )
        self.witness = Witness(
            store,
            self.settings.evidence,
            options.data.path,
            catalog=lambda: self.catalog,
            alarms=self.desk,
            cases=self.cases,
            calls=self.switchboard,
            record=self.media.record,
            stop=self.media.stop_recording,
            clock=now_ms,
        )
        self.vitals = Vitals(
            store=store,
            devices=self.devices,
            media=self.media,
            data=options.data,
            clock=CLOCK,
            reserve_bytes=self.settings.storage.reserve_bytes,
            lag_ms=lambda: self._lag_ms,
            draining=lambda: self.draining,
            recording_refused=lambda: self.witness.desk.keeping.refusal,
        )
        self.news = AlarmNews(
            self.events.publish,
            flush=self.events.flush,
            catalog=lambda: self.catalog,
            participants=self.participants,
            prewarm=self.prewarm,
            witness=self.witness,
            calls=self.switchboard,
            sharing=self.sharing,
        )
        self.snapshots = Snapshots(self.media.keyframe)
        self.grants = CameraGrants(store, now_ms=now_ms)
        near_calls = CallCameras(self.switchboard.open_calls, self.desk.cameras_at)
        self.cameras = LiveCameras(
            catalog=lambda: self.catalog,
            state=self.media.state,
            watchers=self.media.watchers,
            jpeg=self._snapshot,
            picture=self.media.picture,
            guests=lambda camera_id: self.grants.holders(camera_id) | near_calls.claimants(camera_id),
        )
        self.sessions = SessionsEdge(
            Keyring(options.data.secret("signing.key"), leeway_s=self.settings.access.leeway_s),
            store,
            lambda: self.catalog,
            LoginThrottle(
                failures=self.settings.access.login_failures,
                lockout_s=self.settings.access.login_lockout_s,
                patience={"sub": 4, "address": 10},
            ),
            now_s=time.time,
            session_s=self.settings.access.session_s,
            secure=bool(self.settings.http.tls_cert),
            revoked=self._on_revoked,
            trusted_proxies=self.settings.http.trusted_proxies,
        )
        self.media_edge: MediaEdge | None = None
        self.edge = Edge(
            authenticate=self.sessions.authenticate,
            security_headers=security_headers(
                tls=bool(self.settings.http.tls_cert), tile_urls=self.settings.map.tile_urls
            ),
            body_limit_bytes=self.settings.http.body_limit_bytes,
            body_timeout_s=self.settings.http.request_timeout_s,
            allowed_origins=self.settings.http.allowed_origins,
        )

    @property
    def lag_ms(self) -> float:
        """How late the event loop is, in milliseconds."""
        return self._lag_ms

    # -- running ------------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Start in the order that matters, say so, and wait for `stopping`."""
        await self.sessions.load()
        await self.grants.load()
        await self.roster.load(self.catalog.world.workers())
        await self.devices.start()
        runner = await self._open_http()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                running = [
                    tasks.create_task(self._watch_lag(), name="loop-lag"),
                    tasks.create_task(self._watch_rights(), name="rights"),
                    tasks.create_task(self.desk.run(), name="alarm-desk"),
                    tasks.create_task(self.cases.run(), name="incidents"),
                    tasks.create_task(self.tasks.run(), name="tasks"),
                    tasks.create_task(self._run_calls(), name="switchboard"),
                    tasks.create_task(self.sharing.run(), name="webhooks"),
                    tasks.create_task(self.prewarm.run(), name="prewarm"),
                    tasks.create_task(self.witness.run(), name="evidence"),
                ]
                topics = handlers_of(
                    self.desk,
                    self.roster,
                    reply=self._on_reply,
                    duty_changed=self._duty_changed,
                    now_ms=now_ms,
                )
                running.append(tasks.create_task(self.devices.run(topics), name="devices"))
                running.append(tasks.create_task(keep_tidy(), name="memory"))
                media = tasks.create_task(self.media.run(), name="media")
                settle(allocations=GC_ALLOCATIONS, middle=80)
                log.info("ready at %s", self.base_url)
                await stopping.wait()
                await self._drain(media)
                for task in reversed(running):
                    task.cancel()
        finally:
            self._tasks = None
            await runner.cleanup()
            await self.devices.stop()

    async def _drain(self, media: asyncio.Task[None]) -> None:
        """Nobody new comes in, who watches is told, and presses are still taken until the very end."""
        log.info("stopping")
        self.draining = True
        self.events.revoke(lambda _: True, "restart")
        media.cancel()  # which ends every session and leaves every camera
        try:
            async with asyncio.timeout(self.settings.http.shutdown_s):
                await asyncio.wait([media])
                await self.events.emptied()
        except TimeoutError:
            log.warning("not everybody could be told within %g s", self.settings.http.shutdown_s)
        self.edge.end_channels("/mqtt", lambda _: True)

    def reload_soon(self) -> None:
        """SIGHUP: mistakes go to the log, and nothing has changed."""

        async def reload() -> None:
            try:
                await self.reloader.reload()
            except ConfigError as error:
                for mistake in error.mistakes:
                    log.error("not reloaded: %s", mistake)

        self._background(reload(), "reload")

    async def _apply(self, new: Configuration) -> None:
        """The world after a reload. Catalog and media change in one step of the loop: nobody sees one without the other."""
        before, self.catalog = self.catalog, Catalog(new.cameras, new.district, new.secrets)
        self.desk.apply(self.catalog.world)
        await self.media.apply(new.cameras, credentials_of(new.secrets))
        await self.roster.load(self.catalog.world.workers())
        await self.devices.apply(new.secrets)
        removed = before.configs.keys() - self.catalog.configs.keys()
        for camera_id in removed:
            self.snapshots.forget_camera(camera_id)
        for camera_id, config in self.catalog.configs.items():
            if before.configs.get(camera_id) != config:
                self._on_camera_news(camera_id)
        if removed:
            self.events.resync("reload")

    async def _record(self, principal: Principal, action: str, subject: str, detail: dict[str, Any]) -> None:
        """A line on the audit trail, on disk when this returns."""
        at, who = now_ms(), f"{principal.role}/{principal.sub}"
        await self.store.write(
            lambda connection: audit(
                connection, who=who, action=action, subject=subject, detail=detail, now_ms=at
            )
        )

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

    async def _watch_rights(self) -> None:
        """What is still open from an earlier request must still be allowed: log-outs and revocations end things at once,
        this ends what ends by time (tokens, grants, calls), and what was just being opened meanwhile."""
        while True:
            await asyncio.sleep(RIGHTS_CHECK_S)
            self._on_revoked(lambda principal: not self.sessions.is_valid(principal), "expired")
            if self.media_edge is not None:
                for session_id in self.media_edge.sessions_without_right():
                    self._background(self.media.close_session(session_id, reason="revoked"), "close-revoked")

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

    async def _open_http(self) -> web.AppRunner:
        http, edge = self.settings.http, self.edge
        alarms = AlarmsEdge(
            self.desk,
            self.cases,
            full_lineage=lambda codes: self.catalog.full_lineage(codes),
            locate=lambda position: self.catalog.district.locate(position).lineage,
            participants=self.participants,
            duties=self.settings.alarms.duties,
        )
        cases = CasesEdge(
            self.cases,
            self.tasks,
            Statistics(self.store, clock=now_ms),
            full_lineage=lambda codes: self.catalog.full_lineage(codes),
            names=self._display_name,
            duties=self.settings.alarms.duties,
            verify_box=self.callout.verify_box,
        )
        calls = CallsEdge(
            self.switchboard,
            brief_of=self.callout.brief_of,
            brief_of_incident=self.callout.brief_of_incident,
            whereabouts=self.callout.whereabouts,
            box_of=self.callout.box_of,
            is_silent=self.callout.is_silent,
            help=self.ringing.help,
            receipt=self.provider.read,
        )
        whep = SessionEndpoint(
            self.media,
            SessionKind.WATCH,
            session_path=lambda session_id: f"{WHEP_SESSIONS}/{session_id}",
            ice_servers=self._ice_servers,
        )
        whip = SessionEndpoint(
            self.media,
            SessionKind.PUBLISH,
            session_path=lambda session_id: f"{WHIP_SESSIONS}/{session_id}",
            ice_servers=self._ice_servers,
        )
        access = self.settings.access
        joins = JoinLimits(lambda principal: access.joins_of(principal.role), rate=access.joins_per_s)
        trail = ViewTrail(self.store, now_ms=now_ms, background=self._background)
        self.media_edge = MediaEdge(
            cameras=self.cameras,
            whep=whep,
            whip=whip,
            ice_servers=self._ice_servers,
            joins=joins,
            now_s=time.monotonic,
            viewed=trail.viewed,
            own_leg=self.switchboard.own_leg,
            watchable_leg=self.switchboard.watchable_leg,
            call_resource=calls.resource,
            leg_resource=calls.leg_resource,
            watching_changed=self.switchboard.watching_changed,
            draining=lambda: self.draining,
        )
        people = PeopleEdge(
            lambda: self.catalog,
            self.roster,
            rank=lambda position, limit: self.desk.workers_at(position, limit=limit),
            duty_changed=self._duty_changed,
            last_ack=self.callout.last_ack,
            asked_of=self.callout.asked_of,
            call_of=self.box_calls.of_box,
            now_ms=now_ms,
            mqtt_on=not self.devices.is_off,
            base_map=self.settings.map,
        )
        metrics = Metrics(self, certificates(self.settings))
        grants = GrantsEdge(self.grants, camera=lambda camera_id: self.catalog.resource(camera_id))
        admin = AdminEdge(
            self.reloader,
            camera=self.cameras.resource,
            view=self.cameras.view,
            record=self._record,
        )
        hooks = WebhooksEdge(self.sharing)
        scratch = self.options.data.path / "exports"
        evidence = EvidenceEdge(self.witness, record=self._record, scratch=scratch, clock=now_ms)
        edges = (self.sessions, grants, alarms, cases, calls, self.media_edge, people, admin, hooks, evidence)
        for routes in edges:
            edge.add(routes.routes())
        edge.add(
            page_part_routes(
                self.store, data=self.options.data.path, media=self.media, cameras=self.cameras, joins=joins,
                viewed=trail.viewed, incident=alarms.incident, now_ms=now_ms,
            )
        )  # fmt: skip
        edge.add(
            page_routes(
                health=self.health,
                metrics=lambda: metrics.text(edge),
                broker_address=lambda: self.devices.address,
                ca_certificate=Path(http.tls_ca) if http.tls_ca else None,
                allowed_origins=http.allowed_origins,
                mqtt_pipes=self.settings.mqtt.websocket_limit,
            )
        )
        edge.add([self._events_route(), openapi_route(lambda: edge.routes)])
        runner = web.AppRunner(
            edge.app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=http.shutdown_s,
            keepalive_timeout=http.request_timeout_s,  # also the time that a request's header may take
            lingering_time=LINGER_S,
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
            if not same_origin(exchange.request, self.settings.http.allowed_origins):
                raise NotAllowed("this WebSocket is for pages of this server")
            if self.draining:
                raise Unavailable("this gateway is about to stop; try again", retry_after_s=3)
            return await self.events.serve(exchange.request, exchange.who)

        return Route(
            method="GET", path="/api/v1/events", action=Action.EVENTS_OPEN, handler=events,
            resource=lambda _: Resource(kind="events", id="channel"), summary="The event channel (WebSocket)",
            channel=True,
        )  # fmt: skip

    # -- health -------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """What /healthz and /readyz tell."""
        return self.vitals.health()

    async def _on_reply(self, worker_id: str, said: dict[str, Any]) -> None:
        """`w/{wid}/reply`: to a task, or to a ringing call."""
        task_id, act = said.get("task"), TASK_REPLIES.get(str(said.get("act")))
        if not isinstance(task_id, str):
            await self.switchboard.reply(worker_id, said)
        elif act is not None and (await self.tasks.scope(task_id))[1] == worker_id:
            by = Actor(sub=worker_id, name=self._helper_name(worker_id) or worker_id, role=Role.WORKER)
            await self.tasks.act(task_id, act, by, feedback=str(said.get("note") or "")[:2000])

    def _on_denied(self, client: str, topic: str) -> None:
        """A device wrote where it may not (product.md section 6 row 5)."""
        log.warning("broker refused %s on %s", client, topic)
        self._background(self.desk.on_denied(client, topic), "audit-denied")

    # -- alarms and calls ---------------------------------------------------------------------------------------

    def _helper_name(self, sub: str) -> str | None:
        """Name of a gridworker or volunteer."""
        district = self.catalog.district
        known = district.gridworkers.get(sub) or district.volunteers.get(sub)
        return None if known is None else known.name

    def _display_name(self, code: str) -> str:
        """Of an area or a helper, for the figures."""
        area = self.catalog.district.areas.get(code)
        return area.name if area else self._helper_name(code) or code

    async def _publish_call_event(self, type: str, data: dict[str, Any], audience: Audience) -> None:
        if type == "call":
            self.witness.desk.on_call(data)
            await self.box_calls.call_changed(data)
        resource = Resource(
            kind="call",
            id=str(data.get("id") or data.get("call_id")),
            lineage=self.catalog.full_lineage(audience.lineage),
            participants=frozenset(audience.participants) | ({audience.only} if audience.only else set()),
        )
        to = None if audience.only is None else [audience.only]
        self.events.publish(type, data, resource=resource, to=to)

    async def _on_accepted(self, alarm_id: str, worker_id: str, name: str, eta_s: float | None) -> None:
        worker = Actor(sub=worker_id, name=name, role=Role.WORKER)
        await self.desk.on_dispatch_accepted(alarm_id, worker, round(eta_s or 0))

    async def _on_no_answer(self, alarm_id: str, reason: str) -> None:
        """That nobody comes is told to the desk at once; the alarm's own escalation goes on beside it."""
        await self.desk.on_no_answer(alarm_id, reason)

    async def _on_missed(self, call_id: str, worker_id: str | None, alarm_id: str | None) -> None:
        log.info("call %s was missed by %s", call_id, worker_id or "the desk", extra={"alarm_id": alarm_id})

    async def _duty_changed(self, worker_id: str, duty: Duty) -> None:
        if duty is Duty.OFF:
            await self.switchboard.worker_off_duty(worker_id)

    def _on_worker(self, view: WorkerView) -> None:
        self.events.publish(
            "worker",
            worker_json(view),
            resource=self.catalog.worker_resource(view.id),
            keep=False,
        )

    def _on_page(self, principal: Principal, connected: bool) -> None:
        if principal.role is Role.WORKER:
            self.roster.set_online(principal.sub, connected, now_ms=now_ms())

    # -- video --------------------------------------------------------------------------------------------------

    def _on_camera(self, state: CameraState) -> None:
        self._on_camera_news(state.camera_id)

    def _on_camera_news(self, camera_id: str) -> None:
        try:
            view, resource = self.cameras.view(camera_id), self.cameras.resource(camera_id)
        except NotFound:
            return  # a reload took it away in this moment
        self.events.publish("camera", view, resource=resource, keep=False)

    def _on_session_closed(self, session_id: str, reason: str) -> None:
        if self.media_edge is not None:
            self.media_edge.session_closed(session_id)

    def _close_media(self, owner: str) -> None:
        self._background(self.media.close_owned_by(owner, reason="call_ended"), "close-media")

    def _on_revoked(self, concerned: Callable[[Principal], bool], reason: str) -> None:
        self.events.revoke(concerned, reason)
        self.edge.end_channels("/mqtt", concerned)  # the event channel says why and closes by itself
        if self.media_edge is not None:
            for session_id in self.media_edge.sessions_where(concerned):
                self._background(self.media.close_session(session_id, reason="revoked"), "close-revoked")

    async def _snapshot(self, camera_id: str) -> bytes:
        """The keyframe is fetched from the camera's worker first, unless the one we have still is the newest."""
        await self.media.fetch_keyframe(camera_id)
        return await self.snapshots.jpeg(camera_id)

    def _ice_servers(self, owner: str) -> list[IceServer]:
        """`owner` asks; the servers' credentials are by name from secrets.yaml."""
        return ice_servers(self.settings.media, self.catalog.secrets, owner, time.time())
