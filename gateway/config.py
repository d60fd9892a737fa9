"""gateway.yaml, cameras.yaml and secrets.yaml, read once into frozen values. Every mistake is found in one
run.

Secrets live beside the cameras file, by name: no URL holds a credential, so that a URL may be logged and
shown.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from gateway.access import Visibility
from gateway.data_dir import DataDir
from gateway.district import District, Level
from gateway.district_cache import read_district as read_cached_district
from gateway.errors import ConfigError
from gateway.geo import Position
from gateway.settings import MqttMode, Settings
from gateway.webhooks import complaints
from gateway.yaml_check import Document, Mistake, Section, nearest, read_id, read_position, report_twins

__all__ = [
    "CameraConfig",
    "Configuration",
    "Credential",
    "Files",
    "Pull",
    "Secrets",
    "ServeOptions",
    "Transport",
    "check_files",
    "load_cameras",
    "load_configuration",
    "load_secrets",
    "load_settings",
]


class Pull(StrEnum):
    """When a stream is pulled."""

    ALWAYS = "always"
    ON_DEMAND = "on_demand"


class Transport(StrEnum):
    """How RTP comes from the camera. auto: TCP (interleaved), then UDP."""

    AUTO = "auto"
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraConfig:
    """One camera of cameras.yaml.

    main, sub: rtsp:// or rtsps:// URLs without credentials; sub None: it has none. credentials: a name in
    secrets.yaml. heading: degrees clockwise from north, None: unknown or all around. fov: degrees. range_m:
    how far faces are useful. pull: of sub (of main if there is no sub). pull_main: of main beside a sub.
    """

    id: str
    main: str
    name: str = ""
    sub: str | None = None
    credentials: str | None = None
    position: Position | None = None
    heading: float | None = None
    fov: float = 90.0
    range_m: float = 60.0
    community: str | None = None
    grid: str | None = None
    visible_to: Visibility = Visibility.NONE
    pull: Pull = Pull.ON_DEMAND
    pull_main: Pull = Pull.ON_DEMAND
    transport: Transport = Transport.AUTO

    @property
    def area(self) -> str | None:
        """The smallest area known, for `District.lineage`."""
        return self.grid or self.community


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password; the password doesn't show in logs."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """secrets.yaml. boxes and workers: device keys (bytes) by sid and worker id. users: password or argon2
    hash by sub.
    """

    credentials: Mapping[str, Credential] = field(default_factory=dict, repr=False)
    boxes: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    workers: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the configuration is read from; None: there is none. Kept for reloads."""

    config: Path | None = None
    cameras: Path | None = None
    secrets: Path | None = None
    district: Path | None = None

    @classmethod
    def beside(cls, cameras: Path, *, config: Path | None = None, district: Path | None = None) -> Files:
        """Of what isn't given, gateway.yaml, secrets.yaml and district/ beside the cameras file, if any."""
        folder = cameras.parent
        found_config, found_district = folder / "gateway.yaml", folder / "district"
        return cls(
            config=config or (found_config if found_config.exists() else None),
            cameras=cameras,
            secrets=folder / "secrets.yaml",
            district=district or (found_district if found_district.is_dir() else None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Everything that is read from files at start."""

    settings: Settings
    cameras: tuple[CameraConfig, ...]
    secrets: Secrets
    district: District


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What the composition root gets: everything read and checked, the data directory locked.

    workers: of the command line, else of the settings.
    """

    files: Files
    configuration: Configuration
    data: DataDir
    workers: int


def load_settings(path: Path | None) -> Settings:
    """gateway.yaml; None gives the defaults. Paths in it are relative to it. Raises ConfigError."""
    if path is None:
        return Settings()
    document = Document(path)
    settings = _read_settings(document, path)
    document.raise_mistakes()
    return settings


def load_cameras(
    path: Path, *, secrets: Secrets | None = None, district: District | None = None
) -> tuple[CameraConfig, ...]:
    """cameras.yaml, in its order. Names and codes are looked up where secrets and district are given.
    Raises ConfigError.
    """
    document = Document(path)
    cameras = _read_cameras(document, secrets, district)
    document.raise_mistakes()
    return cameras


def load_secrets(path: Path | None) -> Secrets:
    """secrets.yaml, or nothing if there is no such file. Raises ConfigError, also when others may read the
    file.
    """
    if path is None or not path.exists():
        return Secrets()
    document = Document(path, secret=True)
    secrets = _read_secrets(document, path)
    document.raise_mistakes()
    return secrets


def load_configuration(
    files: Files,
    *,
    cameras: bytes | None = None,
    only_from: Collection[str] = (),
    district_cache: Path | None = None,
) -> Configuration:
    """All files. district_cache: where the district is kept for the next start. cameras: what cameras.yaml is going to say, with those in only_from being added or changed by API: their
    URLs must lie in ingest.camera_networks. Raises one ConfigError with the mistakes of all files."""
    loaded, mistakes = _read_all(files, cameras, only_from, district_cache)
    if mistakes:
        raise ConfigError([str(mistake) for mistake in mistakes])
    return loaded


def check_files(files: Files) -> list[Mistake]:
    """Every mistake in the files, sorted by file and line."""
    return _read_all(files)[1]


def _read_all(
    files: Files,
    data: bytes | None = None,
    only_from: Collection[str] = (),
    district_cache: Path | None = None,
) -> tuple[Configuration, list[Mistake]]:
    mistakes: list[Mistake] = []
    settings, read_secrets, read_district = Settings(), Secrets(), District.empty()
    read_cameras: tuple[CameraConfig, ...] = ()
    config = None if files.config is None else Document(files.config)
    if files.config is not None and config is not None:
        settings = _read_settings(config, files.config)
    if files.secrets is not None and files.secrets.exists():
        document = Document(files.secrets, secret=True)
        read_secrets = _read_secrets(document, files.secrets)
        mistakes += document.mistakes
    if files.district is not None:
        read_district, found = read_cached_district(files.district, district_cache)
        mistakes += found
    if files.cameras is not None:
        document = Document(files.cameras, data=data)
        networks = Networks(only_from, settings.ingest.camera_networks)
        read_cameras = _read_cameras(document, read_secrets, read_district, networks)
        mistakes += document.mistakes
    if config is not None:
        _check_webhooks(config, settings, read_secrets, read_district)
        _check_named_secrets(config, settings, read_secrets)
        mistakes += config.mistakes
    loaded = Configuration(
        settings=settings, cameras=read_cameras, secrets=read_secrets, district=read_district
    )
    return loaded, sorted(mistakes)


# --- gateway.yaml -----------------------------------------------------------------------------------


def _read_settings(document: Document, path: Path) -> Settings:
    root = document.root()
    root.shorthand("mqtt", "off", "mode")
    settings = root.into(Settings, lambda what, text: _complaint(what, text, path.parent))
    http, mqtt, ingest, dispatch = settings.http, settings.mqtt, settings.ingest, settings.dispatch
    if bool(http.tls_cert) != bool(http.tls_key):
        root.section("http").wrong(
            "tls_cert and tls_key stand together", "tls_cert" if http.tls_cert else "tls_key"
        )
    if not http.tls_cert and not http.allow_plain and not _is_loopback(http.host):
        root.section("http").wrong(
            "beyond this machine needs tls_cert and tls_key (or allow_plain: true behind a TLS proxy)", "host"
        )
    if mqtt.mode is MqttMode.SUPERVISED and not mqtt.allow_plain and not _is_loopback(mqtt.host):
        root.section("mqtt").wrong(
            "this listener has no TLS: leave it on loopback and set tls_cert and tls_key for another, or allow_plain: true",
            "host",
        )
    if bool(mqtt.tls_cert) != bool(mqtt.tls_key):
        root.section("mqtt").wrong(
            "tls_cert and tls_key stand together", "tls_cert" if mqtt.tls_cert else "tls_key"
        )
    if mqtt.mode is MqttMode.EXTERNAL and not mqtt.url:
        root.section("mqtt").wrong("mode external needs a url", "mode")
    if ingest.backoff_first_s > ingest.backoff_max_s:
        root.section("ingest").wrong("is above backoff_max_s", "backoff_first_s")
    if not dispatch.fresh_s <= dispatch.usable_s <= dispatch.last_resort_s:
        root.section("dispatch").wrong("fresh_s, usable_s and last_resort_s don't rise")
    alarms, calls = settings.alarms, settings.calls
    if not alarms.street_s <= alarms.district_s <= alarms.leader_s:
        root.section("alarms").wrong("street_s, district_s and leader_s don't rise")
    if calls.no_answer_s <= calls.ring_next_s:
        root.section("calls").wrong("isn't above ring_next_s: the next ones would never ring", "no_answer_s")
    within = all(0 < restart_s < calls.dead_s for restart_s in calls.restart_s)
    if not within or list(calls.restart_s) != sorted(calls.restart_s):
        root.section("calls").wrong("should rise from above 0 to below dead_s", "restart_s")
    base = path.parent
    return replace(
        settings,
        http=replace(
            http,
            tls_cert=_beside(base, http.tls_cert),
            tls_key=_beside(base, http.tls_key),
            tls_ca=_beside(base, http.tls_ca),
        ),
        ingest=replace(ingest, tls_ca=_beside(base, ingest.tls_ca)),
        mqtt=replace(
            mqtt,
            tls_ca=_beside(base, mqtt.tls_ca),
            tls_cert=_beside(base, mqtt.tls_cert),
            tls_key=_beside(base, mqtt.tls_key),
        ),
    )


def _check_webhooks(document: Document, settings: Settings, secrets: Secrets, district: District) -> None:
    """What of them can only be judged when the other files are known, too."""
    passwords = {name: credential.password for name, credential in secrets.credentials.items()}
    sections = document.root().sections("webhooks") if settings.webhooks else []
    for at, key, message in complaints(settings.webhooks, passwords, district.areas):
        sections[at].wrong(message, key)


def _check_named_secrets(document: Document, settings: Settings, secrets: Secrets) -> None:
    """What gateway.yaml names and secrets.yaml lacks."""
    turn, notify = settings.media.turn, settings.notify
    for path, needed, name in (
        ("media.turn.secret", bool(turn.urls), turn.secret),
        ("notify.secret", bool(notify.url), notify.secret),
    ):
        if needed and not name:
            document.add(0, path, "is needed: the name of credentials in secrets.yaml")
        elif name and not (name in secrets.credentials and secrets.credentials[name].password):
            known = nearest(name, list(secrets.credentials))
            document.add(0, path, f"secrets.yaml has no credentials {name!r} with a password{known}")
    unknown = set(notify.channels) - {"push", "sms", "voice"}
    if unknown:
        document.add(0, "notify.channels", f"should be of push, sms, voice, not {', '.join(sorted(unknown))}")


def _beside(base: Path, name: str) -> str:
    return str((base / name).resolve()) if name else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?")


def _complaint(what: str, text: str, base: Path) -> str | None:
    """Why a text isn't what `settings.checked` asks for."""
    match what:
        case "file":
            return None if (base / text).is_file() else f"there is no file {text!r}"
        case "address":
            return None if _is_address(text) else f"{text!r} is no IP address"
        case "host":
            known = _is_address(text) or _HOST.fullmatch(text)
            return None if known else f"{text!r} is no address or host name"
        case "network":
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                return f"{text!r} is no network like 192.168.0.0/16: {error}"
            return None
        case "origin":
            return _url_complaint(text, ("http", "https"), bare=True)
        case "name":
            return None if re.fullmatch(r"[a-z0-9-]{1,32}", text) else f"{text!r} should be of a-z, 0-9 and -"
        case "webhook":
            return _url_complaint(text, ("http", "https"))
        case "mqtt":
            return _url_complaint(text, ("mqtt", "mqtts"), bare=True)
        case "tiles":
            missing = [part for part in ("{z}", "{x}", "{y}") if part not in text]
            if missing:
                return f"{text!r} lacks {', '.join(missing)}"
            return _url_complaint(text, ("http", "https"))
        case "ice":
            matched = re.fullmatch(r"(stuns?|turns?):[^\s@/]+(\?transport=(udp|tcp))?", text)
            return None if matched else f"{text!r} is no stun: or turn: URL (RFC 7064, 7065)"
    raise AssertionError(f"settings.py asks for an unknown check {what!r}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _url_complaint(text: str, schemes: Sequence[str], *, bare: bool = False) -> str | None:
    """Why a text is no such URL. A URL with a credential in it is never quoted."""
    try:
        url = urlsplit(text)
        if url.username is not None or url.password is not None:
            return "holds a user name or password: name them under credentials in secrets.yaml instead"
        host, _port = url.hostname, url.port
    except ValueError as error:
        return f"is no URL: {error}"
    if url.scheme not in schemes:
        return f"should begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    if not host:
        return "names no host"
    if any(ord(character) <= 32 or ord(character) == 127 for character in text):
        return "holds a space or control character"
    if bare and (url.path.strip("/") or url.query or url.fragment):
        return "should end after the host and port"
    return None


# --- cameras.yaml -----------------------------------------------------------------------------------


class Networks:
    """Where cameras that come by API may lie, so that an administrator's token can't make the gateway dial anywhere. A
    name is refused: what it resolves to may change after the check. Without networks: this machine only."""

    def __init__(self, cameras: Collection[str], networks: Sequence[str]) -> None:
        self._cameras = cameras
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._words = ", ".join(networks) or "none given: this machine only"

    def check(self, section: Section, camera: CameraConfig) -> None:
        if camera.id not in self._cameras:
            return
        for key, url in (("main", camera.main), ("sub", camera.sub)):
            if url and not _url_complaint(url, ("rtsp", "rtsps")) and not self._holds(url):
                section.wrong(
                    f"added by API, its host should be an address in ingest.camera_networks ({self._words})",
                    key,
                )

    def _holds(self, url: str) -> bool:
        try:
            address = ipaddress.ip_address(urlsplit(url).hostname or "")
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not self._networks:
            return address.is_loopback
        return any(address in network for network in self._networks)


def _read_cameras(
    document: Document, secrets: Secrets | None, district: District | None, networks: Networks | None = None
) -> tuple[CameraConfig, ...]:
    root = document.root()
    sections = root.sections("cameras", required=not document.mistakes)
    root.done()
    cameras = [_read_camera(section, secrets, district) for section in sections]
    report_twins([(camera.id, section) for camera, section in zip(cameras, sections, strict=True)])
    if networks is not None:
        for camera, section in zip(cameras, sections, strict=True):
            networks.check(section, camera)
    return tuple(cameras)


def _read_camera(section: Section, secrets: Secrets | None, district: District | None) -> CameraConfig:
    identifier = read_id(section)
    camera = CameraConfig(
        id=identifier,
        name=section.text("name", identifier),
        main=_read_rtsp(section, "main", required=True),
        sub=_read_rtsp(section, "sub") or None,
        credentials=section.text("credentials") or None,
        position=read_position(section),
        heading=section.number("heading", low=0, high=360),
        fov=section.number("fov", 90.0, low=1, high=360) or 90.0,
        range_m=section.number("range_m", 60.0, low=1, high=10_000) or 60.0,
        community=section.text("community") or None,
        grid=section.text("grid") or None,
        visible_to=section.choice("visible_to", Visibility.NONE),
        pull=section.choice("pull", Pull.ON_DEMAND),
        pull_main=section.choice("pull_main", Pull.ON_DEMAND),
        transport=section.choice("transport", Transport.AUTO),
    )
    section.done()
    if camera.credentials and secrets is not None and camera.credentials not in secrets.credentials:
        known = nearest(camera.credentials, list(secrets.credentials))
        section.wrong(f"secrets.yaml has no credentials {camera.credentials!r}{known}", "credentials")
    if district is not None and not district.is_empty:
        _check_place(section, camera, district)
    return camera


def _read_rtsp(section: Section, key: str, *, required: bool = False) -> str:
    url = section.text(key, required=required)
    if url and (complaint := _url_complaint(url, ("rtsp", "rtsps"))):
        section.wrong(complaint, key)
    return url


def _check_place(section: Section, camera: CameraConfig, district: District) -> None:
    for key, code, level in (
        ("community", camera.community, Level.COMMUNITY),
        ("grid", camera.grid, Level.GRID),
    ):
        if code is None:
            continue
        area = district.areas.get(code)
        if area is None or area.level is not level:
            of_level = [one.code for one in district.areas.values() if one.level is level]
            section.wrong(f"the district has no {level} {code!r}{nearest(code, of_level)}", key)
        elif key == "grid" and camera.community and camera.community not in district.lineage(code):
            section.wrong(f"grid {code} isn't in community {camera.community}", key)


# --- secrets.yaml -----------------------------------------------------------------------------------


def _read_secrets(document: Document, path: Path) -> Secrets:
    if document.exists and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        document.add(0, "", f"others may read it (mode {mode:o}): chmod 600 it")
    root = document.root()
    credentials = {}
    for name, value in root.section("credentials"):
        section = value.section()
        credentials[name] = Credential(section.text("username", required=True), section.text("password"))
        section.done()
    secrets = Secrets(
        credentials=credentials,
        boxes=_read_keys(root.section("boxes")),
        workers=_read_keys(root.section("workers")),
        users={sub: text for sub, value in root.section("users") if (text := value.text())},
    )
    root.done()
    return secrets


def _read_keys(section: Section) -> dict[str, bytes]:
    keys = {}
    for name, value in section:
        text = value.text() or ""
        try:
            key = bytes.fromhex(text)
        except ValueError:
            value.wrong("should be a key in hexadecimal")
            continue
        if text and not 16 <= len(key) <= 64:
            value.wrong("should be a key of 16 to 64 bytes in hexadecimal (32 to 128 digits)")
        keys[name] = key
    return keys
