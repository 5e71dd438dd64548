"""Writing: entries into galleries that are searched meanwhile, durable before they are acknowledged."""
