// Unit tests of what needs no browser and no gateway. Run by `npm run unit` (node's own test runner).
import assert from "node:assert/strict";
import { createHmac, createHash } from "node:crypto";
import { readFile, readdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parse } from "acorn";
import { build } from "esbuild";

globalThis.location = new URL("http://x/wall"); // the modules ask which page they are in
const root = path.dirname(fileURLToPath(import.meta.url));
const scratch = await mkdtemp(path.join(os.tmpdir(), "web-unit-"));
after(() => rm(scratch, { recursive: true, force: true }));

/** Loads a TypeScript module as node sees it. */
async function load(name) {
  const outfile = path.join(scratch, `${name}.mjs`);
  await build({
    entryPoints: [path.join(root, "src", `${name}.ts`)],
    outfile,
    bundle: true,
    format: "esm",
    platform: "node",
    logLevel: "error",
  });
  return import(pathToFileURL(outfile).href);
}
/** Loads one ES5 part of the box page as a CommonJS module. */
async function part(name) {
  const file = path.join(scratch, `${name}.cjs`);
  await writeFile(file, await readFile(path.join(root, "src/stb", `${name}.js`)));
  return createRequire(import.meta.url)(file);
}

test("the box page's sources are ES5", async () => {
  for (const file of await readdir(path.join(root, "src/stb")))
    parse(await readFile(path.join(root, "src/stb", file), "utf8"), { ecmaVersion: 5, sourceType: "script" });
  assert.throws(() => parse("const a = () => 1", { ecmaVersion: 5 }), SyntaxError);
});

test("HMAC-SHA256 of the box equals node's, at every length around a block", async () => {
  const { hmac, sha256hex } = await part("1-sha256");
  for (const size of [0, 1, 31, 55, 56, 63, 64, 65, 119, 120, 200]) {
    const text = "值班".repeat(size).slice(0, size);
    assert.equal(sha256hex(text), createHash("sha256").update(text, "utf8").digest("hex"));
    for (const keySize of [16, 32, 64, 80]) {
      const key = Buffer.alloc(keySize, size + 1);
      assert.equal(hmac(key.toString("hex"), text), createHmac("sha256", key).update(text, "utf8").digest("hex"));
    }
  }
});

test("a press signs what the contract says", async () => {
  const box = await part("2-press");
  const crypto = await part("1-sha256");
  const key = "00112233445566778899aabbccddeeff";
  const press = box.create(1700000000000, "p1", 7, "cam001", true);
  const body = box.payload(crypto, key, "stb9", press);
  const sig = createHmac("sha256", Buffer.from(key, "hex"))
    .update("press|stb9|p1|7|1700000000000|help|cam001|1")
    .digest("hex");
  assert.deepEqual(body, {
    v: 1,
    pid: "p1",
    seq: 7,
    ts: 1700000000000,
    kind: "help",
    sig,
    cam: "cam001",
    silent: true,
  });
  const plain = box.payload(crypto, key, "stb9", box.create(5, "p2", 8, null, false));
  assert.equal(
    plain.sig,
    createHmac("sha256", Buffer.from(key, "hex")).update("press|stb9|p2|8|5|help||0").digest("hex"),
  );
  assert.ok(!("cam" in plain) && !("silent" in plain));
});

test("the same press is resent at 2, 4, 8, 16, 30 s and after 5 s by HTTP too", async () => {
  const box = await part("2-press");
  const press = box.create(0, "p", 1, null, false);
  const sent = [];
  for (let now = 0; now <= 65000; now += 500) {
    const what = box.due(press, now, true);
    if (what.mqtt || what.http) sent.push([now / 1000, what.mqtt, what.http]);
  }
  assert.deepEqual(sent, [
    [0, true, false],
    [2, true, false],
    [4, true, false],
    [8, true, true],
    [16, true, true],
    [30, true, true],
    [60, true, true],
  ]);
});

