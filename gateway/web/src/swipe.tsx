/** A swipe that confirms: a thumb drags the knob to the end; by keyboard or screen reader it is a button. */
import { useRef, useState } from "preact/hooks";
import { t } from "./text.ts";

const ENOUGH = 0.8; // of the way

export function Swipe({
  act,
  label,
  disabled = false,
  onDone,
}: {
  act: string;
  label: string;
  disabled?: boolean;
  onDone: () => void;
}) {
  const track = useRef<HTMLDivElement>(null);
  const from = useRef(0);
  const [at, setAt] = useState<number | null>(null);
  const way = (): number => Math.max(1, (track.current?.clientWidth ?? 0) - 64);
  const end = (done: boolean): void => {
    setAt(null);
    if (done && !disabled) onDone();
  };
  return (
    <div ref={track} class={`swipe${disabled ? " off" : ""}`} data-act={act} style={{ "--at": `${at ?? 0}px` }}>
      <span class="say" aria-hidden="true">
        {label} <small>{t("swipe")}</small>
      </span>
      <button
        type="button"
        class="grip"
        aria-label={label}
        disabled={disabled}
        onPointerDown={(e) => {
          if (disabled) return;
          from.current = e.clientX;
          e.currentTarget.setPointerCapture(e.pointerId);
          setAt(0);
        }}
        onPointerMove={(e) => {
          if (at !== null) setAt(Math.max(0, Math.min(way(), e.clientX - from.current)));
        }}
        onPointerUp={(e) => {
          if (at !== null) end(e.clientX - from.current >= way() * ENOUGH);
        }}
        onPointerCancel={() => setAt(null)}
        onKeyDown={(e) => {
          if ((e.key === "Enter" || e.key === " ") && !e.repeat) {
            e.preventDefault();
            end(true);
          }
        }}
        onClick={(e) => {
          if (e.detail === 0) end(true); // by a screen reader: there is no pointer to drag
        }}
      >
        »
      </button>
    </div>
  );
}
