"""Expert layers in the number format that the plan names."""
