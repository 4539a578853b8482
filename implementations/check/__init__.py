"""Whether a stack does what a layer stack must: the shared checks, for anybody's `scan_layers`."""
