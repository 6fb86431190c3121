"""The paper: decay, resistance and release as pure functions of vectors, and the Decayer."""
