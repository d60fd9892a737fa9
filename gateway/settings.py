"""What can be set in gateway.yaml, with its defaults. Values only: `gateway.config` reads them from files.

Each field's unit is in its name; its range stands beside its default, where the reader and the reference
both find it. Durations of the alarm path are proposals of ours and meant to be tuned by the district.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "AccessSettings",
    "AlarmSettings",
    "CallSettings",
    "CompiledLoop",
    "DispatchSettings",
    "EvidenceSettings",
    "HttpSettings",
    "IceServer",
    "IngestSettings",
    "MapDatum",
    "MapSettings",
    "MediaSettings",
    "MqttMode",
    "MqttSettings",
    "NotifySettings",
    "PictureSettings",
    "Settings",
    "StorageSettings",
    "TurnSettings",
    "WebhookSettings",
]


def ranged(default: float, low: float, high: float) -> Any:
    """A number with its bounds (both included)."""
    return field(default=default, metadata={"low": low, "high": high})


def checked(default: Any, what: str) -> Any:
    """A text (or list of texts) that must be a `host`, `network`, `file`, `origin` or `url`."""
    return field(default=default, metadata={"check": what})


class CompiledLoop(StrEnum):
    """Whether video is sent by the compiled loop."""

    AUTO = "auto"  # where it was built
    OFF = "off"


class MqttMode(StrEnum):
    """Where the broker comes from."""

    SUPERVISED = "supervised"  # a mosquitto child of the gateway
    EXTERNAL = "external"  # any MQTT 3.1.1 or 5 broker by url
    OFF = "off"  # HTTP presses only, and health is red


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The front door. Beyond loopback it needs TLS, or `allow_plain` by someone who knows what stands
    before it.
    """

    host: str = checked("127.0.0.1", "host")
    port: int = ranged(8080, 0, 65_535)  # 0: any free one
    tls_cert: str = checked("", "file")
    tls_key: str = checked("", "file")
    tls_ca: str = checked("", "file")  # offered at /ca.crt, for devices that must learn to trust it
    allow_plain: bool = False
    trusted_proxies: tuple[str, ...] = checked((), "network")  # whose X-Forwarded-For counts
    allowed_origins: tuple[str, ...] = checked((), "origin")  # beside the own one, for WebSocket and CORS
    body_limit_bytes: int = ranged(65_536, 1_024, 16_777_216)
    request_timeout_s: float = ranged(20.0, 1, 300)
    """For a request's header, for its body, and how long an idle connection is kept: longer than HTTP clients keep one
    (aiohttp's 15 s), or a press would be written into a connection that is just being closed."""
    event_replay: int = ranged(4_096, 16, 1_000_000)  # events kept for pages that reconnect
    heartbeat_s: float = ranged(5.0, 0.1, 60)
    shutdown_s: float = ranged(5.0, 0, 120)  # to drain requests and viewers


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """A STUN or TURN server handed to pages (W3C RTCIceServer); credentials by name from secrets.yaml."""

    urls: tuple[str, ...] = checked((), "ice")
    credentials: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """TURN servers with time-limited credentials (coturn's `use-auth-secret`): the name is expiry:sub, the password its
    HMAC-SHA1. secret: name of the credentials in secrets.yaml whose password is the shared secret."""

    urls: tuple[str, ...] = checked((), "ice")
    secret: str = ""
    ttl_s: float = ranged(3_600.0, 60, 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySettings:
    """The provider that reaches phones (gateway.notify). url: empty, and there is none. secret: name of the credentials in
    secrets.yaml whose password signs both ways. receipts: where it finds this gateway; empty: the own address."""

    url: str = checked("", "webhook")
    secret: str = ""
    channels: tuple[str, ...] = ("push", "sms", "voice")
    receipts: str = checked("", "webhook")
    timeout_s: float = ranged(3.0, 0.5, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSettings:
    """WebRTC. `addresses` are bound, `announce` stands in candidates beside them (1:1 NAT, same port). Port + n for
    worker n.
    """

    udp_port: int = ranged(8189, 0, 65_535)
    tcp: bool = True  # ICE-TCP on the same port number, for networks without UDP
    addresses: tuple[str, ...] = checked((), "address")  # none: the interface of http.host
    announce: tuple[str, ...] = checked((), "host")
    workers: int = ranged(0, 0, 64)  # processes; 0: one for each core, but no more than cameras
    compiled: CompiledLoop = CompiledLoop.AUTO
    ice_servers: tuple[IceServer, ...] = ()
    turn: TurnSettings = field(default_factory=TurnSettings)
    sessions: int = ranged(5_000, 1, 100_000)  # in all
    ice_timeout_s: float = ranged(30.0, 5, 300)  # consent lost (RFC 7675)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """Pulling cameras."""

    dial_limit: int = ranged(64, 1, 1_024)  # dials at one time
    host_connections: int = ranged(256, 1, 4_096)  # to one recorder
    connect_timeout_s: float = ranged(5.0, 0.5, 60)
    stall_timeout_s: float = ranged(5.0, 0.5, 120)  # without a packet the camera is down
    backoff_first_s: float = ranged(0.5, 0.05, 60)
    backoff_max_s: float = ranged(8.0, 0.1, 600)
    idle_grace_s: float = ranged(15.0, 0, 600)  # an on-demand camera stays this long after its last viewer
    first_keyframe_s: float = ranged(10.0, 1, 60)  # how long a viewer's join waits for a cold camera
    tls_ca: str = checked(
        "", "file"
    )  # certificates that rtsps:// cameras are checked against; none: the system's
    camera_networks: tuple[str, ...] = checked(
        (), "network"
    )  # where cameras added by API may lie; none: this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSettings:
    """Looking at what cameras show: black, covered, frozen, blurred, tinted."""

    enabled: bool = True
    interval_s: float = ranged(60.0, 0.2, 86_400)  # between two looks at a camera
    cpu_share: float = ranged(0.15, 0.001, 1)  # of one core at most; beyond it looks become rarer


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """The broker. `url` (mqtt://host:port, mqtts://) and `credentials` count in mode external only."""

    mode: MqttMode = MqttMode.SUPERVISED
    host: str = checked("127.0.0.1", "host")
    port: int = ranged(1883, 0, 65_535)  # 0: any free one
    allow_plain: bool = False  # this listener beyond loopback, without TLS: only in a network of its own
    tls_host: str = checked("127.0.0.1", "host")  # of a second listener, with TLS
    tls_port: int = ranged(8883, 0, 65_535)
    tls_cert: str = checked("", "file")  # none: no such listener
    tls_key: str = checked("", "file")
    url: str = checked("", "mqtt")
    credentials: str = ""
    tls_ca: str = checked("", "file")
    root: str = "pd/v1"
    payload_limit_bytes: int = ranged(8_192, 256, 1_048_576)
    websocket_limit: int = ranged(4_096, 1, 100_000)  # pipes to the broker


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """Deadlines of an alarm, in seconds after its commit unless said otherwise. Escalation adds audiences."""

    shown_s: float = ranged(5.0, 0.1, 600)
    acknowledged_s: float = ranged(15.0, 0.1, 3_600)
    triage_s: float = ranged(60.0, 0.1, 3_600)  # after the acknowledgement
    action_s: float = ranged(600.0, 1, 86_400)  # nothing done on its incident
    street_s: float = ranged(15.0, 0, 3_600)
    district_s: float = ranged(30.0, 0, 3_600)
    leader_s: float = ranged(60.0, 0, 3_600)
    realert_s: float = ranged(60.0, 1, 3_600)  # once everybody was told and nobody has acknowledged
    task_offer_s: float = ranged(120.0, 5, 86_400)  # an offered task that nobody answers expires
    volunteer_radius_m: float = ranged(500.0, 0, 10_000)
    group_radius_m: float = ranged(150.0, 0, 5_000)
    group_window_s: float = ranged(120.0, 0, 3_600)
    press_rate_per_s: float = ranged(5.0, 0.1, 1_000)  # a box; beyond it presses are counted and slowed
    press_burst: int = ranged(20, 1, 1_000)
    duties: tuple[str, ...] = (  # what a gridworker may report (上报)
        "治安防范",
        "矛盾纠纷",
        "消防隐患",
        "安全生产",
        "占道经营",
        "环境卫生",
        "违法建设",
        "流动人口",
        "出租房屋",
        "特殊人群",
        "食品药品",
        "公共设施",
        "噪音扰民",
        "民生服务",
        "其他事项",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """Which gridworker and which camera."""

    fresh_s: float = ranged(30.0, 1, 3_600)
    usable_s: float = ranged(120.0, 1, 3_600)
    last_resort_s: float = ranged(300.0, 1, 86_400)
    jump_m_per_s: float = ranged(60.0, 5, 500)  # a faster move is a faulty fix
    travel_m_per_s: float = ranged(4.0, 0.5, 30)  # for the estimated time of arrival (electric bicycle)
    camera_count: int = ranged(4, 1, 25)
    camera_radius_m: float = ranged(500.0, 10, 10_000)
    track_days: int = ranged(30, 0, 3_650)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Ring plan and reconnects; seconds from the opening of the call or from the loss of a leg."""

    ring_first: int = ranged(3, 1, 20)
    ring_next: int = ranged(3, 0, 20)
    ring_next_s: float = ranged(10.0, 1, 600)
    ring_own_grid: bool = True
    no_answer_s: float = ranged(40.0, 2, 600)
    publish_s: float = ranged(8.0, 1, 120)  # a claimant without media is released
    restart_s: tuple[float, ...] = (3.0, 8.0, 15.0)  # ICE restarts
    dead_s: float = ranged(30.0, 1, 600)
    join_s: float = ranged(30.0, 1, 600)  # who takes a place and publishes nothing loses it
    receipt_s: float = ranged(3.0, 0.5, 60)  # a phone that said nothing by then is reached by the provider


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Sessions, log-in and joins. A join is one watched stream; by principal."""

    session_s: float = ranged(43_200.0, 60, 2_592_000)
    leeway_s: float = ranged(30.0, 0, 300)
    login_failures: int = ranged(5, 1, 100)
    login_lockout_s: float = ranged(60.0, 1, 86_400)
    joins_stb: int = ranged(12, 0, 10_000)
    joins_worker: int = ranged(16, 0, 10_000)
    joins_staff: int = ranged(100, 0, 10_000)  # operator, desk, leader
    joins_per_s: float = ranged(
        20.0, 0.1, 10_000
    )  # of one principal, after a burst of as many as it may watch

    def joins_of(self, role: str) -> int:
        """Media sessions that one principal of the role may have at once."""
        staff = dict.fromkeys(("operator", "desk", "leader"), self.joins_staff)
        return {"stb": self.joins_stb, "worker": self.joins_worker, **staff}.get(role, 0)


class MapDatum(StrEnum):
    """What the tiles of a base map are drawn in."""

    WGS84 = "wgs84"  # 天地图 (CGCS2000, which differs by centimetres), OpenStreetMap
    GCJ02 = "gcj02"  # Amap, Tencent: everything drawn over them is shifted


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSettings:
    """An online base map under the district's own polygons; none: the map needs no network. Pages may load pictures
    from these hosts and no others, and a key in the URL is known to every page.
    """

    tile_urls: tuple[str, ...] = checked((), "tiles")  # https://host/{z}/{x}/{y}; several share the load
    datum: MapDatum = MapDatum.WGS84


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The database in the data directory."""

    busy_s: float = ranged(30.0, 1, 600)
    reserve_bytes: int = ranged(67_108_864, 0, 1_099_511_627_776)  # free disk below which health is red


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """A platform that is told of alarms and incidents (police, urban management, environment, IoT). Empty lists mean all."""

    name: str = checked("", "name")
    url: str = checked("", "webhook")
    secret: str = ""  # NAME under credentials in secrets.yaml, whose password signs
    areas: tuple[str, ...] = ()  # codes of streets, communities, grids
    kinds: tuple[str, ...] = ()  # of alarms (theft ...) and types of incidents (消防隐患 ...)
    events: tuple[str, ...] = ()  # alarm.new, alarm.closed, incident.transferred ...; alarm.* for all of them
    networks: tuple[str, ...] = checked((), "network")  # private ones that its host may lie in


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSettings:
    """What is recorded of calls and of the cameras around an alarm, and how long it stays."""

    enabled: bool = True
    after_s: float = ranged(120.0, 1, 3_600)  # cameras, after the press
    preroll_s: float = ranged(0.0, 0, 60)  # of always pulled cameras' sub streams, in memory; 0: none
    cameras: int = ranged(4, 0, 25)  # for one alarm
    recordings: int = ranged(100, 1, 2_000)  # of cameras at one time
    retention_days: int = ranged(30, 1, 3_650)
    floor_bytes: int = ranged(
        2_147_483_648, 0, 1_099_511_627_776
    )  # free disk below which the oldest go; at half of it recordings end


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of gateway.yaml."""

    http: HttpSettings = field(default_factory=HttpSettings)
    media: MediaSettings = field(default_factory=MediaSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    pictures: PictureSettings = field(default_factory=PictureSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)
    calls: CallSettings = field(default_factory=CallSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    map: MapSettings = field(default_factory=MapSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    webhooks: tuple[WebhookSettings, ...] = ()
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
