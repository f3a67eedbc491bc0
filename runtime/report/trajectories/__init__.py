"""The page of trajectories: a set of episodes to look through in a browser."""
