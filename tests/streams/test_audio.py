"""AAC and wide-band G.711 become Opus that plays; nothing is made while nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.streams.audio import (
    MAX_WAITING,
    AacDepacketizer,
    OpusEncoder,
    Sound,
    Transcoder,
    aac_config,
    output_codec,
)
from gateway.streams.h264 import Timeline
from gateway.streams.media import AudioFrame, Codec
from gateway.streams.rtsp import Track

TONE_HZ = 440


def aac_track(config: str = "1408", rate: int = 16_000) -> Track:
    return Track(
        media="audio",
        payload_type=97,
        encoding="MPEG4-GENERIC",
        clock_rate=rate,
        parameters={
            "mode": "AAC-hbr",
            "config": config,
            "sizelength": "13",
            "indexlength": "3",
            "indexdeltalength": "3",
        },
    )


def g711(encoding: str = "PCMA", rate: int = 16_000) -> Track:
    return Track(media="audio", payload_type=98, encoding=encoding, clock_rate=rate)


def tone(codec_name: str, rate: int, seconds: float, frame_size: int) -> tuple[list[bytes], bytes]:
    """(encoded packets, extradata) of a sine."""
    encoder = av.CodecContext.create(codec_name, "w")
    encoder.sample_rate, encoder.layout = rate, "mono"
    encoder.format = encoder.codec.audio_formats[0]
    packets = []
    for start in range(0, int(rate * seconds), frame_size):
        wave = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(start, start + frame_size) / rate)
        samples = wave.astype(np.float32) if "flt" in encoder.format.name else (wave * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format=encoder.format.name, layout="mono")
        frame.sample_rate, frame.pts = rate, start
        packets += map(bytes, encoder.encode(frame))
    packets += map(bytes, encoder.encode(None))
    return packets, bytes(encoder.extradata or b"")


def heard(packets: list[bytes]) -> tuple[float, float]:
    """(seconds, strongest frequency in Hz) of Opus packets."""
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    sound = np.concatenate(
        [frame.to_ndarray().mean(axis=0) for packet in packets for frame in decoder.decode(av.Packet(packet))]
    )
    middle = sound[len(sound) // 4 : len(sound) * 3 // 4].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return len(sound) / 48_000, float(np.argmax(spectrum)) * 48_000 / len(middle)


def hbr(*units: bytes) -> bytes:
    """RFC 3640 section 3.3.6."""
    headers = b"".join((len(unit) << 3).to_bytes(2, "big") for unit in units)
    return (16 * len(units)).to_bytes(2, "big") + headers + b"".join(units)


def depacketizer() -> AacDepacketizer:
    config = aac_config(aac_track())
    assert config is not None
    return AacDepacketizer(config)


def test_what_becomes_of_which_sound() -> None:
    assert output_codec(g711(rate=8_000)) is Codec.PCMA
    assert output_codec(g711("PCMU", 8_000)) is Codec.PCMU
    assert output_codec(g711()) is Codec.OPUS
    assert output_codec(aac_track()) is Codec.OPUS
    assert output_codec(aac_track(config="")) is None, "without AudioSpecificConfig nobody can decode it"
    assert output_codec(aac_track(config="14zz")) is None
    assert output_codec(g711("G726-32", 8_000)) is None
    assert output_codec(g711("OPUS", 48_000)) is Codec.OPUS


@given(st.lists(st.binary(min_size=1, max_size=600), min_size=1, max_size=5))
def test_aggregated_access_units_come_apart(units: list[bytes]) -> None:
    assert depacketizer().payload(hbr(*units), marker=True) == units


@given(st.binary(min_size=2, max_size=4000), st.integers(1, 900))
def test_fragments_come_together(unit: bytes, mtu: int) -> None:
    if len(unit) <= mtu:
        mtu = len(unit) - 1
    one = depacketizer()
    header = b"\x00\x10" + (len(unit) << 3).to_bytes(2, "big")
    pieces = [unit[at : at + mtu] for at in range(0, len(unit), mtu)]
    out: list[bytes] = []
    for index, piece in enumerate(pieces):
        out += one.payload(header + piece, marker=index == len(pieces) - 1)
    assert out == [unit]


@given(st.binary(max_size=60), st.booleans())
def test_bad_payloads_raise_nothing_but_protocol_errors(payload: bytes, marker: bool) -> None:
    with contextlib.suppress(ProtocolError):
        depacketizer().payload(payload, marker=marker)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x00", "short_aac_payload"),
        (b"\x00\x08\x01", "bad_au_headers"),
        (b"\x00\x10\x00\x09x", "interleaved_aac_unsupported"),
        (b"\x00\x20\x00\x08\x00\x20abc", "truncated_aac"),
    ],
)
def test_golden_faults(payload: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        depacketizer().payload(payload, marker=True)


def test_aac_becomes_opus_that_sounds_the_same() -> None:
    """Complaints about the peers, item 6."""
    units, config = tone("aac", 16_000, 1.0, 1024)
    encoder = OpusEncoder(aac_track(config.hex()))
    packets = [packet for unit in units for packet in encoder.encode(hbr(unit), marker=True)]
    seconds, hertz = heard(packets)
    assert 0.9 < seconds < 1.2
    assert abs(hertz - TONE_HZ) < 5
    assert encoder.damaged == 0


@pytest.mark.parametrize(("encoding", "codec"), [("PCMA", "pcm_alaw"), ("PCMU", "pcm_mulaw")])
def test_wide_band_g711_becomes_opus(encoding: str, codec: str) -> None:
    payloads, _ = tone(codec, 16_000, 1.0, 320)
    encoder = OpusEncoder(g711(encoding))
    seconds, hertz = heard(
        [packet for payload in payloads for packet in encoder.encode(payload, marker=False)]
    )
    assert 0.9 < seconds < 1.1
    assert abs(hertz - TONE_HZ) < 5


def test_damage_is_counted_and_survived() -> None:
    units, config = tone("aac", 16_000, 1.0, 1024)
    encoder = OpusEncoder(aac_track(config.hex()))
    encoder.encode(b"\x00\x08\x01", marker=True)
    encoder.encode(hbr(b"\xff" * 40), marker=True)
    assert encoder.damaged >= 1
    packets = [packet for unit in units for packet in encoder.encode(hbr(unit), marker=True)]
    assert abs(heard(packets)[1] - TONE_HZ) < 5


@pytest.fixture
def thread():
    with ThreadPoolExecutor(max_workers=1) as one:
        yield one


async def frames_of(collected: list[AudioFrame], count: int) -> None:
    async with asyncio.timeout(10):
        while len(collected) < count:
            await asyncio.sleep(0.01)


async def test_the_queue_is_bounded_and_time_steps_over_what_was_dropped(thread: ThreadPoolExecutor) -> None:
    payloads, _ = tone("pcm_alaw", 16_000, 0.02, 320)
    collected: list[AudioFrame] = []
    transcoder = Transcoder(g711(), collected.append, thread=thread)
    for number in range(MAX_WAITING * 3):  # the loop has no chance to hand anything on
        transcoder.push(payloads[0], marker=False, timestamp=1000 + number * 320, now=number * 0.02)
    assert transcoder.dropped == 2 * MAX_WAITING - 1, "the first is with the thread"
    await frames_of(collected, MAX_WAITING - 2)
    stamps = [frame.timestamp for frame in collected]
    assert stamps == sorted(stamps)
    assert stamps[-1] >= (1000 + MAX_WAITING * 3 * 320 - 4 * 320) * 3
    assert {frame.codec for frame in collected} == {Codec.OPUS}
    transcoder.close()
    transcoder.push(payloads[0], marker=False, timestamp=0, now=0.0)
    await asyncio.sleep(0.1)
    assert len(collected) == len(stamps)


async def test_it_starts_and_stops_with_who_listens(thread: ThreadPoolExecutor) -> None:
    payloads, _ = tone("pcm_alaw", 16_000, 0.02, 320)
    collected: list[AudioFrame] = []
    listening = False
    sound = Sound(
        g711(), timeline=Timeline(), deliver=collected.append, listening=lambda: listening, thread=thread
    )
    sound.announce(0.0)
    assert [(frame.codec, frame.payload) for frame in collected] == [(Codec.OPUS, b"")]
    number = 0

    def push(count: int) -> None:
        nonlocal number
        for _ in range(count):
            header = b"\x80\x62" + number.to_bytes(2, "big") + (number * 320).to_bytes(4, "big") + b"\0\0\0\7"
            sound.packet(header + payloads[0], 0, 12 + len(payloads[0]), number * 0.02)
            number += 1

    push(10)
    assert sound.counted.packets == 0
    listening = True
    push(10)
    await frames_of(collected, 9)
    assert (sound.counted.packets, sound.counted.lost, sound.ssrc) == (10, 0, 7)
    listening = False
    push(10)
    heard_so_far = len(collected)
    listening = True
    push(10)
    assert (sound.counted.packets, sound.counted.lost) == (10, 0), "what nobody heard was not lost"
    await frames_of(collected, heard_so_far + 5)
    stamps = [frame.timestamp for frame in collected[1:]]
    assert stamps == sorted(stamps)
    sound.close()
