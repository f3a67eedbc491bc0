"""The language of Polymath: what a spec may say. Imports nothing of ours and never torch."""
