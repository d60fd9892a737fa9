"""`python -m simulators COMMAND ...`; each command has its own --help."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["main"]


def _district(arguments: argparse.Namespace) -> None:
    from simulators import district

    for path in district.write(district.generate(arguments.seed, arguments.rtsp_base), arguments.out):
        print(path)


def _secrets(arguments: argparse.Namespace) -> None:
    from simulators import keys

    added = keys.add_missing(arguments.out, arguments.district)
    print(f"{arguments.out}: {added} secrets added" if added else f"{arguments.out}: complete")


def _parser() -> argparse.ArgumentParser:
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

    from simulators import boxes, cameras, workers

    farm = commands.add_parser("cameras", help="serve all cameras over RTSP out of one process")
    cameras.arguments(farm)
    farm.set_defaults(run=cameras.run)

    boxes.arguments(commands.add_parser("boxes", help="set-top boxes: one press, or thousands connected"))
    workers.arguments(commands.add_parser("workers", help="gridworkers that move and answer"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
