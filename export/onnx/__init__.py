"""From modules to ONNX engines: what to export, and where it is kept."""
