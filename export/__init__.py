"""A model becomes an artifact. Adopting needs onnx; nothing here is loaded by a server."""
