"""The kinds of nodes and edges; apart, so that the command line knows them without loading anything else."""

from typing import Literal, get_args

NodeKind = Literal["evidence", "entity", "fact", "constraint", "action", "observation", "verifier", "task"]
EdgeKind = Literal["supports", "depends-on", "produces", "verifies", "transition"]
ImportKind = Literal["documents", "wiki", "tools", "trajectories", "worlds"]
NODE_KINDS, EDGE_KINDS, IMPORT_KINDS = get_args(NodeKind), get_args(EdgeKind), get_args(ImportKind)
