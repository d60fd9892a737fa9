/** The log-in page: user and password, or the reason why a ready link did not work. */
import { render } from "preact";
import { useState } from "preact/hooks";
import { api, ApiError, homeOf, openSession } from "./api.ts";
import type { Session } from "./model.ts";
import { announceLanguage, language, setLanguage, t } from "./text.ts";

const query = new URLSearchParams(location.search);
/** Only a path of our own: never a foreign address out of the query. */
const next = /^\/(wall|desk|stb|worker)$/.exec(query.get("next") ?? "")?.[0];

function Login({ why }: { why: string }) {
  const [sub, setSub] = useState("");
  const [password, setPassword] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(why);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    setBusy(true);
    setError("");
    try {
      const session = await api<Session>("POST", "/api/v1/session", { sub: sub.trim(), password }, true);
      location.replace(next ?? homeOf(session.role));
    } catch (failure) {
      const status = failure instanceof ApiError ? failure.status : -1;
      setError(
        status === 401 || status === 403 ? t("loginBad") : failure instanceof Error ? failure.message : String(failure),
      );
      setBusy(false);
    }
  };
  return (
    <main class="login">
      <form onSubmit={(event) => void submit(event)}>
        <div class="mark" aria-hidden="true">
          <svg viewBox="0 0 48 48">
            <path d="M24 4 40 10v13c0 10-7 17-16 21C15 40 8 33 8 23V10z" />
            <circle cx="24" cy="22" r="7" />
            <circle class="dot" cx="24" cy="22" r="2.6" />
          </svg>
        </div>
        <h1>{t("app")}</h1>
        <p class="lead">{t("loginLead")}</p>
        <label>
          {t("user")}
          <input
            name="sub"
            autocomplete="username"
            autofocus
            required
            value={sub}
            onInput={(e) => setSub(e.currentTarget.value)}
          />
        </label>
        <label>
          {t("password")}
          <input
            name="password"
            type="password"
            autocomplete="current-password"
            required
            value={password}
            onInput={(e) => setPassword(e.currentTarget.value)}
          />
        </label>
        <p class="error" role="alert">
          {error}
        </p>
        <button type="submit" disabled={busy}>
          {busy ? t("entering") : t("enter")}
        </button>
        <button
          type="button"
          class="link"
          lang={t("otherLang")}
          onClick={() => setLanguage(language === "zh" ? "en" : "zh")}
        >
          {t("otherLanguage")}
        </button>
      </form>
    </main>
  );
}

async function start(): Promise<void> {
  const root = document.getElementById("app");
  if (!root) return;
  announceLanguage("login");
  root.textContent = "";
  if (location.hash.includes("code=")) {
    const session = await openSession().catch(() => null);
    if (session) {
      location.replace(next ?? homeOf(session.role));
      return;
    }
  }
  render(
    <Login why={query.get("why") === "code" ? t("codeBad") : query.get("why") === "revoked" ? t("revoked") : ""} />,
    root,
  );
}
void start();
