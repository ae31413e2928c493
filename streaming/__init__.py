"""The streaming denoise / cache loop; knows nothing of HTTP and WebRTC."""
