"""The console script `gateway`: serve, check, doctor, token, link, passwd, backup, restore, drill, audit verify, evidence verify.

Exit codes: 0 done, 1 it couldn't be done (the reason is on standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import errno
import getpass
import json
import logging
import os
import socket
import sqlite3
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from gateway import __version__
from gateway.access import Action, Principal, Resource, Role, authorize
from gateway.alarms.broker import end_left_behind
from gateway.audit import verify_audit
from gateway.certificates import certificate_problems
from gateway.config import Files, ServeOptions, load_configuration
from gateway.data_dir import DataDir
from gateway.errors import ConfigError, GatewayError
from gateway.evidence.bundle import verify_bundle
from gateway.identity import Keyring, TokenKind, hash_password
from gateway.secrets_file import set_user
from gateway.settings import MqttMode, Settings

__all__ = ["main", "taken_ports"]

SIGNING_KEY = "signing.key"
MIN_PASSWORD = 8
_PAGES = {
    "wall": Action.PAGE_WALL,
    "desk": Action.PAGE_DESK,
    "stb": Action.PAGE_STB,
    "worker": Action.PAGE_WORKER,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(*error.mistakes, sep="\n", file=sys.stderr)
        count = len(error.mistakes)
        print(f"gateway: {count} mistake{'s' * (count != 1)} in the configuration", file=sys.stderr)
    except GatewayError as error:
        print(f"gateway: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway", description="Video and alarm gateway of a city district."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the gateway")
    _add_files(serve)
    _add_data(serve)
    serve.add_argument(
        "--workers",
        type=_at_least_1,
        metavar="N",
        help="worker processes for video (default: one for each core)",
    )
    serve.add_argument("--verbose", action="store_true", help="log details")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="name every mistake in the configuration")
    _add_files(check)
    check.set_defaults(run=_check)

    token = commands.add_parser("token", help="print a bearer token")
    _add_principal(token)
    token.add_argument(
        "--ttl", type=_at_least_1, default=3600, metavar="S", help="seconds it is valid (default 3600)"
    )
    token.set_defaults(run=_token)

    link = commands.add_parser("link", help="print a link that logs in once")
    link.add_argument("--page", choices=_PAGES, required=True)
    _add_principal(link)
    link.add_argument("--base", default="http://127.0.0.1:8080", metavar="URL", help="address of the gateway")
    link.add_argument(
        "--ttl", type=_at_least_1, default=600, metavar="S", help="seconds it is valid (default 600)"
    )
    link.set_defaults(run=_link)

    drill = commands.add_parser("drill", help="press synthetically on both paths and time each step")
    _add_files(drill)
    _add_data(drill)
    drill.add_argument(
        "--box", action="append", required=True, metavar="SID", dest="boxes",
        help="a box set apart for drills (a real one with this id would be disconnected); may be repeated",
    )  # fmt: skip
    drill.add_argument("--presses", type=_at_least_1, default=10, help="of each box (default 10)")
    drill.add_argument("--base", metavar="URL", help="address of the gateway (default: by gateway.yaml)")
    drill.add_argument("--mqtt", metavar="HOST:PORT", help="the broker (default: by gateway.yaml)")
    drill.add_argument("--ca", type=Path, metavar="F", help="certificate authority of the gateway's HTTPS")
    drill.add_argument("--people", action="store_true", help="operators answer, not the drill")
    drill.add_argument("--json", action="store_true", help="print JSON")
    drill.set_defaults(run=_drill)
    passwd = commands.add_parser("passwd", help="set a user's password in secrets.yaml (as an argon2 hash)")
    passwd.add_argument("--sub", type=_filled, required=True, metavar="ID", help="id in users.yaml")
    _add_files(passwd)
    passwd.set_defaults(run=_passwd)

    doctor = commands.add_parser(
        "doctor", help="look at ports, clock, certificates, database, broker, cameras ..."
    )
    _add_files(doctor)
    _add_data(doctor)
    doctor.set_defaults(run=_doctor)

    backup = commands.add_parser("backup", help="write a backup beside a running gateway")
    backup.add_argument("target", type=Path, metavar="DIR", help="must not exist")
    backup.add_argument("--evidence", action="store_true", help="copy recordings too, not only their list")
    _add_files(backup)
    _add_data(backup)
    backup.set_defaults(run=_backup)

    restore = commands.add_parser("restore", help="put a backup into empty directories")
    restore.add_argument("source", type=Path, metavar="DIR", help="a backup")
    restore.add_argument(
        "--to-config", type=Path, required=True, metavar="DIR", help="for the configuration files"
    )
    _add_data(restore)
    restore.set_defaults(run=_restore)

    trail = commands.add_parser("audit", help="the audit trail").add_subparsers(required=True, metavar="WHAT")
    verify = trail.add_parser("verify", help="walk the hash chain, offline; exit 1 where it is broken")
    verify.add_argument(
        "--anchor", type=_anchor, metavar="ID:HASH", help="a head printed earlier; shows that no tail was cut"
    )
    _add_data(verify)
    verify.set_defaults(run=_verify_audit)

    kept = commands.add_parser("evidence", help="exported evidence").add_subparsers(
        required=True, metavar="WHAT"
    )
    bundle = kept.add_parser("verify", help="check a bundle, offline; exit 1 if anything in it was changed")
    bundle.add_argument("file", type=Path, metavar="FILE")
    bundle.set_defaults(run=_verify_evidence)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cameras",
        type=Path,
        default=Path("config/cameras.yaml"),
        metavar="F",
        help="default config/cameras.yaml; secrets.yaml is read from beside it",
    )
    parser.add_argument(
        "--config", type=Path, metavar="F", help="default gateway.yaml beside the cameras, if any"
    )
    parser.add_argument(
        "--district", type=Path, metavar="DIR", help="default district/ beside the cameras, if any"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("var"),
        metavar="DIR",
        help="database and made secrets (default ./var)",
    )


def _add_principal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", type=Role, choices=list(Role), required=True)
    parser.add_argument(
        "--sub", type=_filled, required=True, metavar="ID", help="id of user, gridworker, box ..."
    )
    parser.add_argument(
        "--area", type=_filled, metavar="CODE", help="limits it to an area; none: the whole district"
    )
    parser.add_argument("--supervisor", action="store_true", help="is told what was left undone")
    parser.add_argument("--name", default="", help="shown to others")
    _add_data(parser)


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("should be at least 1")
    return number


def _filled(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("shouldn't be empty")
    return text


def _files(options: argparse.Namespace) -> Files:
    return Files.beside(options.cameras, config=options.config, district=options.district)


def _serve(options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for chatty in ("alembic", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A traceback for each garbled request would let anybody fill the disk; our own errors are logged by the edge.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    os.umask(0o077)  # database, photos and recordings are nobody else's
    files = _files(options)
    configuration = load_configuration(files, district_cache=options.data / "cache" / "district")
    if unusable := certificate_problems(configuration.settings):
        raise ConfigError(unusable)
    with DataDir.open(options.data) as data:
        if configuration.settings.mqtt.mode is MqttMode.SUPERVISED:
            # A gateway that was killed leaves its broker behind, which would hold the port.
            end_left_behind(data.path / "broker")
        workers = options.workers or configuration.settings.media.workers
        if not workers:
            workers = max(1, min(len(os.sched_getaffinity(0)), len(configuration.cameras)))
        if taken := taken_ports(configuration.settings, workers):
            raise GatewayError("; ".join(taken))
        # Late: the other commands need nothing of the whole gateway.
        from gateway import app

        app.serve(ServeOptions(files=files, configuration=configuration, data=data, workers=workers))
    return 0


def _check(options: argparse.Namespace) -> int:
    configuration = load_configuration(_files(options))
    if unusable := certificate_problems(configuration.settings):
        raise ConfigError(unusable)
    district = configuration.district
    counts = f"{len(configuration.cameras)} cameras, {len(district.areas)} areas, {len(district.boxes)} boxes"
    print(f"{counts}: no mistakes")
    return 0


def _issue(options: argparse.Namespace, kind: TokenKind) -> str:
    principal = Principal(
        sub=options.sub,
        role=options.role,
        area=options.area,
        supervisor=options.supervisor,
        name=options.name,
    )
    key = DataDir.open(options.data, lock=False).secret(SIGNING_KEY)
    return Keyring(key).issue(principal, kind, now_s=time.time(), ttl_s=options.ttl)


def _token(options: argparse.Namespace) -> int:
    print(_issue(options, TokenKind.ACCESS))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from gateway.doctor import Level, examine

    worst = Level.OK
    now = datetime.datetime.now(datetime.UTC)
    for finding in examine(_files(options), options.data, taken_ports=taken_ports, now=now):
        print(finding, flush=True)
        if finding.level is Level.FAIL or worst is Level.OK:
            worst = finding.level
    print(
        {Level.OK: "all well", Level.WARN: "it can run; look at the warnings"}.get(
            worst, "something must be done"
        )
    )
    return 1 if worst is Level.FAIL else 0


def _backup(options: argparse.Namespace) -> int:
    from gateway.backup import make_backup

    files, now_ms = _files(options), time.time_ns() // 1_000_000
    made = make_backup(options.data, files, options.target, now_ms=now_ms, evidence=options.evidence)
    print(f"{made.path}: {made.files} files, {made.size} bytes, audit head {made.audit_head}")
    if made.evidence_files and not made.evidence_copied:
        print(
            f"{made.evidence_files} evidence files are listed in manifest.json and not copied (--evidence copies them)"
        )
    print("It holds every secret of this gateway: keep it where only its keepers can read it.")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from gateway.backup import restore_backup

    done = restore_backup(options.source, options.data, options.to_config)
    print(f"{done.files} files are back, audit head {done.audit_head}. Next:")
    print(f"  gateway doctor --cameras {options.to_config}/cameras.yaml --data {options.data}")
    if done.evidence_files and not done.evidence_copied:
        print(
            f"{done.evidence_files} evidence files were not in the backup: copy them into {options.data} yourself"
        )
    return 0


def _passwd(options: argparse.Namespace) -> int:
    from gateway.reload import write_whole

    files = _files(options)
    if files.secrets is None:
        raise GatewayError("there is no place for secrets.yaml: name a cameras file")
    if options.sub not in load_configuration(files).district.users:
        raise GatewayError(
            f"no user {options.sub!r} in users.yaml of the district: add who it is there first"
        )
    password = _ask_password()
    try:
        # Made private before anything is in it.
        os.close(os.open(files.secrets, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        before = files.secrets.read_bytes()
        edited = set_user(before.decode(), options.sub, hash_password(password))
    except OSError as error:
        raise GatewayError(f"{files.secrets} can't be written: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GatewayError(f"{files.secrets} is no UTF-8") from None
    write_whole(files.secrets, edited.encode(), expected=before)
    print(f"{files.secrets}: password of {options.sub} is set. A running gateway takes it after SIGHUP or")
    print("POST /api/v1/admin/reload, which also ends the sessions that began with the old one.")
    return 0


def _ask_password() -> str:
    """Twice without echo; from a pipe, its first line."""
    if sys.stdin.isatty():
        password = getpass.getpass("New password: ")
        if getpass.getpass("Once more: ") != password:
            raise GatewayError("the two are not the same; nothing is changed")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if len(password) < MIN_PASSWORD:
        raise GatewayError(f"a password has at least {MIN_PASSWORD} characters; nothing is changed")
    return password


def _anchor(text: str) -> tuple[int, str]:
    number, _, digest = text.partition(":")
    if not number.isdecimal() or len(digest) != 64:
        raise argparse.ArgumentTypeError("should be ID:HASH as printed by audit verify")
    return int(number), digest.lower()


def _verify_audit(options: argparse.Namespace) -> int:
    path = options.data / "gateway.db"
    if not path.is_file():
        raise GatewayError(f"no database {path}")
    try:
        report = verify_audit(path, anchor=options.anchor)
    except sqlite3.Error as error:
        raise GatewayError(f"can't read {path}: {error}") from None
    head = f"{report.head[0]}:{report.head[1]}"
    if report.broken_at is None:
        print(f"{report.entries} entries, the chain holds; head {head}")
        return 0
    raise GatewayError(
        f"the audit trail is broken at entry {report.broken_at}: {report.reason}; sound up to {head}"
    )


def _drill(options: argparse.Namespace) -> int:
    """Exit code 1 when a press got lost on its way or a path is down; missed goals of people are only reported."""
    from gateway import drill

    configuration = load_configuration(_files(options))
    http, mqtt = configuration.settings.http, configuration.settings.mqtt
    boxes = []
    for sid in options.boxes:
        if (key := configuration.secrets.boxes.get(sid)) is None:
            raise GatewayError(f"box {sid!r} has no key in secrets.yaml")
        boxes.append(drill.Box(sid=sid, key=key))
    broker = urlsplit(f"//{options.mqtt}" if options.mqtt else "")
    if mqtt.mode is MqttMode.EXTERNAL and options.mqtt is None:
        broker = urlsplit(mqtt.url)
    elif mqtt.mode is MqttMode.SUPERVISED and options.mqtt is None:
        broker = urlsplit(f"//{mqtt.host}:{mqtt.port}")
    token = Principal(sub="drill", role=Role.OPERATOR, name="演练")
    key = DataDir.open(options.data, lock=False).secret(SIGNING_KEY)
    lasts_s = 600 + len(boxes) * options.presses * 90
    report = asyncio.run(
        drill.run_drill(
            drill.DrillOptions(
                base=options.base or f"{'https' if http.tls_cert else 'http'}://{http.host}:{http.port}",
                token=Keyring(key).issue(token, TokenKind.ACCESS, now_s=time.time(), ttl_s=lasts_s),
                boxes=boxes,
                presses=options.presses,
                mqtt=(str(broker.hostname), broker.port or 8883) if broker.hostname else None,
                root=mqtt.root,
                tls=ssl.create_default_context(cafile=options.ca) if options.ca else None,
                mqtt_tls=ssl.create_default_context(cafile=mqtt.tls_ca or None)
                if broker.scheme == "mqtts"
                else None,
                people=options.people,
            )
        )
    )
    print(json.dumps(report.json(), ensure_ascii=False, indent=2) if options.json else drill.table(report))
    return 0 if report.ok else 1


def _verify_evidence(options: argparse.Namespace) -> int:
    report = verify_bundle(options.file)
    if report.wrong:
        raise GatewayError("\n".join((f"{options.file} is not as it was exported:", *report.wrong)))
    print(
        f"{report.files} files, {report.clips} clips, {report.audit_lines} audit lines: as they were exported"
    )
    print(
        f"manifest {report.manifest_sha256} (compare with manifest_sha256 of evidence.export in the audit trail)"
    )
    return 0


def _link(options: argparse.Namespace) -> int:
    page = Principal(sub=options.sub, role=options.role)
    if not authorize(page, _PAGES[options.page], Resource(kind="page", id=options.page)):
        raise GatewayError(f"role {options.role} has no page {options.page}")
    base = urlsplit(options.base)
    if base.scheme not in ("http", "https") or not base.hostname:
        raise GatewayError(f"--base {options.base!r} should be like http://192.0.2.1:8080")
    print(f"{options.base.rstrip('/')}/{options.page}#code={_issue(options, TokenKind.CODE)}")
    return 0


def taken_ports(settings: Settings, workers: int = 1) -> list[str]:
    """One line for each port that somebody else holds, saying what it is for and where to change it.

    Only a courtesy before starting: whoever binds the port later still handles its failure.
    """
    wanted = [("HTTP", "http.port", settings.http.host, settings.http.port, socket.SOCK_STREAM)]
    for address in settings.media.addresses or (settings.http.host,):
        first = settings.media.udp_port
        for port in range(first, first + workers) if first else ():
            wanted.append(("media", "media.udp_port", address, port, socket.SOCK_DGRAM))
            if settings.media.tcp:
                wanted.append(("media", "media.udp_port", address, port, socket.SOCK_STREAM))
    if settings.mqtt.mode is MqttMode.SUPERVISED:
        wanted.append(("MQTT", "mqtt.port", settings.mqtt.host, settings.mqtt.port, socket.SOCK_STREAM))
        if settings.mqtt.tls_cert:
            tls = settings.mqtt
            wanted.append(("MQTT", "mqtt.tls_port", tls.tls_host, tls.tls_port, socket.SOCK_STREAM))
    return [
        f"{name} {'UDP' if kind is socket.SOCK_DGRAM else 'TCP'} {problem} (setting {key})"
        for name, key, host, port, kind in wanted
        if port and (problem := _bind_problem(host, port, kind))
    ]


def _bind_problem(host: str, port: int, kind: socket.SocketKind) -> str | None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            if kind is socket.SOCK_STREAM:
                # As servers do: connections in TIME_WAIT don't count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} on {host} is taken by another program: stop it or choose another"
        return f"port {port} on {host} can't be used: {error.strerror}"
    return None
