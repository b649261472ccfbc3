"""Documents of a recipe's sources, in parts that several processes can read."""