test("without the broker HTTP goes out at once; the resident is sent to 110 after 15 s", async () => {
  const box = await part("2-press");
  const press = box.create(0, "p", 1, null, false);
  assert.deepEqual(box.due(press, 0, false), { mqtt: false, http: true });
  assert.equal(box.callHelp(press, 14999), false);
  assert.equal(box.callHelp(press, 15000), true);
  assert.equal(box.ack(press, { pid: "p", stage: "persisted", alarm: "A" }), true);
  assert.equal(box.callHelp(press, 15000), false);
  assert.deepEqual(box.due(press, 99000, true), { mqtt: false, http: false });
});

test("what is no longer true is taken back by the retained state alone", async () => {
  const box = await part("2-press");
  const press = box.create(0, "p", 1, null, false);
  assert.equal(box.fall(press, "persisted"), false);
  for (const stage of ["persisted", "shown", "dispatched"]) box.ack(press, { pid: "p", stage, who: "李", eta_s: 60 });
  assert.equal(box.fall(press, "dispatched"), false);
  assert.equal(box.fall(press, "shown"), true);
  assert.deepEqual([press.stage, press.reached, press.who], ["shown", ["sent", "persisted", "shown"], null]);
  box.ack(press, { pid: "p", stage: "dispatched", who: "王" });
  assert.deepEqual([press.stage, press.who], ["dispatched", "王"]);
  box.ack(press, { pid: "p", stage: "closed" });
  assert.equal(box.fall(press, "shown"), false);
});

test("stages never run backwards, and only the press's own acks count", async () => {
  const box = await part("2-press");
  const press = box.create(0, "p", 1, null, false);
  assert.equal(box.ack(press, { pid: "other", stage: "persisted" }), false);
  box.ack(press, { pid: "p", stage: "answered" });
  box.ack(press, { pid: "p", stage: "shown" });
  assert.equal(press.stage, "answered");
  assert.equal(box.ack(press, { pid: "p", stage: "refused", reason: "late" }), false);
  box.ack(press, { pid: "p", stage: "dispatched", who: "李", eta_s: 200 });
  box.ack(press, { pid: "p", stage: "answered", who: "值班员" }); // it comes later, and names somebody else
  assert.deepEqual([press.stage, press.who, press.eta], ["dispatched", "李", 200]);
  box.ack(press, { pid: "p", stage: "cancelled" });
  box.ack(press, { pid: "p", stage: "dispatched" });
  assert.equal(press.stage, "cancelled");
  const bad = box.create(0, "q", 2, null, false);
  box.ack(bad, { pid: "q", stage: "refused", reason: "bad_signature" });
  assert.ok(box.callHelp(bad, 1) && box.over(bad));
});

test("an event that was handled has nobody on the way, and nothing to correct or cancel, until it is reopened", async () => {
  const box = await part("2-press");
  const press = box.create(0, "p", 1, "cam1", false);
  assert.equal(box.open(press), false); // nothing says that it is on disk
  box.ack(press, { pid: "p", alarm: "A", stage: "dispatched", who: "李", eta_s: 60, handled: false });
  assert.deepEqual([box.stands(press), box.open(press)], ["dispatched", true]);
  box.ack(press, { pid: "p", alarm: "A", stage: "dispatched", handled: true });
  assert.deepEqual([box.stands(press), box.open(press), box.over(press)], ["handled", false, false]);
  box.ack(press, { pid: "p", alarm: "A", stage: "dispatched" }); // an ack doesn't know
  assert.equal(box.stands(press), "handled");
  box.ack(press, { pid: "p", alarm: "A", stage: "answered", handled: false });
  assert.deepEqual([box.stands(press), box.open(press)], ["dispatched", true]);
  box.ack(press, { pid: "p", alarm: "A", stage: "dispatched", handled: true });
  box.ack(press, { pid: "p", alarm: "A", stage: "closed" });
  assert.equal(box.stands(press), "closed");
});

