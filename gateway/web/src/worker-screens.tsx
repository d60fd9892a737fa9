/** The ringing phone and the call. */
import { useEffect, useRef, useState } from "preact/hooks";
import { pageQuery, seg } from "./api.ts";
import { OwnCamera, RemoteLeg } from "./leg-video.tsx";
import { Player } from "./media.ts";
import type { Call, CameraChoice } from "./model.ts";
import { distance, t, tv } from "./text.ts";
import { Watermark } from "./watermark.tsx";
import { decline, flip, hangUp, myRung, own, still, take } from "./worker-call.ts";
import { busy, call, scene, session } from "./worker-state.ts";

function Still() {
  const [bad, setBad] = useState(false);
  const best = still.value;
  useEffect(() => setBad(false), [best?.id]);
  return (
    <div class="still">
      {best && !bad ? (
        <>
          <img
            alt={best.name}
            src={`/api/v1/cameras/${seg(best.id)}/snapshot.jpg${pageQuery("?")}`}
            onError={() => setBad(true)}
          />
          <Watermark who={session.value?.name || session.value?.sub || ""} />
          <span class="name">{t("sceneOf", { name: best.name })}</span>
        </>
      ) : (
        <p class="quiet">{t("noStill")}</p>
      )}
    </div>
  );
}
export function Ringing({ of }: { of: Call }) {
  const rung = myRung(of);
  return (
    <section class="ringing" role="alertdialog" aria-label={t("incoming")} data-ring={of.id}>
      <Still />
      <div class="text">
        <h1>
          ⚠ {scene.value ? tv("kind", scene.value.kind) : t("ringing")}
          {scene.value?.silent && <em class="tag">⊘ {t("silent")}</em>}
        </h1>
        <p class="where">{of.place_label}</p>
        {rung?.distance_m !== null && rung !== undefined && (
          <p class="far">➤ {t("ringFrom", { d: distance(rung.distance_m) })}</p>
        )}
        <p class="reason">{rung?.reason}</p>
      </div>
      <div class="buttons">
        <button type="button" class="take" data-act="claim" disabled={busy.value !== ""} onClick={() => void take(of)}>
          {busy.value ? t("taking") : t("take")}
        </button>
        <button type="button" class="decline" onClick={() => void decline(of)}>
          {t("decline")}
        </button>
      </div>
    </section>
  );
}
export function SceneCamera({ choice }: { choice: CameraChoice }) {
  const video = useRef<HTMLVideoElement>(null);
  const [player, setPlayer] = useState<Player | null>(null);
  useEffect(() => {
    if (!video.current) return;
    const made = new Player(`/whep/${seg(choice.id)}?stream=sub`, video.current, false);
    setPlayer(made);
    return () => made.close();
  }, [choice.id]);
  return (
    <figure data-camera={choice.id} data-state={player?.state.value ?? ""} data-frames={player?.frames.value ?? 0}>
      <video ref={video} muted autoplay playsInline />
      <Watermark who={session.value?.name || ""} />
      <figcaption>
        {player?.state.value === "live" ? "● " : ""}
        {choice.name}
        {player && player.state.value !== "live" ? ` · ${tv("tile", player.state.value)}` : ""}
      </figcaption>
    </figure>
  );
}
export function Calling({ of }: { of: Call }) {
  const [muted, setMuted] = useState(false);
  const mine = own.value;
  const others = of.legs.filter((leg) => leg.publishing && leg.left_at === null && leg.id !== (mine?.leg ?? of.leg));
  return (
    <section
      class={`calling c-${of.state}`}
      data-call={of.id}
      data-state={of.state}
      data-publish={mine?.publisher?.state.value ?? "none"}
    >
      <header>
        <span>☎ {of.place_label}</span>
        {of.recording && <em class="rec">● {t("recording")}</em>}
        <em>{tv("call", of.state)}</em>
      </header>
      {mine?.fault && <p class="warn pad">⚠ {t(mine.fault)}</p>}
      {mine?.publisher && mine.publisher.state.value !== "live" && mine.publisher.reason.value && (
        <p class="warn pad">{t("publishFailed", { why: mine.publisher.reason.value })}</p>
      )}
      <div class="videos">
        {others.length === 0 && (
          <div class="remote">
            <p class="tile-note">
              <b>{t(of.kind === "inbound" ? "sosCalling" : "waitDesk")}</b>
              {mine?.publisher?.state.value === "live" && <span>✓ {t("publishing")}</span>}
            </p>
          </div>
        )}
        {others.map((leg) => (
          <RemoteLeg
            key={leg.id}
            call={of.id}
            leg={leg}
            viewer={session.value}
            ended={() => call.value?.id !== of.id}
          />
        ))}
        {mine?.stream && <OwnCamera stream={mine.stream} front={mine.front} />}
      </div>
      {scene.value?.cameras && scene.value.cameras.length > 0 && (
        <div class="strip" aria-label={t("sceneCameras")}>
          {scene.value.cameras.slice(0, 4).map((c) => (
            <SceneCamera key={c.id} choice={c} />
          ))}
        </div>
      )}
      <div class="controls">
        <button
          type="button"
          aria-pressed={muted}
          disabled={!mine?.stream}
          onClick={() => {
            setMuted(!muted);
            mine?.stream?.getAudioTracks().forEach((track) => {
              track.enabled = muted;
            });
          }}
        >
          {muted ? t("unmute") : t("mute")}
        </button>
        <button type="button" disabled={!mine?.stream?.getVideoTracks().length} onClick={() => void flip()}>
          {t("flip")}
        </button>
        <button type="button" class="danger" data-act="hangup" onClick={() => void hangUp()}>
          {t("hangup")}
        </button>
      </div>
    </section>
  );
}
