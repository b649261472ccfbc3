"""The models of a recipe: opened, checked against each other, their tensors and tokens matched."""