test("the box reads a playlist and the codec out of an initialisation", async () => {
  const hls = await part("3-hls");
  const text = [
    "#EXTM3U",
    "#EXT-X-MEDIA-SEQUENCE:7",
    '#EXT-X-MAP:URI="init-5.mp4?page=stb"',
    "#EXTINF:2.000,",
    "seg-7.m4s?page=stb",
    "#EXT-X-DISCONTINUITY",
    '#EXT-X-MAP:URI="init-8.mp4"',
    "#EXTINF:1.000,",
    "seg-8.m4s",
  ].join("\r\n");
  assert.deepEqual(hls.parse(text), [
    { number: 7, address: "seg-7.m4s?page=stb", map: "init-5.mp4?page=stb" },
    { number: 8, address: "seg-8.m4s", map: "init-8.mp4" },
  ]);
  assert.deepEqual(hls.parse("<html>no playlist</html>").length, 1); // refused when it is fetched
  assert.equal(hls.codec(Buffer.from("0000002c61766343014d401effe1", "hex")), "avc1.4d401e");
  assert.equal(hls.codec(Buffer.from("moov")), "");
});

test("a reason is said in both languages, the most particular one first", async () => {
  const { reasonIn } = await load("reasons");
  assert.equal(reasonIn("zh", "cannot process: too many writes are waiting"), "系统繁忙，暂时不能受理");
  assert.equal(reasonIn("zh", "cannot process: disk full"), "暂时不能受理：disk full");
  const named = (v) => ({ CLOSED: "已结束", triage: "定性" })[v] ?? v;
  assert.equal(
    reasonIn("zh", "an alarm that is CLOSED can't take triage", named),
    "报警现在的状态是“已结束”，不能再做“定性”",
  );
  assert.equal(reasonIn("en", "log in first"), "log in first");
  assert.equal(reasonIn("en", "已由李四受理"), "李四 has taken it already");
  assert.equal(reasonIn("zh", "something new"), "something new");
});

test("a month begins when it does in the district, whatever the browser's time zone", async () => {
  const zone = process.env.TZ;
  const { monthOf } = await load("text");
  for (const TZ of ["America/New_York", "UTC", "Asia/Shanghai", "Pacific/Auckland"]) {
    process.env.TZ = TZ;
    assert.equal(monthOf(Date.UTC(2026, 10, 30, 15, 59, 59)), "2026-11");
    assert.equal(monthOf(Date.UTC(2026, 10, 30, 16)), "2026-12");
  }
  if (zone === undefined) delete process.env.TZ;
  else process.env.TZ = zone;
});

test("how far a device's clock is off is said in a unit that people read", async () => {
  const { skew } = await load("text");
  assert.equal(skew(-3_601_000), "设备时间比接报早 1 小时");
  assert.equal(skew(150_000), "设备时间比接报晚 2 分钟");
  assert.equal(skew(-3 * 86_400_000), "设备时间比接报早 3 天");
});

test("the timeline has words for codes, and names for ids as far as the page knows them", async () => {
  const { doneBy, toldOf } = await load("timeline");
  const { zh } = await load("text-zh");
  const names = new Map([
    ["op01", "张三"],
    ["w1", "李四"],
  ]);
  const nameOf = (id) => names.get(id);
  const entry = (by, detail = {}) => ({ at: 0, event: "shown", by, detail });
  assert.equal(doneBy(entry("operator/op01"), nameOf), "张三");
  assert.equal(doneBy(entry("operator/op99"), nameOf), "op99");
  assert.equal(doneBy(entry("operator/op99", { name: "王五" }), nameOf), "王五"); // the entry says so itself
  assert.equal(toldOf(entry("operator/op99", { name: "王五" }), nameOf), "");
  assert.equal(doneBy(entry("system"), nameOf), "");
  assert.equal(doneBy(entry("stb/000123"), nameOf), "机顶盒 000123");
  const dispatch = entry("operator/op01", { worker: "w1", name: "李四" });
  assert.deepEqual([doneBy(dispatch, nameOf), toldOf(dispatch, nameOf)], ["张三", "网格员 李四"]);
  for (const via of ["mqtt", "http"]) assert.equal(toldOf(entry("stb/1", { via }), nameOf), `途径 ${zh[`via.${via}`]}`);
  for (const reason of ["nobody_on_duty", "nobody_left", "no_answer", "declined", "media_failed"])
    assert.doesNotMatch(toldOf(entry("system", { reason }), nameOf), /[a-z_]/);
});

