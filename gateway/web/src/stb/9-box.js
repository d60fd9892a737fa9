/* The box page as a whole: the screen, and what each key of the remote control does. */
(function () {
  "use strict";
  var TEXT = BoxWords.text,
    now = BoxPage.now,
    make = BoxPage.make,
    text = BoxPage.text,
    el = BoxPage.el;
  var TWICE_MS = 2000,
    HOLD_MS = 1500,
    OFFLINE_MS = 5000,
    REPEAT_MS = 250; // keys of a held remote come at least so often
  var ready = false,
    alarm = null,
    link = null,
    call = null,
    focus = 0, // a tile, or -1: the red button
    full = -1,
    armedAt = 0,
    noticeUntil = 0,
    taps = [];

  function build(me) {
    var b = document.getElementById("boot");
    if (b) {
      b.parentNode.removeChild(b);
    }
    make("div", "head");
    make("span", "title", el.head, TEXT.title);
    make("span", "sub", el.head);
    text(el.sub, me.name || "");
    make("span", "clock", el.head);
    make("div", "net");
    text(el.net, TEXT.netDown);
    make("div", "grid");
    make("div", "side");
    make("div", "red", el.side, '<div class="icon">!</div>');
    el.red.setAttribute("data-focus", "red");
    make("div", "redBig", el.red).className = "big";
    make("div", "redSmall", el.red).className = "small";
    make("div", "hints", el.side, TEXT.hint);
    if (me.grid_phone) {
      make("div", "phone", el.side);
      text(el.phone, TEXT.phone);
      el.phone.appendChild(document.createElement("br"));
      text(make("b", "", el.phone), me.grid_phone);
    }
    make("div", "panel");
    make("div", "toast");
    make("span", "toastText", el.toast);
    link = BoxLink.open(me, {
      ack: function (body) {
        alarm.onAck(body);
      },
      state: function (body) {
        alarm.onState(body);
        call.hear(body.alarm, body.call || null);
      },
      up: function () {
        alarm.wake();
      }
    });
    call = BoxCall.open(me, {
      press: function () {
        return alarm.press();
      },
      flash: notice,
      busy: BoxTiles.rest,
      changed: paint
    });
    alarm = BoxAlarm.open(me, {
      el: el.panel,
      publish: link.publish,
      up: link.up,
      flash: notice,
      changed: paint,
      heard: call.hear,
      mayTalk: call.refused,
      talk: call.reoffer
    });
    ready = true;
    BoxTiles.build(me, el.grid, function (i) {
      focus = i;
      full = full === i ? -1 : i;
      paint();
    });
    focus = BoxTiles.count() ? 0 : -1;
    el.red.onclick = tapRed;
    alarm.resume();
    paint();
    setInterval(second, 500);
  }
  function paint() {
    var free = alarm.at() < 0,
      how = armedAt ? TEXT.againHow : TEXT.pressHow;
    BoxPage.screen.className = (full >= 0 ? "full" : "") + (call.talking() ? " calling" : "");
    el.red.className = (focus === -1 && full < 0 && free ? "f " : "") + (armedAt ? "arm" : "");
    text(el.redBig, armedAt ? TEXT.again : TEXT.press);
    if (el.redSmall.innerHTML !== how) {
      el.redSmall.innerHTML = how;
    }
    alarm.paint();
    call.paint();
    BoxTiles.paint(free ? focus : -1, full);
  }
  function notice(message, ms) {
    text(el.toastText, message);
    el.toast.style.display = "block";
    noticeUntil = now() + (ms || 2500);
  }
  function hush() {
    noticeUntil = 0;
    el.toast.style.display = "none";
  }
  function second() {
    text(el.clock, BoxPage.clock());
    if (armedAt && now() - armedAt > TWICE_MS) {
      armedAt = 0;
      paint();
    }
    if (noticeUntil && now() > noticeUntil) {
      hush();
    }
    el.net.style.display = link.downMs() > OFFLINE_MS ? "block" : "none";
    alarm.tick(link.up());
    call.tick(BoxTiles.words());
  }

  // ---- the alarm's keys ----
  function raise(silent) {
    armedAt = 0;
    taps = [];
    hush(); // "once more" is done, and must not stand over what is said of the alarm
    alarm.raise(silent, full >= 0 ? BoxTiles.camera(full) : null); // what is watched full screen is what the resident means
  }
  function tapRed() {
    var t = now();
    taps = taps.length && t - taps[0] <= TWICE_MS ? [taps[0], t] : [t];
    if (taps.length >= 2) {
      raise(false);
      return;
    }
    armedAt = t;
    if (full >= 0 || call.talking()) {
      notice(TEXT.again, TWICE_MS); // the red button itself is not on the screen
    }
    alarm.peek();
    paint();
  }
  /** A key that does one thing when it is let go and another when it is held: {down(repeat), up()}. */
  function holdable(short, mayHold) {
    var held = null,
      done = false;
    function begin() {
      return {
        last: now(),
        timer: setTimeout(function () {
          done = true;
          raise(true);
        }, HOLD_MS)
      };
    }
    function end() {
      clearTimeout(held.timer);
      held = null;
      if (!done) {
        short();
      }
    }
    return {
      down: function (repeat) {
        if (held && (repeat || now() - held.last < REPEAT_MS)) {
          held.last = now();
          return;
        }
        if (held) {
          end(); // a remote that never tells of keys going up
        }
        done = false;
        if (mayHold()) {
          held = begin();
        } else if (!repeat) {
          short();
        }
      },
      up: function () {
        if (held) {
          end();
        }
      }
    };
  }
  var redKey = holdable(tapRed, function () {
    return true;
  });
  var okKey = holdable(ok, function () {
    return focus === -1 && full < 0 && alarm.at() < 0;
  });

  // ---- the other keys ----
  function move(dx, dy) {
    var next;
    if (alarm.at() >= 0) {
      if (dy < 0) {
        alarm.leave();
      } else {
        alarm.step(dx);
      }
    } else if (full >= 0) {
      if (dx) {
        full = (full + dx + BoxTiles.count()) % BoxTiles.count();
        focus = full;
      } else if (dy > 0) {
        alarm.enter();
      }
    } else if (focus === -1) {
      if (dx < 0 && BoxTiles.count()) {
        focus = BoxTiles.corner();
      } else if (dy > 0) {
        alarm.enter();
      }
    } else {
      next = BoxTiles.beside(focus, dx, dy);
      if (next >= 0) {
        focus = next;
      } else if (dx > 0) {
        focus = -1;
      } else if (dy > 0) {
        alarm.enter();
      }
    }
    paint();
  }
  function ok() {
    if (alarm.at() >= 0) {
      alarm.choose();
    } else if (full < 0 && focus === -1) {
      tapRed();
    } else if (full < 0) {
      full = focus;
    }
    paint();
  }
  function back() {
    if (alarm.at() >= 0) {
      alarm.leave();
    } else if (alarm.visible()) {
      alarm.dismiss();
    } else if (full >= 0) {
      full = -1;
    }
    paint();
  }
  function isRed(e) {
    return e.keyCode === 403 || e.key === "ColorF0Red" || e.key === "r" || e.keyCode === 82;
  }
  function isOk(e) {
    return e.keyCode === 13 || e.keyCode === 23 || e.key === "Enter";
  }
  function isBack(e) {
    var code = e.keyCode;
    return (
      code === 8 ||
      code === 27 ||
      code === 4 ||
      code === 461 ||
      code === 10009 ||
      e.key === "GoBack" ||
      e.key === "BrowserBack"
    );
  }
  function digitOf(e) {
    if (e.keyCode >= 48 && e.keyCode <= 57) {
      return e.keyCode - 48;
    }
    return e.keyCode >= 96 && e.keyCode <= 105 ? e.keyCode - 96 : -1;
  }
  document.addEventListener("keydown", function (e) {
    var digit = digitOf(e);
    if (!ready) {
      return;
    }
    if (call.key(isRed(e) ? "red" : isOk(e) ? "ok" : isBack(e) ? "back" : "")) {
      e.preventDefault();
    } else if (isRed(e)) {
      e.preventDefault();
      redKey.down(e.repeat);
    } else if (isOk(e)) {
      e.preventDefault();
      okKey.down(e.repeat);
    } else if (isBack(e)) {
      e.preventDefault();
      back();
    } else if (e.keyCode >= 37 && e.keyCode <= 40) {
      e.preventDefault();
      move(e.keyCode === 37 ? -1 : e.keyCode === 39 ? 1 : 0, e.keyCode === 38 ? -1 : e.keyCode === 40 ? 1 : 0);
    } else if (digit === 0 && !alarm.pending()) {
      BoxWords.turn(); // never in the middle of an alarm
    } else if (!alarm.digit(digit) && digit >= 1 && digit <= BoxTiles.count()) {
      focus = full = digit - 1;
      alarm.leave();
      paint();
    }
  });
  document.addEventListener("keyup", function (e) {
    if (ready && isRed(e)) {
      redKey.up();
    }
    if (ready && isOk(e)) {
      okKey.up();
    }
  });
  BoxPage.open(TEXT, build);
})();
