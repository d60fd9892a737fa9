/** HTTP client of the pages: session by cookie, problem documents (RFC 9457) turned into sentences. */
import type { Session } from "./model.ts";
import { t, why } from "./text.ts";

/** A refused request. `problem` is the whole problem document, so a caller may read its extension members. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly problem: Record<string, unknown>,
    readonly retryAfterS: number | null,
  ) {
    super(message);
  }
}

/** Seconds of a Retry-After header (RFC 9110 section 10.2.3, delta-seconds or a date), or null. */
export function retryAfter(headers: Headers, now: number = Date.now()): number | null {
  const value = headers.get("Retry-After");
  if (value === null) return null;
  if (/^\d+(\.\d+)?$/.test(value.trim())) return Number(value);
  const at = Date.parse(value);
  return Number.isNaN(at) ? null : Math.max(0, (at - now) / 1000);
}

export async function errorOf(response: Response): Promise<ApiError> {
  let problem: Record<string, unknown> = {};
  try {
    problem = (await response.json()) as Record<string, unknown>;
  } catch {
    /* not JSON: the status must do */
  }
  const wait = retryAfter(response.headers);
  const said =
    typeof problem.detail === "string" && problem.detail
      ? problem.detail
      : typeof problem.title === "string"
        ? problem.title
        : "";
  let message = said ? why(said) : t("unknownError", { n: response.status });
  if (response.status === 403 && !said) message = t("noRight");
  if (response.status === 429) message = t("tooMany", { s: Math.ceil(wait ?? 1) });
  if (response.status === 409 && !said) message = t("conflict");
  return new ApiError(response.status, message, problem, wait);
}

const ours = /^\/(wall|desk|stb|worker)$/;
/** Which page this is: a browser holds one session a page. The log-in page acts for the page it leads to. */
export const page =
  (ours.exec(location.pathname) ?? ours.exec(new URLSearchParams(location.search).get("next") ?? ""))?.[1] ?? "";
/** For requests that can carry no header (WebSocket, pictures). `mark` is ? or &. */
export const pageQuery = (mark: "?" | "&"): string => (page ? `${mark}page=${page}` : "");
const pageHeaders: Record<string, string> = page ? { "X-Gateway-Page": page } : {};
export const unsafeHeaders: Record<string, string> = { "X-Requested-With": "gateway", ...pageHeaders };

/** One JSON exchange, given up after 15 s. 401 leads to the login page unless `anonymous`. */
export async function api<T>(method: string, path: string, body?: unknown, anonymous = false): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(15000),
      headers: {
        Accept: "application/json",
        ...pageHeaders,
        ...(method === "GET" ? {} : { ...unsafeHeaders, "Content-Type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  } catch {
    throw new ApiError(0, t("netDown"), {}, null);
  }
  if (!response.ok) {
    if (response.status === 401 && !anonymous) toLogin();
    throw await errorOf(response);
  }
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export const get = <T>(path: string): Promise<T> => api<T>("GET", path);
export const post = <T>(path: string, body: unknown = {}): Promise<T> => api<T>("POST", path, body);
export const seg = encodeURIComponent;

export function toLogin(why = ""): void {
  const next = location.pathname === "/login" ? "" : `next=${seg(location.pathname)}`;
  location.replace(`/login?${next}${why ? `&why=${why}` : ""}`);
}

/** Who is logged in. A one-time code in the fragment is spent first and taken out of the address bar and the history. */
export async function openSession(): Promise<Session | null> {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code) {
    history.replaceState(null, "", location.pathname + location.search);
    try {
      return await api<Session>("POST", "/api/v1/session", { code }, true);
    } catch (error) {
      if (error instanceof ApiError && error.status === 0) throw error;
      // A spent code may belong to a session that is still open (the page was opened twice): fall through and ask.
      try {
        return await api<Session>("GET", "/api/v1/session", undefined, true);
      } catch {
        toLogin("code");
        return null;
      }
    }
  }
  try {
    return await api<Session>("GET", "/api/v1/session", undefined, true);
  } catch (error) {
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) {
      toLogin();
      return null;
    }
    throw error;
  }
}

export const homeOf = (role: string): string =>
  ({ stb: "/stb", worker: "/worker", volunteer: "/worker", desk: "/desk" })[role] ?? "/wall";