test("an event taken by telephone goes when a task is sent for it, and when it is over", async () => {
  const { afterAlarm, afterIncident, afterTask, notOwn } = await load("taken");
  const fresh = { call: "c1", incident: null, alarm: "a1", label: "x", arrived: false };
  const known = { ...fresh, incident: "i1" };
  const incident = { id: "i1", state: "DISPATCHED", alarm_id: "a1" };
  // Opened after the phone hung up: only the alarm tells that it is the same event.
  for (const taken of [fresh, known])
    for (const state of ["OFFERED", "ON_SCENE", "DONE"]) assert.equal(afterTask(taken, { state, incident }), null);
  const other = { id: "i2", state: "DISPATCHED", alarm_id: null };
  assert.equal(afterTask(fresh, { incident: other }), fresh);
  assert.equal(afterIncident(fresh, { ...other, state: "ARCHIVED" }), fresh);
  assert.equal(afterIncident(null, incident), null);
  assert.deepEqual(afterIncident(fresh, incident), known);
  assert.equal(afterIncident(fresh, { ...incident, state: "HANDLING" }).arrived, true);
  for (const state of ["VERIFYING", "RATED", "ARCHIVED", "TRANSFERRED", "MERGED", "CANCELLED"])
    assert.equal(afterIncident(known, { ...incident, state }), null);
  assert.deepEqual(afterAlarm(fresh, { id: "a1", handling: "TRIAGED", incident_id: "i1" }), known);
  assert.equal(afterAlarm(known, { id: "a1", handling: "CLOSED", incident_id: "i1" }), null);
  assert.equal(afterAlarm(known, { id: "a2", handling: "CLOSED", incident_id: null }), known);
  assert.deepEqual([403, 404, 409, 500, 0].map(notOwn), [true, true, false, false, false]);
});

test("without room on the device nothing is kept, and that is told", async () => {
  const { Outbox } = await load("outbox");
  let full = false;
  const shelf = new Map();
  const store = {
    getItem: (k) => shelf.get(k) ?? null,
    setItem: (k, v) => {
      if (full) throw new Error("QuotaExceededError");
      shelf.set(k, v);
    },
  };
  const box = new Outbox(
    async () => "later",
    () => store,
  );
  box.open("k");
  box.add({ kind: "report", path: "/r", body: 1 });
  full = true;
  assert.throws(() => box.add({ kind: "photo", path: "/p", body: "x" }));
  assert.equal(box.size.value, 1);
});

test("the event cursor drops repeats, resumes, and asks anew after a restart", async () => {
  globalThis.document = { addEventListener() {}, baseURI: "http://x/" };
  const { Cursor } = await load("events");
  const cursor = new Cursor();
  assert.equal(cursor.query(), "");
  assert.equal(cursor.take({ type: "hello", data: { epoch: "e 1", seq: 4 } }), "hello");
  assert.equal(cursor.take({ type: "alarm", seq: 5 }), "deliver");
  assert.equal(cursor.take({ type: "alarm", seq: 5 }), "repeat");
  assert.equal(cursor.take({ type: "heartbeat", seq: 5 }), "deliver");
  assert.equal(cursor.query(), "?epoch=e%201&after=5");
  assert.equal(cursor.take({ type: "hello", data: { epoch: "e 1", seq: 9 } }), "hello");
  assert.equal(cursor.take({ type: "call", seq: 6 }), "deliver");
  assert.equal(cursor.take({ type: "resync", data: { seq: 20 } }), "resync");
  assert.equal(cursor.take({ type: "hello", data: { epoch: "e2", seq: 1 } }), "resync");
  assert.equal(cursor.take({ type: "alarm", seq: 2 }), "deliver");
});

