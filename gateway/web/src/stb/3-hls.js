/* HLS on the box: by the WebView itself where it plays m3u8 (Android 4.4), else fed by hand through Media Source Extensions. */
var BoxHls = (function () {
  "use strict";
  var KEEP_S = 10, // of what was played: the buffer must not grow for weeks
    BEHIND_S = 10, // so far behind the newest picture it is no live picture any more
    POLL_MS = 1000;
  var TYPE = "application/vnd.apple.mpegurl";

  function kind() {
    var Source = window.MediaSource;
    if (Source && Source.isTypeSupported && Source.isTypeSupported('video/mp4; codecs="avc1.42e01e"')) {
      return "mse";
    }
    return document.createElement("video").canPlayType && document.createElement("video").canPlayType(TYPE)
      ? "native"
      : "";
  }
  /** What of a playlist (RFC 8216) counts here: [{number, address, map}], oldest first. */
  function parse(text) {
    var lines = text.split(/\r?\n/),
      list = [],
      number = 0,
      map = "",
      i,
      found;
    for (i = 0; i < lines.length; i++) {
      found = /^#EXT-X-MEDIA-SEQUENCE:(\d+)/.exec(lines[i]);
      if (found) {
        number = Number(found[1]);
      }
      found = /^#EXT-X-MAP:.*URI="([^"]+)"/.exec(lines[i]);
      if (found) {
        map = found[1];
      }
      if (lines[i] && lines[i].charAt(0) !== "#") {
        list.push({ number: number, address: lines[i], map: map });
        number++;
      }
    }
    return list;
  }
  /** avc1.PPCCLL out of the initialisation's avcC box (ISO/IEC 14496-15 section 5.3.3), or "". */
  function codec(bytes) {
    var i, two;
    function hex(n) {
      two = n.toString(16);
      return two.length < 2 ? "0" + two : two;
    }
    for (i = 0; i + 8 < bytes.length; i++) {
      if (bytes[i] === 0x61 && bytes[i + 1] === 0x76 && bytes[i + 2] === 0x63 && bytes[i + 3] === 0x43) {
        return "avc1." + hex(bytes[i + 5]) + hex(bytes[i + 6]) + hex(bytes[i + 7]);
      }
    }
    return "";
  }
  function fetch(address, binary, done) {
    var request = new XMLHttpRequest();
    request.open("GET", address, true);
    if (binary) {
      request.responseType = "arraybuffer";
    }
    request.timeout = 20000;
    request.onload = function () {
      done(request.status, binary ? request.response : request.responseText, request);
    };
    request.onerror = request.ontimeout = function () {
      done(0, null, request);
    };
    request.send(null);
  }

  function fed(video, base, failed) {
    var media = new window.MediaSource(),
      address = window.URL.createObjectURL(media),
      buffer = null,
      waiting = [],
      last = -1,
      map = "",
      busy = false,
      closed = false,
      timer = 0;
    function fail(status, request) {
      var after = request ? Number(request.getResponseHeader("Retry-After")) : 0;
      if (!closed) {
        close();
        failed(status, after > 0 ? after : 0);
      }
    }
    function close() {
      closed = true;
      clearTimeout(timer);
      window.URL.revokeObjectURL(address);
    }
    function later() {
      if (!closed) {
        clearTimeout(timer);
        timer = setTimeout(refresh, POLL_MS);
      }
    }
    function refresh() {
      fetch(base + "index.m3u8?format=mp4&" + query, false, function (status, text, request) {
        var list, i;
        if (closed) {
          return;
        }
        if (status !== 200) {
          fail(status, request);
          return;
        }
        list = parse(text);
        if (last < 0) {
          list = list.slice(-1); // live: the newest is where to begin
        }
        for (i = 0; i < list.length; i++) {
          if (list[i].number > last) {
            last = list[i].number;
            waiting.push(list[i]);
          }
        }
        next();
        later();
      });
    }
    function next() {
      var one = waiting[0];
      if (busy || closed || !one) {
        return;
      }
      busy = true;
      if (one.map !== map) {
        fetch(base + one.map, true, function (status, data, request) {
          if (closed) {
            return;
          }
          if (status !== 200 || !begin(data)) {
            fail(status === 200 ? -1 : status, request);
            return;
          }
          map = one.map;
          append(data);
        });
        return;
      }
      waiting.shift();
      fetch(base + one.address, true, function (status, data) {
        if (closed) {
          return;
        }
        if (status !== 200) {
          busy = false; // it is gone already: the next one will do
          next();
          return;
        }
        append(data);
      });
    }
    function begin(data) {
      var name = codec(new Uint8Array(data));
      if (buffer) {
        return true;
      }
      try {
        buffer = media.addSourceBuffer('video/mp4; codecs="' + name + '"');
      } catch (ignored) {
        return false; // this decoder does not take the camera's profile
      }
      buffer.addEventListener("updateend", function () {
        busy = false;
        settle();
        next();
      });
      buffer.addEventListener("error", function () {
        fail(-1);
      });
      return true;
    }
    function append(data) {
      try {
        buffer.appendBuffer(data);
      } catch (ignored) {
        fail(-1);
      }
    }
    /** Plays near the newest picture, over gaps too, and forgets what was played. */
    function settle() {
      var ranges, end, start;
      if (closed) {
        return;
      }
      ranges = buffer.buffered;
      if (!ranges.length) {
        return;
      }
      start = ranges.start(ranges.length - 1);
      end = ranges.end(ranges.length - 1);
      if (video.currentTime < start || end - video.currentTime > BEHIND_S) {
        video.currentTime = Math.max(start, end - POLL_MS / 250);
      }
      if (video.paused && video.play) {
        start = video.play();
        if (start && start["catch"]) {
          start["catch"](function () {
            return null;
          });
        }
      }
      if (!buffer.updating && video.currentTime - ranges.start(0) > 2 * KEEP_S) {
        busy = true;
        buffer.remove(0, video.currentTime - KEEP_S);
      }
    }
    var query = "";
    media.addEventListener("sourceopen", refresh);
    return {
      open: function (asked) {
        query = asked;
        video.src = address;
      },
      close: close
    };
  }

  /** Plays into `video`; `failed(status, afterS)`: an HTTP status, 0 no network, -1 the player took it not. */
  function open(video, camera, stream, failed) {
    var base = "/hls/" + encodeURIComponent(camera) + "/",
      query = "page=stb&stream=" + stream,
      player,
      closed = false;
    if (kind() === "mse") {
      player = fed(video, base, failed);
      player.open(query);
    } else {
      video.onerror = function () {
        if (!closed) {
          failed(-1, 0);
        }
      };
      video.src = base + "index.m3u8?" + query;
      if (video.play) {
        player = video.play();
        if (player && player["catch"]) {
          player["catch"](function () {
            return null;
          });
        }
      }
      player = null;
    }
    return {
      close: function () {
        closed = true;
        if (player) {
          player.close();
        }
        video.onerror = null;
        video.removeAttribute("src");
        if (video.load) {
          video.load(); // lets go of decoder and connection
        }
      }
    };
  }
  return { kind: kind, open: open, parse: parse, codec: codec };
})();
if (typeof module !== "undefined" && module.exports) {
  module.exports = BoxHls;
}
