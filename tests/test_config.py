"""Files as people write them: minimal ones, whole ones, and ones with every mistake at once."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gateway
from gateway import settings as settings_module
from gateway.access import Visibility
from gateway.config import (
    Files,
    Pull,
    Transport,
    check_files,
    load_cameras,
    load_configuration,
    load_secrets,
    load_settings,
)
from gateway.errors import ConfigError
from gateway.geo import Position, distance_m, to_gcj02
from gateway.settings import MqttMode, Settings


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    path.chmod(mode)
    return path


def mistakes_of(**files: Path) -> list[tuple[int, str, str]]:
    return [(one.line, one.path, one.message) for one in check_files(Files(**files))]


def test_three_lines_are_enough(tmp_path: Path) -> None:
    path = write(tmp_path / "cameras.yaml", "cameras:\n  - id: door\n    main: rtsp://192.168.1.20/live\n")
    (camera,) = load_cameras(path)
    assert (camera.id, camera.name, camera.main, camera.sub) == (
        "door",
        "door",
        "rtsp://192.168.1.20/live",
        None,
    )
    assert (camera.pull, camera.pull_main, camera.transport) == (
        Pull.ON_DEMAND,
        Pull.ON_DEMAND,
        Transport.AUTO,
    )
    assert (camera.fov, camera.range_m, camera.heading, camera.position) == (90, 60, None, None)
    assert camera.visible_to is Visibility.NONE
    assert camera.area is None


def test_a_whole_camera_and_its_position_in_wgs84(tmp_path: Path) -> None:
    truth = Position(30.81, 103.89)
    lat, lon = to_gcj02(truth)
    secrets = write(tmp_path / "secrets.yaml", "credentials: {farm: {username: u, password: 'p:@/'}}\n")
    path = write(
        tmp_path / "cameras.yaml",
        f"""
        cameras:
          - id: cam001
            name: 望丛祠路口
            main: rtsp://127.0.0.1:8554/cam001/main
            sub: rtsps://[::1]:8555/cam001/sub
            credentials: farm
            lat: {lat}
            lon: {lon}
            datum: gcj02
            heading: 360
            fov: 70.5
            range_m: 80
            community: 510117001001
            grid: 510117001001007
            visible_to: none
            pull: always
            pull_main: on_demand
            transport: udp
        """,
    )
    loaded = load_configuration(Files(cameras=path, secrets=secrets))
    (camera,) = loaded.cameras
    assert camera.position is not None
    assert distance_m(camera.position, truth) < 0.1
    assert (camera.community, camera.grid) == ("510117001001", "510117001001007")  # written like numbers
    assert camera.area == "510117001001007"
    assert loaded.secrets.credentials["farm"].password == "p:@/"
    assert "p:@/" not in repr(loaded)


def test_every_mistake_in_one_run(tmp_path: Path) -> None:
    cameras = write(
        tmp_path / "cameras.yaml",
        """\
        cameras:
          - id: a
            main: rtsp://x/1
            headng: 10
          - id: a
            main: rtsp://user:secret@x/1
            heading: 361
            lat: 30.8
            lon: 103.9
          - main: http://x/1
            pull: sometimes
            fov: wide
          - id: "no/slash"
            main: rtsp:///1
            lat: 30.8
            datum: wgs84
            credentials: far
            transport: TCP
            id: again
          - just text
        camera: []
        """,
    )
    secrets = write(tmp_path / "secrets.yaml", "credentials: {farm: {username: u, password: p}}\n")
    found = mistakes_of(cameras=cameras, secrets=secrets)
    assert found == [
        (4, "cameras[0].headng", "is no known key; did you mean heading?"),
        (5, "cameras[1].id", "'a' stands twice, first on line 2"),
        (
            6,
            "cameras[1].main",
            "holds a user name or password: name them under credentials in secrets.yaml instead",
        ),
        (7, "cameras[1].heading", "361 is out of range: 0 to 360"),
        (8, "cameras[1].datum", "is missing: lat and lon are wgs84 or gcj02? (they differ by some 350 m)"),
        (10, "cameras[2].id", "is missing"),
        (10, "cameras[2].main", "should begin with rtsp:// or rtsps://"),
        (11, "cameras[2].pull", "'sometimes' is none of always, on_demand"),
        (12, "cameras[2].fov", "should be a number, not 'wide'"),
        (13, "cameras[3].id", "should be 1 to 64 letters, digits, '-', '_' or '.', a letter or digit first"),
        (13, "cameras[3].lon", "is missing: lat and lon stand together"),
        (14, "cameras[3].main", "names no host"),
        (17, "cameras[3].credentials", "secrets.yaml has no credentials 'far'; did you mean farm?"),
        (18, "cameras[3].transport", "'TCP' is none of auto, tcp, udp; did you mean tcp?"),
        (19, "cameras[3].id", "stands twice, first on line 13"),
        (20, "cameras[4]", "should be a mapping of keys to values, not 'just text'"),
        (21, "camera", "is no known key; did you mean cameras?"),
    ]
    assert "secret@" not in str(check_files(Files(cameras=cameras)))
    with pytest.raises(ConfigError) as error:
        load_cameras(cameras)
    assert error.value.mistakes[0].startswith(f"{cameras}:4: cameras[0].headng: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cameras:\n  - id: a\n   main: x\n", 3),
        ("cameras: [\n", 2),
        ("a: b: c\n", 1),
        ("a:\n\tx: 1\n", 2),
        ("a: \x01\n", 0),
    ],
)
def test_what_is_no_yaml_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    ((found, _, message),) = mistakes_of(cameras=write(tmp_path / "c.yaml", text))
    assert found == line
    assert message.startswith("is no YAML: ")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    ((_, _, message),) = mistakes_of(cameras=tmp_path / "none.yaml")
    assert message == "there is no such file"
    assert load_secrets(tmp_path / "none.yaml").credentials == {}
    assert load_settings(None) == Settings()


def test_settings_are_read_over_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    (tmp_path / "key.pem").touch()
    path = write(
        tmp_path / "gateway.yaml",
        """
        http: {host: 0.0.0.0, port: 8443, tls_cert: cert.pem, tls_key: key.pem}
        media:
          announce: [192.0.2.7]
          ice_servers:
            - {urls: ["turn:192.0.2.9:3478?transport=udp"], credentials: turn}
        mqtt: {mode: off}
        calls: {restart_s: [1, 2.5]}
        """,
    )
    settings = load_settings(path)
    assert settings.http.tls_cert == str(tmp_path / "cert.pem")
    assert settings.media.ice_servers[0].urls == ("turn:192.0.2.9:3478?transport=udp",)
    assert settings.mqtt.mode is MqttMode.OFF  # `off` is a boolean in YAML 1.1, not here
    assert settings.calls.restart_s == (1.0, 2.5)
    assert settings.alarms == Settings().alarms
    assert load_settings(write(tmp_path / "short.yaml", "mqtt: off\n")).mqtt.mode is MqttMode.OFF


def test_every_mistake_in_the_settings(tmp_path: Path) -> None:
    path = write(
        tmp_path / "gateway.yaml",
        """\
        http:
          host: 0.0.0.0
          prot: 1
          port: 70000
          trusted_proxies: [10.0.0.1/8]
          tls_key: missing.pem
        media: {udp_port: 80.5, tcp: maybe, announce: ["bad host"], ice_servers: [{urls: ["http://x"]}]}
        mqtt: {mode: external}
        dispatch: {fresh_s: 500}
        alarms: 3
        dispatcher: {}
        calls: {restart_s: [5, 2]}
        """,
    )
    found = [(line, where) for line, where, _ in mistakes_of(config=path)]
    assert found == [
        (2, "http.host"),
        (3, "http.prot"),
        (4, "http.port"),
        (5, "http.trusted_proxies[0]"),
        (6, "http.tls_key"),
        (6, "http.tls_key"),
        (7, "media.announce[0]"),
        (7, "media.ice_servers[0].urls[0]"),
        (7, "media.tcp"),
        (7, "media.udp_port"),
        (8, "mqtt.mode"),
        (9, "dispatch"),
        (10, "alarms"),
        (11, "dispatcher"),
        (12, "calls.restart_s"),
    ]


def test_the_example_holds_the_defaults() -> None:
    example = Path(__file__).parent.parent / "config" / "gateway.yaml"
    assert load_settings(example) == Settings()


def test_secrets_are_private_and_never_quoted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "secrets.yaml",
        """\
        credentials:
          farm: {username: u, password: [hunter2]}
        boxes: {stb0001: 00112233445566778899aabbccddeeff, stb0002: hunter2, stb0003: "0011"}
        users: {wang: hunter2, li: {hunter2: 1}}
        """,
        mode=0o644,
    )
    found = check_files(Files(secrets=path))
    assert [(one.line, one.path) for one in found] == [
        (0, ""),
        (2, "credentials.farm.password"),
        (3, "boxes.stb0002"),
        (3, "boxes.stb0003"),
        (4, "users.li"),
    ]
    assert "hunter2" not in "".join(map(str, found))


def test_secrets_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "secrets.yaml",
        "boxes: {s1: 00112233445566778899aabbccddeeff}\nworkers: {w1: '"
        + "11" * 32
        + "'}\nusers: {wang: pass}\n",
    )
    secrets = load_secrets(path)
    assert secrets.boxes["s1"] == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert secrets.workers["w1"] == b"\x11" * 32
    assert secrets.users["wang"] == "pass"
    assert "pass" not in repr(secrets)


@given(st.binary(max_size=200) | st.text(alphabet="cameras:[]{}-id \n&*!|>\"'#", max_size=80).map(str.encode))
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    check_files(Files(cameras=path, config=path, secrets=path))


def test_a_broker_beyond_this_machine_needs_a_word(tmp_path: Path) -> None:
    path = write(tmp_path / "gateway.yaml", "mqtt: {host: 0.0.0.0}")
    assert [(line, where) for line, where, _ in mistakes_of(config=path)] == [(1, "mqtt.host")]
    assert not mistakes_of(config=write(path, "mqtt: {host: 0.0.0.0, allow_plain: true}"))


def test_a_file_nested_without_end_is_a_mistake_and_no_crash(tmp_path: Path) -> None:
    for text in ("[" * 20_000, "a: " + "{b: " * 5_000, "- " * 20_000):
        [(_, _, message)] = mistakes_of(config=write(tmp_path / "gateway.yaml", text))
        assert "nested too deeply" in message or "is no YAML" in message


def test_every_setting_is_read_by_something() -> None:
    """A setting that does nothing is worse than none: somebody turns it and waits."""
    package = Path(gateway.__file__).parent
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in package.rglob("*.py") if "node_modules" not in path.parts
    )
    sections = [kind for kind in vars(settings_module).values() if dataclasses.is_dataclass(kind)]
    assert len(sections) > 10
    for section in sections:
        for field in dataclasses.fields(section):
            assert re.search(rf"\.{field.name}\b", source), (
                f"{section.__name__}.{field.name} is read by nothing"
            )
