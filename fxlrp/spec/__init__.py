"""What a ruleset states: its lines, the places they apply at, seed, reading and citation, as validated values."""
