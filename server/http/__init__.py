"""HTTP beside gRPC: the same calls as JSON, health, metrics."""
