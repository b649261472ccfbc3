"""What methods share: arithmetic on row blocks whose bits do not depend on the blocks' size."""
