"""The package reid of the protocol."""
