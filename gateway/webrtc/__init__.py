"""Sessions, tracks and live parameters of WebRTC peers."""
