"""The alarm path: press, durable receipt, escalation, dispatch, incident. Knows nothing of video or calls."""
