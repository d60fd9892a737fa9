/* The words of the box page, in Chinese and English, and which of the two it speaks. */
var BoxWords = (function () {
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
      handled: "已处理完毕",
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
      hls: "延时约 4 秒",
      unsent: "没有送出，正在重试",
      ask: "上次报警处理得怎么样？",
      askHow: "按 1 满意，按 2 不满意",
      good: "满意",
      bad: "不满意",
      thanks: "谢谢，已记录",
      notTaken: "没有记录成功，请再按一次",
      later: "以后再说",
      silentOn: "静默报警处理中",
      okKey: "确定",
      backKey: "返回",
      talk: "是否与网格员{who}视频通话？",
      talkHow: "按“确定”才会打开话筒和摄像头，对方能听到、看到您",
      talkYes: "通话",
      listen: "是否收看网格员{who}的现场画面？",
      listenHow: "只看和听：本机没有话筒，对方听不到您",
      listenYes: "收看",
      talkNo: "不用",
      talkAgain: "与网格员通话",
      opening: "正在打开…",
      microphoneOpen: "话筒已开",
      cameraOpen: "摄像头已开",
      nothingOpen: "只收看，话筒和摄像头都没有打开",
      noMicrophone: "打不开话筒，改为只收看",
      recording: "正在录制",
      soundOnly: "只有声音",
      me: "我",
      callHow: "按“返回”结束通话",
      callWaits: "等待对方的画面… 按“返回”结束通话",
      callOver: "通话已结束",
      callLeft: "您已退出通话，话筒和摄像头已关闭",
      callBad: "没有接通，请稍后再试",
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
      handled: "It has been handled",
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
      hls: "about 4 s late",
      unsent: "not sent yet, trying again",
      ask: "How was your last alarm handled?",
      askHow: "1 satisfied, 2 not satisfied",
      good: "Satisfied",
      bad: "Not satisfied",
      thanks: "Thank you, it is noted",
      notTaken: "It was not noted; please press again",
      later: "Later",
      silentOn: "Silent alarm in progress",
      okKey: "OK",
      backKey: "Back",
      talk: "Video call with gridworker {who}?",
      talkHow: "OK opens microphone and camera: they will hear and see you",
      talkYes: "Talk",
      listen: "Watch the picture of gridworker {who}?",
      listenHow: "Watching and listening only: this box has no microphone",
      listenYes: "Watch",
      talkNo: "No",
      talkAgain: "Talk to the gridworker",
      opening: "Opening…",
      microphoneOpen: "Microphone is open",
      cameraOpen: "Camera is open",
      nothingOpen: "Watching only: microphone and camera are shut",
      noMicrophone: "The microphone can't be opened; watching only",
      recording: "Recording",
      soundOnly: "sound only",
      me: "You",
      callHow: "Back ends the call",
      callWaits: "Waiting for their picture… Back ends the call",
      callOver: "The call has ended",
      callLeft: "You have left; microphone and camera are shut",
      callBad: "Not connected; please try again",
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
  document.documentElement.lang = language === "en" ? "en" : "zh-CN";
  document.title = WORDS[language].title;
  return {
    text: WORDS[language],
    tables: WORDS,
    /** The other language from now on; the page begins anew. */
    turn: function () {
      try {
        localStorage.setItem("lang", language === "en" ? "zh" : "en");
      } catch (ignored) {
        return;
      }
      location.reload();
    }
  };
})();
