/** The pictures of a call, on the wall and on the phone: another's leg, and one's own camera. */
import { useEffect, useRef, useState } from "preact/hooks";
import { seg } from "./api.ts";
import { Player } from "./media.ts";
import type { Leg, Session } from "./model.ts";
import { t, tv } from "./text.ts";
import { Watermark } from "./watermark.tsx";

interface RemoteProps {
  call: string;
  leg: Leg;
  viewer: Session | null;
  /** Asked when the picture goes: with an ended call its sessions have ended too, and need no DELETE. */
  ended: () => boolean;
}

export function RemoteLeg({ call, leg, viewer, ended }: RemoteProps) {
  const video = useRef<HTMLVideoElement>(null);
  const [player, setPlayer] = useState<Player | null>(null);
  useEffect(() => {
    if (!video.current) return;
    const made = new Player(`/api/v1/calls/${seg(call)}/legs/${seg(leg.id)}/whep`, video.current, true);
    setPlayer(made);
    return () => made.close(ended());
  }, [call, leg.id]);
  const state = player?.state.value ?? "connecting";
  return (
    <div
      class={`remote s-${state}`}
      data-leg={leg.id}
      data-remote-frames={player?.frames.value ?? 0}
      data-remote-audio={player?.audioBytes.value ?? 0}
      data-remote-state={state}
    >
      <video ref={video} autoplay playsInline />
      <Watermark who={viewer?.name || viewer?.sub || ""} />
      {state !== "live" && (
        <p class="tile-note">
          <b>{state === "connecting" ? t("remoteWaiting") : tv("tile", state)}</b>
          <span>{player?.reason.value}</span>
        </p>
      )}
      {state === "live" && player?.hasVideo.value === false && (
        <p class="tile-note">
          <b>{t("audioOnly")}</b>
        </p>
      )}
      <span class="name">{leg.name}</span>
    </div>
  );
}

export function OwnCamera({ stream, front = false, name }: { stream: MediaStream; front?: boolean; name?: string }) {
  const video = useRef<HTMLVideoElement>(null);
  useEffect(() => {
    if (video.current) {
      video.current.srcObject = stream;
      void video.current.play().catch(() => undefined);
    }
  }, [stream]);
  return (
    <div class={`local${front ? " front" : ""}`}>
      <video ref={video} muted autoplay playsInline />
      {name && <span class="name">{name}</span>}
    </div>
  );
}
