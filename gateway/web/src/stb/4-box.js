/* The box page: arrows, OK, Back and the red key. ES5 only. Stages are said only when they are true. */
(function () {
  "use strict";
  var WORDS = {
    zh: {
      title: "社区平安视频",
      press: "一键报警",
      pressHow: "连按两次“确定”<br>或遥控器红色键两次",
      again: "再按一次 报警",
      againHow: "2 秒内再按一次",
      hint: "<b>◀▲▼▶</b>选择<br><b>确定</b>全屏<br><b>1-6</b>直接看<br><b>返回</b>退出全屏<br><b>0</b>English",
      phone: "网格员电话",
      connecting: "连接中…",
      live: "实时",
      stale: "画面停滞",
      waiting: "暂无画面，正在重试",
      none: "本社区还没有开放的摄像机",
      still: "图片",
      sending: "正在送达…",
      persisted: "已送达",
      shown: "已显示在值班台",
      answered: "值班员已看到",
      dispatched: "网格员{who}正赶来",
      eta: " 约{n}分钟",
      closed: "已结束",
      cancelled: "已取消，仍会回访",
      help: "请拨打110",
      grid: "或打网格员电话：",
      refusedNote: "报警没有被受理",
      lateNote: "还没有收到送达回执，仍在继续发送",
      where: "事情发生在哪里？",
      here: "画面里",
      home: "我家里",
      cancel: "取消报警",
      ok: "知道了",
      placeSent: "已更正位置",
      placeBad: "位置没有更正成功，请再按一次",
      cancelSent: "正在取消…",
      netDown: "▲ 网络中断，重连中",
      loading: "正在打开社区视频…",
      loadBad: "打不开社区视频，正在重试",
      login: "请用机顶盒重新打开本页",
      step: {
        sent: "发送",
        persisted: "已送达",
        shown: "值班台",
        answered: "值班员",
        dispatched: "网格员",
        closed: "结束"
      }
    },
    en: {
      title: "Community cameras",
      press: "ALARM",
      pressHow: "press OK twice<br>or the red key twice",
      again: "Once more: alarm",
      againHow: "again within 2 s",
      hint: "<b>◀▲▼▶</b>choose<br><b>OK</b>full screen<br><b>1-6</b>jump<br><b>Back</b>leave<br><b>0</b>中文",
      phone: "Gridworker's phone",
      connecting: "connecting…",
      live: "live",
      stale: "picture stands still",
      waiting: "no picture, trying again",
      none: "No camera of this community is open yet",
      still: "still",
      sending: "Being delivered…",
      persisted: "Delivered",
      shown: "Shown at a duty desk",
      answered: "An operator has seen it",
      dispatched: "Gridworker {who} is coming",
      eta: ", about {n} min",
      closed: "Ended",
      cancelled: "Cancelled; you will be called back",
      help: "Please call 110",
      grid: "Or call the gridworker: ",
      refusedNote: "The alarm was not accepted",
      lateNote: "No receipt yet; still being sent",
      where: "Where does it happen?",
      here: "In the picture",
      home: "At my home",
      cancel: "Cancel alarm",
      ok: "OK",
      placeSent: "Place corrected",
      placeBad: "The place was not corrected; please press again",
      cancelSent: "Cancelling…",
      netDown: "▲ No network, reconnecting",
      loading: "Opening community cameras…",
      loadBad: "Can't open the cameras, trying again",
      login: "Please open this page from the box again",
      step: {
        sent: "sent",
        persisted: "delivered",
        shown: "desk",
        answered: "operator",
        dispatched: "gridworker",
        closed: "ended"
      }
    }
  };
  /** The language that a link asked for (#...&lang=en) or key 0 has chosen. */
  var language = (function () {
    var asked = /[?&#]lang=(en|zh)/.exec(location.search + location.hash);
    try {
      if (asked) {
        localStorage.setItem("lang", asked[1]);
      }
      return localStorage.getItem("lang") === "en" ? "en" : "zh";
    } catch (ignored) {
      return asked && asked[1] === "en" ? "en" : "zh";
    }
  })();
  var TEXT = WORDS[language];
  document.documentElement.lang = language === "en" ? "en" : "zh-CN";
  document.title = TEXT.title;
  var me = null,
    skew = 0,
    tiles = [],
    focus = 0,
    full = -1,
    press = null,
    seq = 0,
    armedAt = 0,
    client = null,
    mqttUp = false,
    panelAt = -1,
    peekUntil = 0,
    flashUntil = 0,
    noticeUntil = 0,
    lastPoll = 0,
    dismissed = true,
    note = "",
    dialDelay = 1000,
    taps = [],
    hold = null,
    holdDone = false,
    okHold = null,
    okDone = false,
    offline = 0;
  var screen = document.getElementById("screen"),
    el = {};

  function now() {
    return new Date().getTime();
  }
  function make(tag, id, parent, html) {
    var e = document.createElement(tag);
    if (id) {
      e.id = id;
      el[id] = e;
    }
    if (html) {
      e.innerHTML = html;
    }
    (parent || screen).appendChild(e);
    return e;
  }
  function text(e, value) {
    if (e.textContent !== value) {
      e.textContent = value;
    }
  }
  function two(n) {
    return (n < 10 ? "0" : "") + n;
  }
  function stamp() {
    var d = new Date(now() + skew);
    return (
      d.getFullYear() +
      "-" +
      two(d.getMonth() + 1) +
      "-" +
      two(d.getDate()) +
      " " +
      two(d.getHours()) +
      ":" +
      two(d.getMinutes())
    );
  }
  function keep(name, value) {
    try {
      localStorage.setItem("stb-" + name, JSON.stringify(value));
    } catch (ignored) {
      /* no storage: a reboot forgets, the gateway does not */
    }
  }
  function kept(name) {
    try {
      return JSON.parse(localStorage.getItem("stb-" + name));
    } catch (ignored) {
      return null;
    }
  }
  function request(method, path, body, done) {
    var r = new XMLHttpRequest(),
      ended = false;
    function end(status, data) {
      if (!ended) {
        ended = true;
        done(status, data);
      }
    }
    r.open(method, path, true);
    r.setRequestHeader("Accept", "application/json");
    r.setRequestHeader("X-Gateway-Page", "stb");
    if (method !== "GET") {
      r.setRequestHeader("Content-Type", "application/json");
      r.setRequestHeader("X-Requested-With", "gateway");
    }
    r.timeout = 10000;
    r.onload = function () {
      var data = null;
      try {
        data = JSON.parse(r.responseText);
      } catch (ignored) {
        /* a problem without a body */
      }
      end(r.status, data);
    };
    r.onerror = r.ontimeout = function () {
      end(0, null);
    };
    r.send(body ? JSON.stringify(body) : null);
  }

  // ---- log in and load ----
  function begin() {
    var code = /[#&]code=([^&]+)/.exec(location.hash);
    if (code) {
      if (history.replaceState) {
        history.replaceState(null, "", location.pathname);
      } else {
        location.hash = "";
      }
      request("POST", "/api/v1/session", { code: decodeURIComponent(code[1]) }, function (status) {
        if (status === 0) {
          boot(TEXT.loadBad);
          setTimeout(function () {
            location.replace("/stb#code=" + code[1]);
            location.reload();
          }, 4000);
        } else {
          load();
        }
      });
    } else {
      load();
    }
  }
  function boot(message) {
    var b = document.getElementById("boot");
    if (b) {
      text(b, message);
    }
  }
  function load() {
    request("GET", "/api/v1/stb/me", null, function (status, data) {
      if (status === 200) {
        me = data;
        skew = (data.now || now()) - now();
        build();
        resume();
        connect();
        return;
      }
      if (status === 401 || status === 403) {
        boot(TEXT.login);
        setTimeout(function () {
          location.replace("/login?next=%2Fstb");
        }, 3000);
        return;
      }
      boot(TEXT.loadBad);
      setTimeout(load, 4000);
    });
  }

  // ---- screen ----
  function build() {
    var i,
      n,
      cols,
      rows,
      b = document.getElementById("boot");
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
    n = Math.min(6, me.cameras.length);
    cols = n <= 1 ? 1 : 2;
    rows = Math.ceil(n / cols);
    if (!n) {
      text(make("p", "boot", el.grid), TEXT.none);
    }
    for (i = 0; i < n; i++) {
      tile(i, cols, rows);
    }
    focus = n ? 0 : -1;
    el.red.onclick = okRed;
    paint();
    setInterval(second, 500);
    setInterval(marks, 30000);
    window.addEventListener("resize", marks);
  }
  function tile(i, cols, rows) {
    var camera = me.cameras[i],
      host = make("div", "", el.grid),
      t = { id: camera.id, host: host, col: i % cols, row: Math.floor(i / cols), player: null };
    host.className = "t";
    host.setAttribute("data-tile", i);
    host.setAttribute("data-camera", camera.id);
    host.setAttribute("data-frames", "0");
    host.setAttribute("data-state", "connecting");
    host.style.left = (t.col * 100) / cols + "%";
    host.style.top = (t.row * 100) / rows + "%";
    host.style.width = 100 / cols - 1.2 + "%";
    host.style.height = 100 / rows - 1.6 + "%";
    t.wm = make("canvas", "", host);
    t.wm.className = "wm";
    t.msg = make("div", "", host);
    t.msg.className = "msg";
    text(t.msg, TEXT.connecting);
    make("div", "", host, String(i + 1)).className = "num";
    t.bar = make("div", "", host);
    t.bar.className = "bar";
    t.label = make("b", "", t.bar);
    t.bar.appendChild(document.createTextNode(camera.name));
    host.onclick = function () {
      focus = i;
      full = full === i ? -1 : i;
      paint();
    };
    tiles.push(t);
    start(t, "sub");
  }
  function start(t, stream) {
    if (t.player) {
      t.player.close();
    }
    t.stream = stream;
    t.player = BoxMedia.play(t.host, t.id, stream, function (state) {
      t.state = state;
      text(t.msg, state === "live" ? "" : TEXT[state]);
      text(
        t.label,
        state === "live" ? (t.host.getAttribute("data-mode") === "still" ? TEXT.still : "● " + TEXT.live) : TEXT[state]
      );
      classes(t, tiles.indexOf(t));
    });
  }
  function classes(t, i) {
    var name =
      "t " + (t.state || "") + (full === i ? " big" : "") + (focus === i && full < 0 && panelAt < 0 ? " f" : "");
    if (t.host.className !== name) {
      t.host.className = name;
    }
  }
  function paint() {
    var i, want;
    screen.className = full >= 0 ? "full" : "";
    for (i = 0; i < tiles.length; i++) {
      classes(tiles[i], i);
      want = full === i ? "main" : "sub";
      if (tiles[i].stream !== want) {
        start(tiles[i], want);
      }
    }
    el.red.className = (focus === -1 && full < 0 && panelAt < 0 ? "f " : "") + (armedAt ? "arm" : "");
    text(el.redBig, armedAt ? TEXT.again : TEXT.press);
    want = armedAt ? TEXT.againHow : TEXT.pressHow;
    if (el.redSmall.innerHTML !== want) {
      el.redSmall.innerHTML = want;
    }
    panel();
    setTimeout(marks, 0);
  }
  function marks() {
    var i;
    for (i = 0; i < tiles.length; i++) {
      BoxMedia.watermark(tiles[i].wm, (me.name || me.sid) + " " + me.sid + "  " + stamp());
    }
  }
  function notice(message, ms) {
    text(el.toastText, message);
    el.toast.style.display = "block";
    noticeUntil = now() + (ms || 2500);
  }

  // ---- the alarm ----
  function raise(silent) {
    var pid, cam;
    armedAt = 0;
    taps = [];
    if (press && press.stage === "sent") {
      paint();
      return;
    } // it is being sent: the same press goes out again and again by itself
    cam = full >= 0 ? tiles[full].id : null; // what is watched full screen is what the resident means
    seq = Math.max(Number(kept("seq")) || 0, Math.floor(now() / 1000)) + 1;
    keep("seq", seq);
    pid = seq.toString(36) + Math.random().toString(36).substr(2, 10);
    press = BoxPress.create(now(), pid, seq, cam, silent);
    note = "";
    dismissed = !!silent;
    peekUntil = 0;
    panelAt = -1;
    keep("press", press);
    send();
    paint();
  }
  function send() {
    var what, body;
    if (!press || !me) {
      return;
    }
    what = BoxPress.due(press, now(), mqttUp);
    if (!what.mqtt && !what.http) {
      return;
    }
    keep("press", press);
    body = BoxPress.payload(BoxCrypto, me.key, me.sid, press);
    if (what.mqtt) {
      publish("press", body);
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
  function publish(leaf, body) {
    var message;
    if (!mqttUp) {
      return false;
    }
    try {
      message = new Paho.Message(JSON.stringify(body));
      message.destinationName = "pd/v1/stb/" + me.sid + "/" + leaf;
      message.qos = 1;
      client.send(message);
      return true;
    } catch (ignored) {
      return false;
    }
  }
  function onAck(message) {
    var before;
    if (!press) {
      return;
    }
    before = press.stage;
    if (!BoxPress.ack(press, message)) {
      return;
    }
    if (press.silent && before === "sent" && press.stage === "persisted") {
      flashUntil = now() + 1000;
      notice(TEXT.persisted, 1000);
    }
    if (!press.silent && before !== press.stage) {
      dismissed = false;
    }
    keep("press", BoxPress.over(press) ? null : press);
    paint();
  }
  function resume() {
    var old = kept("press");
    if (old && old.pid && now() - old.begun < 86400000) {
      press = old;
      press.nextAt = Math.min(press.nextAt, now() + 1000);
      dismissed = press.silent;
    }
    adopt();
    paint();
  }
  /** The box's open alarm, whoever pressed the key: another remote, an app, or this page before it was reloaded. */
  function adopt() {
    if (me.alarm && me.alarm.pid) {
      if (!press || press.pid !== me.alarm.pid) {
        press = BoxPress.create(me.alarm.now || now(), me.alarm.pid, 0, null, me.alarm.silent);
        press.resumed = true;
        dismissed = press.silent;
      }
      onAck(me.alarm);
    }
  }
  function place(which) {
    var mine = press,
      ts = now(),
      body;
    if (!mine || !mine.alarm) {
      return;
    }
    body = {
      sid: me.sid,
      pid: mine.pid,
      place: which,
      ts: ts,
      sig: BoxCrypto.hmac(me.key, ["place", me.sid, mine.pid, which, ts].join("|"))
    };
    request("POST", "/api/v1/alarms/" + encodeURIComponent(mine.alarm) + "/place", body, function (status) {
      if (status >= 200 && status < 300) {
        mine.place = which;
        note = TEXT.placeSent;
      } else {
        note = TEXT.placeBad;
      }
      keep("press", mine);
      paint();
    });
  }
  function cancel() {
    var mine = press,
      ts = now(),
      sig = BoxCrypto.hmac(me.key, ["cancel", me.sid, mine.pid, ts].join("|")),
      byMqtt;
    note = TEXT.cancelSent;
    byMqtt = publish("cancel", { pid: mine.pid, ts: ts, sig: sig });
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
    paint();
  }
  function words() {
    if (BoxPress.callHelp(press, now())) {
      return TEXT.help;
    }
    if (press.stage === "sent") {
      return TEXT.sending;
    }
    if (press.stage === "dispatched") {
      return (
        TEXT.dispatched.replace("{who}", press.who || "") +
        (press.eta ? TEXT.eta.replace("{n}", Math.max(1, Math.round(press.eta / 60))) : "")
      );
    }
    return TEXT[press.stage];
  }
  function visible() {
    return (
      press && (press.silent ? now() < peekUntil || (BoxPress.callHelp(press, now()) && now() < peekUntil) : !dismissed)
    );
  }
  function buttons() {
    var list = [];
    if (!press) {
      return list;
    }
    if (press.alarm && !BoxPress.over(press)) {
      if (press.cam) {
        list.push({
          key: "1",
          label: TEXT.here,
          on: press.place ? press.place === "camera" : true,
          act: function () {
            place("camera");
          }
        });
        list.push({
          key: "2",
          label: TEXT.home,
          on: press.place === "household",
          act: function () {
            place("household");
          }
        });
      }
      list.push({ key: "", label: TEXT.cancel, act: cancel });
    }
    list.push({
      key: "",
      label: TEXT.ok,
      act: function () {
        dismissed = true;
        peekUntil = 0;
        panelAt = -1;
        if (BoxPress.over(press)) {
          press = null;
          keep("press", null);
        }
        paint();
      }
    });
    return list;
  }
  function panel() {
    var html = "",
      i,
      list,
      stages,
      bad;
    document.body.setAttribute("data-stage", press ? press.stage : "none");
    document.body.setAttribute("data-alarm", press && press.alarm ? press.alarm : "");
    document.body.setAttribute("data-help", press && BoxPress.callHelp(press, now()) ? "1" : "0");
    if (!visible()) {
      el.panel.style.display = "none";
      if (panelAt >= 0) {
        panelAt = -1;
      }
      return;
    }
    bad = BoxPress.callHelp(press, now());
    list = buttons();
    if (panelAt >= list.length) {
      panelAt = list.length - 1;
    }
    html = "<h2></h2>";
    if (bad) {
      html += '<div class="line"></div>';
    } else {
      stages = BoxPress.ORDER;
      html += '<div id="steps">';
      for (i = 0; i < stages.length; i++) {
        html +=
          press.reached.indexOf(stages[i]) >= 0
            ? '<span class="done"><i>✓</i>' + TEXT.step[stages[i]] + "</span>"
            : "<span><i>○</i>" + TEXT.step[stages[i]] + "</span>";
      }
      html += "</div>";
      if (press.cam && press.alarm && !BoxPress.over(press)) {
        html += '<div class="line"></div>';
      }
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
    el.panel.className = bad ? "bad" : "";
    el.panel.style.display = "block";
    if (el.panel.getAttribute("data-html") !== html) {
      el.panel.innerHTML = html;
      el.panel.setAttribute("data-html", html);
    }
    text(el.panel.getElementsByTagName("h2")[0], words());
    i = el.panel.querySelector(".line");
    if (i) {
      text(
        i,
        bad
          ? (press.stage === "refused" ? TEXT.refusedNote : TEXT.lateNote) +
              (me.grid_phone ? "。" + TEXT.grid + me.grid_phone : "")
          : note || TEXT.where
      );
    }
    el.panel.onclick = function (e) {
      var at =
        e.target.getAttribute("data-button") ||
        (e.target.parentNode && e.target.parentNode.getAttribute && e.target.parentNode.getAttribute("data-button"));
      if (at !== null && list[Number(at)]) {
        list[Number(at)].act();
      }
    };
  }
  function second() {
    var d = new Date(now() + skew);
    text(el.clock, two(d.getHours()) + ":" + two(d.getMinutes()));
    if (armedAt && now() - armedAt > 2000) {
      armedAt = 0;
      paint();
    }
    if (noticeUntil && now() > noticeUntil) {
      noticeUntil = 0;
      el.toast.style.display = "none";
    }
    el.net.style.display = !mqttUp && now() - offline > 5000 ? "block" : "none";
    send();
    if (press && !BoxPress.over(press) && press.stage !== "sent" && !mqttUp && now() - lastPoll > 3000) {
      // no channel: ask
      lastPoll = now();
      request("GET", "/api/v1/stb/me", null, function (status, data) {
        if (status === 200 && data.alarm) {
          onAck(data.alarm);
        }
      });
    }
    panel();
  }

  // ---- MQTT over WebSocket ----
  function connect() {
    var will,
      uri = (location.protocol === "https:" ? "wss://" : "ws://") + location.host + me.mqtt.path + "?page=stb";
    if (!window.WebSocket || !me.mqtt) {
      return;
    }
    offline = offline || now();
    client = new Paho.Client(uri, me.mqtt.client_id);
    client.onConnectionLost = lost;
    client.onMessageArrived = function (message) {
      var body;
      try {
        body = JSON.parse(message.payloadString);
      } catch (ignored) {
        return;
      }
      if (/\/ack$/.test(message.destinationName)) {
        onAck(body);
      } else if (/\/state$/.test(message.destinationName) && press && body.alarm && body.alarm === press.alarm) {
        onAck({ pid: press.pid, alarm: body.alarm, stage: body.stage });
      } else if (/\/state$/.test(message.destinationName) && body.alarm && (!press || BoxPress.over(press))) {
        request("GET", "/api/v1/stb/me", null, function (status, data) {
          if (status === 200 && data.alarm && (!press || BoxPress.over(press))) {
            me.alarm = data.alarm;
            adopt();
            paint();
          }
        });
      }
    };
    will = new Paho.Message(JSON.stringify({ on: false, ts: now() }));
    will.destinationName = "pd/v1/stb/" + me.sid + "/presence";
    will.qos = 1;
    will.retained = true;
    client.connect({
      userName: me.mqtt.username,
      password: me.mqtt.password,
      cleanSession: false,
      keepAliveInterval: 30,
      timeout: 10,
      mqttVersion: 4,
      willMessage: will,
      onSuccess: function () {
        var hello = new Paho.Message(JSON.stringify({ on: true, ts: now() }));
        mqttUp = true;
        dialDelay = 1000;
        offline = 0;
        client.subscribe("pd/v1/stb/" + me.sid + "/ack", { qos: 1 });
        client.subscribe("pd/v1/stb/" + me.sid + "/state", { qos: 1 });
        hello.destinationName = "pd/v1/stb/" + me.sid + "/presence";
        hello.qos = 1;
        hello.retained = true;
        client.send(hello);
        if (press && press.stage === "sent") {
          press.nextAt = now();
          send();
        }
        document.body.setAttribute("data-mqtt", "up");
      },
      onFailure: lost
    });
  }
  function lost() {
    if (mqttUp || !offline) {
      offline = now();
    }
    mqttUp = false;
    document.body.setAttribute("data-mqtt", "down");
    setTimeout(connect, dialDelay + Math.random() * dialDelay);
    dialDelay = Math.min(30000, dialDelay * 2);
  }

  // ---- remote control ----
  function tapRed() {
    var t = now();
    taps = taps.length && t - taps[0] <= 2000 ? [taps[0], t] : [t];
    if (taps.length >= 2) {
      raise(false);
      return;
    }
    armedAt = t;
    if (press && press.silent) {
      peekUntil = t + 5000;
    } // progress of a silent alarm only on request
    paint();
  }
  function okRed() {
    tapRed();
  }
  function isRed(e) {
    return e.keyCode === 403 || e.key === "ColorF0Red" || e.key === "r" || e.keyCode === 82;
  }
  function isOk(e) {
    return e.keyCode === 13 || e.keyCode === 23 || e.key === "Enter";
  }
  function isBack(e) {
    return (
      e.keyCode === 8 ||
      e.keyCode === 27 ||
      e.keyCode === 4 ||
      e.keyCode === 461 ||
      e.keyCode === 10009 ||
      e.key === "GoBack" ||
      e.key === "BrowserBack"
    );
  }
  function beginHold() {
    return {
      at: now(),
      last: now(),
      timer: setTimeout(function () {
        holdDone = true;
        okDone = true;
        raise(true);
      }, 1500)
    };
  }
  function move(dx, dy) {
    var here,
      best = -2,
      bestCost = 1e9,
      i,
      cost,
      t;
    if (visible() && panelAt >= 0) {
      panelAt = Math.max(0, Math.min(buttons().length - 1, panelAt + dx));
      if (dy < 0) {
        panelAt = -1;
      }
      paint();
      return;
    }
    if (full >= 0) {
      if (dx) {
        full = (full + dx + tiles.length) % tiles.length;
        focus = full;
      } else if (dy > 0 && visible()) {
        panelAt = 0;
      }
      paint();
      return;
    }
    if (focus === -1) {
      if (dx < 0 && tiles.length) {
        for (i = 0; i < tiles.length; i++) {
          if (tiles[i].row === 0) {
            focus = i;
          }
        }
      } else if (dy > 0 && visible()) {
        panelAt = 0;
      }
      paint();
      return;
    }
    here = tiles[focus];
    for (i = 0; i < tiles.length; i++) {
      t = tiles[i];
      if (dx && (t.row !== here.row || (t.col - here.col) * dx <= 0)) {
        continue;
      }
      if (dy && (t.col !== here.col || (t.row - here.row) * dy <= 0)) {
        continue;
      }
      cost = Math.abs(t.col - here.col) + Math.abs(t.row - here.row);
      if (cost < bestCost) {
        bestCost = cost;
        best = i;
      }
    }
    if (best >= 0) {
      focus = best;
    } else if (dx > 0) {
      focus = -1;
    } else if (dy > 0 && visible()) {
      panelAt = 0;
    }
    paint();
  }
  function ok() {
    if (visible() && panelAt >= 0) {
      var list = buttons();
      if (list[panelAt]) {
        list[panelAt].act();
      }
      return;
    }
    if (full >= 0) {
      return;
    }
    if (focus === -1) {
      okRed();
      return;
    }
    full = focus;
    paint();
  }
  function back() {
    if (panelAt >= 0) {
      panelAt = -1;
    } else if (visible()) {
      dismissed = true;
      peekUntil = 0;
      if (BoxPress.over(press)) {
        press = null;
        keep("press", null);
      }
    } else if (full >= 0) {
      full = -1;
    }
    paint();
  }
  document.addEventListener("keydown", function (e) {
    var digit =
      e.keyCode >= 48 && e.keyCode <= 57 ? e.keyCode - 48 : e.keyCode >= 96 && e.keyCode <= 105 ? e.keyCode - 96 : -1;
    if (!me) {
      return;
    }
    if (isRed(e)) {
      e.preventDefault();
      if (hold && (e.repeat || now() - hold.last < 250)) {
        hold.last = now();
        return;
      } // held down
      if (hold) {
        clearTimeout(hold.timer);
        tapRed();
      } // a remote that never tells of keys going up
      holdDone = false;
      hold = beginHold();
      return;
    }
    if (isOk(e)) {
      e.preventDefault();
      if (okHold && (e.repeat || now() - okHold.last < 250)) {
        okHold.last = now();
        return;
      }
      if (okHold) {
        clearTimeout(okHold.timer);
        okHold = null;
        ok();
      }
      okDone = false;
      if (focus === -1 && full < 0 && panelAt < 0) {
        okHold = beginHold();
      } else {
        ok();
      }
      return;
    }
    if (isBack(e)) {
      e.preventDefault();
      back();
      return;
    }
    if (e.keyCode >= 37 && e.keyCode <= 40) {
      e.preventDefault();
      move(e.keyCode === 37 ? -1 : e.keyCode === 39 ? 1 : 0, e.keyCode === 38 ? -1 : e.keyCode === 40 ? 1 : 0);
      return;
    }
    if ((digit === 1 || digit === 2) && visible() && press.cam && press.alarm && !BoxPress.over(press)) {
      place(digit === 1 ? "camera" : "household");
      return;
    }
    if (digit === 0 && !press) {
      // never in the middle of an alarm
      try {
        localStorage.setItem("lang", language === "en" ? "zh" : "en");
      } catch (ignored) {
        return;
      }
      location.reload();
      return;
    }
    if (digit >= 1 && digit <= tiles.length) {
      focus = full = digit - 1;
      panelAt = -1;
      paint();
    }
  });
  document.addEventListener("keyup", function (e) {
    if (isRed(e) && hold) {
      clearTimeout(hold.timer);
      hold = null;
      if (!holdDone) {
        tapRed();
      }
    }
    if (isOk(e) && okHold) {
      clearTimeout(okHold.timer);
      okHold = null;
      if (!okDone) {
        ok();
      }
    }
  });
  begin();
})();
