"""One stack on many devices: every way to cut it, run and counted in each framework."""
