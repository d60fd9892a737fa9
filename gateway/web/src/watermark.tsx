/** Who watches and when, over every picture: a photograph of the screen names its maker. */
import { useEffect, useRef } from "preact/hooks";
import { serverNow } from "./events.ts";

const two = (n: number): string => String(n).padStart(2, "0");

function stamp(): string {
  const d = new Date(serverNow());
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
}

export function Watermark({ who }: { who: string }) {
  const ref = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const canvas = ref.current;
    if (!canvas) return;
    const draw = (): void => {
      const { clientWidth: width, clientHeight: height } = canvas;
      if (!width || !height) return;
      canvas.width = width;
      canvas.height = height;
      const c = canvas.getContext("2d");
      if (!c) return;
      c.font = `${width > 500 ? 15 : 11}px system-ui, sans-serif`;
      c.textBaseline = "middle";
      c.translate(width / 2, height / 2);
      c.rotate(-0.35);
      const text = `${who}  ${stamp()}`;
      const step = c.measureText(text).width + 60;
      for (let y = -height, row = 0; y < height; y += width > 500 ? 90 : 62, row++)
        for (let x = -width - ((row % 2) * step) / 2; x < width; x += step) {
          c.fillStyle = "rgba(0,0,0,.20)";
          c.fillText(text, x + 1, y + 1);
          c.fillStyle = "rgba(255,255,255,.17)";
          c.fillText(text, x, y);
        }
    };
    draw();
    const observer = new ResizeObserver(draw);
    observer.observe(canvas);
    const timer = setInterval(draw, 30000);
    return () => {
      observer.disconnect();
      clearInterval(timer);
    };
  }, [who]);
  return <canvas ref={ref} class="watermark" aria-hidden="true" />;
}
