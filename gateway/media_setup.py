"""The media plane as the configuration wants it: what of the settings means what to it, in this process or in several."""

from __future__ import annotations

from gateway.config import Secrets, ServeOptions
from gateway.settings import CompiledLoop, Settings
from gateway.streams.cameras import DialLimits
from gateway.streams.media_service import LocalMedia, MediaCallbacks, MediaService, MediaSpec, PictureSpec
from gateway.streams.plane import PlaneLimits
from gateway.streams.shards import Shards

__all__ = ["credentials_of", "make_media"]


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
    )
    credentials = credentials_of(configuration.secrets)
    if options.workers == 1:
        return LocalMedia(spec, callbacks, configuration.cameras, credentials)
    return Shards(spec, callbacks, configuration.cameras, credentials, workers=options.workers)


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
