"""How structures are found: one forward pass under a tracer, and what its record says."""
