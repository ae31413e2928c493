"""The browser side of wanstream: REST, WebRTC and the built-in page in front of NVIDIA Triton."""
