// Published WHEP and WHIP clients in a browser, on a page of another origin than the gateway. Bundled by the tests.
import { WebRTCPlayer } from "@eyevinn/webrtc-player";
import { WHEPClient } from "whip-whep/whep.js";
import { WHIPClient } from "whip-whep/whip.js";

const video = () => document.getElementById("video");
window.rejections = [];
window.addEventListener("unhandledrejection", (event) => {
    window.rejections.push(String(event.reason));
    event.preventDefault();
});

// All media of the answer by way of one UDP address; the TCP candidates go. Empty: as answered.
function through(port) {
    if (!port) return (sdp) => sdp;
    return (sdp) =>
        sdp
            .replace(/a=candidate:.* tcp .*\r\n/gi, "")
            .replace(/(a=candidate:\S+ 1 udp \d+ )\S+ \d+/gi, `$1127.0.0.1 ${port}`);
}

// Of the answer's candidates only those over one transport, `tcp` or `udp`.
const over = (transport) => (sdp) =>
    sdp.replace(/a=candidate:.*\r\n/gi, (line) => (line.split(" ")[2] === transport ? line : ""));

// Options: port of a relay; only: the transport that is not blocked; without: feedback that is taken out of the offer, as
// ["nack pli"].
window.watch = async (url, token, options = {}) => {
    const pc = (window.viewer = new RTCPeerConnection({ bundlePolicy: "max-bundle" }));
    pc.addTransceiver("video", { direction: "recvonly" });
    pc.addTransceiver("audio", { direction: "recvonly" });
    pc.ontrack = (event) => {
        video().srcObject = event.streams[0];
    };
    const whep = (window.whep = new WHEPClient());
    whep.onAnswer = options.only ? over(options.only) : through(options.port);
    whep.onOffer = (sdp) => {
        const less = (options.without ?? []).map((one) => new RegExp(`a=rtcp-fb:\\d+ ${one}\\r\\n`, "g"));
        return less.reduce((text, one) => text.replace(one, ""), sdp);
    };
    await whep.view(pc, url, token);
};
// whip-whep 1.2 puts the candidates of a restart's answer together with commas, which is no SDP when there are two. It is
// shown the first one alone.
window.restart = async () => {
    const original = window.fetch;
    window.fetch = async (...request) => {
        const response = await original(...request);
        if (request[1]?.method !== "PATCH" || response.status !== 200) return response;
        let first = true;
        const body = (await response.text()).replace(/a=candidate:.*\r\n/g, (line) => {
            const kept = first ? line : "";
            first = false;
            return kept;
        });
        return new Response(body, { status: 200, headers: response.headers });
    };
    try {
        await window.whep.restart();
    } finally {
        window.fetch = original;
    }
};
window.stop = () => window.whep.stop();

window.publish = async (url, token, mime) => {
    const pc = (window.publisher = new RTCPeerConnection({ bundlePolicy: "max-bundle" }));
    const media = await navigator.mediaDevices.getUserMedia({
        video: { width: 320, height: 240, frameRate: 15 },
        audio: true,
    });
    for (const track of media.getTracks()) {
        const transceiver = pc.addTransceiver(track, { direction: "sendonly", streams: [media] });
        if (track.kind === "video") {
            const codecs = RTCRtpSender.getCapabilities("video").codecs;
            transceiver.setCodecPreferences(codecs.filter((one) => one.mimeType === mime));
        }
    }
    const whip = (window.whip = new WHIPClient());
    await whip.publish(pc, url, token);
};
window.unpublish = () => window.whip.stop();

window.playEyevinn = async (url, token) => {
    const player = (window.player = new WebRTCPlayer({ video: video(), type: "whep", statsTypeFilter: "^inbound-rtp" }));
    window.inbound = {};
    player.on("stats:inbound-rtp", (report) => {
        window.inbound[report.kind] = report;
    });
    await player.load(new URL(url), `Bearer ${token}`);
};
window.stopEyevinn = () => window.player.unload();

window.received = async () => {
    const found = { state: window.viewer.connectionState };
    const stats = await window.viewer.getStats();
    stats.forEach((one) => {
        if (one.type === "transport" && one.selectedCandidatePairId) {
            const pair = stats.get(one.selectedCandidatePairId);
            found.protocol = stats.get(pair.localCandidateId)?.protocol;
        }
        if (one.type === "inbound-rtp")
            for (const key of ["framesDecoded", "framesDropped", "keyFramesDecoded", "freezeCount", "packetsLost",
                "packetsReceived", "retransmittedPacketsReceived", "nackCount", "pliCount", "firCount",
                "totalSamplesReceived", "totalFreezesDuration"])
                if (key in one) found[`${one.kind}.${key}`] = one[key];
        if (one.type === "transport") found.srtp = one.srtpCipher;
    });
    return found;
};
window.played = () => ({ time: video().currentTime, width: video().videoWidth, height: video().videoHeight });
