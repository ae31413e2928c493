"""PyTorch checkpoints to ONNX and TensorRT engines with explicit caches."""
