"""What can be pruned: structures, how they are found, and vectorised arithmetic over them."""
