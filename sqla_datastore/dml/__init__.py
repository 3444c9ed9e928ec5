"""What a statement does to objects: `effects_of` finds it out before the statement runs."""
