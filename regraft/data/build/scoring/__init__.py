"""Scores of documents by models, and which documents they leave."""
