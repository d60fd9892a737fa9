/** The JSON shapes of docs/contract.md section 3. Times are UTC milliseconds, positions WGS-84. */

export interface Position {
  lat: number;
  lon: number;
}
export interface Session {
  sub: string;
  role: string;
  area: string | null;
  name: string;
  supervisor: boolean;
  expires_at: number | null;
}
export interface Area {
  code: string;
  name: string;
  level: "district" | "street" | "community" | "grid";
  parent: string | null;
  kind?: string | null;
  phone?: string | null;
}
export interface District {
  code: string;
  name: string;
  center: Position | null;
  areas: Area[];
  map?: { tile_urls: string[]; datum: string };
}
export interface StreamInfo {
  state: string;
  reason: string | null;
  codec: string | null;
  width: number | null;
  height: number | null;
  fps: number | null;
  kbps: number | null;
  viewers: number;
}
export type CameraState = "idle" | "connecting" | "live" | "down";
export interface Camera {
  id: string;
  name: string;
  community: string | null;
  grid: string | null;
  position: Position | null;
  heading: number | null;
  fov: number | null;
  range_m: number | null;
  state: CameraState;
  reason: string | null;
  since: number | null;
  last_frame_at: number | null;
  /** What the camera shows, judged once a minute; absent or null while nobody has looked. */
  picture?: { verdict: string; reason: string; since: number; checked_at: number } | null;
  streams: { main: StreamInfo; sub: StreamInfo | null };
}
/** The verdict on a picture that does not show what it should; null when all is well or unknown. */
export function badPicture(camera: Camera | undefined): { verdict: string; reason: string } | null {
  const picture = camera?.picture;
  return picture && picture.verdict !== "ok" ? picture : null;
}
export interface CameraChoice {
  id: string;
  name: string;
  distance_m: number;
  bearing_deg: number;
  in_view: boolean;
  score: number;
  reason: string;
}
export interface WorkerChoice {
  id: string;
  name: string;
  grid: string;
  distance_m: number;
  eta_s: number | null;
  freshness: "fresh" | "usable" | "last_resort" | "centroid";
  fix_age_s: number | null;
  accuracy_m: number | null;
  reason: string;
}
export type Duty = "off" | "on" | "busy" | "break" | "sos";
export interface Worker {
  id: string;
  name: string;
  grid: string;
  duty: Duty;
  online: boolean;
  position: Position | null;
  fix_at: number | null;
  accuracy_m: number | null;
  freshness: string | null;
  /** Only of oneself. */
  grid_name?: string | null;
  role?: string;
}
export type Handling = "NEW" | "SHOWN" | "ACKNOWLEDGED" | "TRIAGED" | "CLOSED";
export interface TimelineEntry {
  at: number;
  event: string;
  by: string | { sub: string; name: string } | null;
  detail: unknown;
}
export interface Household {
  address: string;
  contacts: { name: string; phone: string }[];
  notes: string | null;
}
export interface Alarm {
  id: string;
  source: string;
  kind: string;
  silent: boolean;
  handling: Handling;
  condition: "ACTIVE" | "CLEARED";
  verified: boolean;
  place: { kind: string; ref: string | null; label: string; position: Position | null };
  street: string | null;
  community: string | null;
  grid: string | null;
  received_at: number;
  device_time: number | null;
  skew_ms: number | null;
  repeats: number;
  shown_at: number | null;
  acknowledged_at: number | null;
  acknowledged_by: { sub: string; name: string } | null;
  outcome: string | null;
  dispatched: { id: string; name: string; eta_s: number | null } | null;
  /** The alarm that leads its group (150 m, 120 s); null alone or leading. */
  group_id?: string | null;
  incident_id: string | null;
  call_id: string | null;
  /** What the desk found when it called back after the resident's cancel. */
  call_back?: { at: number; by: { sub: string; name: string }; outcome: string; note: string } | null;
  level: string;
  deadlines: { kind: string; at: number }[];
  cameras?: CameraChoice[];
  workers?: WorkerChoice[];
  household?: Household | null;
  timeline?: TimelineEntry[];
  deliveries?: Delivery[];
}
/** Who was told and how; `reached` 0: nobody of them is there; null: the first desk, which SHOWN confirms. */
export interface Delivery {
  audience: string;
  channel: string;
  at: number;
  delivered_at: number | null;
  reached: number | null;
}
export type IncidentState =
  | "REPORTED"
  | "DISPATCHED"
  | "HANDLING"
  | "VERIFYING"
  | "RATED"
  | "ARCHIVED"
  | "TRANSFERRED"
  | "SUSPENDED"
  | "MERGED"
  | "CANCELLED";
