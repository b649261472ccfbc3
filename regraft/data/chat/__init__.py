"""Conversations: read from records, rendered by a chat template, and what of them is learned."""
