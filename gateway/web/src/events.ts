/** The page's event channel: resumes by (epoch, seq), asks for everything again after a gap, and says when it has gone stale. */
import { signal } from "@preact/signals";
import { get, pageQuery } from "./api.ts";

export interface Frame {
  seq?: number;
  epoch?: string;
  type: string;
  at?: number;
  data?: unknown;
}
export type Step = "deliver" | "repeat" | "resync" | "hello";

/** What the channel knows of its place in the stream; pure, so that resumption can be tested without a socket. */
export class Cursor {
  epoch: string | null = null;
  seq = 0;

  /** Query that resumes where this cursor stands. */
  query(): string {
    return this.epoch === null ? "" : `?epoch=${encodeURIComponent(this.epoch)}&after=${this.seq}`;
  }

  /** Takes one frame in. A server that was restarted has another epoch: what we hold may be from before, so fetch anew. */
  take(frame: Frame): Step {
    if (frame.type === "hello") {
      const data = (frame.data ?? {}) as { epoch?: string; seq?: number };
      const epoch = String(data.epoch ?? frame.epoch ?? "");
      const other = this.epoch !== null && this.epoch !== epoch;
      if (this.epoch === null || other) this.seq = Number(data.seq ?? frame.seq ?? 0);
      this.epoch = epoch;
      return other ? "resync" : "hello";
    }
    if (frame.type === "resync") {
      const data = (frame.data ?? {}) as { epoch?: string; seq?: number };
      this.seq = Number(data.seq ?? frame.seq ?? this.seq);
      return "resync";
    }
    if (typeof frame.seq === "number" && frame.type !== "heartbeat" && frame.type !== "revoked") {
      if (frame.seq <= this.seq) return "repeat";
      this.seq = frame.seq;
    }
    return "deliver";
  }
}

const STALE_MS = 12000; // two heartbeats of 5 s missed, and 2 s of grace

/** Milliseconds that the server's clock is ahead of ours. */
export const clockSkew = signal(0);
/** Server time now, for countdowns and ages. */
export const serverNow = (): number => Date.now() + clockSkew.value;

export class Channel {
  readonly stale = signal(false);
  readonly connected = signal(false);
  readonly since = signal(Date.now());
  readonly lagMs = signal(0);
  private readonly cursor = new Cursor();
  private socket: WebSocket | null = null;
  private attempts = 0;
  private dialledAt = 0;
  private closed = false;

  /** `onFrame` sees each event once; `onResync` must fetch the whole state; `onRevoked` is called at the session's end. */
  constructor(
    private readonly onFrame: (frame: Frame) => void,
    private readonly onResync: () => void,
    private readonly onRevoked: () => void,
  ) {
    document.addEventListener("visibilitychange", () => this.reportVisibility());
    addEventListener("online", () => {
      if (!this.socket) this.open();
    });
    setInterval(() => this.watch(), 1000);
    this.open();
  }

  private watch(): void {
    if (this.closed || Date.now() - this.since.value <= STALE_MS) return;
    this.stale.value = true;
    // A half-open TCP connection never closes by itself: drop it and dial again.
    // Nor does a dial into nowhere end in time.
    if (this.socket && (this.connected.value || Date.now() - this.dialledAt > 8000)) this.abandon();
  }

  /** Gives the socket up at once: close() alone may wait a minute for a peer that is gone. */
  private abandon(): void {
    const socket = this.socket;
    if (!socket) return;
    this.connected.value = false;
    socket.close();
    socket.onclose?.(new CloseEvent("close"));
  }

  private open(): void {
    if (this.closed) return;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const query = this.cursor.query();
    const socket = new WebSocket(`${scheme}://${location.host}/api/v1/events${query}${pageQuery(query ? "&" : "?")}`);
    this.socket = socket;
    this.dialledAt = Date.now();
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.connected.value = true;
      this.reportVisibility();
    };
    socket.onmessage = (event: MessageEvent<string>) => this.take(event.data);
    socket.onclose = () => {
      if (this.socket !== socket) return;
      this.socket = null;
      this.connected.value = false;
      if (this.closed) return;
      const limit = Math.min(4000, 500 * 2 ** this.attempts++);
      // A browser does not tell a refused upgrade from a dead server; if the session has ended, this leads to the log-in.
      if (!opened && this.attempts % 3 === 0) void get("/api/v1/session").catch(() => undefined);
      setTimeout(
        () => {
          if (!this.socket) this.open();
        },
        200 + Math.random() * limit,
      ); // full jitter
    };
  }

  private take(text: string): void {
    let frame: Frame;
    try {
      frame = JSON.parse(text) as Frame;
    } catch {
      return;
    }
    this.since.value = Date.now();
    this.stale.value = false;
    const data = (frame.data ?? {}) as { now?: number; lag_ms?: number };
    if ((frame.type === "hello" || frame.type === "heartbeat") && typeof data.now === "number")
      clockSkew.value = data.now - Date.now();
    if (frame.type === "heartbeat") {
      this.lagMs.value = data.lag_ms ?? 0;
      return;
    }
    if (frame.type === "revoked") {
      if ((frame.data as { reason?: string }).reason === "restart") {
        this.socket?.close(); // the server comes back, and the session is still ours: dial again
        return;
      }
      this.closed = true;
      this.socket?.close();
      this.onRevoked();
      return;
    }
    const step = this.cursor.take(frame);
    if (frame.type === "hello") this.attempts = 0;
    if (step === "resync") this.onResync();
    if (step === "deliver") this.onFrame(frame);
  }

  private reportVisibility(): void {
    if (this.socket?.readyState === WebSocket.OPEN)
      this.socket.send(JSON.stringify({ type: "visible", visible: document.visibilityState === "visible" }));
  }
}
