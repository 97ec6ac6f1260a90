"""Reading captured graphs: what operators are, where nodes come from, which values are live."""
