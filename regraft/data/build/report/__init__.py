"""The card and the page of a built folder."""