test("what could not be sent is kept in order, the newest duty only, and sent when the network is back", async () => {
  const { Outbox } = await load("outbox");
  const shelf = new Map();
  const store = { getItem: (k) => shelf.get(k) ?? null, setItem: (k, v) => void shelf.set(k, v) };
  let outcome = "later";
  const sent = [];
  const send = async (item) => {
    if (outcome !== "later") sent.push(item.body);
    return outcome;
  };
  const box = new Outbox(send, () => store);
  box.open("k");
  box.add({ kind: "duty", path: "/d", body: 1 });
  box.add({ kind: "report", path: "/r", body: 2 });
  box.add({ kind: "duty", path: "/d", body: 3 });
  box.add({ kind: "report", path: "/r", body: 4 });
  await box.flush();
  assert.equal(box.size.value, 3);
  const again = new Outbox(send, () => store); // the page was closed meanwhile
  again.open("k");
  outcome = "sent";
  await again.flush();
  assert.deepEqual(sent, [2, 3, 4]);
  assert.equal(again.size.value, 0);
  for (let i = 0; i < 60; i++) again.add({ kind: "report", path: "/r", body: i });
  assert.equal(again.size.value, 50);
  outcome = "refused"; // told to the user by `send`, and not tried for ever
  await again.flush();
  assert.equal(again.size.value, 0);
});

test("a camera that looks at the place stands before a nearer one that doesn't", async () => {
  const { nearest, offset, metres, bearing } = await load("geo");
  const at = { lat: 30.81, lon: 103.89 };
  const camera = (id, from, away, heading) => ({
    id,
    name: id,
    position: offset(at, from, away),
    heading,
    fov: 90,
    range_m: 60,
  });
  const found = nearest(at, [camera("near", 0, 10, 0), camera("sees", 180, 50, 350), camera("far", 90, 400, 270)], 300);
  assert.deepEqual(
    found.map((c) => [c.id, c.in_view]),
    [
      ["sees", true],
      ["near", false],
    ],
  );
  assert.ok(Math.abs(metres(at, offset(at, 45, 100)) - 100) < 0.5);
  assert.ok(Math.abs(bearing(at, offset(at, 45, 100)) - 45) < 0.1);
});

test("GCJ-02 shift in Pidu is the known ~355 m, and none abroad", async () => {
  const { toGcj02, offset } = await load("geo");
  const from = { lat: 30.81, lon: 103.89 };
  const to = toGcj02(from);
  const metres = Math.hypot(
    (to.lat - from.lat) * 111320,
    (to.lon - from.lon) * 111320 * Math.cos((from.lat * Math.PI) / 180),
  );
  assert.ok(Math.abs(metres - 355) < 10, `${metres}`);
  assert.deepEqual(toGcj02({ lat: 48.2, lon: 16.4 }), { lat: 48.2, lon: 16.4 });
  assert.ok(Math.abs(offset(from, 0, 111.32).lat - from.lat - 0.001) < 1e-9);
});

test("back-off grows, keeps within its cap and honours full jitter; Retry-After in both forms", async () => {
  const { backoffMs } = await load("media");
  assert.equal(backoffMs(0, 0), 300);
  assert.equal(backoffMs(0, 1), 1000);
  assert.equal(backoffMs(30, 1), 15300);
  const { retryAfter } = await load("api");
  assert.equal(retryAfter(new Headers({ "Retry-After": "7" })), 7);
  assert.equal(retryAfter(new Headers({ "Retry-After": "Thu, 01 Jan 1970 00:00:09 GMT" }), 4000), 5);
  assert.equal(retryAfter(new Headers()), null);
});

test("no page needs an inline script or style, and every asset it names exists", async () => {
  for (const name of ["wall", "desk", "login", "stb", "worker"]) {
    const html = await readFile(path.join(root, "dist", `${name}.html`), "utf8");
    assert.doesNotMatch(html, /<style|<script(?![^>]* src=)|\son\w+=|\sstyle=/i);
    const named = [...html.matchAll(/(?:src|href)="\/(static\/[^"]+)"/g)].map((m) => m[1]);
    assert.ok(named.length >= 3);
    for (const file of named) await readFile(path.join(root, "dist", file));
  }
});

test("the built box script is still ES5", async () => {
  const file = (await readdir(path.join(root, "dist/static"))).find((name) => /^stb-[0-9A-F]{10}\.js$/.test(name));
  parse(await readFile(path.join(root, "dist/static", file), "utf8"), { ecmaVersion: 5, sourceType: "script" });
});

