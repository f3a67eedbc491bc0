"""What a plan will need: parameters, bytes per rank, FLOPs, tokens, time. Pure arithmetic; every number carries its formula."""
