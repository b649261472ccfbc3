"""Low-rank approximation of weight changes: certified SVD, noise floor, rank rules. Pure maths."""
