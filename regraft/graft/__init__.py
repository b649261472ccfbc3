"""`regraft graft`: the whole job, from one recipe to grafted models and the page about them."""
