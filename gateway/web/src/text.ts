/** Every word a user reads on the wall, desk, login and worker pages. One table, so that a second language is a second table. */

const zh = {
  wall: "指挥中心", desk: "值班台", worker: "网格员", login: "登录", app: "实时视频与报警",
  user: "账号", password: "密码", enter: "登 录", entering: "正在登录…", loginLead: "请用工作账号登录，或打开发给您的链接。",
  loginBad: "账号或密码不对，请再试一次。", codeBad: "链接已失效或已用过，请用账号登录，或索取新链接。", logout: "退出",
  boot: "正在载入…", retry: "重试", loadFailed: "没能载入：{why}", netDown: "连不上服务器，请检查网络", noRight: "您没有这项权限",
  stale: "连接中断：画面和报警可能不是最新，正在重新连接（已 {s} 秒）", revoked: "登录已失效，请重新登录", lag: "服务器繁忙，消息可能延迟",
  online: "在线", reconnecting: "重连中", soundOn: "声音已开", soundOff: "开启声音", district: "全区",
  cameras: "摄像机", search: "搜索摄像机（按 /）", searchNone: "没有找到“{q}”", more: "还有 {n} 个，请输入更多字", noCameras: "您的辖区还没有摄像机",
  other: "未分区", layout: "分屏", page: "第 {p} / {n} 页", prev: "上一页", next: "下一页", saved: "布局", save: "保存布局", saveName: "布局名称",
  defaultLayout: "默认顺序", remove: "删除", tour: "轮巡", tourOn: "轮巡中",
  emptyTile: "空画面：从左侧或地图拖一路到这里", clearTile: "移出画面", close: "关闭", enlarge: "放大（回车）",
  "tile.connecting": "连接中", "tile.live": "实时", "tile.stale": "画面停滞", "tile.waiting": "等待摄像机", "tile.failed": "无法播放", "tile.idle": "未连接", "tile.paused": "已暂停",
  staleWhy: "{s} 秒没有新画面，正在重连", linked: "报警联动", main: "高清", sub: "标清", noSuchCamera: "没有这路摄像机",
  "cam.idle": "待机", "cam.connecting": "连接中", "cam.live": "在线", "cam.down": "离线",
  map: "地图", legendCamera: "摄像机", legendWorker: "网格员", legendAlarm: "报警", mapFailed: "地图无法显示：此浏览器不支持 WebGL", fit: "全貌",
  alarms: "报警", noAlarms: "当前没有未处理的报警", queue: "报警队列", history: "最近已结束", unverified: "未核实",
  "kind.help": "求助", "kind.theft": "盗抢", "kind.fire": "火情", "kind.medical": "急救", "kind.test": "测试", silent: "静默",
  "handling.NEW": "新报警", "handling.SHOWN": "待接警", "handling.ACKNOWLEDGED": "已接警", "handling.TRIAGED": "处置中", "handling.CLOSED": "已结束",
  cleared: "居民已取消 · 仍需回访", repeats: "再次按下 {n} 次", "level.community": "社区", "level.street": "街道", "level.district": "区", "level.leader": "值班领导",
  "deadline.shown": "转下一值班台", "deadline.escalate": "升级", "deadline.acknowledge": "升级", "deadline.triage": "退回待接警", "deadline.action": "报主管", deadlineOther: "下一步",
  overdue: "已到时限", acknowledge: "接警", unacknowledge: "退回", ackBy: "{name} 已接警", ackTaken: "{name} 先接了这起报警", me: "我",
  place: "位置", "place.camera": "画面中的地点", "place.household": "家中", "place.point": "地图点", received: "接报", skew: "设备时钟差 {s} 秒",
  household: "住户", contacts: "联系人", notes: "备注", householdHidden: "接警后显示住户信息", nearCameras: "周边摄像机", nearWorkers: "最近的网格员", timeline: "经过",
  noneNear: "附近没有可用的摄像机", noWorkers: "附近没有在岗的网格员", noTimeline: "还没有记录", inView: "可见", metre: "{n} 米", km: "{n} 公里", eta: "约 {n} 分钟", ago: "{t}前", noFix: "无定位",
  "fresh.fresh": "定位新鲜", "fresh.usable": "定位可用", "fresh.last_resort": "定位较旧", "fresh.centroid": "网格中心",
  second: "{n} 秒", minute: "{n} 分钟", hour: "{n} 小时", day: "{n} 天",
  severity: "级别", "sev.1": "一般", "sev.2": "较重", "sev.3": "严重", "sev.4": "特急", policeYes: "警情", policeNo: "非警情", policeAsk: "性质",
  dispatch: "派遣", falseAlarm: "误报", merge: "合并", mergeInto: "合并到哪一起报警？按数字选择，Esc 取消", mergeNone: "没有其他未结束的报警可合并", end: "结束报警", note: "备注（可不填）",
  done: "已{what}", triagedAs: "结果", "outcome.incident": "立案处置", "outcome.merged": "已合并", "outcome.false": "误报", "outcome.test": "测试", callWorker: "呼叫", showCameras: "调看周边画面",
  call: "对讲", noCall: "没有进行中的对讲", joinCall: "加入对讲", startCall: "发起对讲", joining: "正在加入…", hangup: "挂断", mute: "静音", unmute: "取消静音", camOff: "关闭摄像头", camOn: "打开摄像头", callFor: "报警对讲",
  "call.RINGING": "正在振铃", "call.CLAIMED": "已有人接警", "call.CONNECTING": "接通中", "call.ACTIVE": "通话中", "call.RECONNECTING": "网络不稳，重连中", "call.ENDED": "已结束",
  "rung.ringing": "振铃中", "rung.claimed": "已接", "rung.declined": "谢绝", "rung.taken": "他人已接", "rung.expired": "未接", "rung.cancelled": "已取消",
  "end.hangup": "已挂断", "end.no_answer": "无人接听，请改派或电话联系", "end.declined": "对方谢绝", "end.cancelled": "已取消", "end.media_failed": "音视频未接通", "end.superseded": "已由新的对讲代替",
  answeredBy: "{name} 已接", recording: "正在录制", remoteWaiting: "等待对方画面", audioOnly: "仅语音", you: "我", noRung: "还没有振铃的网格员",
  mediaInsecure: "此页面不是 HTTPS，浏览器不允许使用摄像头和麦克风：只能看和听，不能讲。请改用 https:// 地址。", mediaDenied: "没有摄像头或麦克风的使用权限：请在浏览器设置里允许后重试。", mediaMissing: "没有找到摄像头和麦克风：只能看和听。", mediaBusy: "摄像头或麦克风被别的程序占用。",
  publishing: "正在发送音视频", publishFailed: "音视频没能发出：{why}，正在重试", keys: "空格 接警 · 1-4 级别 · P/N 警情 · D 派遣 · C 对讲 · V 画面 · M 合并 · F 误报 · / 搜索 · Esc 返回",
  tabTiles: "画面", tabAlarms: "报警", tabMap: "地图", workersOn: "在岗网格员", workers: "网格员", liveCams: "在线摄像机", duty: "值守", live: "实时", watching: "观看",
  "duty.off": "休息", "duty.on": "在岗", "duty.busy": "忙碌", "duty.break": "暂离", "duty.sos": "求援", offline: "离线",
  dutyOn: "已上岗", dutyOff: "未上岗", goOn: "点一下上岗", goOff: "点一下下岗", dutyHint: "上岗后才会收到附近的报警", offHint: "未上岗：不会振铃，也不上报位置",
  fixOk: "定位正常 · 精度 {n} 米", fixWait: "正在定位…", fixDenied: "没有定位权限：请在设置里允许，或手动填写位置", fixInsecure: "非 HTTPS 页面不能自动定位：请手动填写位置", fixFail: "暂时定不了位：请到空旷处，或手动填写", fixSent: "位置已上报 · {t}前", manualFix: "手动填写位置", lat: "纬度", lon: "经度", datum: "坐标系", "datum.wgs84": "GPS（WGS-84）", "datum.gcj02": "高德/腾讯（GCJ-02）", sendFix: "上报位置", badFix: "请填写有效的经纬度", 
  ringing: "有人求助", ringFrom: "距您 {d}", take: "接警", decline: "不便前往", takenBy: "{name} 已接警", ringGone: "呼叫已结束", ringCancelled: "呼叫已取消", missed: "未接来电", noMissed: "没有未接来电", incoming: "来电", noStill: "暂无现场画面", taking: "正在接警…",
  standby: "待命中", standbyLead: "有报警时手机会响铃并振动，请保持此页打开。", desk1: "指挥中心", flip: "切换摄像头", onScene: "到场", finished: "完成", onSceneDone: "已报到场", finishedDone: "已报完成", feedback: "处置情况", sceneCameras: "现场摄像机", waitDesk: "已接警，请稍候，指挥中心正在加入", callEnded: "对讲已结束", myTask: "当前任务", noTask: "暂无任务", notYet: "指挥中心还没有立案，请稍后再报", back: "返回",
  insecureTitle: "此地址不能对讲", insecureWhy: "手机浏览器只允许 https:// 页面使用摄像头、麦克风和定位。", insecureDo: "请让管理员用 make demo LAN=1 或正式证书开启 HTTPS，安装并信任根证书，然后打开：", grid: "网格", why: "推荐原因", install: "可“添加到主屏幕”，像应用一样使用", enableRing: "开启铃声", ringReady: "铃声已开启",
  unknownError: "出错了（{n}）", tooMany: "请求太频繁，{s} 秒后再试", conflict: "状态已变化，请刷新后再试", tileUrl: "在线底图地址（可空）", settings: "设置", apply: "应用",
};

export type Key = keyof typeof zh;
const table: Record<Key, string> = zh;

/** The text for `key`, with {name} replaced by `values.name`. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return table[key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** The text for a value out of a closed set (`kind.help`); a value that this table doesn't know yet is shown as it came. */
export function tv(group: string, value: string): string {
  const key = `${group}.${value}`;
  return key in table ? table[key as Key] : value;
}

/** How long ago or how long still, in the largest unit that fits. `ms` is clamped at zero. */
export function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return t("second", { n: s });
  if (s < 3600) return t("minute", { n: Math.floor(s / 60) });
  if (s < 86400) return t("hour", { n: Math.floor(s / 3600) });
  return t("day", { n: Math.floor(s / 86400) });
}

export function distance(metres: number): string {
  return metres < 1000 ? t("metre", { n: Math.round(metres) }) : t("km", { n: (metres / 1000).toFixed(1) });
}

export function clock(ms: number, seconds = true): string {
  const two = (n: number): string => String(n).padStart(2, "0");
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}${seconds ? `:${two(d.getSeconds())}` : ""}`;
}
