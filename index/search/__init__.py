"""What lies in memory: rows in blocks, what proposes them, and the ranking of one generation."""
