"""The Open Inference Protocol v2, as far as a remote session speaks it: inference.proto and what protoc makes of it."""
