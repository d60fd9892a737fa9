/* One press from the key to its end on the box: sending, stages in plain words, place, cancel, and the question afterwards. */
var BoxAlarm = (function () {
  "use strict";
  var TEXT = BoxWords.text,
    now = BoxPage.now,
    text = BoxPage.text,
    keep = BoxPage.keep,
    kept = BoxPage.kept,
    request = BoxPage.request;
  var PEEK_MS = 5000, // how long the progress of a silent alarm stands, when asked for
    POLL_MS = 3000,
    SILENT_KEPT = 20,
    DAY_MS = 86400000;

  /** `page`: el (the panel), publish, up, flash(text, ms), changed(); heard(alarm, call) of its call; mayTalk() whether a call that was refused may still be joined, talk(). */
  function open(me, page) {
    var press = null,
      seq = 0,
      panelAt = -1,
      peekUntil = 0,
      dismissed = true,
      note = "",
      asked = null, // the follow-up that is asked: {incident, pid}
      lastPoll = 0;

    // ---- sending ----
    function raise(silent, cam) {
      if (press && press.stage === "sent") {
        page.changed();
        return;
      } // it is being sent: the same press goes out again and again by itself
      seq = Math.max(Number(kept("seq")) || 0, Math.floor(now() / 1000)) + 1;
      keep("seq", seq);
      press = BoxPress.create(now(), seq.toString(36) + Math.random().toString(36).substr(2, 10), seq, cam, silent);
      if (silent) {
        keep("silent", [press.pid].concat(kept("silent") || []).slice(0, SILENT_KEPT));
      }
      note = "";
      asked = null;
      dismissed = !!silent;
      peekUntil = 0;
      panelAt = -1;
      keep("press", press);
      send();
      page.changed();
    }
    function send() {
      var what, body;
      if (!press) {
        return;
      }
      what = BoxPress.due(press, now(), page.up());
      if (!what.mqtt && !what.http) {
        return;
      }
      keep("press", press);
      body = BoxPress.payload(BoxCrypto, me.key, me.sid, press);
      if (what.mqtt) {
        page.publish("press", body);
      }
      if (what.http) {
        body = BoxPress.payload(BoxCrypto, me.key, me.sid, press);
        body.sid = me.sid;
        request("POST", "/api/v1/alarms", body, function (status, data) {
          if (data && data.stage) {
            onAck(data);
          } else if (status >= 400 && status < 500 && status !== 429 && press && press.pid === body.pid) {
            onAck({ pid: body.pid, stage: "refused", reason: "http_" + status });
          }
        });
      }
    }
    function onAck(message) {
      var before, wasHandled;
      if (!press) {
        return;
      }
      before = press.stage;
      wasHandled = press.handled;
      if (!BoxPress.ack(press, message)) {
        return;
      }
      if (press.silent && before === "sent" && press.stage === "persisted") {
        page.flash(TEXT.persisted, 1000);
      }
      if (!press.silent && (before !== press.stage || (wasHandled && !press.handled))) {
        dismissed = false; // a stage, or it is taken up once more
      }
      keep("press", BoxPress.over(press) ? null : press);
      page.changed();
    }
    /** The retained state: the box's alarm as the gateway sees it, also when the key was pressed elsewhere. */
    function onState(body) {
      if (body.stage === "follow_up") {
        refresh();
        return;
      }
      if (press && body.alarm && body.alarm === press.alarm) {
        if (BoxPress.fall(press, body.stage)) {
          keep("press", press);
          page.changed();
        }
        onAck({ pid: press.pid, alarm: body.alarm, stage: body.stage, handled: body.handled === true });
      } else if (body.alarm && (!press || BoxPress.over(press))) {
        refresh();
      }
    }
    function refresh() {
      var known = openAlarm();
      request("GET", "/api/v1/stb/me", null, function (status, data) {
        if (status === 200) {
          adopt(data, known);
          page.changed();
        }
      });
    }
    function openAlarm() {
      return press && !BoxPress.over(press) ? press.alarm || null : null;
    }
    function resume() {
      var old = kept("press");
      if (old && old.pid && now() - old.begun < DAY_MS) {
        press = old;
        press.nextAt = Math.min(press.nextAt, now() + 1000);
        dismissed = press.silent;
      }
      adopt(me, openAlarm());
      page.changed();
    }
    /** The box's open alarm, whoever pressed the key: another remote, an app, or this page before it was reloaded. `known`: the
     * alarm that this page held open when it asked; if the gateway knows of none, it was closed while nothing came through. */
    function adopt(from, known) {
      var alarm = from.alarm;
      page.heard(alarm ? alarm.alarm : null, from.call || null);
      if (alarm && alarm.pid) {
        if (!press || (press.pid !== alarm.pid && BoxPress.over(press))) {
          press = BoxPress.create(alarm.now || now(), alarm.pid, 0, null, alarm.silent || wasSilent(alarm.pid));
          press.resumed = true;
          dismissed = press.silent;
        }
        onAck(alarm);
      } else if (!alarm && known !== null && known === openAlarm()) {
        onAck({ pid: press.pid, alarm: known, stage: "closed" });
      }
      // Who pressed silently may not be alone before the screen: nothing of it is ever brought up by itself.
      asked = from.follow_up && !wasSilent(from.follow_up.pid) ? from.follow_up : null;
    }
    function wasSilent(pid) {
      return (kept("silent") || []).indexOf(pid) >= 0;
    }

    // ---- what the resident may do afterwards ----
    function signed(parts) {
      return BoxCrypto.hmac(me.key, parts.join("|"));
    }
    function place(which) {
      var mine = press,
        ts = now(),
        body;
      if (!mine || !mine.alarm) {
        return;
      }
      body = { sid: me.sid, pid: mine.pid, place: which, ts: ts, sig: signed(["place", me.sid, mine.pid, which, ts]) };
      request("POST", "/api/v1/alarms/" + encodeURIComponent(mine.alarm) + "/place", body, function (status) {
        if (status >= 200 && status < 300) {
          mine.place = which;
          note = TEXT.placeSent;
        } else {
          note = TEXT.placeBad;
        }
        keep("press", mine);
        page.changed();
      });
    }
    function cancel() {
      var mine = press,
        ts = now(),
        sig = signed(["cancel", me.sid, mine.pid, ts]),
        byMqtt;
      note = TEXT.cancelSent;
      byMqtt = page.publish("cancel", { pid: mine.pid, ts: ts, sig: sig });
      if (mine.alarm) {
        setTimeout(
          function () {
            if (mine.stage !== "cancelled") {
              request(
                "POST",
                "/api/v1/alarms/" + encodeURIComponent(mine.alarm) + "/cancel",
                { sid: me.sid, pid: mine.pid, ts: ts, sig: sig },
                function (status, data) {
                  if (data && data.stage) {
                    onAck(data);
                  }
                }
              );
            }
          },
          byMqtt ? 3000 : 0
        );
      }
      page.changed();
    }
    /** 回访: whether the resident is content, signed like a press. */
    function answer(satisfied) {
      var mine = asked,
        ts = now(),
        said = satisfied ? 1 : 0,
        body;
      body = { satisfied: satisfied, sid: me.sid, pid: mine.pid, ts: ts };
      body.sig = signed(["follow_up", me.sid, mine.pid, mine.incident, said, ts]);
      note = TEXT.sending;
      request("POST", "/api/v1/incidents/" + encodeURIComponent(mine.incident) + "/follow_up", body, function (status) {
        if ((status >= 200 && status < 300) || status === 409) {
          asked = null;
          note = "";
          if (press && press.pid === mine.pid) {
            press.handled = true;
            dismissed = true; // the answer was the last thing to say about it until it is closed
            panelAt = -1;
            keep("press", BoxPress.over(press) ? null : press);
          }
          page.flash(TEXT.thanks, 4000);
        } else {
          note = TEXT.notTaken;
        }
        page.changed();
      });
      page.changed();
    }

    // ---- the panel ----
    /** The question is about an alarm that was handled, open or over; another one that is under way goes first. */
    function asking() {
      return asked !== null && (!press || press.pid === asked.pid || BoxPress.over(press));
    }
    function visiblePress() {
      return press !== null && (press.silent ? now() < peekUntil : !dismissed);
    }
    function visible() {
      return visiblePress() || asking();
    }
    function dismiss() {
      if (asking()) {
        asked = null;
      }
      dismissed = true;
      peekUntil = 0;
      panelAt = -1;
      if (press && BoxPress.over(press)) {
        press = null;
        keep("press", null);
      }
      page.changed();
    }
    function words() {
      if (BoxPress.callHelp(press, now())) {
        return TEXT.help;
      }
      if (press.stage === "sent") {
        return TEXT.sending;
      }
      if (BoxPress.stands(press) === "dispatched") {
        return (
          TEXT.dispatched.replace("{who}", press.who || "") +
          (press.eta ? TEXT.eta.replace("{n}", Math.max(1, Math.round(press.eta / 60))) : "")
        );
      }
      return TEXT[BoxPress.stands(press)];
    }
    function button(key, label, act, on) {
      return { key: key, label: label, act: act, on: !!on };
    }
    function buttons() {
      var list = [];
      if (asking()) {
        return [
          button("1", TEXT.good, function () {
            answer(true);
          }),
          button("2", TEXT.bad, function () {
            answer(false);
          }),
          button("", TEXT.later, dismiss)
        ];
      }
      if (!press) {
        return list;
      }
      if (BoxPress.open(press)) {
        if (press.cam) {
          list.push(
            button(
              "1",
              TEXT.here,
              function () {
                place("camera");
              },
              press.place ? press.place === "camera" : true
            )
          );
          list.push(
            button(
              "2",
              TEXT.home,
              function () {
                place("household");
              },
              press.place === "household"
            )
          );
        }
        if (page.mayTalk()) {
          list.push(button("", TEXT.talkAgain, page.talk));
        }
        list.push(button("", TEXT.cancel, cancel));
      }
      list.push(button("", TEXT.ok, dismiss));
      return list;
    }
    function steps() {
      var html = '<div id="steps">',
        stages = BoxPress.ORDER,
        i;
      for (i = 0; i < stages.length; i++) {
        html +=
          press.reached.indexOf(stages[i]) >= 0
            ? '<span class="done"><i>✓</i>' + TEXT.step[stages[i]] + "</span>"
            : "<span><i>○</i>" + TEXT.step[stages[i]] + "</span>";
      }
      return html + "</div>";
    }
    function line(bad) {
      if (asking()) {
        return note || TEXT.askHow;
      }
      if (bad) {
        return (
          (press.stage === "refused" ? TEXT.refusedNote : TEXT.lateNote) +
          (me.grid_phone ? "。" + TEXT.grid + me.grid_phone : "")
        );
      }
      return note || (press.cam && BoxPress.open(press) ? TEXT.where : "");
    }
    function paint() {
      var el = page.el,
        question = asking(),
        bad = !question && press !== null && BoxPress.callHelp(press, now()),
        list = buttons(),
        html = "<h2></h2>",
        i;
      document.body.setAttribute("data-stage", press ? press.stage : "none");
      document.body.setAttribute("data-alarm", press && press.alarm ? press.alarm : "");
      document.body.setAttribute("data-help", press && BoxPress.callHelp(press, now()) ? "1" : "0");
      document.body.setAttribute("data-ask", question ? asked.incident : "");
      if (!visible()) {
        el.style.display = "none";
        panelAt = -1;
        return;
      }
      panelAt = Math.min(panelAt, list.length - 1);
      if (!bad && !question) {
        html += steps();
      }
      if (line(bad)) {
        html += '<div class="line"></div>';
      }
      html += '<div id="buttons">';
      for (i = 0; i < list.length; i++) {
        html +=
          '<span class="btn' +
          (list[i].on ? " on" : "") +
          (panelAt === i ? " f" : "") +
          '" data-button="' +
          i +
          '">' +
          (list[i].key ? "<b>" + list[i].key + "</b>" : "") +
          list[i].label +
          "</span>";
      }
      html += "</div>";
      el.className = bad ? "bad" : question ? "ask" : "";
      el.style.display = "block";
      if (el.getAttribute("data-html") !== html) {
        el.innerHTML = html;
        el.setAttribute("data-html", html);
      }
      text(el.getElementsByTagName("h2")[0], question ? TEXT.ask : words());
      i = el.querySelector(".line");
      if (i) {
        text(i, line(bad));
      }
    }
    page.el.onclick = function (e) {
      var list = buttons(),
        at = e.target.getAttribute("data-button");
      if (at === null && e.target.parentNode && e.target.parentNode.getAttribute) {
        at = e.target.parentNode.getAttribute("data-button");
      }
      if (at !== null && list[Number(at)]) {
        list[Number(at)].act();
      }
    };
    return {
      raise: raise,
      onAck: onAck,
      onState: onState,
      resume: resume,
      paint: paint,
      visible: visible,
      dismiss: dismiss,
      /** Twice a second: what is due, and the truth by HTTP while there is no channel. */
      tick: function (up) {
        send();
        if (press && !BoxPress.over(press) && press.stage !== "sent" && !up && now() - lastPoll > POLL_MS) {
          lastPoll = now();
          refresh();
        }
        paint();
      },
      /** The broker is there (again): what waits goes out at once. */
      wake: function () {
        if (press && press.stage === "sent") {
          press.nextAt = now();
          send();
        } else if (openAlarm() !== null) {
          refresh(); // what was said while the link was down may be lost with a broker
        }
      },
      /** Progress of a silent alarm, only on request. */
      peek: function () {
        if (press && press.silent) {
          peekUntil = now() + PEEK_MS;
        }
      },
      /** What was pressed last, or null. */
      press: function () {
        return press;
      },
      pending: function () {
        return press !== null;
      },
      /** A number key means one of the panel's buttons; true if it did. */
      digit: function (n) {
        var list = visible() ? buttons() : [],
          i;
        for (i = 0; i < list.length; i++) {
          if (list[i].key === String(n)) {
            list[i].act();
            return true;
          }
        }
        return false;
      },
      /** Which button of the panel has the focus, -1 none. */
      at: function () {
        return panelAt;
      },
      enter: function () {
        panelAt = visible() ? 0 : -1;
      },
      leave: function () {
        panelAt = -1;
      },
      step: function (dx) {
        panelAt = Math.max(0, Math.min(buttons().length - 1, panelAt + dx));
      },
      choose: function () {
        var list = buttons();
        if (list[panelAt]) {
          list[panelAt].act();
        }
      }
    };
  }
  return { open: open };
})();
