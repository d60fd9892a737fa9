"""One pull: the asyncio shell around rtsp.Session and h264.Depacketizer.

All connections of a loop read into one ReceiveBuffer. That is safe because a selector loop calls get_buffer, recv_into and
buffer_updated without anything in between; only the tail of an incomplete packet is kept per connection. Once it plays, a
TCP socket is read by the Sweep; while nobody watches a good piece of data at a time (SO_RCVLOWAT), and Backlog keeps what
it says.

run() pulls until it fails and then raises PullFailed; whatever ends it, cancellation included, TEARDOWN is sent. What helps
at once is tried at once: another transport after 461, a new session after 454, the other place after 3xx.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from gateway.errors import ProtocolError, Unavailable
from gateway.streams import rtsp
from gateway.streams.audio import Sound, output_codec
from gateway.streams.backlog import Backlog
from gateway.streams.compiled import whole_picture
from gateway.streams.datagrams import UdpTrack
from gateway.streams.h264 import Depacketizer, Timeline
from gateway.streams.media import AccessUnit, AudioFrame, StreamName
from gateway.streams.reception import Reception
from gateway.streams.sps import parse_sprop
from gateway.streams.sweep import ReceiveBuffer, Sweep

__all__ = ["Pull", "PullFailed", "PullSpec"]

log = logging.getLogger(__name__)

TICK_STARTING_S = 0.25
TICK_PLAYING_S = 2.5
REPORT_INTERVAL_S = 5.0
MAX_REMEDIES = 4
LOW_WATER_S = 0.6
FAREWELL_S = 1.0
"""A camera that has not answered TEARDOWN by then is left."""
_LOW_WATER_CAP = {StreamName.SUB: 32 * 1024, StreamName.MAIN: 128 * 1024}


class PullFailed(Unavailable):
    """A pull ended. reason is short and stable; remedy says what may help."""

    def __init__(
        self, reason: str, remedy: rtsp.Remedy = rtsp.Remedy.PAUSE, location: str | None = None
    ) -> None:
        self.reason = reason
        self.remedy = remedy
        self.location = location
        super().__init__(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSpec:
    """What to pull. url: rtsp or rtsps, without credentials. transport: tcp, udp or auto (TCP first).

    connect_timeout_s bounds the TCP (and TLS) handshake, data_timeout_s the age of the last decodable frame.
    """

    url: str
    name: StreamName = StreamName.MAIN
    transport: str = "auto"
    username: str | None = None
    password: str = ""
    connect_timeout_s: float = 5.0
    data_timeout_s: float = 10.0
    audio: bool = True
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:  # no password in any log
        return f"PullSpec({self.url!r}, {self.name}, {self.transport})"


class Pull:
    """One stream of one camera.

    on_unit, on_audio: where media goes; they must not raise. While unwatched, pictures behind a keyframe may be held back
    until watch(True). compiled: pictures are taken in by the compiled loop, if it was built. on_skip: of those held back some were dropped. A first audio frame without payload tells the codec,
    more come only while listening(). audio_thread: makes AAC into Opus; without it such sound is left out.
    on_playing: the camera accepted PLAY.
    on_closing: a session ends; its counters can be read for the last time.
    timeline outlives the pull, so that a stream's time never runs backwards over reconnects.
    """

    def __init__(
        self,
        spec: PullSpec,
        *,
        on_unit: Callable[[AccessUnit], None],
        on_audio: Callable[[AudioFrame], None],
        on_skip: Callable[[], None] = lambda: None,
        on_playing: Callable[[], None] = lambda: None,
        on_closing: Callable[[Pull], None] = lambda pull: None,
        timeline: Timeline | None = None,
        audio_timeline: Timeline | None = None,
        sweep: Sweep | None = None,
        listening: Callable[[], bool] = lambda: True,
        audio_thread: ThreadPoolExecutor | None = None,
        compiled: bool = True,
    ) -> None:
        self.spec = spec
        self._on_unit = on_unit
        self._on_audio = on_audio
        self._on_skip = on_skip
        self._on_playing = on_playing
        self._on_closing = on_closing
        self._timeline = timeline or Timeline()
        self._audio_timeline = audio_timeline or Timeline(8000)
        self.sweep = sweep if sweep is not None else Sweep()
        self.leaving: asyncio.Future[None] | None = None
        """After run(): done when the camera has taken the TEARDOWN; None if there was nobody to tell."""
        self._connection: _Connection | None = None
        self._listening = listening
        self._audio_thread = audio_thread
        self._whole_picture = whole_picture if compiled else None
        self._watched = False
        self._connecting: asyncio.Timeout | None = None

    @property
    def depacketizer(self) -> Depacketizer | None:
        """Counters and the SPS of the session under way."""
        return self._connection.depacketizer if self._connection is not None else None

    @property
    def kbps(self) -> float:
        return self._connection.rate * 8 / 1000 if self._connection is not None else 0.0

    @property
    def fps(self) -> float:
        return self._connection.fps if self._connection is not None else 0.0

    @property
    def received_bytes(self) -> int:
        return self._connection.received if self._connection is not None else 0

    @property
    def ignored_audio(self) -> tuple[str, ...]:
        return self._connection.session.ignored if self._connection is not None else ()

    def watch(self, watched: bool) -> None:
        """Somebody looks: every packet counts at once, and what was held back comes before this returns. Nobody does: wake
        up seldom and build no pictures but keyframes."""
        self._watched = watched
        if self._connection is not None:
            self._connection.watch(watched)

    def give_up_if_silent(self) -> None:
        """Others wait for the place that this dial holds: end it now, unless the host has said something."""
        if self._connection is not None:
            self._connection.give_up_if_silent()
        elif self._connecting is not None and not self._connecting.expired():
            self._connecting.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Pull until it fails. Always raises: PullFailed, or CancelledError after TEARDOWN."""
        url = self.spec.url
        transports = [rtsp.Transport.UDP] if self.spec.transport == "udp" else [rtsp.Transport.TCP]
        if self.spec.transport == "auto":
            transports.append(rtsp.Transport.UDP)
        for _ in range(MAX_REMEDIES):
            try:
                await self._once(url, transports[0])
            except PullFailed as failure:
                if failure.remedy is rtsp.Remedy.OTHER_TRANSPORT and len(transports) > 1:
                    transports.pop(0)
                elif failure.remedy is rtsp.Remedy.REDIRECT and failure.location is not None:
                    url = rtsp.without_credentials(failure.location)
                elif failure.remedy is not rtsp.Remedy.NEW_SESSION:
                    raise
        raise PullFailed("too many redirects or refusals")

    async def _once(self, url: str, transport: rtsp.Transport) -> None:
        try:
            parts = urlsplit(url)
            secure = parts.scheme.lower() == "rtsps"
            host, port = parts.hostname, parts.port or (322 if secure else 554)
        except ValueError:
            raise PullFailed("bad URL", rtsp.Remedy.LONG_PAUSE) from None
        if host is None or parts.scheme.lower() not in ("rtsp", "rtsps"):
            raise PullFailed("bad URL", rtsp.Remedy.LONG_PAUSE)
        loop = asyncio.get_running_loop()
        # Credentials stay with the host they were configured for: a redirect elsewhere must not collect them.
        trusted = host == urlsplit(self.spec.url).hostname
        connection: _Connection | None = None
        udp: list[UdpTrack] = []
        try:
            family = 0
            if transport is rtsp.Transport.UDP:
                try:
                    family = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0][0]
                except OSError as error:
                    raise PullFailed(_os_reason(error)) from None
                any_address = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
                try:
                    udp = [await UdpTrack.open(loop, any_address), await UdpTrack.open(loop, any_address)]
                except OSError:
                    raise PullFailed("no free UDP port pair") from None
            connection = _Connection(
                pull=self,
                udp=udp,
                session=rtsp.Session(
                    rtsp.without_credentials(url),
                    transport=transport,
                    username=self.spec.username if trusted else None,
                    password=self.spec.password,
                    cnonce=secrets.token_hex(8),
                    udp_ports=[track.ports for track in udp],
                    audio=self.spec.audio,
                    transcodable=lambda track: (
                        self._audio_thread is not None and output_codec(track) is not None
                    ),
                ),
            )
            try:
                async with asyncio.timeout(self.spec.connect_timeout_s) as self._connecting:
                    await loop.create_connection(
                        lambda: connection,
                        host,
                        port,
                        family=family,
                        ssl=(self.spec.tls or ssl.create_default_context()) if secure else None,
                    )
            except TimeoutError:
                raise PullFailed("no answer from host") from None
            except ssl.SSLError as error:
                raise PullFailed(f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}") from None
            except OSError as error:
                raise PullFailed(_os_reason(error)) from None
            finally:
                self._connecting = None
            self._connection = connection
            connection.begin()
            await connection.ended
        finally:
            if self._connection is not None:
                self._on_closing(self)
            self._connection = None
            self._timeline.cut()
            self._audio_timeline.cut()
            for track in udp:
                track.close()
            if connection is not None:
                self.leaving = connection.close()
            connection = None  # what ended it holds, by its traceback, this frame

    # What _Connection uses.
    @property
    def watched(self) -> bool:
        return self._watched

    def new_depacketizer(self, active: rtsp.ActiveTrack) -> Depacketizer:
        return Depacketizer(
            self._on_unit,
            payload_type=active.track.payload_type,
            channel=active.channel,
            parameter_sets=parse_sprop(active.track.parameters.get("sprop-parameter-sets", "")),
            timeline=self._timeline,
            whole_picture=self._whole_picture,
        )

    def new_backlog(
        self, depacketizer: Depacketizer, on_other: Callable[[int, int, int, float], None]
    ) -> Backlog:
        return Backlog(depacketizer, on_skip=self._on_skip, on_other=on_other, watched=self._watched)

    def new_sound(self, active: rtsp.ActiveTrack) -> Sound:
        return Sound(
            active.track,
            timeline=self._audio_timeline,
            deliver=self._on_audio,
            listening=self._listening,
            thread=self._audio_thread,
        )

    def playing(self) -> None:
        self._on_playing()


