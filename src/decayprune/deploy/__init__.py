"""Out of the library: a model as one file for another runtime, checked against the model."""
