"""`python -m simulators cameras`: the camera farm out of cameras.yaml, with its HTTP control."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from aiohttp import web

from simulators import clips, faults, keys, rtsp, scenes
from simulators.farm import Camera, Farm

__all__ = ["arguments", "control", "plan", "run"]

OWN_CLIPS = 24  # that many cameras have their id burnt into a clip of their own
HIGH_PROFILE = (
    5,
    11,
    17,
)  # numbers of cameras (and shared clips) that send High profile, as ordinary cameras do
AUDIO_EVERY = 8

logger = logging.getLogger(__name__)


def plan(rows: list[dict[str, Any]], *, live: int, seconds: float = 10, fps: int = clips.FPS) -> list[Camera]:
    """Gives each row of cameras.yaml a clip. Rows whose `main` is not of the form /ID/main are not ours:
    left out.
    """
    cameras = []
    for number, row in enumerate(rows):
        camera_id = str(row["id"])
        if urlsplit(str(row["main"])).path != f"/{camera_id}/main":
            continue
        name = str(row.get("name", camera_id))
        scene = scenes.scene_for(name, number)
        own = number < OWN_CLIPS
        if not own:
            scene = scenes.shared(scene)
        recipe = clips.Recipe(
            scene=scene,
            label=name if own else scenes.SCENES[scene].title,
            camera_id=camera_id if own or number < live else "",
            variant=number if own else 0,
            seconds=seconds,
            fps=fps,
            gop=clips.GOP_S * fps,
            profile="high" if (number if own else scene) in HIGH_PROFILE else "baseline",
        )
        cameras.append(
            Camera(
                id=camera_id,
                name=name,
                number=number,
                recipe=recipe,
                live=number < live,
                audio=number % AUDIO_EVERY == 0,
            )
        )
    return cameras


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.set_defaults(run=run)
    parser.add_argument("--cameras", type=Path, default=Path("config/cameras.yaml"))
    parser.add_argument("--secrets", type=Path, default=Path("config/secrets.yaml"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8554, help="0 takes a free one")
    parser.add_argument(
        "--live", type=int, default=2, help="that many cameras are encoded live with the true clock"
    )
    parser.add_argument("--limit", type=int, default=None, help="serve only the first N cameras")
    parser.add_argument("--cache", type=Path, default=Path("var/clips"))
    parser.add_argument("--seconds", type=float, default=10, help="length of a clip")
    parser.add_argument(
        "--fps",
        type=int,
        default=clips.FPS,
        help="pictures a second: fewer cost each watcher less (default 25)",
    )
    parser.add_argument("--processes", type=int, default=None, help="for encoding; default: all cores")
    parser.add_argument("--no-auth", action="store_true", help="serve without credentials")
    parser.add_argument("--digest", choices=("md5", "sha256", "both"), default="md5")
    parser.add_argument(
        "--http", type=int, default=None, metavar="PORT", help="control: POST /fault, GET /stats"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="CAM=FAULT",
        help=", ".join(f"{k}: {v}" for k, v in faults.FAULTS.items()).replace("%", "%%"),
    )


def control(farm: Farm) -> web.Application:
    """The HTTP control: `POST /fault {camera, fault, on}`, `GET /faults`, `GET /stats`."""

    async def set_fault(request: web.Request) -> web.Response:
        try:
            body = await request.json()
            camera_id, fault, on = str(body["camera"]), str(body["fault"]), bool(body.get("on", True))
            if on:
                await farm.prepare(camera_id, fault)
            farm.set_fault(camera_id, fault, on)
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": repr(error)}, status=400)
        return web.json_response({"camera": camera_id, "faults": sorted(farm.faults.on[camera_id])})

    async def list_faults(request: web.Request) -> web.Response:
        return web.json_response(
            {"known": faults.FAULTS, "on": {k: sorted(v) for k, v in farm.faults.on.items() if v}}
        )

    async def stats(request: web.Request) -> web.Response:
        return web.json_response(farm.stats())

    app = web.Application()
    app.router.add_post("/fault", set_fault)
    app.router.add_get("/faults", list_faults)
    app.router.add_get("/stats", stats)
    return app


def run(options: argparse.Namespace) -> None:
    """Encodes what is missing, then serves until it is told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = yaml.load(options.cameras.read_text(encoding="utf-8"), Loader=loader)["cameras"]
    cameras = plan(rows[: options.limit], live=options.live, seconds=options.seconds, fps=options.fps)
    if not cameras:
        raise SystemExit(f"{options.cameras}: no camera here is one of ours")
    started = time.monotonic()
    cooked = clips.ensure([camera.recipe for camera in cameras], options.cache, processes=options.processes)
    if cooked:
        logger.info("encoded %d scenes in %.1f s into %s", cooked, time.monotonic() - started, options.cache)
    authenticator = None
    if not options.no_auth:
        credential = keys.load(options.secrets).get("credentials", {}).get("farm")
        if credential is None:
            raise SystemExit(
                f"{options.secrets} has no credential 'farm'; make it with `python -m simulators secrets`"
            )
        algorithms = {"md5": ("MD5",), "sha256": ("SHA-256",), "both": ("SHA-256", "MD5")}[options.digest]
        authenticator = rtsp.Authenticator(
            credential["username"], credential["password"], algorithms=algorithms
        )
    asyncio.run(_serve(Farm(cameras, options.cache, authenticator=authenticator), options))


async def _serve(farm: Farm, options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await farm.start(options.host, options.port)
    except OSError as error:
        raise SystemExit(f"cannot listen on {options.host}:{options.port}: {error.strerror}") from error
    for text in options.fault:
        try:
            farm.set_fault(*faults.parse(text), True)
        except (KeyError, ValueError) as error:
            raise SystemExit(f"--fault {text}: {error}") from error
    runner = web.AppRunner(control(farm), access_log=None)
    await runner.setup()
    if options.http is not None:
        site = web.TCPSite(runner, "127.0.0.1", options.http)
        await site.start()
    gc.freeze()
    print(
        json.dumps({"rtsp": f"rtsp://{options.host}:{farm.port}", "cameras": len(farm.cameras)}), flush=True
    )
    await stop.wait()
    await runner.cleanup()
    await farm.close()
