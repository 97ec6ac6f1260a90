"""What runs a conversion: the graphs of a model, the rewritten graph, what is explained, and the ledger."""