class _Connection(asyncio.BufferedProtocol):
    """The TCP connection of one session: RTSP, and RTP unless that goes over UDP."""

    def __init__(self, *, pull: Pull, session: rtsp.Session, udp: list[UdpTrack]) -> None:
        self.session = session
        self.depacketizer: Depacketizer | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = 0
        self.rate = 0.0  # bytes per second
        self.fps = 0.0
        self._pull = pull
        self._udp = udp
        self._transport: asyncio.Transport | None = None
        self._sweep = pull.sweep
        self._buffer: ReceiveBuffer = pull.sweep.buffer
        self._swept_fd = -1
        self._urgent = False
        self._tail = b""
        self._feed: Callable[[bytearray, int, int, float], int] | None = None
        self._garbage = 0
        self._audio_channel = -1
        self._sound: Sound | None = None
        self._backlog: Backlog | None = None
        self._receptions: list[Reception] = []
        self._timer: asyncio.TimerHandle | None = None
        self._playing_since: float | None = None
        self._counted = (0.0, 0, 0)
        self._heard_at = 0.0
        self._report_at = 0.0
        self._low_water = 1

    # -- protocol --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_sweep()
        self._end("connection closed by camera" if exc is None else _os_reason(exc))

    def get_buffer(self, sizehint: int) -> memoryview:
        tail = self._tail
        if tail:
            size = len(tail)
            self._buffer.data[:size] = tail
            return self._buffer.view[size:]
        return self._buffer.view

    def buffer_updated(self, nbytes: int) -> None:
        now = self._heard_at = time.monotonic()
        self.received += nbytes
        data = self._buffer.data
        end = len(self._tail) + nbytes
        start = 0
        try:
            while True:
                if self._feed is not None:
                    start = self._feed(data, start, end, now)
                    if start == end:
                        break
                before = start
                found, start = rtsp.next_message(data, start, end)
                if found is None:
                    self._rubbish(start - before)
                    break
                if isinstance(found, rtsp.Frame):
                    self._rubbish(found.start - 4 - before)
                    self._garbage = 0
                    self._frame(found.channel, found.start, found.stop, now)
                else:
                    self._garbage = 0
                    self._apply(self.session.receive(found, now), now)
        except ProtocolError as error:
            self._end(error.reason.replace("_", " "))
            start = end
        self._tail = bytes(self._buffer.view[start:end]) if start < end else b""

    def _rubbish(self, count: int) -> None:
        if count > 0:
            self._garbage += count
            if self._garbage > rtsp.MAX_GARBAGE_BYTES:
                raise ProtocolError("garbage instead of RTSP")

    def _frame(self, channel: int, start: int, stop: int, now: float) -> None:
        """An interleaved frame in the receive buffer that feed() did not take."""
        backlog = self._backlog
        if backlog is None:
            return
        data = self._buffer.data
        if channel == self._audio_channel and self._sound is not None:
            self._sound.packet(data, start, stop, now)
        elif channel == self.session.tracks[0].channel:
            backlog.packet(data, start, stop, now)
        else:
            for active, reception in zip(self.session.tracks, self._receptions, strict=False):
                if channel == active.channel + 1:
                    reception.on_rtcp(bytes(data[start:stop]), now)

    # -- session ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        now = time.monotonic()
        self._apply(self.session.start(now), now)
        self._schedule(TICK_STARTING_S)

    def give_up_if_silent(self) -> None:
        if not self.received:
            self._end(f"no answer to {self.session.asked}")

    def _apply(self, effects: list[rtsp.Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case rtsp.Send(data=data):
                    self._write(data)
                case rtsp.Playing(tracks=tracks):
                    self._play(tracks, now)
                case rtsp.Failed(reason=reason, remedy=remedy, location=location):
                    self._end(reason, remedy, location)
            # RTP may come before the answer to PLAY (RFC 2326 section 10.5): be ready once the tracks are known.
            if self.session.state is rtsp.State.PLAY and self.depacketizer is None:
                self._prepare()

    def _prepare(self) -> None:
        tracks = self.session.tracks
        self.depacketizer = self._pull.new_depacketizer(tracks[0])
        for active in tracks:
            self._receptions.append(
                Reception(own_ssrc=random.getrandbits(32), clock_rate=active.track.clock_rate or 90_000)
            )
        if len(tracks) > 1:
            self._sound = self._pull.new_sound(tracks[1])
            self._audio_channel = tracks[1].channel
        if not self._udp:
            self._backlog = self._pull.new_backlog(self.depacketizer, self._frame)
            self._feed = self._backlog.feed
            return
        host = self._peer()
        for index, (active, track) in enumerate(zip(tracks, self._udp, strict=False)):
            deliver = self._udp_video if index == 0 else self._udp_audio
            track.start(host, active.server_ports, self._receptions[index], deliver)

    def _udp_video(self, packet: bytes, now: float) -> None:
        self.received += len(packet)
        self._heard_at = now
        if self.depacketizer is not None:
            self.depacketizer.packet(packet, 0, len(packet), now)

    def _udp_audio(self, packet: bytes, now: float) -> None:
        if self._sound is not None:
            self._sound.packet(packet, 0, len(packet), now)

    def _play(self, tracks: tuple[rtsp.ActiveTrack, ...], now: float) -> None:
        self._playing_since = now
        self._counted = (now, self.received, 0)
        self._report_at = now + REPORT_INTERVAL_S
        if self._sound is not None:
            self._sound.announce(now)
        self._pull.playing()

    def watch(self, watched: bool) -> None:
        if watched and self._swept_fd >= 0:
            self._read()  # what the kernel still holds is part of what a viewer starts with
        if self._backlog is not None:
            self._backlog.watch(watched)
        self._set_reading()

    def _set_reading(self) -> None:
        """Plain TCP is swept once it plays; TLS is not, whose records must be read to be decrypted."""
        transport = self._transport
        if (
            transport is None
            or self._udp
            or self._playing_since is None
            or transport.is_closing()
            or transport.get_extra_info("ssl_object")
        ):
            return
        urgent = self._pull.watched or not self.rate
        if urgent:
            self._set_low_water(1)
        else:
            piece_s = min(LOW_WATER_S, self._pull.spec.data_timeout_s / 4)
            self._set_low_water(max(1, min(_LOW_WATER_CAP[self._pull.spec.name], int(self.rate * piece_s))))
        if self._swept_fd >= 0 and urgent is self._urgent:
            return
        if self._swept_fd < 0:
            transport.pause_reading()
            self._swept_fd = transport.get_extra_info("socket").fileno()
        else:
            self._sweep.remove(self._swept_fd)
        self._urgent = urgent
        if urgent:
            self._sweep.add_urgent(self._swept_fd, on_readable=self._read)
            self._schedule(TICK_PLAYING_S)
        else:
            self._unschedule()
            self._sweep.add(self._swept_fd, on_readable=self._read, on_turn=self._tick)

    def _leave_sweep(self) -> None:
        if self._swept_fd >= 0:
            self._sweep.remove(self._swept_fd)
            self._swept_fd = -1

    def _read(self) -> None:
        """Read what there is; called by the Sweep instead of the loop."""
        try:
            count = os.readv(self._swept_fd, [self.get_buffer(-1)])
            if count:
                self.buffer_updated(count)
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._end(_os_reason(error))
        except Exception:
            log.exception("reading from a camera failed")
            self._end("internal error")
        else:
            self._end("connection closed by camera")
        self._leave_sweep()

    def _set_low_water(self, wanted: int) -> None:
        if wanted > 1 and abs(wanted - self._low_water) < self._low_water / 4:
            return
        self._low_water = wanted
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)

    # -- time ------------------------------------------------------------------------------------------------------

    def _schedule(self, delay_s: float) -> None:
        self._unschedule()
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _unschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self.ended.done():
            return  # also when the session ended but the Sweep has not been left yet
        if self._swept_fd >= 0:
            self._read()  # a camera that sends less than before has not fallen silent
        now = time.monotonic()
        self._apply(self.session.on_time(now), now)
        if self._playing_since is not None:
            self._check_pictures(now)
            self._measure(now)
            if now >= self._report_at:
                self._report_at = now + REPORT_INTERVAL_S
                self._send_reports(now)
        if not self.ended.done() and (self._swept_fd < 0 or self._urgent):
            starting = self._playing_since is None or now - self._playing_since < 1.0
            self._schedule(TICK_STARTING_S if starting else TICK_PLAYING_S)

    def _check_pictures(self, now: float) -> None:
        """Half-open TCP, a frozen encoder and a source without keyframes all show in the last decodable frame's age."""
        depacketizer = self.depacketizer
        if depacketizer is None or self._playing_since is None:
            return
        if depacketizer.reordering:
            self._end("B-frames not supported", rtsp.Remedy.OTHER_STREAM)
            return
        limit = self._pull.spec.data_timeout_s
        last = depacketizer.last_unit_at
        if now - (self._playing_since if last is None else last) > limit:
            silent = now - self._heard_at > limit / 2  # half: sound may end after the last picture
            self._end(f"no data for {limit:g} s" if silent else f"no decodable picture for {limit:g} s")

    def _measure(self, now: float) -> None:
        since, received, units = self._counted
        depacketizer = self.depacketizer
        if now - since < 1.0 or depacketizer is None:
            return
        self.rate = (self.received - received) / (now - since)
        self.fps = (depacketizer.units - units) / (now - since)
        self._counted = (now, self.received, depacketizer.units)
        self._set_reading()

    def _send_reports(self, now: float) -> None:
        """A receiver report for each track that is being read (RFC 3550 section 6.4.2)."""
        depacketizer = self.depacketizer
        if depacketizer is None or not self._receptions:
            return
        reception = self._receptions[0]
        if reception.ssrc is None:
            reception.ssrc = depacketizer.ssrc
        report = reception.report(
            packets=depacketizer.packets,
            lost=depacketizer.lost_packets,
            highest=depacketizer.highest_sequence_number,
            now=now,
        )
        self._send_rtcp(0, report)
        if self._sound is not None and (counted := self._sound.counted).packets:
            reception = self._receptions[1]
            reception.ssrc = self._sound.ssrc
            report = reception.report(
                packets=counted.packets, lost=counted.lost, highest=counted.highest, now=now
            )
            self._send_rtcp(1, report)

    def _send_rtcp(self, index: int, report: bytes) -> None:
        if self._udp:
            self._udp[index].send_rtcp(report)
        else:
            channel = self.session.tracks[index].channel + 1
            self._write(bytes((0x24, channel)) + len(report).to_bytes(2, "big") + report)

    # -- end -------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > 64 * 1024:
            self._end("camera stopped reading")
            return
        transport.write(data)

    def _end(self, reason: str, remedy: rtsp.Remedy = rtsp.Remedy.PAUSE, location: str | None = None) -> None:
        if not self.ended.done():
            self.ended.set_exception(PullFailed(reason, remedy, location))

    def close(self) -> asyncio.Future[None] | None:
        """Says good-bye. Done when the camera has heard it; None if there is nobody to tell."""
        self._unschedule()
        self._leave_sweep()
        if self._sound is not None:
            self._sound.close()
        self._feed = self._backlog = self._sound = None
        failed = self.ended.done() and not self.ended.cancelled()
        if failed:
            self.ended.exception()  # seen
        else:
            self.ended.cancel()
        transport = self._transport
        if transport is None or transport.is_closing():
            return None
        goodbye = self.session.teardown()
        self._write(goodbye)
        if not transport.get_write_buffer_size() and goodbye and not failed:
            self._set_low_water(1)
            return _Farewell(transport).over
        if transport.get_write_buffer_size():
            transport.abort()  # a peer that does not read: nothing more to wait for
        else:
            transport.close()
        return None

    def _peer(self) -> str:
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if name else ""


class _Farewell(asyncio.Protocol):
    """Reads on until the camera has taken the TEARDOWN. A socket that is closed with unread media resets its connection
    (RFC 1122 section 4.2.2.13), and the reset ends a camera's writing before it comes to read what we asked."""

    def __init__(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()
        self._transport = transport
        self._deadline = loop.call_later(FAREWELL_S, transport.abort)
        transport.set_protocol(self)
        if not transport.is_reading():
            transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        # The answer lies among the last media. Split over two reads it is missed, and the deadline met.
        if b"RTSP/1." in data:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        if not self.over.done():
            self.over.set_result(None)


def _os_reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset by camera"
    if isinstance(error, socket.gaierror):
        return "host name not found"
    if isinstance(error, OSError):
        if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return "host unreachable"
        if error.errno == errno.ETIMEDOUT:
            return "no answer from host"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return "out of file descriptors"
        return (error.strerror or "connection failed").lower()
    return "connection failed"
