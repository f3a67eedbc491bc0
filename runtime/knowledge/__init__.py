"""The knowledge-action infrastructure: the graph on disk, records of tasks and trajectories, and self-play that writes them."""
