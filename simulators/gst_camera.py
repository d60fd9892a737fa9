#!/usr/bin/python3
"""A camera of another make: GStreamer plays an H.264 test picture at rtsp://127.0.0.1:8555/test.

    /usr/bin/python3 simulators/gst_camera.py [PORT]

Runs under Debian's own Python (packages gir1.2-gst-rtsp-server-1.0, python3-gi, gstreamer1.0-plugins-ugly) and shares
nothing with the gateway or the other simulators. PORT 0 takes a free one; the address is printed once it listens.
"""

import sys

import gi  # type: ignore[import-not-found]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found] # noqa: E402

PIPELINE = """( videotestsrc is-live=true pattern=ball ! video/x-raw,width=640,height=360,framerate=25/1
    ! x264enc tune=zerolatency speed-preset=veryfast bitrate=800 key-int-max=50
    ! video/x-h264,profile=baseline ! rtph264pay name=pay0 pt=96 config-interval=-1 )"""

Gst.init(None)
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1] if len(sys.argv) > 1 else "8555")
factory = GstRtspServer.RTSPMediaFactory(launch=PIPELINE, shared=True)
server.get_mount_points().add_factory("/test", factory)
if server.attach(None) == 0:
    sys.exit(f"port {server.get_service()} is taken: give another one")
print(f"rtsp://127.0.0.1:{server.get_bound_port()}/test", flush=True)
GLib.MainLoop().run()
