"""Merging in mergekit, for what has no native form: the recipe's translation and the process."""
