/* What a box may do about the call of its own alarm, from what the gateway says of it. No page, no clock: node tests it. */
var BoxRoom = (function () {
  "use strict";
  /** Is there anything to ask for? Somebody who pressed silently may not be alone before the screen: never by itself. */
  function wanted(press) {
    return !!(
      press &&
      press.alarm &&
      !press.silent &&
      press.kind !== "theft" &&
      (press.stage === "answered" || press.stage === "dispatched")
    );
  }
  function going(call) {
    return call.state === "ACTIVE" || call.state === "RECONNECTING";
  }
  /** The call about this alarm in which people talk now, or null. */
  function open(calls, alarm) {
    var i;
    for (i = 0; i < calls.length; i++) {
      if (calls[i].alarm_id === alarm && going(calls[i])) {
        return calls[i];
      }
    }
    return null;
  }
  function find(calls, id) {
    var i;
    for (i = 0; i < calls.length; i++) {
      if (calls[i].id === id) {
        return calls[i];
      }
    }
    return null;
  }
  /** Whose picture and sound to play: everybody else who publishes, the gridworker before the desks. */
  function others(call, own) {
    var workers = [],
      rest = [],
      i,
      leg;
    for (i = 0; i < call.legs.length; i++) {
      leg = call.legs[i];
      if (leg.publishing && leg.left_at === null && leg.id !== own) {
        (leg.role === "worker" ? workers : rest).push(leg);
      }
    }
    return workers.concat(rest);
  }
  /** Does this box still have its place? Without a leg (it only listens) as long as the call goes on. */
  function here(call, own) {
    var i;
    if (!call || call.state === "ENDED") {
      return false;
    }
    if (!own) {
      return going(call);
    }
    for (i = 0; i < call.legs.length; i++) {
      if (call.legs[i].id === own) {
        return call.legs[i].left_at === null;
      }
    }
    return false;
  }
  return { wanted: wanted, open: open, find: find, others: others, here: here };
})();
if (typeof module !== "undefined" && module.exports) {
  module.exports = BoxRoom;
}
