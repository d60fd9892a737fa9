"""The supervised mosquitto: generated configuration, credentials and ACL; started, watched, restarted and
stopped by its pid.

A device's user name is its id and the broker takes it for the client id (`use_username_as_clientid`), so an
identity is bound to a credential and the ACL's patterns hold a device to its own topics. A subscription to
`#` is accepted by mosquitto, but each message is checked against the ACL on its way out: a device gets its
own and nothing else. A refused PUBLISH is reported through `on_denied`.

What the gateway's own client is sent may be far more than a device's, so queues are bounded generously for
all and by bytes for each. Nothing here makes the broker trustworthy: what counts is the application's ack
(Mosquitto issue 1855).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import logging
import os
import pwd
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.errors import Unavailable

__all__ = [
    "Broker",
    "BrokerSettings",
    "BrokerTls",
    "acl_text",
    "config_text",
    "end_left_behind",
    "password_line",
]

logger = logging.getLogger(__name__)

GATEWAY_USER = "gateway"
ITERATIONS = 101
"""mosquitto's own default. The passwords are 256 random bits, which no dictionary holds."""
RESTART_S = (0.2, 0.5, 1.0, 2.0, 5.0)
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_DENIED = re.compile(rb"Denied PUBLISH from (\S+) \(.*?'([^']*)'")
_SUBSCRIBES = b"Received SUBSCRIBE from "


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerTls:
    """A second listener, with TLS 1.2 or newer, for devices outside. certificate and key: PEM files. port 0: any free one."""

    host: str
    port: int
    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """port 0: any free one. max_packet_bytes: of a whole MQTT packet; presses and acks are far smaller."""

    host: str = "127.0.0.1"
    port: int = 1883
    root: str = "pd/v1"
    program: str = "mosquitto"
    max_packet_bytes: int = 8192
    tls: BrokerTls | None = None
    max_inflight: int = 1000
    max_queued: int = 10_000
    max_queued_bytes: int = 16 * 1024 * 1024
    autosave_s: int = 30


