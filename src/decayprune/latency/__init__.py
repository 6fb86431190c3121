"""How long a model takes: measured, estimated at other widths, and which widths suit a machine."""
