"""Video calls between command center, gridworkers and boxes. Knows nothing of RTP or alarms' inner life."""
