/* One press and its way to the gateway: what to send when, and what may be said. Pure: time and randomness come in. */
var BoxPress = (function () {
  "use strict";
  var RESEND_S = [2, 4, 8, 16, 30]; // after the first sending; then every 30 s for as long as it takes
  var HTTP_AFTER_S = 5,
    HELP_AFTER_S = 15;
  var ORDER = ["sent", "persisted", "shown", "answered", "dispatched", "closed"];

  function signed(crypto, key, sid, press) {
    return crypto.hmac(
      key,
      ["press", sid, press.pid, press.seq, press.ts, press.kind, press.cam || "", press.silent ? 1 : 0].join("|")
    );
  }
  /** A fresh press; `cam` is the camera that is watched full screen, or null. */
  function create(now, pid, seq, cam, silent) {
    return {
      pid: pid,
      seq: seq,
      ts: now,
      kind: "help",
      cam: cam,
      silent: !!silent,
      begun: now,
      sends: 0,
      nextAt: now,
      stage: "sent",
      reached: ["sent"],
      alarm: null,
      who: null,
      eta: null,
      reason: null,
      place: null,
      handled: false
    };
  }
  function payload(crypto, key, sid, press) {
    var body = {
      v: 1,
      pid: press.pid,
      seq: press.seq,
      ts: press.ts,
      kind: press.kind,
      sig: signed(crypto, key, sid, press)
    };
    if (press.cam) {
      body.cam = press.cam;
    }
    if (press.silent) {
      body.silent = true;
    }
    return body;
  }
  /** What is due at `now`: {mqtt, http}; counts the sending. The same pid every time: a repeat can't make a second alarm. */
  function due(press, now, mqttUp) {
    if (press.stage !== "sent" || now < press.nextAt) {
      return { mqtt: false, http: false };
    }
    var wait = RESEND_S[Math.min(press.sends, RESEND_S.length - 1)];
    press.sends++;
    press.nextAt = press.sends <= RESEND_S.length ? press.begun + wait * 1000 : now + 30000;
    if (press.nextAt <= now) {
      press.nextAt = now + 2000;
    }
    return { mqtt: mqttUp, http: !mqttUp || now - press.begun >= HTTP_AFTER_S * 1000 };
  }
  function reach(press, stage) {
    if (press.reached.indexOf(stage) < 0) {
      press.reached.push(stage);
    }
  }
  /** Takes an ack in. Stages never run backwards; a refusal and an end always hold. True if something changed. */
  function ack(press, message) {
    if (message.pid !== press.pid) {
      return false;
    }
    var stage = message.stage,
      at = ORDER.indexOf(stage);
    if (message.alarm) {
      press.alarm = message.alarm;
    }
    if (stage === "refused" || stage === "cancelled") {
      if (stage === "refused" && press.stage !== "sent") {
        return false;
      } // it is on disk: a late refusal of a repeat means nothing
      press.stage = stage;
      press.reason = message.reason || null;
      return true;
    }
    if (at < 0) {
      return false;
    }
    if (typeof message.handled === "boolean") {
      press.handled = message.handled;
    }
    if (stage === "dispatched" && message.who) {
      press.who = message.who; // with other stages it is the operator
    }
    if (stage === "dispatched" && typeof message.eta_s === "number") {
      press.eta = message.eta_s;
    }
    reach(press, "persisted"); // nothing else can have happened before
    if (stage === "answered") {
      reach(press, "shown");
    }
    reach(press, stage);
    if (press.stage === "cancelled" || press.stage === "closed") {
      return false;
    }
    if (at > ORDER.indexOf(press.stage) || press.stage === "refused") {
      press.stage = stage;
    }
    return true;
  }
  /** Takes the retained state's stage in, which is what is true now: who was on the way may have been released. True if that
   * took a stage back. */
  function fall(press, stage) {
    var at = ORDER.indexOf(stage);
    if (at < 1 || at >= ORDER.indexOf(press.stage) || over(press)) {
      return false;
    }
    press.stage = stage;
    press.reached = press.reached.filter(function (one) {
      return ORDER.indexOf(one) <= at;
    });
    if (stage !== "dispatched") {
      press.who = press.eta = null;
    }
    return true;
  }
  function over(press) {
    return press.stage === "closed" || press.stage === "cancelled" || press.stage === "refused";
  }
  /** There is something left to correct or to cancel: it is on disk, and nobody has called it done. */
  function open(press) {
    return !!press.alarm && !over(press) && !press.handled;
  }
  /** The word for how far it is: who is on the way only until the event was handled. */
  function stands(press) {
    return press.handled && !over(press) ? "handled" : press.stage;
  }
  /** The resident must be told to call 110: nothing says that the press is on disk. */
  function callHelp(press, now) {
    return press.stage === "refused" || (press.stage === "sent" && now - press.begun >= HELP_AFTER_S * 1000);
  }
  return {
    create: create,
    payload: payload,
    due: due,
    ack: ack,
    fall: fall,
    over: over,
    open: open,
    stands: stands,
    callHelp: callHelp,
    ORDER: ORDER
  };
})();
if (typeof module !== "undefined" && module.exports) {
  module.exports = BoxPress;
}
