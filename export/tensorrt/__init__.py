"""From ONNX to TensorRT plans."""
