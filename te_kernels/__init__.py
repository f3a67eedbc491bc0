"""Expert layers in the number format that the plan names."""

INSTALL = "pip install --no-build-isolation 'transformer-engine[core_cu13,pytorch]==2.20.2'"
"""How Transformer Engine is installed: it is compiled against the torch that is there. Importing this needs neither."""
