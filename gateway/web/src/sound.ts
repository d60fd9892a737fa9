/** Sound made by WebAudio (no files). Browsers keep it silent until the user has touched the page. */
import { signal } from "@preact/signals";

export const unlocked = signal(false);
let context: AudioContext | null = null;
let loop = 0;
/** Browsers refuse to vibrate before the first touch, and say so loudly. */
const touched = (): boolean => (navigator.userActivation as UserActivation | undefined)?.hasBeenActive ?? true;

export async function unlock(): Promise<void> {
  context ??= new AudioContext();
  try {
    await context.resume();
  } catch {
    /* stays locked until the next touch */
  }
  unlocked.value = context.state === "running";
}

/** Any first touch or key unlocks; a login on another page does not carry over in every browser. */
export function unlockOnGesture(): void {
  const once = (): void => {
    void unlock().then(() => {
      if (unlocked.value) for (const name of ["pointerdown", "keydown"]) removeEventListener(name, once, true);
    });
  };
  for (const name of ["pointerdown", "keydown"]) addEventListener(name, once, true);
  void unlock();
}

function tone(frequency: number, at: number, length: number, gain: number): void {
  if (!context || context.state !== "running") return;
  const oscillator = context.createOscillator();
  const volume = context.createGain();
  const start = context.currentTime + at;
  oscillator.frequency.value = frequency;
  oscillator.type = "triangle";
  volume.gain.setValueAtTime(0, start);
  volume.gain.linearRampToValueAtTime(gain, start + 0.02);
  volume.gain.setValueAtTime(gain, start + length - 0.05);
  volume.gain.linearRampToValueAtTime(0, start + length);
  oscillator.connect(volume).connect(context.destination);
  oscillator.start(start);
  oscillator.stop(start + length);
}

/** Repeats the alarm or ring pattern while `on`. */
export function sounding(on: boolean, kind: "alarm" | "ring"): void {
  if (!on) {
    clearInterval(loop);
    loop = 0;
    if (kind === "ring" && touched()) navigator.vibrate?.(0);
    return;
  }
  if (loop) return;
  const play = (): void => {
    if (kind === "alarm") {
      tone(880, 0, 0.25, 0.25);
      tone(660, 0.3, 0.25, 0.25);
      tone(880, 0.6, 0.25, 0.25);
    } else {
      tone(523, 0, 0.4, 0.35);
      tone(659, 0.45, 0.4, 0.35);
      if (touched()) navigator.vibrate?.([400, 200, 400]);
    }
  };
  play();
  loop = window.setInterval(play, kind === "alarm" ? 2500 : 1800);
}
