"""Video calls between the command center, gridworkers and boxes. Knows nothing of RTP or alarms' inner life."""
