"""Model families: for each, torchtitan's model from a Hugging Face config, and what its forward and its weights need."""
