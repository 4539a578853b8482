"""A trained network as one scan: all-MiniLM-L6-v2, on sentences."""
