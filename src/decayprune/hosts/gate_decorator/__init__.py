"""Gate Decorator: gates on batch norms, scored in ticks, closed a few at a time."""
