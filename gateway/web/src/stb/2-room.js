/* What a box may do about the call of its own alarm, from what the gateway says of it. No page, no clock: node tests it. */
var BoxRoom = (function () {
  "use strict";
  function going(call) {
    return call.state === "ACTIVE" || call.state === "RECONNECTING";
  }
  /** Is the resident to be asked? `news`: {alarm, call: {id, state, joinable}}, what the gateway said last. Somebody who pressed
   * silently may not be alone before the screen: never by itself. */
  function asks(press, news) {
    return !!(
      press &&
      press.alarm &&
      !press.silent &&
      press.stage !== "closed" &&
      press.stage !== "cancelled" &&
      news &&
      news.alarm === press.alarm &&
      news.call &&
      news.call.joinable &&
      going(news.call)
    );
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
  /** Has the gateway given this box's place away while the call goes on? */
  function lost(call, own) {
    return !!own && !!call && going(call) && !here(call, own);
  }
  return { asks: asks, others: others, here: here, lost: lost };
})();
if (typeof module !== "undefined" && module.exports) {
  module.exports = BoxRoom;
}