export interface Incident {
  id: string;
  number: string;
  type: string;
  severity: number;
  police: string;
  state: IncidentState;
  alarm_id: string | null;
  place_label: string;
  position: Position | null;
  street: string | null;
  community: string | null;
  grid: string | null;
  reported_by: string;
  reported_at: number;
  changed_at: number;
  reopened: number;
  note: string;
  satisfied?: boolean | null;
  follow_up_at?: number | null;
  timeline?: TimelineEntry[];
  deliveries?: Delivery[];
}
/** What a helper was sent to do. */
export interface HelperTask {
  id: string;
  incident_id: string;
  state: string;
  assignee: { id: string; name: string; role: string };
  note?: string;
  feedback?: string;
  incident: {
    id: string;
    number: string;
    type: string;
    severity: number;
    place_label: string;
    state: string;
    alarm_id?: string | null;
  };
  position?: Position | null;
  offered_at?: number;
  changed_at?: number;
  photos: Photo[];
}
export interface Photo {
  sha256: string;
  by?: string;
  at?: number;
}
export interface Volunteer {
  id: string;
  name: string;
  level: number;
  community: string;
  position: Position | null;
  available: boolean;
}
/** A recorded stretch of a camera or of one participant of a call. */
export interface Clip {
  id: string;
  kind: "camera" | "call";
  alarm_id: string | null;
  incident_id: string | null;
  call_id: string | null;
  camera_id: string | null;
  name: string;
  from_at: number;
  to_at: number | null;
  media_type: string;
  size: number | null;
  sha256: string | null;
  state: "recording" | "complete" | "failed" | "pruned";
  reason: string | null;
  preroll_s: number | null;
  hold: { by: string; at: number; reason: string } | null;
  expires_at: number | null;
}
export interface Quantiles {
  p50?: number;
  p90?: number;
  p95?: number;
}
/** One row of the monthly figures. */
export interface Figures {
  rank: number;
  code: string;
  name: string;
  reported: number;
  closed: number;
  closed_rate: number | null;
  reopened: number;
  reopen_rate: number | null;
  satisfied_rate: number | null;
  acknowledge_s: Quantiles;
  dispatch_s: Quantiles;
  on_scene_s: Quantiles;
  close_s: Quantiles;
}
export interface Leg {
  id: string;
  participant: string;
  name: string;
  role: string;
  publishing: boolean;
  tracks: ("audio" | "video")[];
  joined_at: number;
  left_at: number | null;
}
export type CallState = "RINGING" | "CLAIMED" | "CONNECTING" | "ACTIVE" | "RECONNECTING" | "ENDED";
export interface Rung {
  worker_id: string;
  name: string;
  distance_m: number | null;
  reason: string;
  rung_at: number;
  outcome: string;
}
export interface Call {
  id: string;
  alarm_id: string | null;
  incident_id: string | null;
  kind: string;
  state: CallState;
  opened_at: number;
  place_label: string;
  position: Position | null;
  answered_by: { id: string; name: string } | null;
  end_reason: string | null;
  rung: Rung[];
  legs: Leg[];
  recording: boolean;
  leg?: string;
}
