// An independent WebRTC stack (werift) as WHEP client: node werift_viewer.mjs URL TOKEN SECONDS
// Prints one JSON line of what came. It decodes nothing: RTP (RFC 3550) and H.264 payloads (RFC 6184) are read by hand.
import { createSocket } from "node:dgram";
import { RTCPeerConnection, RTCRtpCodecParameters } from "werift";

const [url, token, seconds] = process.argv.slice(2);
const authorization = { Authorization: `Bearer ${token}` };

// werift always asks a STUN server, by default one on the internet, and waits for it. This one is here (RFC 8489: a success
// response with XOR-MAPPED-ADDRESS).
const stun = createSocket("udp4");
stun.on("message", (request, from) => {
    const reply = Buffer.concat([Buffer.from("0101000c2112a442", "hex"), request.subarray(8, 20), Buffer.alloc(12)]);
    reply.writeUInt32BE(0x00200008, 20);
    reply.writeUInt16BE(1, 24);
    reply.writeUInt16BE(from.port ^ 0x2112, 26);
    from.address.split(".").forEach((octet, at) => reply.writeUInt8(Number(octet) ^ reply[4 + at], 28 + at));
    stun.send(reply, from.port, from.address);
});
await new Promise((resolve) => stun.bind(0, resolve));

const codec = (mimeType, clockRate, payloadType, more) =>
    new RTCRtpCodecParameters({ mimeType, clockRate, payloadType, ...more });
const pc = new RTCPeerConnection({
    bundlePolicy: "max-bundle",
    iceServers: [{ urls: `stun:127.0.0.1:${stun.address().port}` }],
    codecs: {
        video: [
            codec("video/H264", 90000, 102, {
                parameters: "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
                rtcpFeedback: [{ type: "nack" }, { type: "nack", parameter: "pli" }],
            }),
        ],
        audio: [codec("audio/PCMA", 8000, 8, { channels: 1 })],
    },
});

const report = { packets: { video: 0, audio: 0 }, lost: 0, late: 0, keyframes: 0, pictures: 0, markers: 0, sets: false, ssrcs: [] };
let highest = null;
const numbers = new Set();
const seen = new Set();

function units(payload) {
    const type = payload[0] & 31;
    if (type === 28) return payload[1] & 128 ? [payload[1] & 31] : []; // FU-A: its first fragment
    if (type !== 24) return [type];
    const found = [];
    for (let at = 1; at + 2 < payload.length; at += 2 + payload.readUInt16BE(at)) found.push(payload[at + 2] & 31);
    return found;
}

for (const kind of ["video", "audio"]) {
    const transceiver = pc.addTransceiver(kind, { direction: "recvonly" });
    transceiver.onTrack.subscribe((track) => {
        track.onReceiveRtp.subscribe((rtp) => {
            report.packets[kind]++;
            seen.add(rtp.header.ssrc);
            if (kind !== "video") return;
            const number = rtp.header.sequenceNumber;
            // RFC 3550 appendix A.1: the nearest number to the highest one so far.
            const step = highest === null ? number : (((number - highest) & 0xffff) ^ 0x8000) - 0x8000;
            const extended = (highest ?? 0) + step;
            if (highest !== null && step < 0) report.late++;
            highest = Math.max(highest ?? extended, extended);
            numbers.add(extended);
            const types = units(rtp.payload);
            if (types.includes(7)) report.sets = true;
            if (types.includes(5)) report.keyframes++;
            if (types.some((type) => type === 1 || type === 5)) report.pictures++;
            if (rtp.header.marker) report.markers++;
        });
    });
}

await pc.setLocalDescription(await pc.createOffer());
const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/sdp", ...authorization },
    body: pc.localDescription.sdp,
});
const text = await response.text();
if (response.status !== 201) {
    console.error(response.status, text);
    process.exit(1);
}
const session = new URL(response.headers.get("location"), url);
await pc.setRemoteDescription({ type: "answer", sdp: text });
await new Promise((resolve) => setTimeout(resolve, Number(seconds) * 1000));
const settled = highest;
await new Promise((resolve) => setTimeout(resolve, 500));
report.state = pc.connectionState;
// What no retransmission brought: of what had come half a second before the end, so that the last gap can still be filled.
const first = Math.min(...numbers);
report.lost = settled - first + 1 - [...numbers].filter((number) => number <= settled).length;
report.ssrcs = [...seen];
report.deleted = (await fetch(session, { method: "DELETE", headers: authorization })).status;
await pc.close();
console.log(JSON.stringify(report));
process.exit(0);
