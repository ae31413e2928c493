"""The calls that the loop makes, and the tensors that they want."""
