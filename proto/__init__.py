"""The protocol: reid.v1, one file, and its generated code."""
