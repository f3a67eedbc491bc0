"""Engines: what generates rollouts and scores them."""
