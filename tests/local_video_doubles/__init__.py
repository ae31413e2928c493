"""Modules with the names and the quirks of libraries that exist for Windows and macOS only.

This directory is put on the module search path by tests/unit/test_local_video.py, and nowhere else.
"""
