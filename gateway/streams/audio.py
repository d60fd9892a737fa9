"""Sound that browsers do not take, made into Opus: AAC, and G.711 at other rates than 8 kHz. Once per camera, while someone listens.

AacDepacketizer (RFC 3640, mode AAC-hbr) and OpusEncoder work where they are called. Transcoder is the shell: PyAV works on the
one thread that all cameras share, and what comes out is handed back on the loop.

Drop rule: at most MAX_WAITING payloads of a camera wait for the thread; the oldest are dropped, counted, and the timestamps
step over them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from gateway.errors import ProtocolError
from gateway.streams.h264 import Timeline
from gateway.streams.media import AudioFrame, Codec
from gateway.streams.reception import SequenceCounter
from gateway.streams.rtsp import Track, passes_through

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

__all__ = ["AacDepacketizer", "OpusEncoder", "Sound", "Transcoder", "aac_config", "output_codec"]

log = logging.getLogger(__name__)

MAX_WAITING = 50  # payloads: about a second
MAX_AAC_BYTES = 8192
OPUS_RATE = 48_000
OPUS_FRAME = 960  # samples: 20 ms, what browsers send themselves
OPUS_BITRATE = 32_000
MAX_GAP_S = 0.5  # between where the output's time is and where the input's is, before it is set anew

_PASSED_THROUGH = {"PCMU": Codec.PCMU, "PCMA": Codec.PCMA, "OPUS": Codec.OPUS}
_DECODERS = {"PCMU": "pcm_mulaw", "PCMA": "pcm_alaw", "MPEG4-GENERIC": "aac"}


def output_codec(track: Track) -> Codec | None:
    """What viewers get of an audio track: as it is, Opus, or nothing."""
    if passes_through(track):
        return _PASSED_THROUGH[track.encoding]
    if track.encoding in ("PCMU", "PCMA"):
        return Codec.OPUS if 8_000 <= track.clock_rate <= 48_000 and track.channels <= 2 else None
    if track.encoding == "MPEG4-GENERIC" and track.clock_rate > 0:
        return Codec.OPUS if aac_config(track) is not None else None
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AacConfig:
    """RFC 3640 section 4.1. config: AudioSpecificConfig (ISO/IEC 14496-3)."""

    config: bytes
    size_length: int
    index_length: int
    index_delta_length: int


def aac_config(track: Track) -> AacConfig | None:
    """What the SDP says of an MPEG4-GENERIC track; None if that is not enough to decode it."""
    parameters = track.parameters
    try:
        config = bytes.fromhex(parameters.get("config", ""))
        lengths = [
            int(parameters.get(name, "0")) for name in ("sizelength", "indexlength", "indexdeltalength")
        ]
    except ValueError:
        return None
    if not 2 <= len(config) <= 64 or not 6 <= lengths[0] <= 16 or not all(0 <= n <= 8 for n in lengths[1:]):
        return None
    return AacConfig(
        config=config, size_length=lengths[0], index_length=lengths[1], index_delta_length=lengths[2]
    )


class AacDepacketizer:
    """RTP payloads of mode AAC-hbr or AAC-lbr in, AAC access units out (RFC 3640 section 3.2). Not interleaved."""

    def __init__(self, config: AacConfig) -> None:
        self._config = config
        self._part = bytearray()
        self._whole = 0  # size of the access unit that comes in fragments

    def payload(self, payload: bytes, *, marker: bool) -> list[bytes]:
        """Raises ProtocolError for a payload that is not what its headers say."""
        config = self._config
        if len(payload) < 2:
            raise ProtocolError("short_aac_payload", 0)
        bits = payload[0] << 8 | payload[1]
        first = config.size_length + config.index_length
        start = 2 + (bits + 7) // 8
        if bits < first or start > len(payload):
            raise ProtocolError("bad_au_headers", 0)
        headers = int.from_bytes(payload[2:start], "big") >> (-bits % 8)
        sizes = []
        left, index_length = bits, config.index_length
        while left >= config.size_length + index_length:
            left -= config.size_length
            sizes.append(headers >> left & (1 << config.size_length) - 1)
            left -= index_length
            if headers >> left & (1 << index_length) - 1:
                raise ProtocolError("interleaved_aac_unsupported", 2)
            index_length = config.index_delta_length
        if len(sizes) == 1 and sizes[0] > len(payload) - start:
            return self._fragment(payload[start:], sizes[0], marker=marker)
        self._part.clear()
        if sum(sizes) > len(payload) - start:
            raise ProtocolError("truncated_aac", start)
        units = []
        for size in sizes:
            units.append(payload[start : start + size])
            start += size
        return units

    def _fragment(self, piece: bytes, size: int, *, marker: bool) -> list[bytes]:
        if size != self._whole:
            self._part.clear()
        self._whole = size
        if len(self._part) + len(piece) > MAX_AAC_BYTES:
            self._part.clear()
            raise ProtocolError("oversized_aac", 0)
        self._part += piece
        if not marker:
            return []
        unit, self._part = bytes(self._part), bytearray()
        if len(unit) != size:
            raise ProtocolError("aac_fragment_lost", 0)
        return [unit]


class OpusEncoder:
    """Payloads of one track in, Opus packets of 20 ms out. Blocking; takes some 0.3 ms for 20 ms of sound."""

    def __init__(self, track: Track) -> None:
        import av  # by the first sound that needs it: 17 MB
        from av.audio.resampler import AudioResampler

        aac = aac_config(track) if track.encoding == "MPEG4-GENERIC" else None
        self._error, self._packet = av.FFmpegError, av.Packet
        self._aac = AacDepacketizer(aac) if aac is not None else None
        self._decoder = cast("AudioCodecContext", av.CodecContext.create(_DECODERS[track.encoding], "r"))
        if aac is not None:
            self._decoder.extradata = aac.config
        else:
            self._decoder.sample_rate = track.clock_rate
            self._decoder.layout = "stereo" if track.channels == 2 else "mono"
        self._resampler = AudioResampler(format="s16", layout="mono", rate=OPUS_RATE, frame_size=OPUS_FRAME)
        self._encoder = av.CodecContext.create("libopus", "w")
        self._encoder.sample_rate = OPUS_RATE
        self._encoder.layout = "mono"
        self._encoder.format = "s16"
        self._encoder.bit_rate = OPUS_BITRATE
        self._encoder.time_base = Fraction(1, OPUS_RATE)
        self._samples = 0
        self.damaged = 0

    def encode(self, payload: bytes, *, marker: bool) -> list[bytes]:
        """What became complete. A damaged payload is left out and counted."""
        try:
            units = [payload] if self._aac is None else self._aac.payload(payload, marker=marker)
        except ProtocolError:
            self.damaged += 1
            return []
        packets: list[bytes] = []
        for unit in units:
            try:
                for decoded in self._decoder.decode(self._packet(unit)):
                    decoded.pts = None
                    for frame in self._resampler.resample(decoded):
                        frame.pts = self._samples
                        self._samples += frame.samples
                        packets += map(bytes, self._encoder.encode(frame))
            except self._error:
                self.damaged += 1
        return packets


class Transcoder:
    """The Opus side of one camera's sound.

    thread: shared by all cameras; its one worker is what bounds the CPU they take. deliver: called on the loop.
    """

    def __init__(
        self,
        track: Track,
        deliver: Callable[[AudioFrame], None],
        *,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._track = track
        self._deliver = deliver
        self._thread = thread
        self._encoder: OpusEncoder | None = None
        self._waiting: deque[tuple[bytes, bool, int, float]] = deque()
        self._working: asyncio.Future[list[AudioFrame]] | None = None
        self._position: int | None = None  # of the next packet, 48 kHz
        self._closed = False
        self.dropped = 0

    @property
    def damaged(self) -> int:
        return self._encoder.damaged if self._encoder is not None else 0

    def push(self, payload: bytes, *, marker: bool, timestamp: int, now: float) -> None:
        """timestamp: unwrapped, in the track's clock rate."""
        if self._closed:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((payload, marker, timestamp, now))
        self._work()

    def close(self) -> None:
        """Nobody listens any more."""
        self._closed = True
        self._waiting.clear()

    def _work(self) -> None:
        if self._working is not None or not self._waiting:
            return
        batch = list(self._waiting)
        self._waiting.clear()
        self._working = asyncio.get_running_loop().run_in_executor(self._thread, self._transcode, batch)
        self._working.add_done_callback(self._done)

    def _done(self, working: asyncio.Future[list[AudioFrame]]) -> None:
        self._working = None
        if self._closed or working.cancelled():
            return
        if (error := working.exception()) is not None:
            log.error(
                "sound of a camera can't be made into Opus: %s",
                error,
                extra={"encoding": self._track.encoding},
            )
            self.close()
            return
        for frame in working.result():
            self._deliver(frame)
        self._work()

    def _transcode(self, batch: list[tuple[bytes, bool, int, float]]) -> list[AudioFrame]:
        """On the thread; one batch of a camera at a time."""
        if self._encoder is None:
            self._encoder = OpusEncoder(self._track)
        frames = []
        for payload, marker, timestamp, now in batch:
            came = timestamp * OPUS_RATE // self._track.clock_rate
            if self._position is None or abs(came - self._position) > MAX_GAP_S * OPUS_RATE:
                self._position = came if self._position is None else max(came, self._position)
            for packet in self._encoder.encode(payload, marker=marker):
                frames.append(
                    AudioFrame(codec=Codec.OPUS, payload=packet, timestamp=self._position, received_at=now)
                )
                self._position += OPUS_FRAME
        return frames


