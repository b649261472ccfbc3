"""Text that steps write: joined conversations, questions and their texts, rearranged pieces."""
