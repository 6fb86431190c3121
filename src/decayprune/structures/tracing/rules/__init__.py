"""How each kind of operator moves labels, one short function a kind."""
