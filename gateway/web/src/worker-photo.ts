/** Photos from the phone's camera, made small enough for a bad network and for keeping until there is one. */
import { t } from "./text.ts";

const EDGE = 1600; // pixels: enough to read a sign

/** JPEG, its longer edge at most EDGE pixels. Raises for what is no picture. */
export async function scaled(file: File): Promise<Blob> {
  let picture: ImageBitmap;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Error(t("photoBad"));
  }
  const ratio = Math.min(1, EDGE / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * ratio);
  canvas.height = Math.round(picture.height * ratio);
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error(t("photoBad")))), "image/jpeg", 0.82),
  );
}

export async function toBase64(blob: Blob): Promise<string> {
  const octets = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < octets.length; i += 0x8000) text += String.fromCharCode(...octets.subarray(i, i + 0x8000));
  return btoa(text);
}
export const fromBase64 = (text: string): Blob =>
  new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], { type: "image/jpeg" });
