/* One WebRTC session with the gateway: WHEP to watch, WHIP (RFC 9725) to publish; with the callbacks of old WebViews. */
var BoxPeer = (function () {
  "use strict";
  var Peer = window.RTCPeerConnection || window.webkitRTCPeerConnection;

  /** Posts an offer to `url`. `what`: {send: a stream} or {audio: also sound is wanted}. `on`: stream(s) what comes; refused(afterS)
   * by the gateway, 0 when it named no time; lost() no way to it; failed() it answered, but nothing gets through; unable() this
   * WebView cannot. Nothing is said after close(). */
  function dial(url, what, on) {
    var closed = false,
      session = null,
      whole,
      pc;

    function tell(name, value) {
      if (!closed && on[name]) {
        on[name](value);
      }
    }
    function failed() {
      tell("failed");
    }
    function shut() {
      try {
        pc.close();
      } catch (ignored) {
        /* closed already */
      }
    }
    function prepare() {
      whole = window.MediaStream ? new window.MediaStream() : null;
      if (what.send) {
        if (pc.addTransceiver) {
          what.send.getTracks().forEach(function (track) {
            prefer(pc.addTransceiver(track, { direction: "sendonly", streams: [what.send] }), track.kind);
          });
        } else {
          pc.addStream(what.send);
        }
        return;
      }
      if (pc.addTransceiver) {
        pc.addTransceiver("video", { direction: "recvonly" });
        if (what.audio) {
          pc.addTransceiver("audio", { direction: "recvonly" });
        }
        pc.ontrack = function (e) {
          whole.addTrack(e.track);
          tell("stream", whole);
        };
      } else {
        pc.onaddstream = function (e) {
          tell("stream", e.stream);
        };
      }
    }
    /** H.264 first: it is recorded, and played by phones, without being transcoded. */
    function prefer(transceiver, kind) {
      var known = window.RTCRtpReceiver && window.RTCRtpReceiver.getCapabilities,
        codecs;
      if (kind !== "video" || !known || !transceiver.setCodecPreferences) {
        return;
      }
      codecs = window.RTCRtpReceiver.getCapabilities("video").codecs;
      function is(yes) {
        return codecs.filter(function (codec) {
          return (codec.mimeType.toLowerCase() === "video/h264") === yes;
        });
      }
      try {
        transceiver.setCodecPreferences(is(true).concat(is(false)));
      } catch (ignored) {
        /* it keeps its own order */
      }
    }
    function post(offer) {
      var request = new XMLHttpRequest();
      request.open("POST", url, true);
      request.setRequestHeader("Content-Type", "application/sdp");
      request.setRequestHeader("X-Requested-With", "gateway");
      request.setRequestHeader("X-Gateway-Page", "stb");
      request.timeout = 15000;
      request.onload = function () {
        var Answer = window.RTCSessionDescription;
        if (request.status !== 201) {
          tell("refused", Math.max(0, Number(request.getResponseHeader("Retry-After")) || 0));
          return;
        }
        session = request.getResponseHeader("Location");
        if (closed) {
          remove();
          return;
        }
        pc.setRemoteDescription(
          new Answer({ type: "answer", sdp: request.responseText }),
          function () {
            return null;
          },
          failed
        );
      };
      request.onerror = request.ontimeout = function () {
        tell("lost");
      };
      request.send(offer);
    }
    /** The session first, then the connection: our close_notify would end it, and the DELETE would find nothing. */
    function remove() {
      var request = new XMLHttpRequest();
      request.open("DELETE", session, true);
      request.setRequestHeader("X-Requested-With", "gateway");
      request.setRequestHeader("X-Gateway-Page", "stb");
      request.timeout = 3000;
      request.onload = request.onerror = request.ontimeout = shut;
      request.send();
    }
    function start() {
      try {
        pc = new Peer({ iceServers: [] });
        prepare();
      } catch (ignored) {
        setTimeout(function () {
          tell("unable");
        }, 0); // the caller has nothing to close yet
        return;
      }
      pc.oniceconnectionstatechange = function () {
        if (pc.iceConnectionState === "failed" || pc.iceConnectionState === "closed") {
          failed();
        }
      };
      pc.createOffer(
        function (offer) {
          if (!closed) {
            pc.setLocalDescription(
              offer,
              function () {
                if (!closed) {
                  post(pc.localDescription.sdp);
                }
              },
              failed
            );
          }
        },
        function () {
          tell("unable");
        },
        pc.addTransceiver || what.send
          ? undefined
          : { mandatory: { OfferToReceiveVideo: true, OfferToReceiveAudio: !!what.audio } }
      );
    }
    start();
    return {
      /** `ended`: what was played or published to is over, and its session with it. */
      close: function (ended) {
        if (closed) {
          return;
        }
        closed = true;
        if (!pc) {
          return;
        }
        pc.oniceconnectionstatechange = pc.ontrack = pc.onaddstream = null;
        if (session && !ended) {
          remove();
        } else {
          shut();
        }
      }
    };
  }
  /** Shows a stream in an element, as the WebView can. */
  function attach(video, stream) {
    if (video.srcObject !== undefined) {
      video.srcObject = stream;
    } else {
      video.src = (window.URL || window.webkitURL).createObjectURL(stream);
    }
    var playing = video.play && video.play();
    if (playing && playing["catch"]) {
      playing["catch"](function () {
        return null;
      });
    }
  }
  /** How many pictures the element has decoded. */
  function decoded(video) {
    if (video.getVideoPlaybackQuality) {
      return video.getVideoPlaybackQuality().totalVideoFrames;
    }
    if (typeof video.webkitDecodedFrameCount === "number") {
      return video.webkitDecodedFrameCount;
    }
    return Math.floor(video.currentTime * 10);
  }
  return { able: !!Peer, dial: dial, attach: attach, decoded: decoded };
})();
