#!/usr/bin/env bash
# Installs what is missing and says what it does. Usage: scripts/setup.sh demo|test
# Finished steps leave a stamp in .setup/ named after the files they depend on, so a second run does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
goal=${1:-demo}
mkdir -p .setup

say() { printf '\033[1m[set-up]\033[0m %s\n' "$*"; }
stamp() { echo ".setup/$1-$(cat "${@:2}" | sha256sum | cut -c1-16)"; }

missing=()
need() { # need COMMAND-OR-PATH PACKAGE...
    if [[ $1 == /* ]]; then [[ -e $1 ]] && return; else PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null && return; fi
    missing+=("${@:2}")
}
need mosquitto mosquitto
need npm npm
need node nodejs
need openssl openssl

# A distribution builds its Python with profile-guided optimisation, which pyenv and most hand builds leave out: a quarter of
# the CPU of everything here. PYTHON=… names another.
modern() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=${PYTHON:-/usr/bin/python3}
modern "$python" || python=${PYTHON:-python3}
modern "$python" || { echo "Python 3.11 or newer is needed, $python is $("$python" -V 2>&1); PYTHON=… names another" >&2; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# For the compiled send loop.
need cc gcc libc6-dev
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[[ -e $headers/Python.h ]] || missing+=(python3-dev)
[[ -e /usr/include/openssl/ssl.h ]] || missing+=(libssl-dev)
need mosquitto_pub mosquitto-clients # the README presses the alarm with it
if [[ $goal == test ]]; then
    need chromium chromium
    need ffprobe ffmpeg
    need promtool prometheus
    need turnserver coturn
    # A camera that is not ours, for the own-camera test: GStreamer's RTSP server under Debian's Python.
    /usr/bin/python3 -c 'import gi; gi.require_version("GstRtspServer", "1.0")' 2>/dev/null ||
        missing+=(gir1.2-gst-rtsp-server-1.0 python3-gi)
    need gst-inspect-1.0 gstreamer1.0-tools
    gst-inspect-1.0 x264enc >/dev/null 2>&1 ||
        missing+=(gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly)
    need /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc fonts-noto-cjk
fi
if ((${#missing[@]})); then
    sudo=
    if ((EUID != 0)); then
        command -v sudo >/dev/null || { echo "Please install as root: apt-get install -y ${missing[*]}" >&2; exit 1; }
        sudo=sudo
    fi
    say "installing Debian packages: ${missing[*]}"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >.setup/apt.log 2>&1 ||
        { tail -20 .setup/apt.log >&2; echo "apt-get failed; the whole log is in .setup/apt.log" >&2; exit 1; }
fi

done_python=$(stamp python pyproject.toml requirements.lock gateway/streams/_fan.c)
if [[ ! -e $done_python || ! -x .venv/bin/gateway ]]; then
    say "installing Python packages into .venv (about a minute)"
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
    {
        .venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock &&
            .venv/bin/pip install -q --disable-pip-version-check --no-deps -e .
    } >.setup/pip.log 2>&1 || { tail -20 .setup/pip.log >&2; echo "pip failed; the whole log is in .setup/pip.log" >&2; exit 1; }
    if .venv/bin/python -c 'import gateway.streams._fan' 2>/dev/null; then
        say "built the compiled send loop (media.compiled: auto)"
    else
        say "no compiled send loop, video is sent by Python: it wants cc, python3-dev and libssl-dev at set-up"
    fi
    rm -f .setup/python-*; touch "$done_python"
fi

if [[ -e gateway/web/package-lock.json ]]; then
    done_npm=$(stamp npm gateway/web/package-lock.json)
    if [[ ! -e $done_npm || ! -d gateway/web/node_modules ]]; then
        say "installing npm packages for the pages"
        npm --prefix gateway/web ci --silent --no-audit --no-fund
        rm -f .setup/npm-*; touch "$done_npm"
    fi
    mapfile -t sources < <(find gateway/web/src gateway/web/package.json gateway/web/*.mjs -type f | sort)
    done_web=$(stamp web "${sources[@]}")
    if [[ ! -e $done_web || ! -d gateway/web/dist ]]; then
        say "building the pages"
        npm --prefix gateway/web run --silent build
        rm -f .setup/web-*; touch "$done_web"
    fi
fi

clients=tests/conformance/clients
if [[ $goal == test && -e $clients/package-lock.json ]]; then
    done_clients=$(stamp clients "$clients/package-lock.json")
    if [[ ! -e $done_clients || ! -d $clients/node_modules ]]; then
        say "installing the WHEP and WHIP clients that the tests play with"
        npm --prefix "$clients" ci --silent --no-audit --no-fund --ignore-scripts
        rm -f .setup/clients-*; touch "$done_clients"
    fi
fi
