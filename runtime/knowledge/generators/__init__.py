"""The report's generators of tasks, one module each; `registry.py` names them."""
