"""How each implementation is measured: in a process of its own, on the clock, beside its twin."""
