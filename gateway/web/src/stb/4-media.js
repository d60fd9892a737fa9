/* Pictures on the box: WebRTC where the WebView has it, else HLS, else stills. A picture that stands still is never shown as live. */
var BoxMedia = (function () {
  "use strict";
  var STALE_MS = 3000,
    REDIAL_MS = 9000,
    FIRST_MS = 12000,
    STILL_MS = 1000,
    YOUNG_S = 2, // a playlist that has just begun is too short for some players: ask again when it has grown
    TRIES = 2; // without a single picture, then the next rung of the ladder
  /** Best first: what this WebView is able to do. */
  var LADDER = (BoxPeer.able ? ["webrtc"] : []).concat(BoxHls.kind() ? ["hls"] : [], ["still"]);
  /** Where tiles begin: lower once a rung has shown nothing here, so that not every tile finds out by itself. */
  var floor = 0,
    proven = {};

  /** Plays `camera` in `host`; `onState(state)` with connecting, live, stale, waiting. */
  function play(host, camera, stream, onState) {
    var closed = false,
      peer = null,
      timer = 0,
      poll = 0,
      video = null,
      image = null,
      hls = null,
      attempts = 0,
      blanks = 0,
      rung = floor;
    var frames = 0,
      seen = 0,
      lastAt = 0,
      dialledAt = 0,
      mode = LADDER[rung],
      rungAt = new Date().getTime(),
      tried = 0;

    function say(state) {
      if (!closed) {
        host.setAttribute("data-state", state);
        host.setAttribute("data-mode", mode);
        onState(state);
      }
    }
    function wait(ms, work) {
      clearTimeout(timer);
      timer = setTimeout(work, ms);
    }
    function drop() {
      if (hls) {
        hls.close();
        hls = null;
      }
      if (peer) {
        peer.close();
        peer = null;
      }
    }
    /** Begins again, later. `blank`: it was answered, but no picture came; the server's refusals say nothing of the way. */
    function retry(afterS, blank) {
      drop();
      if (closed) {
        return;
      }
      if (blank && !frames && ++blanks >= TRIES && !proven[mode]) {
        descend();
        return;
      }
      say("waiting");
      wait(afterS ? afterS * 1000 : 500 + Math.random() * Math.min(15000, 700 * Math.pow(2, attempts++)), dial);
    }
    /** The next rung: this one shows nothing here. */
    function descend() {
      drop();
      if (rung < LADDER.length - 1) {
        rung++;
        floor = Math.max(floor, rung);
      }
      mode = LADDER[rung];
      rungAt = new Date().getTime();
      blanks = 0;
      if (video) {
        host.removeChild(video); // an element that had another source may keep it
        video = null;
      }
      dial();
    }
    function dial() {
      drop();
      if (closed) {
        return;
      }
      say("connecting");
      if (mode === "still") {
        stills();
        return;
      }
      dialledAt = new Date().getTime();
      lastAt = 0;
      seen = 0;
      if (!video) {
        video = document.createElement("video");
        video.muted = true;
        video.autoplay = true;
        video.setAttribute("muted", "");
        video.setAttribute("playsinline", "");
        host.insertBefore(video, host.firstChild);
      }
      if (mode === "hls") {
        hls = BoxHls.open(video, camera, stream, function (status, afterS) {
          var young = status === -1 && new Date().getTime() - rungAt < FIRST_MS;
          retry(young ? YOUNG_S : afterS, status === -1 && !young);
        });
      } else {
        call();
      }
    }
    function call() {
      peer = BoxPeer.dial(
        "/whep/" + encodeURIComponent(camera) + "?stream=" + stream,
        {},
        {
          stream: function (s) {
            BoxPeer.attach(video, s);
          },
          refused: retry,
          lost: function () {
            retry(0);
          },
          failed: function () {
            retry(0, true);
          },
          unable: descend
        }
      );
    }
    function measure() {
      var now = new Date().getTime(),
        count;
      if (!(mode === "webrtc" && peer) && !(mode === "hls" && hls)) {
        if (mode === "still" && lastAt && now - lastAt > 3 * STALE_MS) {
          say("stale");
        }
        return;
      }
      count = BoxPeer.decoded(video);
      if (count < seen) {
        seen = count;
      }
      if (count > seen) {
        frames += count - seen;
        seen = count;
        lastAt = now;
        attempts = 0;
        blanks = 0;
        proven[mode] = true;
        host.setAttribute("data-frames", String(frames));
        say("live");
        return;
      }
      if (document.hidden) {
        if (lastAt) {
          lastAt = now;
        } else {
          dialledAt = now;
        }
        return;
      }
      if (!lastAt) {
        if (now - dialledAt > FIRST_MS) {
          retry(0, true);
        }
      } else if (now - lastAt > REDIAL_MS) {
        retry(0);
      } else if (now - lastAt > STALE_MS) {
        say("stale");
      }
    }
    function stills() {
      var next;
      drop();
      if (closed) {
        return;
      }
      if (video) {
        host.removeChild(video);
        video = null;
      }
      next = new Image();
      next.onload = function () {
        if (closed) {
          return;
        }
        if (image) {
          host.replaceChild(next, image);
        } else {
          host.insertBefore(next, host.firstChild);
        }
        image = next;
        frames++;
        tried = 0;
        lastAt = new Date().getTime();
        host.setAttribute("data-frames", String(frames));
        say("live");
        wait(STILL_MS, stills);
      };
      next.onerror = function () {
        tried++;
        if (!lastAt) {
          say("waiting");
        }
        wait(Math.min(15000, 1000 * tried), stills);
      };
      next.src = "/api/v1/cameras/" + encodeURIComponent(camera) + "/snapshot.jpg?page=stb&t=" + new Date().getTime();
    }
    poll = setInterval(measure, 500);
    dial();
    return {
      close: function () {
        closed = true;
        clearTimeout(timer);
        clearInterval(poll);
        drop();
        if (video) {
          host.removeChild(video);
          video = null;
        }
        if (image) {
          host.removeChild(image);
          image = null;
        }
      }
    };
  }

  /** Who watches and when, over every picture. */
  function watermark(canvas, text) {
    var c = canvas.getContext && canvas.getContext("2d"),
      w = canvas.offsetWidth,
      h = canvas.offsetHeight,
      size,
      step,
      x,
      y,
      row = 0;
    if (!c || !w || !h) {
      return;
    }
    canvas.width = w;
    canvas.height = h;
    size = Math.max(12, Math.round(w / 46));
    c.font = size + "px sans-serif";
    c.translate(w / 2, h / 2);
    c.rotate(-0.35);
    step = c.measureText(text).width + size * 4;
    for (y = -h; y < h; y += size * 6) {
      row++;
      for (x = -w - ((row % 2) * step) / 2; x < w; x += step) {
        c.fillStyle = "rgba(0,0,0,.2)";
        c.fillText(text, x + 1, y + 1);
        c.fillStyle = "rgba(255,255,255,.17)";
        c.fillText(text, x, y);
      }
    }
  }
  return { play: play, watermark: watermark };
})();
