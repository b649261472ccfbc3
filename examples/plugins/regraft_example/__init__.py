"""A merge method and an evaluation task for regraft."""
