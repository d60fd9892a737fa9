/* The pictures of one's own community: up to six tiles, one of them full screen; which has the focus is said from outside. */
var BoxTiles = (function () {
  "use strict";
  var TEXT = BoxWords.text,
    make = BoxPage.make,
    text = BoxPage.text;
  var MOST = 6;
  var list = [],
    watermark = "",
    resting = false,
    view = { focus: -1, full: -1 };

  function build(me, grid, picked) {
    var n = Math.min(MOST, me.cameras.length),
      cols = n <= 1 ? 1 : 2,
      rows = Math.ceil(n / cols),
      i;
    watermark = (me.name || me.sid) + " " + me.sid + "  ";
    if (!n) {
      text(make("p", "boot", grid), TEXT.none);
    }
    for (i = 0; i < n; i++) {
      tile(me.cameras[i], grid, i, cols, rows, picked);
    }
    setInterval(marks, 30000);
    window.addEventListener("resize", marks);
  }
  function tile(camera, grid, i, cols, rows, picked) {
    var host = make("div", "", grid),
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
      picked(i);
    };
    list.push(t);
    start(t, "sub");
  }
  function start(t, stream) {
    if (t.player) {
      t.player.close();
    }
    t.stream = stream;
    t.player = BoxMedia.play(t.host, t.id, stream, function (state) {
      var mode = t.host.getAttribute("data-mode"),
        live = mode === "still" ? TEXT.still : "● " + TEXT.live + (mode === "hls" ? " · " + TEXT.hls : "");
      t.state = state;
      text(t.msg, state === "live" ? "" : TEXT[state]);
      text(t.label, state === "live" ? live : TEXT[state]);
      classes(t, list.indexOf(t));
    });
  }
  function classes(t, i) {
    var name =
      "t " + (t.state || "") + (view.full === i ? " big" : "") + (view.focus === i && view.full < 0 ? " f" : "");
    if (t.host.className !== name) {
      t.host.className = name;
    }
  }
  /** focus: the tile with the frame, or -1; full: the tile that fills the screen, or -1. */
  function paint(focus, full) {
    var i, want;
    view.focus = focus;
    view.full = full;
    for (i = 0; i < list.length; i++) {
      classes(list[i], i);
      want = full === i ? "main" : "sub";
      if (!resting && list[i].stream !== want) {
        start(list[i], want);
      }
    }
    setTimeout(marks, 0);
  }
  /** Who watches, and when. */
  function words() {
    return watermark + BoxPage.stamp();
  }
  function marks() {
    var i;
    for (i = 0; i < list.length; i++) {
      BoxMedia.watermark(list[i].wm, words());
    }
  }
  /** Nothing is fetched for tiles that a call covers: many a box decodes one picture and no more. */
  function rest(yes) {
    var i;
    resting = yes;
    for (i = 0; i < list.length; i++) {
      if (yes && list[i].player) {
        list[i].player.close();
        list[i].player = null;
        list[i].stream = "";
      }
    }
  }
  /** The tile that lies in this direction from `at`, or -1. */
  function beside(at, dx, dy) {
    var here = list[at],
      best = -1,
      least = 1e9,
      i,
      t,
      far;
    for (i = 0; i < list.length; i++) {
      t = list[i];
      if (dx && (t.row !== here.row || (t.col - here.col) * dx <= 0)) {
        continue;
      }
      if (dy && (t.col !== here.col || (t.row - here.row) * dy <= 0)) {
        continue;
      }
      far = Math.abs(t.col - here.col) + Math.abs(t.row - here.row);
      if (far < least) {
        least = far;
        best = i;
      }
    }
    return best;
  }
  /** The last tile of the first row: where the red button's left neighbour is. */
  function corner() {
    var i,
      found = -1;
    for (i = 0; i < list.length; i++) {
      if (list[i].row === 0) {
        found = i;
      }
    }
    return found;
  }
  return {
    build: build,
    paint: paint,
    beside: beside,
    corner: corner,
    rest: rest,
    words: words,
    count: function () {
      return list.length;
    },
    camera: function (i) {
      return list[i].id;
    }
  };
})();
