/** WHEP players and WHIP publishers (RFC 9725, draft-ietf-wish-whep): offer at once, answer, watch that pictures really come. */
import { signal } from "@preact/signals";
import { ApiError, errorOf, get, unsafeHeaders } from "./api.ts";

export type PlayState = "connecting" | "live" | "stale" | "waiting" | "failed" | "paused";

const STALE_MS = 3000; // a picture older than this is not called live
const REDIAL_MS = 8000; // a picture this old is not worth waiting for
const FIRST_MS = 12000; // an on-demand camera may need its time to dial

let iceServers: Promise<RTCIceServer[]> | null = null;
/** The gateway itself needs no ICE server (it is ICE-lite); TURN comes from here where the network needs it. */
function ice(): Promise<RTCIceServer[]> {
  iceServers ??= get<{ ice_servers: RTCIceServer[] }>("/api/v1/media/ice-servers").then(
    (r) => r.ice_servers ?? [],
    () => {
      iceServers = null;
      return [];
    },
  );
  return iceServers;
}

/** Delay before attempt `n` (0-based): exponential with full jitter, at most 15 s. `random` in [0, 1). */
export const backoffMs = (n: number, random: number): number => 300 + random * Math.min(15000, 700 * 2 ** n);

interface Exchange {
  session: string | null;
}

/** Posts the offer as soon as it is set: an ICE-lite server learns our address from our checks, so no candidate is worth waiting for. */
async function exchange(pc: RTCPeerConnection, url: string, signalled: AbortSignal): Promise<Exchange> {
  await pc.setLocalDescription(await pc.createOffer());
  const response = await fetch(url, {
    method: "POST",
    credentials: "same-origin",
    headers: { ...unsafeHeaders, "Content-Type": "application/sdp" },
    body: pc.localDescription?.sdp ?? "",
    signal: signalled,
  });
  if (!response.ok) throw await errorOf(response);
  const location = response.headers.get("Location");
  const session = location ? new URL(location, new URL(url, document.baseURI)).href : null;
  const sdp = await response.text();
  if (pc.signalingState !== "closed") await pc.setRemoteDescription({ type: "answer", sdp });
  return { session };
}

/** Has the gateway said good-bye (DTLS close_notify)? Then its session is gone, and a DELETE would find nothing. */
const endedByPeer = (pc: RTCPeerConnection | null): boolean =>
  pc?.getTransceivers().some((t) => (t.sender.transport ?? t.receiver.transport)?.state === "closed") ?? false;

/** Ends a session, then the connection: the other way round our close_notify ends it first, and the DELETE finds nothing. */
async function end(session: string | null, pc: RTCPeerConnection | null): Promise<void> {
  if (pc) pc.onconnectionstatechange = pc.ontrack = null;
  try {
    if (session)
      await fetch(session, {
        method: "DELETE",
        credentials: "same-origin",
        keepalive: true,
        headers: unsafeHeaders,
        signal: AbortSignal.timeout(3000),
      });
  } catch {
    /* the gateway drops a silent session by itself (RFC 7675) */
  } finally {
    pc?.close();
  }
}

abstract class Peer {
  readonly state = signal<PlayState>("connecting");
  readonly reason = signal("");
  protected pc: RTCPeerConnection | null = null;
  private session: string | null = null;
  private attempts = 0;
  private timer = 0;
  private abort: AbortController | null = null;
  protected closed = false;
  private sourceEnded = false;
  private generation = 0;

  constructor(protected readonly url: string) {}

  protected abstract prepare(pc: RTCPeerConnection): void;
  protected abstract onDialled(): void;

