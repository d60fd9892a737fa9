"""`python -m simulators COMMAND ...`; each command has its own --help."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

__all__ = ["main"]

# Their modules are imported only when asked for: a press from a shell shall not wait for OpenCV.
_MODULES = {
    "cameras": "serve all cameras over RTSP out of one process",
    "boxes": "set-top boxes: one press, or thousands connected",
    "workers": "gridworkers that move and answer",
    "provider": "reaches phones by SMS, voice and push for the gateway",
    "viewers": "aiortc viewers that watch by WHEP and count pictures",
}


def _district(arguments: argparse.Namespace) -> None:
    from simulators import district

    for path in district.write(district.generate(arguments.seed, arguments.rtsp_base), arguments.out):
        print(path)


def _secrets(arguments: argparse.Namespace) -> None:
    from simulators import keys

    added = keys.add_missing(arguments.out, arguments.district)
    print(f"{arguments.out}: {added} secrets added" if added else f"{arguments.out}: complete")


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulators", description="Everything around the gateway."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    district = commands.add_parser("district", help="write cameras.yaml and district/ from a seed")
    district.add_argument("--seed", type=int, default=1)
    district.add_argument("--out", type=Path, default=Path("config"))
    district.add_argument("--rtsp-base", default="rtsp://127.0.0.1:8554")
    district.set_defaults(run=_district)

    secrets = commands.add_parser("secrets", help="add missing random credentials to secrets.yaml")
    secrets.add_argument("--out", type=Path, default=Path("config/secrets.yaml"))
    secrets.add_argument("--district", type=Path, default=Path("config/district"))
    secrets.set_defaults(run=_secrets)

    for name, text in _MODULES.items():
        subparser = commands.add_parser(name, help=text)
        if name == command:
            import_module(f"simulators.{name}").arguments(subparser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv[0] if argv else None).parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
