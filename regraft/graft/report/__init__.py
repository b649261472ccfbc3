"""What a job tells people: the card of every model, the page, the figure of a sweep."""
