"""The media plane: cameras in by RTSP, publishers in by WHIP, viewers out by WHEP. Knows nothing of alarms or calls."""
