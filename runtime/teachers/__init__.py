"""Teachers: who scores, and how each is known to be its checkpoint."""
