"""Which rule at which node: from a captured program and a ruleset to a plan."""