  protected async dial(): Promise<void> {
    this.drop();
    if (this.closed) return;
    const mine = ++this.generation;
    const pc = new RTCPeerConnection({ iceServers: await ice(), bundlePolicy: "max-bundle" });
    if (this.closed || mine !== this.generation) {
      pc.close();
      return;
    }
    this.pc = pc;
    const abort = new AbortController();
    this.abort = abort;
    const giveUp = setTimeout(() => abort.abort(), FIRST_MS + 3000);
    pc.onconnectionstatechange = () => {
      if (this.pc !== pc) return;
      if (pc.connectionState === "failed" || pc.connectionState === "closed") this.redial("");
    };
    try {
      this.prepare(pc);
      const { session } = await exchange(pc, this.url, abort.signal);
      if (this.pc !== pc) {
        void end(session, pc);
        return;
      }
      this.session = session;
      this.onDialled();
    } catch (error) {
      if (this.pc !== pc || this.closed) return;
      const refused = error instanceof ApiError ? error : null;
      this.redial(
        refused?.message ?? "",
        refused?.retryAfterS ?? null,
        refused !== null && [403, 404, 406].includes(refused.status),
      );
    } finally {
      clearTimeout(giveUp);
    }
  }

  /** Starts over: after Retry-After if the server named one, else by back-off. `hopeless` is retried seldom. */
  protected redial(reason: string, afterS: number | null = null, hopeless = false): void {
    this.drop();
    if (this.closed) return;
    this.reason.value = reason;
    this.state.value = hopeless ? "failed" : "waiting";
    const wait = hopeless
      ? 30000
      : afterS !== null
        ? afterS * 1000 + Math.random() * 500
        : backoffMs(this.attempts++, Math.random());
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.dial(), wait);
  }

  protected settled(): void {
    this.attempts = 0;
  }

  /** Dials at once (the camera came back, the user asked). */
  again(): void {
    if (this.state.value === "live" || this.state.value === "connecting" || this.closed) return;
    this.attempts = 0;
    clearTimeout(this.timer);
    void this.dial();
  }

  protected drop(): void {
    this.generation++;
    this.abort?.abort();
    this.abort = null;
    const pc = this.pc;
    const gone = this.sourceEnded || endedByPeer(pc);
    this.pc = null;
    void end(gone ? null : this.session, pc);
    this.session = null;
  }

  /** `sourceEnded`: what was played or published to has ended (a call), and its sessions with it. */
  close(sourceEnded = false): void {
    this.sourceEnded = sourceEnded;
    this.closed = true;
    clearTimeout(this.timer);
    this.drop();
  }
}

/** Plays one source into a <video>. Says "live" only while new pictures really arrive. */
export class Player extends Peer {
  readonly frames = signal(0);
  /** Bytes of audio received, from the inbound-rtp statistics. */
  readonly audioBytes = signal(0);
  readonly hasVideo = signal(false);
  private base = 0;
  private seen = 0;
  private lastFrameAt = 0;
  private dialledAt = 0;
  private readonly poll: number;

  constructor(
    url: string,
    private readonly video: HTMLVideoElement,
    private readonly audio: boolean,
  ) {
    super(url);
    this.poll = window.setInterval(() => void this.measure(), 500);
    this.dialledAt = performance.now();
    void this.dial();
  }

  protected prepare(pc: RTCPeerConnection): void {
    this.state.value = "connecting";
    this.dialledAt = performance.now();
    this.lastFrameAt = 0;
    this.base = this.frames.value;
    this.seen = 0;
    const stream = new MediaStream();
    pc.addTransceiver("video", { direction: "recvonly" });
    if (this.audio) pc.addTransceiver("audio", { direction: "recvonly" });
    pc.ontrack = (event) => {
      stream.addTrack(event.track);
      // An own short play-out delay: the gateway is on the same network, and a wall must not lag.
      if ("jitterBufferTarget" in event.receiver) event.receiver.jitterBufferTarget = this.audio ? 60 : 0;
      if (this.video.srcObject !== stream) this.video.srcObject = stream;
      void this.video.play().catch(() => undefined);
    };
  }

  protected onDialled(): void {
    /* live when the first picture is decoded, not before */
  }

