"""`regraft inspect`: description of a model or adapter and comparison of two."""