def password_line(user: str, password: str, salt: bytes) -> str:
    """A line of mosquitto's password file: `$7$`, PBKDF2-HMAC-SHA512. salt: 12 bytes."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS, 64)
    return f"{user}:$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def acl_text(root: str) -> str:
    """One line a right. %u is the user name, which is the client id."""
    patterns = [
        *(("write", f"stb/%u/{name}") for name in ("press", "cancel", "presence")),
        *(("read", f"stb/%u/{name}") for name in ("ack", "state")),
        *(("write", f"w/%u/{name}") for name in ("loc", "duty", "reply")),
        *(("read", f"w/%u/{name}") for name in ("task", "call")),
        ("read", "gw/health"),
    ]
    lines = [f"user {GATEWAY_USER}", f"topic readwrite {root}/#", ""]
    return "\n".join(lines + [f"pattern {right} {root}/{topic}" for right, topic in patterns]) + "\n"


def config_text(settings: BrokerSettings, port: int, directory: Path) -> str:
    """mosquitto.conf (mosquitto 2.0)."""
    return "\n".join(
        [
            "per_listener_settings false",
            # Started by root it would become `mosquitto`, who can't read the files.
            f"user {pwd.getpwuid(os.getuid()).pw_name}",
            "allow_anonymous false",
            f"password_file {directory}/passwords",
            f"acl_file {directory}/acl",
            "persistence true",
            f"persistence_location {directory}/",
            f"autosave_interval {settings.autosave_s}",
            "persistent_client_expiration 7d",
            f"max_inflight_messages {settings.max_inflight}",
            f"max_queued_messages {settings.max_queued}",
            f"max_queued_bytes {settings.max_queued_bytes}",
            f"max_packet_size {settings.max_packet_bytes}",
            f"message_size_limit {settings.max_packet_bytes}",
            "max_keepalive 600",
            "set_tcp_nodelay true",
            "connection_messages false",
            "log_timestamp false",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "log_type debug",  # the only type under which a denied PUBLISH is told; and who subscribes to what
            f"listener {port} {settings.host}",
            *_tls_listener(settings.tls),
            "use_username_as_clientid true",
            "",
        ]
    )


def _tls_listener(tls: BrokerTls | None) -> list[str]:
    if tls is None:
        return []
    return [
        f"listener {tls.port} {tls.host}",
        f"certfile {tls.certificate}",
        f"keyfile {tls.key}",
        "tls_version tlsv1.2",  # or newer
    ]


class Broker:
    """`await start()`, then `run()` in a TaskGroup, which restarts it until cancelled; `await stop()` at the
    end.

    passwords: by user name, without the gateway's own. Raises Unavailable from start(): no mosquitto, the
    port is taken, or what mosquitto said when it gave up.
    """

    def __init__(
        self,
        directory: Path,
        settings: BrokerSettings,
        *,
        passwords: Mapping[str, str],
        gateway_password: str,
        on_denied: Callable[[str, str], None] = lambda client, topic: None,
    ) -> None:
        self.host = settings.host
        self.port = settings.port
        self.restarts = 0
        self._directory = directory.resolve()
        self._settings = settings
        self._passwords = dict(passwords)
        self._gateway_password = gateway_password
        self._on_denied = on_denied
        self._process: asyncio.subprocess.Process | None = None
        self._log_fd: int | None = None
        self._log_tail = b""
        self._subscriber = b""  # whose topics follow in the log, a line each
        self._last_words: list[str] = []

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """Of the listener with TLS, if there is one."""
        return None if self._settings.tls is None else (self._settings.tls.host, self._settings.tls.port)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        program = self._program()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._end_predecessor()
        self.port = _free_port(self.host, self._settings.port)
        if (tls := self._settings.tls) is not None:
            tls = replace(tls, port=_free_port(tls.host, tls.port))
            self._settings = replace(self._settings, tls=tls)
        await asyncio.to_thread(self._write_files)
        await self._spawn(program)

    async def run(self) -> None:
        """Restarts it whenever it ends, with growing pauses while it fails to come up."""
        failures = 0
        while True:
            process = self._process
            if process is None:
                raise RuntimeError("start() comes first")
            code = await process.wait()
            self._close_log()
            logger.error("mosquitto ended with %s, restarting: %s", code, " / ".join(self._last_words[-3:]))
            self.restarts += 1
            await asyncio.sleep(RESTART_S[min(failures, len(RESTART_S) - 1)])
            try:
                await self._spawn(self._program())
                failures = 0
            except Unavailable as exc:
                failures += 1
                logger.error("mosquitto doesn't come up: %s", exc)

    def _program(self) -> str:
        name = self._settings.program
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise Unavailable(
                f"no {name} on this machine: install it (apt install mosquitto) or set mqtt: off"
            )
        return program

    async def update_passwords(self, passwords: Mapping[str, str]) -> None:
        """New credentials without a restart; who is connected stays."""
        self._passwords = dict(passwords)
        await asyncio.to_thread(self._write_files)
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """Ends our child, by its pid. It saves its state on SIGTERM. Idempotent."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._close_log()

    async def _spawn(self, program: str) -> None:
        read_fd, write_fd = os.pipe()
        # A full pipe must lose lines of the log, not stop the broker; ours is read from the loop.
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        try:
            self._process = await asyncio.create_subprocess_exec(
                program,
                "-c",
                str(self._directory / "mosquitto.conf"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_fd,
                stderr=write_fd,
            )
        except OSError as exc:
            os.close(read_fd)
            raise Unavailable(f"cannot start {program}: {exc.strerror}") from exc
        finally:
            os.close(write_fd)
        self._log_fd = read_fd
        self._last_words.clear()
        asyncio.get_running_loop().add_reader(read_fd, self._read_log)
        await self._until_listening(self._process)

    async def _until_listening(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.returncode is None:
                    try:
                        _, writer = await asyncio.open_connection(self.host, self.port)
                    except OSError:
                        await asyncio.sleep(0.02)
                        continue
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
                    logger.info("mosquitto listens on %s:%d (pid %d)", self.host, self.port, process.pid)
                    return
        except TimeoutError:
            process.kill()
        await process.wait()
        self._read_log()
        said = " / ".join(self._last_words[-3:]) or f"it ended with {process.returncode}"
        raise Unavailable(f"mosquitto doesn't start on {self.host}:{self.port}: {said}")

    async def _end_predecessor(self) -> None:
        """A gateway that was killed leaves its broker behind; it would hold the port. Only ours, by its command line."""
        await asyncio.to_thread(end_left_behind, self._directory)

    def _write_files(self) -> None:
        lines = [password_line(GATEWAY_USER, self._gateway_password, os.urandom(12))]
        lines += [password_line(user, password, os.urandom(12)) for user, password in self._passwords.items()]
        _write_private(self._directory / "passwords", "\n".join(lines) + "\n")
        _write_private(self._directory / "acl", acl_text(self._settings.root))
        _write_private(
            self._directory / "mosquitto.conf", config_text(self._settings, self.port, self._directory)
        )

    def _read_log(self) -> None:
        if self._log_fd is None:
            return
        try:
            data = os.read(self._log_fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._close_log()
            return
        *lines, self._log_tail = (self._log_tail + data).split(b"\n")
        self._log_tail = self._log_tail[-4096:]
        for line in lines:
            if line.startswith(b"\t"):
                self._note_subscription(line)
                continue
            self._subscriber = b""
            if line.startswith(_SUBSCRIBES):
                self._subscriber = line.removeprefix(_SUBSCRIBES)
            elif b"Denied PUBLISH" in line:
                match = _DENIED.search(line)
                if match:
                    self._on_denied(match[1].decode(errors="replace"), match[2].decode(errors="replace"))
            elif line.startswith((b"Error", b"Warning")) or b"rror:" in line:
                self._last_words = [*self._last_words[-9:], line.decode(errors="replace")]

    def _note_subscription(self, line: bytes) -> None:
        """mosquitto 2 grants every subscription and holds back what may not be read. Who asked for more than its own is told
        all the same."""
        client = self._subscriber.decode(errors="replace")
        topic = line[1:].rpartition(b" (QoS")[0].decode(errors="replace")
        root = self._settings.root
        own = (f"{root}/stb/{client}/", f"{root}/w/{client}/")
        if client not in ("", GATEWAY_USER) and topic != f"{root}/gw/health" and not topic.startswith(own):
            self._on_denied(client, topic)

    def _close_log(self) -> None:
        if self._log_fd is not None:
            asyncio.get_running_loop().remove_reader(self._log_fd)
            os.close(self._log_fd)
            self._log_fd = None


def _free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises Unavailable naming it when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            raise Unavailable(
                f"MQTT port {port} on {host} is not free ({exc.strerror}); set another one"
            ) from exc
        return int(probe.getsockname()[1])


def end_left_behind(directory: Path) -> None:
    """Ends the brokers that earlier gateways with this directory left behind when they were killed. Blocking.

    Found in the process table by their command line: a pid file can't be written in the same instant as the process
    begins, and a gateway that was killed in between left a broker that nobody found, and that held the port.
    """
    for pid in _left_behind(directory):
        logger.warning("ending the broker (pid %d) that an earlier gateway left behind", pid)
        _end(pid)


def _left_behind(directory: Path) -> list[int]:
    configuration = str(directory.resolve() / "mosquitto.conf").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if configuration in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _end(pid: int) -> None:
    for number, wait_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, 1.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + wait_s
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


def _write_private(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
