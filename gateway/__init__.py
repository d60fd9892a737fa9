"""Real-time video and alarm integration gateway for a city district. Start with ARCHITECTURE.md."""

__version__ = "0.1.0"
