"""The reports of a job: the card of every model, the page, the figure of a sweep."""
