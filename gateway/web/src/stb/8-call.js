/* The video call with the gridworker at the box: asked once, opened by OK only, with a sign as long as microphone or camera is open. */
var BoxCall = (function () {
  "use strict";
  var TEXT = BoxWords.text,
    now = BoxPage.now,
    make = BoxPage.make,
    text = BoxPage.text,
    request = BoxPage.request;
  var POLL_MS = 3000,
    AGAIN_MS = 2000,
    STALE_MS = 3000,
    GUARD_MS = 1200, // an OK that was meant for something else, as the question came up
    GONE = [403, 404, 409, 410];
  var devices = navigator.mediaDevices,
    old = navigator.getUserMedia || navigator.webkitGetUserMedia,
    able = !!((devices && devices.getUserMedia) || old);

  /** Microphone and camera, or the microphone alone, or null: never anything but after an OK. */
  function capture(done) {
    var sound = { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
      wanted = [
        { audio: sound, video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 15 } } },
        { audio: sound }
      ];
    function next(i) {
      function failed() {
        next(i + 1);
      }
      if (i >= wanted.length) {
        done(null);
      } else if (devices && devices.getUserMedia) {
        devices.getUserMedia(wanted[i]).then(done, failed);
      } else if (old) {
        old.call(navigator, { audio: true, video: i === 0 }, done, failed);
      } else {
        done(null);
      }
    }
    next(0);
  }
  function stop(stream) {
    if (stream) {
      stream.getTracks().forEach(function (track) {
        track.stop();
      });
    }
  }
  function has(stream, kind) {
    return (
      !!stream &&
      stream.getTracks().some(function (track) {
        return track.kind === kind && track.readyState !== "ended";
      })
    );
  }

  /** `page`: press() what was pressed, flash(text, ms), busy(yes) while the tiles are to rest, changed(). */
  function open(me, page) {
    var mayTalk = able,
      offered = null, // the call that is asked about
      offeredAt = 0,
      news = null, // {alarm, call} as the gateway said last
      asking = null, // the id of a call that is being looked up
      declined = null, // the id of the call to which the resident said no
      opening = false,
      room = null, // {call, leg, stream, publisher, shown: {leg id: Seat}, own, rejoining}
      lastPoll = 0;

    make("div", "ask").className = "sheet";
    make("div", "call");
    make("div", "callBig", BoxPage.el.call);
    make("div", "callRow", BoxPage.el.call);
    make("div", "callSign", BoxPage.el.call);
    make("div", "callRec", BoxPage.el.call, "● ");
    BoxPage.el.callRec.appendChild(document.createTextNode(TEXT.recording));
    make("div", "callBar", BoxPage.el.call);
    var el = BoxPage.el;

    // ---- what the gateway says ----
    function path(call, more) {
      return "/api/v1/calls/" + encodeURIComponent(call) + (more || "");
    }
    function look() {
      var mine = room;
      if (mine) {
        if (now() - lastPoll >= POLL_MS) {
          lastPoll = now();
          request("GET", path(mine.call.id), null, function (status, data) {
            if (room === mine && status === 200) {
              heard(data);
            } else if (room === mine && GONE.indexOf(status) >= 0) {
              end(TEXT.callOver);
            }
          });
        }
      } else if (!opening) {
        consider();
      }
    }
    function heard(call) {
      room.call = call;
      if (BoxRoom.here(call, room.leg)) {
        seats();
      } else if (BoxRoom.lost(call, room.leg)) {
        rejoin();
      } else {
        end(TEXT.callOver);
      }
    }
    /** The gateway gives a place away when nothing came in time (a machine under load, a network that stalls). The resident is
     * still here, and what was opened is open: takes it again. */
    function rejoin() {
      var mine = room;
      if (mine.rejoining) {
        return;
      }
      mine.rejoining = true;
      request("POST", path(mine.call.id, "/join"), {}, function (status, data) {
        mine.rejoining = false;
        if (room !== mine) {
          return;
        }
        if (status === 200 && data && data.leg) {
          mine.publisher.close(true);
          mine.call = data;
          mine.leg = data.leg;
          publish(mine);
          seats();
        } else if (GONE.indexOf(status) >= 0) {
          end(TEXT.callOver);
        } // else the next look asks again
      });
    }
    function consider() {
      var id = BoxRoom.asks(page.press(), news) ? news.call.id : null;
      if (!BoxPeer.able || id === null || id === declined) {
        forget();
      } else if ((!offered || offered.id !== id) && asking !== id) {
        asking = id;
        request("GET", path(id), null, function (status, data) {
          asking = null;
          if (status === 200 && !room && news && news.call && news.call.id === id) {
            offered = data;
            offeredAt = now();
            learn();
            page.changed();
          }
        });
      }
    }
    function forget() {
      if (offered && !opening) {
        offered = null;
        page.changed();
      }
    }
    /** Where the WebView tells without opening anything whether there is a microphone at all. */
    function learn() {
      if (able && devices && devices.enumerateDevices) {
        devices.enumerateDevices().then(
          function (all) {
            mayTalk = all.some(function (one) {
              return one.kind === "audioinput";
            });
            page.changed();
          },
          function () {
            return null;
          }
        );
      }
    }

    // ---- in and out ----
    function accept() {
      var call = offered;
      if (opening || now() - offeredAt < GUARD_MS) {
        return;
      }
      opening = true;
      if (mayTalk) {
        capture(function (stream) {
          if (stream) {
            join(call, stream);
          } else {
            mayTalk = false;
            page.flash(TEXT.noMicrophone, 4000);
            enter(call, null, null);
          }
        });
      } else {
        enter(call, null, null);
      }
      page.changed();
    }
    function join(call, stream) {
      request("POST", path(call.id, "/join"), {}, function (status, data) {
        if (status === 200 && data && data.leg) {
          enter(data, data.leg, stream);
        } else {
          stop(stream);
          opening = false;
          offered = null;
          page.flash(GONE.indexOf(status) >= 0 ? TEXT.callOver : TEXT.callBad, 4000);
          page.changed();
        }
      });
    }
    function enter(call, leg, stream) {
      opening = false;
      offered = null;
      room = { call: call, leg: leg, stream: stream, publisher: null, shown: {}, own: null, rejoining: false };
      lastPoll = 0;
      page.busy(true);
      if (stream) {
        publish(room);
        if (has(stream, "video")) {
          room.own = make("div", "", el.callRow);
          room.own.className = "seat own";
          room.own.appendChild(mute(document.createElement("video")));
          make("span", "", room.own).className = "who";
          text(room.own.lastChild, TEXT.me);
          BoxPeer.attach(room.own.firstChild, stream);
        }
      }
      seats();
      page.changed();
    }
    function mute(video) {
      video.muted = true;
      video.setAttribute("muted", "");
      return video;
    }
    function publish(mine) {
      var leg = mine.leg,
        to = path(mine.call.id, "/legs/" + encodeURIComponent(leg) + "/whip");
      function again(afterS) {
        mine.publisher.close();
        setTimeout(
          function () {
            if (room === mine && mine.leg === leg) {
              publish(mine);
            }
          },
          Math.max(AGAIN_MS, (afterS || 0) * 1000)
        );
      }
      function unable() {
        end(TEXT.callBad);
      }
      mine.publisher = BoxPeer.dial(
        to,
        { send: mine.stream },
        { refused: again, lost: again, failed: again, unable: unable }
      );
    }
    /** Leaves the room. Nothing of the box is open afterwards, whatever the network does. */
    function end(why) {
      var mine = room,
        over = mine && mine.call.state === "ENDED",
        id;
      if (!mine) {
        return;
      }
      room = null;
      stop(mine.stream);
      if (mine.publisher) {
        mine.publisher.close(over);
      }
      for (id in mine.shown) {
        if (Object.prototype.hasOwnProperty.call(mine.shown, id)) {
          mine.shown[id].close();
        }
      }
      if (mine.own) {
        el.callRow.removeChild(mine.own);
      }
      declined = mine.call.id;
      if (typeof why === "string") {
        page.flash(why, 3000);
      }
      page.busy(false);
      page.changed();
    }
    function hangUp() {
      var mine = room;
      end(TEXT.callLeft);
      if (mine.leg) {
        request("POST", path(mine.call.id, "/hangup"), {}, function () {
          return null; // a leg without media is given up by the gateway too
        });
      }
    }
    function no() {
      declined = offered.id;
      offered = null;
      page.changed();
    }

    // ---- the others ----
    function seats() {
      var others = BoxRoom.others(room.call, room.leg),
        ids = [],
        i,
        id;
      for (i = 0; i < others.length; i++) {
        ids.push(others[i].id);
        if (!room.shown[others[i].id]) {
          room.shown[others[i].id] = seat(room.call.id, others[i]);
        }
        room.shown[others[i].id].at(i === 0 ? el.callBig : el.callRow);
      }
      for (id in room.shown) {
        if (ids.indexOf(id) < 0) {
          room.shown[id].close();
          delete room.shown[id];
        }
      }
    }
    /** One of the others: picture, sound, name, and whether it moves. */
    function seat(call, leg) {
      var host = document.createElement("div"),
        video = document.createElement("video"),
        note = make("p", "", host),
        mark = make("canvas", "", host),
        who = make("span", "", host),
        from = path(call, "/legs/" + encodeURIComponent(leg.id) + "/whep"),
        closed = false,
        peer = null,
        seen = 0,
        frames = 0,
        movedAt = 0,
        began = now();
      host.className = "seat connecting";
      host.setAttribute("data-leg", leg.id);
      host.setAttribute("data-frames", "0");
      note.className = "msg";
      mark.className = "wm";
      who.className = "who";
      text(who, leg.name || "");
      video.autoplay = true;
      video.setAttribute("playsinline", "");
      host.insertBefore(video, host.firstChild);
      function dial() {
        if (!closed) {
          began = now();
          peer = BoxPeer.dial(
            from,
            { audio: true },
            {
              stream: function (stream) {
                BoxPeer.attach(video, stream);
              },
              refused: again,
              lost: again,
              failed: again
            }
          );
        }
      }
      function again(afterS) {
        peer.close();
        setTimeout(dial, Math.max(AGAIN_MS, (afterS || 0) * 1000));
      }
      function say(state, words) {
        host.className = "seat " + state;
        host.setAttribute("data-state", state);
        text(note, words);
      }
      function measure() {
        var count = BoxPeer.decoded(video),
          picture = leg.tracks.indexOf("video") >= 0;
        if (count < seen) {
          seen = count; // the element counts anew for each stream
        }
        if (count > seen) {
          frames += count - seen;
          seen = count;
          movedAt = now();
          host.setAttribute("data-frames", String(frames));
          say("live", "");
        } else if (!picture) {
          say("sound", TEXT.soundOnly);
        } else if (movedAt && now() - movedAt > STALE_MS) {
          say("stale", TEXT.stale);
        } else if (!movedAt) {
          say("connecting", TEXT.connecting);
        }
        if (picture && now() - Math.max(movedAt, began) > 4 * STALE_MS) {
          movedAt = 0;
          peer.close();
          dial();
        }
      }
      dial();
      return {
        at: function (parent) {
          if (host.parentNode !== parent) {
            parent.appendChild(host);
            BoxPeer.attach(video, video.srcObject || null); // a moved element pauses
          }
        },
        measure: measure,
        knows: function (fresh) {
          leg = fresh;
        },
        mark: function (words) {
          BoxMedia.watermark(mark, words);
        },
        close: function () {
          closed = true;
          peer.close(true);
          video.srcObject = null;
          if (host.parentNode) {
            host.parentNode.removeChild(host);
          }
        }
      };
    }

    // ---- the screen ----
    function sign(name, open_) {
      return open_ ? '<b class="open">● ' + name + "</b>" : "";
    }
    function paint() {
      var microphone = !!room && has(room.stream, "audio"),
        camera = !!room && has(room.stream, "video"),
        html;
      document.body.setAttribute("data-call", room ? room.call.id : "");
      document.body.setAttribute("data-ask-call", offered && !room ? offered.id : "");
      document.body.setAttribute("data-open", (microphone ? "microphone " : "") + (camera ? "camera" : ""));
      el.ask.style.display = offered && !room ? "block" : "none";
      if (offered && !room) {
        html =
          "<h2></h2><div class='line'>" +
          (opening ? TEXT.opening : mayTalk ? TEXT.talkHow : TEXT.listenHow) +
          "</div><span class='btn f'><b>" +
          TEXT.okKey +
          "</b>" +
          (mayTalk ? TEXT.talkYes : TEXT.listenYes) +
          "</span><span class='btn'><b>" +
          TEXT.backKey +
          "</b>" +
          TEXT.talkNo +
          "</span>";
        if (el.ask.getAttribute("data-html") !== html) {
          el.ask.innerHTML = html;
          el.ask.setAttribute("data-html", html);
        }
        text(
          el.ask.firstChild,
          (mayTalk ? TEXT.talk : TEXT.listen).replace("{who}", (offered.answered_by && offered.answered_by.name) || "")
        );
      }
      el.call.style.display = room ? "block" : "none";
      if (!room) {
        return;
      }
      html = sign(TEXT.microphoneOpen, microphone) + sign(TEXT.cameraOpen, camera);
      html = html || '<b class="shut">' + TEXT.nothingOpen + "</b>";
      if (el.callSign.getAttribute("data-html") !== html) {
        el.callSign.innerHTML = html;
        el.callSign.setAttribute("data-html", html);
      }
      el.callRec.style.display = room.call.recording ? "block" : "none";
      text(el.callBar, BoxRoom.others(room.call, room.leg).length ? TEXT.callHow : TEXT.callWaits);
    }
    el.ask.onclick = function (e) {
      var at = e.target;
      while (at && at !== el.ask && at.className.indexOf("btn") < 0) {
        at = at.parentNode;
      }
      if (at && at !== el.ask) {
        (at.className.indexOf(" f") >= 0 ? accept : no)();
      }
    };
    function each(work) {
      var others = BoxRoom.others(room.call, room.leg),
        i;
      for (i = 0; i < others.length; i++) {
        if (room.shown[others[i].id]) {
          work(room.shown[others[i].id], others[i]);
        }
      }
    }
    return {
      paint: paint,
      /** Twice a second. `words` is the watermark. */
      tick: function (words) {
        look();
        if (room) {
          each(function (one, leg) {
            one.knows(leg);
            one.measure();
            one.mark(words);
          });
          paint();
        }
      },
      /** What the gateway says of the alarm's call, {id, state, joinable} or null. */
      hear: function (alarm, call) {
        news = { alarm: alarm, call: call };
        lastPoll = 0;
      },
      talking: function () {
        return room !== null;
      },
      /** A key while the question or the call has the screen: true if it was meant for it. */
      key: function (name) {
        if (room) {
          if (name === "back") {
            hangUp();
          }
          return name !== "red";
        }
        if (!offered || (name !== "ok" && name !== "back")) {
          return false;
        }
        if (name === "ok") {
          accept();
        } else if (!opening) {
          no();
        }
        return true;
      },
      /** Said no, or left: the call goes on, and may be joined from the alarm's panel. */
      reoffer: function () {
        declined = null;
        consider();
      },
      refused: function () {
        return declined !== null && !room && BoxRoom.asks(page.press(), news) && news.call.id === declined;
      }
    };
  }
  return { open: open };
})();
