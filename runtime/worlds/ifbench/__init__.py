"""IFBench (allenai/IFBench): prompts whose constraints a program can check."""
