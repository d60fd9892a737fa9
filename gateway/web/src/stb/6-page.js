/* What all parts of the box page stand on: elements, the clock of the server, requests, what survives a reboot. */
var BoxPage = (function () {
  "use strict";
  var screen = document.getElementById("screen"),
    el = {},
    skew = 0;

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
  function clock() {
    var d = new Date(now() + skew);
    return two(d.getHours()) + ":" + two(d.getMinutes());
  }
  function stamp() {
    var d = new Date(now() + skew);
    return d.getFullYear() + "-" + two(d.getMonth() + 1) + "-" + two(d.getDate()) + " " + clock();
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
  /** `done(status, data)` exactly once; status 0: no answer. */
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
  function boot(message) {
    var b = document.getElementById("boot");
    if (b) {
      text(b, message);
    }
  }
  /** `ready(me)` once the gateway has told who this box is. */
  function open(words, ready) {
    var code = /[#&]code=([^&]+)/.exec(location.hash);
    function load() {
      request("GET", "/api/v1/stb/me", null, function (status, data) {
        if (status === 200) {
          skew = (data.now || now()) - now();
          ready(data);
          return;
        }
        if (status === 401 || status === 403) {
          boot(words.login);
          setTimeout(function () {
            location.replace("/login?next=%2Fstb");
          }, 3000);
          return;
        }
        boot(words.loadBad);
        setTimeout(load, 4000);
      });
    }
    if (!code) {
      load();
      return;
    }
    if (history.replaceState) {
      history.replaceState(null, "", location.pathname);
    } else {
      location.hash = "";
    }
    request("POST", "/api/v1/session", { code: decodeURIComponent(code[1]) }, function (status) {
      if (status === 0) {
        boot(words.loadBad);
        setTimeout(function () {
          location.replace("/stb#code=" + code[1]);
          location.reload();
        }, 4000);
      } else {
        load();
      }
    });
  }
  return {
    screen: screen,
    el: el,
    now: now,
    make: make,
    text: text,
    clock: clock,
    stamp: stamp,
    keep: keep,
    kept: kept,
    request: request,
    open: open
  };
})();
