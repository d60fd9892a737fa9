"""CPU time of the fan-out's last step: seal a group of nine packets, hand it to the kernel with UDP_SEGMENT.

Sends over loopback to a bound socket that nobody reads; process CPU time (user + system), best of five runs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time

from gateway.streams.carrier import UdpSocket
from gateway.streams.dtls import Certificate
from gateway.streams.link import MediaPort
from gateway.streams.srtp import Profile, SrtpKeys, SrtpSender

PACKETS = 9
PAYLOAD = 1100
GROUPS = 4000


def measure(profile: Profile, carrier: UdpSocket | None, address: tuple[str, int]) -> float:
    """Microseconds of CPU a packet; without a carrier for sealing alone."""
    keys = SrtpKeys.derive(profile, os.urandom(profile.key_length), os.urandom(profile.salt_length))
    sender = SrtpSender.create(keys)
    payloads = [os.urandom(PAYLOAD) for _ in range(PACKETS)]
    size = PAYLOAD + sender.segment_overhead
    best = float("inf")
    index = 1
    for _ in range(5):
        begin = time.process_time()
        for _ in range(GROUPS):
            buffers = sender.seal_group(
                payloads, first_index=index, timestamp=index, ssrc=7, payload_type=96, marker=True
            )
            if carrier is not None:
                carrier.send_segments(buffers, size, PACKETS, address)
            index += PACKETS
        best = min(best, (time.process_time() - begin) / (GROUPS * PACKETS) * 1e6)
    return best


async def run() -> None:
    port = await MediaPort.open([("127.0.0.1", 0)], certificate=Certificate(), tcp=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        carrier = port._sockets[0]
        for profile in Profile:
            seal = measure(profile, None, sink.getsockname())
            both = measure(profile, carrier, sink.getsockname())
            print(f"{profile}: seal {seal:.2f} us/packet, seal and send {both:.2f} us/packet")
        print("faults:", dict(port.counters))
    await port.close()


def main() -> None:
    asyncio.run(run())


if __name__ == "__main__":
    main()
