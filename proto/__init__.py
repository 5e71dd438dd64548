"""The protocols: our own reid.v1, one file, what we speak of inference v2, and their generated code."""
