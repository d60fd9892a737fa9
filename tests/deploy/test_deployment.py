"""What an installation is made of: the wheel in a fresh environment, the units, the containers' files, the alert rules, and that the
runbook has an answer to each alert."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "http"))
from running_gateway import running_gateway

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"
EXPOSURE = 25
"""Tenths of systemd-analyze's points: the units are at 15 and 11, a unit without hardening at 96."""


def run(*command: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, **more)  # type: ignore[call-overload]


# -- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `gateway` of a fresh environment that has our wheel, and of this one nothing but third-party packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("node_modules", "__pycache__", "*.so", "src")
    for name in ("gateway", "simulators"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source))
    if built.returncode and re.search(
        r"setuptools.*(no matching|not find)|connection", built.stderr, re.I | re.S
    ):
        pytest.skip(f"no package index to build a wheel with: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    [packages] = (folder / "env").glob("lib/python*/site-packages")
    done = run(sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel))
    assert done.returncode == 0, done.stderr
    # A plain line names a folder, whose own .pth files (our editable source) are not read.
    (packages / "third-party.pth").write_text(
        os.path.join(*[p for p in sys.path if p.endswith("site-packages")][:1]) + "\n"
    )
    where = run(str(python), "-c", "import gateway; print(gateway.__file__)", cwd="/")
    assert where.stdout.startswith(str(packages)), where
    return folder / "env" / "bin" / "gateway"


@contextmanager
def serving(gateway: Path, folder: Path) -> Iterator[str]:
    (folder / "cameras.yaml").write_text('cameras:\n  - {id: gate, main: "rtsp://127.0.0.1:9/x"}\n')
    (folder / "gateway.yaml").write_text("http: {port: 0}\nmedia: {udp_port: 0}\nmqtt: {port: 0}\n")
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [gateway, "serve", "--cameras", f"{folder}/cameras.yaml", "--data", f"{folder}/var"],
            stdout=stream, stderr=stream, cwd="/",
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (ready := re.search(r"ready at (\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield ready[1]
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_wheel_serves_with_its_pages_and_migrations(installed: Path, tmp_path: Path) -> None:
    with serving(installed, tmp_path) as base:
        arguments = ("--cameras", f"{tmp_path}/cameras.yaml")
        assert run(str(installed), "check", *arguments, cwd="/").stdout.startswith("1 cameras")
        data = ("--data", f"{tmp_path}/var")
        token = run(
            str(installed), "token", "--role", "operator", "--sub", "op", *data, cwd="/"
        ).stdout.strip()
        request = urllib.request.Request(f"{base}/wall", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            page = answer.read().decode()
        scripts = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
        assert scripts
        for script in scripts:
            with urllib.request.urlopen(base + script, timeout=10) as answer:
                assert answer.status == 200
        with urllib.request.urlopen(f"{base}/api/v1/openapi.json", timeout=10) as answer:
            assert json.load(answer)["openapi"] == "3.1.0"
        doctor = run(str(installed), "doctor", *arguments, *data, cwd="/")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        assert "OK   pages: built" in doctor.stdout
        backup = run(str(installed), "backup", f"{tmp_path}/backup", *arguments, *data, cwd="/")
        assert backup.returncode == 0, backup.stderr


def test_the_wheel_says_what_it_needs(installed: Path) -> None:
    """Every dependency of pyproject.toml, none of the development's."""
    [metadata] = installed.parent.parent.glob(
        "lib/python*/site-packages/district_gateway-*.dist-info/METADATA"
    )
    wanted = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist:")]
    plain = [line for line in wanted if "extra ==" not in line]
    assert any("aiohttp" in line for line in plain)
    assert not any("pytest" in line or "schemathesis" in line for line in plain)


# -- units and containers -------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_the_units_are_sound_and_give_away_little(tmp_path: Path) -> None:
    gateway = Path(sys.executable).with_name("gateway")
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text().replace("/opt/district-gateway/bin/gateway", str(gateway))
        (tmp_path / unit.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 3
    verified = run("systemd-analyze", "verify", *units)
    assert (verified.returncode, verified.stderr) == (0, "")
    for unit in units:
        if unit.endswith(".service"):
            done = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", unit)
            assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr


def commands(text: str) -> set[str]:
    return set(re.findall(r"(?:bin/)?gateway (\w+)", text))


def test_units_and_containers_call_what_there_is() -> None:
    usage = run(sys.executable, "-m", "gateway", "--help").stdout
    for path in (*(DEPLOY / "systemd").glob("*.service"), RUNBOOK):
        called = {
            word
            for line in path.read_text().splitlines()
            if "bin/gateway " in line
            for word in commands(line)
        }
        assert called, path
        for word in called:
            assert re.search(rf"^    {word}\b", usage, re.M), f"{path.name} calls gateway {word}"
    recipe = (DEPLOY / "container" / "Containerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", recipe, re.M):
        for name in source.split():
            assert (ROOT / name).exists(), f"the Containerfile copies {name}"
    words = json.loads(re.search(r"^CMD (\[.*\])$", recipe, re.M)[1])  # type: ignore[index]
    assert words[0] == "serve"
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())
    build = compose["services"]["gateway"]["build"]
    assert (DEPLOY / "container" / build["context"] / build["dockerfile"]).resolve().is_file()


# -- alerts ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt install prometheus")
def test_the_rules_alert_when_they_should_and_only_then() -> None:
    for words in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = run("promtool", *words, cwd=ALERTS.parent)
        assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.broker
async def test_the_rules_speak_of_figures_that_there_are(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as bench:
        await bench.call("GET", "/api/v1/session")
        _, text = await bench.call("GET", "/metrics")
    there = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    # Workers have figures only where there are several; counters are told with their `_total` in rules.
    there |= {"gateway_worker_up", "gateway_worker_restarts_total"}
    for rule in rules():
        for name in re.findall(r"\bgateway_\w+", rule["expr"]):
            assert name in there, f"{rule['alert']} asks for {name}"


def test_every_alert_is_tested_and_answered_in_the_runbook() -> None:
    tested = (ALERTS.parent / "alerts_test.yaml").read_text()
    headings = set(re.findall(r"^### (.+)$", RUNBOOK.read_text(), re.M))
    for rule in rules():
        assert tested.count(f"alertname: {rule['alert']}") >= 2, "once when all is well, once in trouble"
        topic = rule["annotations"]["summary"].partition(":")[0]  # type: ignore[attr-defined]
        assert topic in headings, f"docs/runbook.md has no section {topic!r}"