  private async measure(): Promise<void> {
    const pc = this.pc;
    if (!pc || this.closed) return;
    const now = performance.now();
    let decoded = 0;
    let bytes = 0;
    if (this.audio) {
      (await pc.getStats()).forEach(
        (report: { type: string; kind?: string; bytesReceived?: number; framesDecoded?: number }) => {
          if (report.type !== "inbound-rtp") return;
          if (report.kind === "audio") bytes += report.bytesReceived ?? 0;
          else decoded += report.framesDecoded ?? 0;
        },
      );
      if (this.pc !== pc) return;
      if (bytes > this.audioBytes.value && !decoded) {
        this.settled();
        if (this.state.value !== "live") this.state.value = "live";
        this.lastFrameAt = now;
      }
      this.audioBytes.value = Math.max(this.audioBytes.value, bytes);
    } else decoded = this.video.getVideoPlaybackQuality().totalVideoFrames;
    if (decoded < this.seen) this.seen = decoded; // the element counts anew for each stream
    if (decoded > this.seen) {
      this.base += decoded - this.seen;
      this.seen = decoded;
      this.lastFrameAt = now;
      this.frames.value = this.base;
      this.hasVideo.value = true;
      this.settled();
      this.reason.value = "";
      if (this.state.value !== "live") this.state.value = "live";
      return;
    }
    if (document.visibilityState !== "visible") {
      if (this.lastFrameAt) this.lastFrameAt = now;
      else this.dialledAt = now;
      return;
    } // hidden pages draw nothing
    if (!this.lastFrameAt) {
      if (now - this.dialledAt > FIRST_MS) this.redial(this.reason.value);
      return;
    }
    const age = now - this.lastFrameAt;
    if (age > REDIAL_MS) this.redial("");
    else if (age > STALE_MS && this.state.value === "live") this.state.value = "stale";
  }

  override close(sourceEnded = false): void {
    clearInterval(this.poll);
    super.close(sourceEnded);
    this.video.srcObject = null;
  }
}

/** Publishes own camera and microphone. H.264 first (RFC 7742 section 5: both are mandatory; recording needs no transcoding then). */
export class Publisher extends Peer {
  constructor(
    url: string,
    private readonly stream: MediaStream,
  ) {
    super(url);
    void this.dial();
  }

  protected prepare(pc: RTCPeerConnection): void {
    this.state.value = "connecting";
    for (const track of this.stream.getTracks()) {
      const sender = pc.addTransceiver(track, { direction: "sendonly", streams: [this.stream] });
      if (track.kind !== "video") continue;
      const codecs = RTCRtpReceiver.getCapabilities("video")?.codecs ?? [];
      const order = (mime: string): number => ["video/h264", "video/vp8"].indexOf(mime.toLowerCase());
      const rank = (mime: string): number => (order(mime) < 0 ? 9 : order(mime));
      const preferred = [...codecs].sort((a, b) => rank(a.mimeType) - rank(b.mimeType));
      if (preferred.length)
        try {
          sender.setCodecPreferences(preferred);
        } catch {
          /* an older browser keeps its own order */
        }
    }
    const connected = (): void => {
      if (pc.connectionState === "connected") {
        this.settled();
        this.state.value = "live";
        this.reason.value = "";
      }
    };
    pc.addEventListener("connectionstatechange", connected);
  }

  protected onDialled(): void {
    /* live when ICE and DTLS are up */
  }

  /** Replaces the sent picture (front or back camera) without a new session. */
  async replaceVideo(track: MediaStreamTrack): Promise<void> {
    const sender = this.pc?.getSenders().find((s) => s.track?.kind === "video");
    await sender?.replaceTrack(track);
  }
}

export type CaptureFault = "mediaInsecure" | "mediaDenied" | "mediaMissing" | "mediaBusy";

/** Camera and microphone, or the microphone alone, or the reason why neither. */
export async function capture(
  facing: "user" | "environment" = "user",
): Promise<{ stream: MediaStream } | { fault: CaptureFault }> {
  const devices = navigator.mediaDevices as MediaDevices | undefined;
  if (!devices?.getUserMedia) return { fault: "mediaInsecure" };
  const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  const wanted: MediaStreamConstraints[] = [
    { audio, video: { facingMode: facing, width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 20 } } },
    { audio },
    { video: true },
  ];
  let fault: CaptureFault = "mediaMissing";
  for (const constraints of wanted) {
    try {
      return { stream: await devices.getUserMedia(constraints) };
    } catch (error) {
      const name = error instanceof DOMException ? error.name : "";
      fault = name === "NotAllowedError" ? "mediaDenied" : name === "NotReadableError" ? "mediaBusy" : "mediaMissing";
      if (fault === "mediaDenied") break;
    }
  }
  return { fault };
}