test("an alarm takes the screen once, and never from a user at work", async () => {
  const { wayOf, STILL_MS } = await load("arrival");
  const calm = { waiting: true, test: false, seen: false, occupied: false, sinceTouchMs: Infinity };
  assert.equal(wayOf(calm), "bring");
  assert.equal(wayOf({ ...calm, sinceTouchMs: STILL_MS - 1 }), "later"); // nothing moves under the finger
  assert.equal(wayOf({ ...calm, sinceTouchMs: STILL_MS }), "bring");
  assert.equal(wayOf({ ...calm, seen: true }), "say"); // a repeat, or an escalation
  assert.equal(wayOf({ ...calm, occupied: true, sinceTouchMs: 0 }), "say");
  // A test press never does, even on a screen that nobody has touched for hours.
  for (const sinceTouchMs of [0, STILL_MS, Infinity]) assert.equal(wayOf({ ...calm, test: true, sinceTouchMs }), "say");
  for (const seen of [true, false])
    for (const occupied of [true, false])
      assert.equal(wayOf({ waiting: false, test: false, seen, occupied, sinceTouchMs: 0 }), "nothing");
});

test("a waiting test press comes after every waiting alarm, and before what somebody has taken", async () => {
  const { urgencyOf } = await load("arrival");
  const order = [
    ["SHOWN", "test"],
    ["TRIAGED", "button"],
    ["SHOWN", "button"],
    ["ACKNOWLEDGED", "button"],
    ["NEW", "button"],
  ].sort(([a, x], [b, y]) => urgencyOf({ handling: a, kind: x }) - urgencyOf({ handling: b, kind: y }));
  assert.deepEqual(
    order.map((one) => one.join(" ")),
    ["NEW button", "SHOWN button", "SHOWN test", "ACKNOWLEDGED button", "TRIAGED button"],
  );
});

test("a box asks about a call of its own alarm only, never after a silent press, and knows whether its place was given away", async () => {
  const { asks, others, here, lost } = await part("2-room");
  const press = { alarm: "a1", silent: false, stage: "dispatched" };
  const news = { alarm: "a1", call: { id: "c1", state: "ACTIVE", joinable: true } };
  assert.equal(asks(press, news), true);
  for (const not of [null, { ...press, silent: true }, { ...press, alarm: null }, { ...press, stage: "cancelled" }])
    assert.equal(asks(not, news), false);
  for (const not of [null, { ...news, alarm: "a2" }, { ...news, call: null }]) assert.equal(asks(press, not), false);
  assert.equal(asks(press, { ...news, call: { ...news.call, joinable: false } }), false);
  assert.equal(asks(press, { ...news, call: { ...news.call, state: "CLAIMED" } }), false); // nobody to talk to yet
  const leg = (id, role, more = {}) => ({ id, role, publishing: true, left_at: null, ...more });
  const call = {
    id: "c1",
    alarm_id: "a1",
    state: "ACTIVE",
    legs: [leg("d", "operator"), leg("w", "worker"), leg("b", "stb"), leg("x", "desk", { publishing: false })],
  };
  assert.deepEqual(
    others(call, "b").map((one) => one.id),
    ["w", "d"],
  );
  assert.equal(here(call, "b"), true);
  assert.equal(here({ ...call, legs: [leg("b", "stb", { left_at: 7 })] }, "b"), false);
  for (const gone of [null, { ...call, state: "ENDED" }, { ...call, legs: [] }]) assert.equal(here(gone, "b"), false);
  assert.equal(lost({ ...call, legs: [leg("b", "stb", { left_at: 7 })] }, "b"), true);
  for (const not of [null, { ...call, state: "ENDED", legs: [] }, call]) assert.equal(lost(not, "b"), false);
  assert.equal(lost(call, null), false); // it only listened: there is no place to lose
  assert.equal(here(call, null), true); // only listening: as long as it goes on
  assert.equal(here({ ...call, state: "CONNECTING" }, null), false);
});
