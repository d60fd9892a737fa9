/* The box's MQTT connection: over WebSocket, dialled again for ever, with a will that says when the box is gone. */
var BoxLink = (function () {
  "use strict";
  var FIRST_MS = 1000,
    MOST_MS = 30000;

  /** `handlers`: ack(body), state(body), up(). */
  function open(me, handlers) {
    var client = null,
      isUp = false,
      since = BoxPage.now(),
      delay = FIRST_MS,
      root = "pd/v1/stb/" + me.sid + "/";

    function message(leaf, body, retained) {
      var made = new Paho.Message(JSON.stringify(body));
      made.destinationName = root + leaf;
      made.qos = 1;
      made.retained = !!retained;
      return made;
    }
    function connect() {
      var uri = (location.protocol === "https:" ? "wss://" : "ws://") + location.host + me.mqtt.path + "?page=stb";
      client = new Paho.Client(uri, me.mqtt.client_id);
      client.onConnectionLost = lost;
      client.onMessageArrived = arrived;
      client.connect({
        userName: me.mqtt.username,
        password: me.mqtt.password,
        cleanSession: false,
        keepAliveInterval: 30,
        timeout: 10,
        mqttVersion: 4,
        willMessage: message("presence", { on: false, ts: BoxPage.now() }, true),
        onSuccess: function () {
          isUp = true;
          delay = FIRST_MS;
          client.subscribe(root + "ack", { qos: 1 });
          client.subscribe(root + "state", { qos: 1 });
          client.send(message("presence", { on: true, ts: BoxPage.now() }, true));
          document.body.setAttribute("data-mqtt", "up");
          handlers.up();
        },
        onFailure: lost
      });
    }
    function arrived(came) {
      var body;
      try {
        body = JSON.parse(came.payloadString);
      } catch (ignored) {
        return; // the retained state is emptied by an empty payload
      }
      if (/\/ack$/.test(came.destinationName)) {
        handlers.ack(body);
      } else if (/\/state$/.test(came.destinationName)) {
        handlers.state(body);
      }
    }
    function lost() {
      if (isUp) {
        since = BoxPage.now();
      }
      isUp = false;
      document.body.setAttribute("data-mqtt", "down");
      setTimeout(connect, delay + Math.random() * delay);
      delay = Math.min(MOST_MS, delay * 2);
    }
    if (window.WebSocket && me.mqtt) {
      connect();
    }
    return {
      up: function () {
        return isUp;
      },
      /** For how long it has been down, in ms; 0 while it is up, and where there is no broker at all. */
      downMs: function () {
        return isUp || !me.mqtt ? 0 : BoxPage.now() - since;
      },
      /** False: it could not be sent. */
      publish: function (leaf, body) {
        if (!isUp) {
          return false;
        }
        try {
          client.send(message(leaf, body));
          return true;
        } catch (ignored) {
          return false;
        }
      }
    };
  }
  return { open: open };
})();
