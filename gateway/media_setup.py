"""The media plane as the configuration wants it: what of the settings means what to it, in this process or in several."""

from __future__ import annotations

import base64
import hashlib
import hmac

from gateway.config import Secrets, ServeOptions
from gateway.settings import CompiledLoop, MediaSettings, Settings
from gateway.streams.cameras import DialLimits
from gateway.streams.media_service import LocalMedia, MediaCallbacks, MediaService, MediaSpec, PictureSpec
from gateway.streams.plane import PlaneLimits
from gateway.streams.shards import Shards
from gateway.streams.whep import IceServer
from gateway.witness import recording_spec

__all__ = ["credentials_of", "ice_servers", "make_media"]


def make_media(options: ServeOptions, callbacks: MediaCallbacks) -> MediaService:
    """One worker: in this process, as there is nobody to share with."""
    configuration = options.configuration
    settings = configuration.settings
    media = settings.media
    spec = MediaSpec(
        binds=tuple((address, media.udp_port) for address in media.addresses or (settings.http.host,)),
        announce=media.announce,
        tcp=media.tcp,
        use_compiled=media.compiled is CompiledLoop.AUTO,
        consent_s=media.ice_timeout_s,
        plane=PlaneLimits(sessions=media.sessions),
        dial=_dial_limits(settings),
        pictures=_picture_spec(settings),
        camera_ca=settings.ingest.tls_ca,
        recording=recording_spec(settings.evidence, options.data.path),
    )
    credentials = credentials_of(configuration.secrets)
    if options.workers == 1:
        return LocalMedia(spec, callbacks, configuration.cameras, credentials)
    return Shards(spec, callbacks, configuration.cameras, credentials, workers=options.workers)


def ice_servers(media: MediaSettings, secrets: Secrets, owner: str, now_s: float) -> list[IceServer]:
    """What `owner` is told. TURN credentials are made for it and end by time (draft-uberti-behave-turn-rest-00)."""
    servers = []
    for server in media.ice_servers:
        credential = secrets.credentials.get(server.credentials)
        servers += [
            IceServer(
                url=url,
                username=credential.username if credential else None,
                credential=credential.password if credential else None,
            )
            for url in server.urls
        ]
    shared = secrets.credentials.get(media.turn.secret)
    if media.turn.urls and shared is not None:
        username = f"{int(now_s + media.turn.ttl_s)}:{owner}"
        digest = hmac.new(shared.password.encode(), username.encode(), hashlib.sha1).digest()
        password = base64.b64encode(digest).decode()
        servers += [IceServer(url=url, username=username, credential=password) for url in media.turn.urls]
    return servers


def credentials_of(secrets: Secrets) -> dict[str, tuple[str, str]]:
    return {name: (one.username, one.password) for name, one in secrets.credentials.items()}


def _picture_spec(settings: Settings) -> PictureSpec | None:
    pictures = settings.pictures
    if not pictures.enabled:
        return None
    return PictureSpec(interval_s=pictures.interval_s, cpu_share=pictures.cpu_share)


def _dial_limits(settings: Settings) -> DialLimits:
    ingest = settings.ingest
    return DialLimits(
        dials=ingest.dial_limit,
        connections_per_host=ingest.host_connections,
        backoff_first_s=ingest.backoff_first_s,
        backoff_most_s=ingest.backoff_max_s,
        connect_timeout_s=ingest.connect_timeout_s,
        data_timeout_s=ingest.stall_timeout_s,
        grace_s=ingest.idle_grace_s,
        first_keyframe_timeout_s=ingest.first_keyframe_s,
    )
