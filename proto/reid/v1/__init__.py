"""Version 1 of the protocol: reid.proto and what protoc makes of it."""