class Sound:
    """The audio track of one session: passed through, or made into Opus, while somebody listens.

    deliver: must not raise. listening: asked for every packet. thread: None makes nothing into Opus.
    """

    def __init__(
        self,
        track: Track,
        *,
        timeline: Timeline,
        deliver: Callable[[AudioFrame], None],
        listening: Callable[[], bool],
        thread: ThreadPoolExecutor | None,
    ) -> None:
        self.track = track
        self.codec = output_codec(track)
        self.counted = SequenceCounter()
        self.ssrc = 0
        self._timeline = timeline
        self._timeline.clock_rate = track.clock_rate
        self._deliver = deliver
        self._listening = listening
        self._thread = None if passes_through(track) else thread
        self._transcoder: Transcoder | None = None

    def announce(self, now: float) -> None:
        """Tell the codec, before anybody may listen."""
        if self.codec is not None:
            self._deliver(AudioFrame(codec=self.codec, payload=b"", timestamp=0, received_at=now))

    def packet(self, buffer: bytes | bytearray, start: int, stop: int, now: float) -> None:
        """One RTP packet."""
        if self.codec is None or not self._listening():
            if self.counted.packets:
                self.close()
                self.counted = SequenceCounter()
            return
        packet = bytes(buffer[start:stop])
        payload = _rtp_payload(packet, self.track.payload_type)
        if not payload:
            return
        self.counted.count(packet[2] << 8 | packet[3])
        self.ssrc = int.from_bytes(packet[8:12], "big")
        timestamp = self._timeline.at(int.from_bytes(packet[4:8], "big"), now)
        if self._thread is None:
            self._deliver(AudioFrame(codec=self.codec, payload=payload, timestamp=timestamp, received_at=now))
            return
        if self._transcoder is None:
            self._transcoder = Transcoder(self.track, self._deliver, thread=self._thread)
        self._transcoder.push(payload, marker=packet[1] > 127, timestamp=timestamp, now=now)

    def close(self) -> None:
        if self._transcoder is not None:
            self._transcoder.close()
            self._transcoder = None
        self._timeline.cut()


def _rtp_payload(packet: bytes, payload_type: int) -> bytes:
    """Payload of an RTP packet, empty if it is none of that type (RFC 3550 section 5.1)."""
    if len(packet) < 12 or packet[0] >> 6 != 2 or packet[1] & 0x7F != payload_type:
        return b""
    start = 12 + 4 * (packet[0] & 15)
    end = len(packet) - (packet[-1] if packet[0] & 0x20 else 0)
    if packet[0] & 0x10:
        start += 4 + 4 * int.from_bytes(packet[start + 2 : start + 4], "big")
    return packet[start:end] if start < end else b""
